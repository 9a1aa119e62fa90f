//! What counts as a failure: only Python can look at its errors and results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use kailash::circuit_breaker::Outcome;
use pyo3::exceptions::{PyBaseExceptionGroup, PyException};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, ffi, intern};

use super::guarded;
use crate::calling;
use crate::config;

/// Judges the calls of one breaker, or of all breakers of a group. An object of Python's, so that
/// several may have it and the collector still finds one owner of what it refers to.
#[pyclass(frozen, module = "kailash._native")]
#[derive(Default)]
pub(super) struct Judge {
    rules: ArcSwap<Rules>,
    /// Whether it looks at results too, so that most calls need not load the rules.
    judges_results: AtomicBool,
}

#[derive(Default)]
struct Rules {
    /// Exceptions that say nothing about the dependency.
    neutral: Option<Py<PyTuple>>,
    /// Whether the class of an exception alone tells if it is neutral: no metaclass has a say.
    goes_by_class: bool,
    is_failure: Option<Py<PyAny>>,
    /// How many seconds a failure asks to be left alone, or None.
    retry_after: Option<Py<PyAny>>,
}

impl Rules {
    /// What a failure comes to; where the judge raises, it counts all the same.
    fn failed(&self, outcome: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        let Some(retry_after) = &self.retry_after else {
            return (Outcome::Failure, Ok(()));
        };
        let answer = calling::call(retry_after.bind(outcome.py()), [outcome]);
        let wait = answer.and_then(|answer| {
            let seconds = |answer| config::seconds("retry_after", answer);
            (!answer.is_none()).then(|| seconds(&answer)).transpose()
        });
        match wait {
            Ok(None) => (Outcome::Failure, Ok(())),
            Ok(Some(wait)) => (Outcome::RetryAfter(wait), Ok(())),
            Err(raised) => (Outcome::Failure, Err(raised)),
        }
    }
}

#[pymethods]
impl Judge {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let rules = self.rules.load();
        visit.call(&rules.neutral)?;
        visit.call(&rules.is_failure)?;
        visit.call(&rules.retry_after)
    }

    fn __clear__(&self) {
        self.rules.store(Arc::default());
    }
}

impl Judge {
    /// Exceptions of these classes are neutral; `is_failure` is asked about all others and results,
    /// `retry_after` about failures.
    pub(super) fn judge_by(
        &self,
        neutral: &Bound<'_, PyTuple>,
        is_failure: Option<Py<PyAny>>,
        retry_after: Option<Py<PyAny>>,
    ) {
        let judges_results = is_failure.is_some();
        let plain = neutral.py().get_type::<PyType>();
        self.rules.store(Arc::new(Rules {
            neutral: Some(neutral.clone().unbind()),
            goes_by_class: neutral.iter().all(|class| class.get_type().is(&plain)),
            is_failure,
            retry_after,
        }));
        self.judges_results.store(judges_results, Ordering::Release);
    }

    /// How a call ended that returned, and what the judge raised, which makes it a failure.
    #[inline]
    pub(super) fn result(&self, result: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        if self.judges_results.load(Ordering::Acquire) {
            self.ask(result)
        } else {
            (Outcome::Success, Ok(()))
        }
    }

    /// How a call ended that raised, where the exception's class alone tells: `is_any_of` whether it
    /// is one of these classes.
    #[inline]
    pub(super) fn class(
        &self,
        is_exception: bool,
        is_any_of: impl FnOnce(*mut ffi::PyObject) -> bool,
        is_group: impl FnOnce() -> bool,
    ) -> Option<Outcome> {
        if !is_exception {
            return Some(Outcome::Cancelled);
        }
        let rules = self.rules.load();
        let neutral = rules.neutral.as_ref()?;
        if !rules.goes_by_class || rules.is_failure.is_some() || rules.retry_after.is_some() {
            return None;
        }
        if is_any_of(neutral.as_ptr()) {
            return Some(Outcome::Ignored);
        }
        // Its class does not tell what a group has in it.
        (!is_group()).then_some(Outcome::Failure)
    }

    /// How a call ended that raised, and what the judge raised in its turn.
    pub(super) fn error(&self, error: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        if !error.is_instance_of::<PyException>() {
            return (Outcome::Cancelled, Ok(()));
        }
        let rules = self.rules.load_full();
        if let Some(neutral) = &rules.neutral {
            match is_neutral(error, neutral.bind(error.py())) {
                Ok(true) => return (Outcome::Ignored, Ok(())),
                Ok(false) => {}
                Err(raised) => return (Outcome::Failure, Err(raised)),
            }
        }
        match (&rules.is_failure, &rules.retry_after) {
            (None, None) => (Outcome::Failure, Ok(())),
            (None, Some(_)) => guarded::handling(error, || rules.failed(error)),
            (Some(_), _) => guarded::handling(error, || self.ask(error)),
        }
    }

    #[cold]
    fn ask(&self, outcome: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        let rules = self.rules.load_full();
        let Some(is_failure) = &rules.is_failure else {
            return (Outcome::Success, Ok(()));
        };
        let answer = calling::call(is_failure.bind(outcome.py()), [outcome]);
        match answer.and_then(|answer| calling::is_true(&answer)) {
            Ok(false) => (Outcome::Success, Ok(())),
            Ok(true) => rules.failed(outcome),
            Err(raised) => (Outcome::Failure, Err(raised)),
        }
    }
}

/// Whether it is of one of these classes, or a group of nothing else, as of tasks that an inner
/// breaker refused.
fn is_neutral(error: &Bound<'_, PyAny>, classes: &Bound<'_, PyTuple>) -> PyResult<bool> {
    let mut left = Vec::new();
    let mut error = error.clone();
    loop {
        if !is_instance(&error, classes)? {
            if !error.is_instance_of::<PyBaseExceptionGroup>() {
                return Ok(false);
            }
            let members = members(&error)?;
            left.extend(members.cast_into::<PyTuple>()?.iter());
        }
        match left.pop() {
            Some(next) => error = next,
            None => return Ok(true),
        }
    }
}

/// What a group has in it, whatever a class of a user's says of it.
fn members<'py>(group: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = group.py();
    let class = py.get_type::<PyBaseExceptionGroup>();
    let member = class.getattr(intern!(py, "exceptions"))?;
    member.call_method1(intern!(py, "__get__"), (group,))
}

/// What `isinstance` says, which may ask a metaclass of a user's.
fn is_instance(error: &Bound<'_, PyAny>, classes: &Bound<'_, PyTuple>) -> PyResult<bool> {
    static ISINSTANCE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let isinstance = ISINSTANCE.import(error.py(), "builtins", "isinstance")?;
    calling::call(isinstance, [error, classes.as_any()])?.is_truthy()
}
