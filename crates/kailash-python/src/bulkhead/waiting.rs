//! A place in a partition's queue, for asyncio and for plain threads.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kailash::bulkhead::{OwnedPermit, Waiting};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::{BulkheadPartition, BulkheadPermit, lock, raise_full};
use crate::calling;
use crate::runtime::{self, attached, deliver, settle_function};

// How often a thread that waits looks whether the user pressed Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// A place in a queue.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadWaiting {
    waiting: Mutex<Option<Waiting>>,
    /// Done once there is something to look at.
    #[pyo3(get)]
    future: Py<PyAny>,
    waker: Waker,
    generation: u64,
}

impl BulkheadWaiting {
    pub(super) fn new(
        py: Python<'_>,
        waiting: Waiting,
        event_loop: Py<PyAny>,
        future: Py<PyAny>,
    ) -> Self {
        Self {
            future: future.clone_ref(py),
            waiting: Mutex::new(Some(waiting)),
            waker: Waker::from(Arc::new(LoopWaker { event_loop, future })),
            generation: runtime::generation(),
        }
    }
}

#[pymethods]
impl BulkheadWaiting {
    /// The slot, once it is there; None as long as the call must wait.
    fn poll(
        &self,
        py: Python<'_>,
        partition: &BulkheadPartition,
    ) -> PyResult<Option<BulkheadPermit>> {
        let mut place = lock(&self.waiting);
        let Some(waiting) = place.as_mut() else {
            let left = "the place in the queue was given up";
            return Err(PyRuntimeError::new_err(left));
        };
        match Pin::new(waiting).poll(&mut Context::from_waker(&self.waker)) {
            Poll::Pending => Ok(None),
            Poll::Ready(verdict) => {
                *place = None;
                drop(place);
                match verdict {
                    Ok(permit) => Ok(Some(partition.permit(permit))),
                    Err(full) => Err(raise_full(py, &full)),
                }
            }
        }
    }

    /// Leaves the queue, or gives back the slot that was handed over meanwhile.
    fn leave(&self, py: Python<'_>) {
        let waiting = lock(&self.waiting).take();
        if self.generation == runtime::generation() {
            attached(py, || drop(waiting));
        } else {
            std::mem::forget(waiting);
        }
    }

    /// Leaves the queue because the call's time is over; the exception for it.
    fn expire(&self, py: Python<'_>) -> PyErr {
        let Some(waiting) = lock(&self.waiting).take() else {
            return PyRuntimeError::new_err("the place in the queue was given up");
        };
        let full = attached(py, || waiting.expire());
        raise_full(py, &full)
    }
}

impl Drop for BulkheadWaiting {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            std::mem::forget(lock(&self.waiting).take());
        }
    }
}

struct LoopWaker {
    event_loop: Py<PyAny>,
    future: Py<PyAny>,
}

impl Wake for LoopWaker {
    fn wake(self: Arc<Self>) {
        deliver(move |py| {
            // A loop that has closed has nobody waiting on it; the place is given up with its owner.
            drop(self.tell(py));
        });
    }
}

impl LoopWaker {
    fn tell(&self, py: Python<'_>) -> PyResult<()> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let running = RUNNING
            .import(py, "asyncio", "_get_running_loop")?
            .call0()?;
        let settle = settle_function(py)?;
        let (settle, future, none) = (settle.bind(py), self.future.bind(py), py.None());
        let none = none.bind(py);
        if running.is(&self.event_loop) {
            // On the loop's own thread: it need not be woken.
            calling::call(settle, [future, none, none])?;
        } else {
            let name = intern!(py, "call_soon_threadsafe");
            let event_loop = self.event_loop.bind(py);
            calling::call_method(event_loop, name, [settle, future, none, none])?;
        }
        Ok(())
    }
}

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread, with Python's lock released, until the call has its slot.
pub(super) fn wait(py: Python<'_>, mut waiting: Waiting) -> PyResult<OwnedPermit> {
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(verdict) = Pin::new(&mut waiting).poll(&mut context) {
            return verdict.map_err(|full| raise_full(py, &full));
        }
        let left = waiting.time_left().unwrap_or(Duration::MAX);
        if left.is_zero() {
            let full = attached(py, || waiting.expire());
            return Err(raise_full(py, &full));
        }
        py.detach(|| {
            thread::park_timeout(left.min(SIGNAL_CHECK));
            runtime::stay_away_at_the_end();
        });
        py.check_signals()?;
    }
}
