//! A call of an async function, from its first step on.
//!
//! Most calls that need no waiting end in that step. They are made, counted and done with here,
//! without a permit or a timer that Python would see.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::iterator::PySendResult;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::{BulkheadPermit, Counts, PYTHON, Slot};
use crate::calling;

/// An async function's call that goes on after its first step, or has made none.
#[pyclass(frozen, get_all, module = "kailash._native")]
pub(crate) struct BulkheadCall {
    /// None where nothing was called yet.
    permit: Option<Py<BulkheadPermit>>,
    /// What the function gave.
    awaitable: Py<PyAny>,
    /// Whether it is a coroutine that has made its first step, and what it awaits now.
    is_begun: bool,
    first: Option<Py<PyAny>>,
    /// What sets the current partition back.
    outer: Py<PyAny>,
    /// For how many seconds it has held its slot.
    ran: f64,
}

#[pymethods]
impl BulkheadCall {
    /// A call that has not begun.
    #[new]
    pub(super) fn not_begun(py: Python<'_>) -> Self {
        Self {
            permit: None,
            awaitable: py.None(),
            is_begun: false,
            first: None,
            outer: py.None(),
            ran: 0.0,
        }
    }

    /// What a task awaits leads back to the task, once nobody runs its loop any more.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.awaitable)?;
        visit.call(&self.first)?;
        visit.call(&self.outer)
    }
}

/// `inspect.CO_COROUTINE`.
const COROUTINE_FLAG: u32 = 0x80;

/// Whether what this function gives is to be awaited; TypeError if it is none.
pub(super) fn is_async(function: &Bound<'_, PyAny>) -> PyResult<bool> {
    static FUNCTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static JUDGE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = function.py();
    let is_plain = function.is_exact_instance(FUNCTION.import(py, "types", "FunctionType")?)
        || function.is_exact_instance(METHOD.import(py, "types", "MethodType")?);
    if is_plain && let Some(code) = function.getattr_opt(intern!(py, "__code__"))? {
        let flags = code.getattr(intern!(py, "co_flags"))?.extract::<u32>()?;
        if flags & COROUTINE_FLAG != 0 {
            return Ok(true);
        }
    }
    let judge = JUDGE.import(py, PYTHON, "_is_async")?;
    calling::is_true(&calling::call(judge, [function])?)
}

enum Step<'py> {
    Ended(Bound<'py, PyAny>),
    Goes(Bound<'py, PyAny>, Option<Bound<'py, PyAny>>),
}

/// Calls an async function in a slot, with `owner` as the current partition, and makes its first
/// step. Answers its result if it ended by that, else a [`BulkheadCall`].
pub(super) fn begin<'py>(
    slot: Slot,
    counts: &Arc<Counts>,
    owner: &Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    static SET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static RESET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = owner.py();
    let within = PyTuple::new(py, [owner])?;
    let outer = calling::call(SET.import(py, PYTHON, "_set")?, [within.as_any()])?;
    let reset = || calling::call(RESET.import(py, PYTHON, "_reset")?, [&outer]);
    let kwargs = (!kwargs.is_empty()).then_some(kwargs);
    match calling::call_all(function, args, kwargs).and_then(step) {
        Ok(Step::Ended(result)) => {
            slot.done(py, counts, true);
            reset().map(|_| result)
        }
        Ok(Step::Goes(awaitable, first)) => {
            let call = BulkheadCall {
                ran: slot.ran(),
                permit: Some(Py::new(py, BulkheadPermit::new(slot, counts))?),
                awaitable: awaitable.unbind(),
                is_begun: first.is_some(),
                first: first.map(Bound::unbind),
                outer: outer.unbind(),
            };
            Bound::new(py, call).map(Bound::into_any)
        }
        Err(error) => {
            slot.done(py, counts, false);
            reset()?;
            Err(error)
        }
    }
}

fn step(made: Bound<'_, PyAny>) -> PyResult<Step<'_>> {
    let py = made.py();
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static GUARDED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if !made.is_exact_instance(COROUTINE.import(py, "types", "CoroutineType")?)
        && !made.is_exact_instance(GUARDED.import(py, "kailash._native", "GuardedCoroutine")?)
    {
        return Ok(Step::Goes(made, None));
    }
    Ok(match calling::start(&made)? {
        PySendResult::Return(result) => Step::Ended(result),
        PySendResult::Next(first) => Step::Goes(made, Some(first)),
    })
}
