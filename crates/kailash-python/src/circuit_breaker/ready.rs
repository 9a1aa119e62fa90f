//! Waiting for a breaker, for asyncio and for plain threads.

use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker as Breaker, State};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::calling;
use crate::config;
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
    let future = future.unbind();
    let (breaker, to) = (breaker.clone(), Carried::new(future.clone_ref(py)));
    let event_loop = Carried::new(event_loop.clone().unbind());
    let task = Task::spawn(async move {
        let reached = until.reached(breaker, within).await;
        deliver(move |py| {
            let reached = reached.into_pyobject(py).expect("infallible");
            let reached = reached.to_owned().into_any().unbind();
            let (event_loop, to) = (event_loop.into_inner(), to.into_inner());
            settle_soon(py, &event_loop, to, reached, py.None());
        });
    })?;
    Ok(Some(CircuitBreakerWaiting { future, task }))
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
