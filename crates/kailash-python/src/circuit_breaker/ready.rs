//! Waiting for a breaker, for asyncio and for plain threads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker as Breaker, State};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::calling;
use crate::config;
use crate::deadline::{Deadline, Then};
use crate::runtime::{self, Carried, Task, deliver, settle_soon};

/// What is waited for.
#[derive(Clone, Copy)]
pub(super) enum Until {
    Ready,
    Closed,
}

impl Until {
    /// Waits, and answers whether it was reached in time.
    async fn reached(self, breaker: Breaker, within: Option<Duration>) -> bool {
        let wait = async {
            match self {
                Self::Ready => breaker.ready().await,
                Self::Closed => breaker.wait_until_closed().await,
            }
        };
        let Some(within) = within else {
            wait.await;
            return true;
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }
}

/// Whether there is nothing to wait for, as far as that can be said without the runtime.
fn is_closed(breaker: &Breaker) -> bool {
    !matches!(breaker.state(), State::Open | State::HalfOpen)
}

/// A wait, which is given up when this is let go.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreakerWaiting {
    /// Whether what is waited for was reached in time.
    #[pyo3(get)]
    future: Py<PyAny>,
    // By which the loop keeps the future alive.
    kept: Mutex<Option<Arc<Deadline>>>,
    task: Task,
}

#[pymethods]
impl CircuitBreakerWaiting {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.future)
    }

    /// Gives the wait up.
    fn leave(&self) {
        self.task.give_up();
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(kept);
    }
}

/// Begins a wait whose future belongs to this loop; None where there is nothing to wait for.
pub(super) fn begin(
    breaker: &Breaker,
    until: Until,
    timeout: Option<&Bound<'_, PyAny>>,
    event_loop: &Bound<'_, PyAny>,
) -> PyResult<Option<CircuitBreakerWaiting>> {
    let within = seconds(timeout)?;
    if is_closed(breaker) {
        return Ok(None);
    }
    let py = event_loop.py();
    let future = calling::call_method(event_loop, intern!(py, "create_future"), [])?;
    // Rust holds no future: where the loop has closed, it would keep the task that waits from being
    // collected, and so the wait from being given up.
    let then = Then::Settle(future.clone().unbind());
    let kept = Arc::new(Deadline::set(event_loop, f64::INFINITY, then)?);
    let (breaker, to) = (breaker.clone(), Arc::downgrade(&kept));
    let event_loop = Carried::new(event_loop.clone().unbind());
    let task = Task::spawn(async move {
        let reached = until.reached(breaker, within).await;
        deliver(move |py| {
            let Some(future) = to.upgrade().and_then(|kept| kept.take_future()) else {
                return;
            };
            let reached = reached.into_pyobject(py).expect("infallible");
            let reached = reached.to_owned().into_any().unbind();
            settle_soon(py, &event_loop.into_inner(), future, reached, py.None());
        });
    })?;
    Ok(Some(CircuitBreakerWaiting {
        future: future.unbind(),
        kept: Mutex::new(Some(kept)),
        task,
    }))
}

/// Waits on this thread, with Python's lock released; whether it was reached in time.
pub(super) fn wait(
    py: Python<'_>,
    breaker: &Breaker,
    until: Until,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let within = seconds(timeout)?;
    if is_closed(breaker) {
        return Ok(true);
    }
    runtime::wait(py, until.reached(breaker.clone(), within))
}

fn seconds(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    let read = |timeout| config::seconds("timeout", timeout);
    timeout.map(read).transpose()
}
