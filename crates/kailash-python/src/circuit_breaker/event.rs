//! Carries what happens to breakers to Python.

use std::sync::{Arc, Mutex, PoisonError};

use kailash::circuit_breaker::{Event, EventKind, Events, Outcome};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList};
use tokio::sync::oneshot;

use crate::runtime::{Carried, Task, deliver};

// As many events at most are told at once.
const BATCH: usize = 256;

/// What tells of breakers, until it is let go.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreakerSubscription {
    _task: Task,
}

/// Has `callback(from, to)` called on the courier's thread at each transition.
pub(super) fn listen(
    mut events: Events,
    callback: Py<PyAny>,
) -> PyResult<CircuitBreakerSubscription> {
    let callback = Carried::new(callback);
    let task = Task::spawn(async move {
        let callback = Arc::new(callback);
        while let Some(event) = events.recv().await {
            if let EventKind::Transition(transition) = event.kind {
                let callback = Arc::clone(&callback);
                deliver(move |py| {
                    let (from, to) = (transition.from.as_str(), transition.to.as_str());
                    if let Err(error) = callback.get().call1(py, (from, to)) {
                        error.write_unraisable(py, None);
                    }
                });
            }
        }
    });
    task.map(|task| CircuitBreakerSubscription { _task: task })
}

/// Has `callback(events, done)` called on the courier's thread.
///
/// The next events are taken once `done` was called or nobody can call it any more, so that a
/// subscriber that is too slow loses the oldest and is told how many, and nothing piles up.
pub(super) fn subscribe(
    mut events: Events,
    callback: Py<PyAny>,
) -> PyResult<CircuitBreakerSubscription> {
    let callback = Carried::new(callback);
    let task = Task::spawn(async move {
        let callback = Arc::new(callback);
        while let Some(first) = events.recv().await {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Some(event) = events.try_recv()
            {
                batch.push(event);
            }
            let (done, heard) = oneshot::channel();
            let callback = Arc::clone(&callback);
            deliver(move |py| {
                if let Err(error) = tell(py, callback.get(), &batch, done) {
                    error.write_unraisable(py, None);
                }
            });
            // An error says that nobody will do more about these.
            let _ = heard.await;
        }
    });
    task.map(|task| CircuitBreakerSubscription { _task: task })
}

fn tell(
    py: Python<'_>,
    callback: &Py<PyAny>,
    batch: &[Event],
    done: oneshot::Sender<()>,
) -> PyResult<()> {
    let done = Mutex::new(Some(done));
    let done = PyCFunction::new_closure(py, None, None, move |_, _| {
        let done = done.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Gone with its subscription: nobody waits any more.
        let _ = done.map(|done| done.send(()));
    })?;
    let list = PyList::empty(py);
    for event in batch {
        if let Some(event) = to_python(py, event)? {
            list.append(event)?;
        }
    }
    callback.call1(py, (list, done)).map(drop)
}

fn to_python<'py>(py: Python<'py>, event: &Event) -> PyResult<Option<Bound<'py, PyDict>>> {
    let dict = PyDict::new(py);
    dict.set_item("breaker", &*event.breaker)?;
    let kind = match event.kind {
        EventKind::Transition(transition) => {
            dict.set_item("old_state", transition.from.as_str())?;
            dict.set_item("new_state", transition.to.as_str())?;
            dict.set_item("cause", transition.cause.as_str())?;
            dict.set_item("forced", transition.forced)?;
            let wait = transition.wait.map(|wait| wait.as_secs_f64());
            dict.set_item("wait", wait)?;
            "transition"
        }
        EventKind::Rejected => "rejected",
        EventKind::Ended {
            outcome,
            ran,
            is_slow,
        } => {
            if let Outcome::RetryAfter(wait) = outcome {
                dict.set_item("retry_after", wait.as_secs_f64())?;
            }
            dict.set_item("outcome", word(outcome))?;
            dict.set_item("ran", ran.map(|ran| ran.as_secs_f64()))?;
            dict.set_item("is_slow", is_slow)?;
            "ended"
        }
        EventKind::Lost(lost) => {
            dict.set_item("lost", lost)?;
            "lost"
        }
        // Told of once this has a word for it.
        _ => return Ok(None),
    };
    dict.set_item("kind", kind)?;
    Ok(Some(dict))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Failure | Outcome::RetryAfter(_) => "failure",
        Outcome::Ignored => "ignored",
        Outcome::Cancelled => "cancelled",
    }
}
