//! A call of an async function, from its first step on.
//!
//! Most calls that need no waiting end in that step. They are made, counted and done with here,
//! without a permit or a timer that Python would see.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::iterator::PySendResult;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::BulkheadPermit;
use crate::calling;

/// An async function's call that goes on after its first step, or has made none.
#[pyclass(frozen, get_all, module = "kailash._native")]
pub(crate) struct BulkheadCall {
    /// None where there was no free slot, and nothing was called.
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
}

enum Step<'py> {
    Ended(Bound<'py, PyAny>),
    Goes(Bound<'py, PyAny>, Option<Bound<'py, PyAny>>),
}

/// Calls an async function in a slot and makes its first step. Answers its result if it ended by
/// that, else a [`BulkheadCall`].
pub(super) fn begin<'py>(
    permit: BulkheadPermit,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
    outer: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let kwargs = (!kwargs.is_empty()).then_some(kwargs);
    match calling::call_all(function, args, kwargs).and_then(step) {
        Ok(Step::Ended(result)) => {
            permit.end(py, true);
            Ok(result)
        }
        Ok(Step::Goes(awaitable, first)) => {
            let call = BulkheadCall {
                ran: permit.ran(),
                permit: Some(Py::new(py, permit)?),
                awaitable: awaitable.unbind(),
                is_begun: first.is_some(),
                first: first.map(Bound::unbind),
                outer: outer.clone().unbind(),
            };
            Bound::new(py, call).map(Bound::into_any)
        }
        Err(error) => {
            permit.end(py, false);
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
