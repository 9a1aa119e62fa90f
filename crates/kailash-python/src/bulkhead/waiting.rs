//! A place in a partition's queue, for asyncio and for plain threads.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kailash::bulkhead::{Full, OwnedPermit, Waiting};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::deadline::{Deadline, Then};
use super::{BulkheadPermit, Counts, Slot, call, lock, raise_full};
use crate::calling;
use crate::runtime::{self, attached, deliver, settle_function};

// How often a thread that waits looks whether the user pressed Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// A place in a queue.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadWaiting {
    place: Mutex<Place>,
    counts: Arc<Counts>,
    generation: u64,
}

struct Place {
    stage: Stage,
    deadline: Option<Deadline>,
}

enum Stage {
    Waits(Waiting),
    Over(Result<OwnedPermit, Full>),
    /// Given up, or taken.
    Left,
}

impl Stage {
    /// Has `waker` woken when the wait ends, unless it has ended.
    fn look(&mut self, waker: &Waker) {
        if let Self::Waits(waiting) = self
            && let Poll::Ready(verdict) = Pin::new(waiting).poll(&mut Context::from_waker(waker))
        {
            *self = Self::Over(verdict);
        }
    }
}

impl BulkheadWaiting {
    pub(super) fn new(waiting: Waiting, counts: Arc<Counts>) -> Self {
        Self {
            place: Mutex::new(Place {
                stage: Stage::Waits(waiting),
                deadline: None,
            }),
            counts,
            generation: runtime::generation(),
        }
    }

    /// What there was, of which nothing is left in here.
    fn end(&self) -> Stage {
        let (stage, deadline) = {
            let mut place = lock(&self.place);
            let stage = mem::replace(&mut place.stage, Stage::Left);
            (stage, place.deadline.take())
        };
        drop(deadline);
        if self.generation == runtime::generation() {
            return stage;
        }
        // The place is the parent's.
        mem::forget(stage);
        Stage::Left
    }

    fn slot(&self, py: Python<'_>) -> PyResult<Slot> {
        let mut stage = self.end();
        stage.look(Waker::noop());
        let verdict = match stage {
            Stage::Over(verdict) => verdict,
            Stage::Waits(waiting) => Err(attached(py, || waiting.expire())),
            Stage::Left => {
                let left = "the place in the queue was given up";
                return Err(PyRuntimeError::new_err(left));
            }
        };
        verdict.map(Slot::new).map_err(|full| raise_full(py, &full))
    }
}

#[pymethods]
impl BulkheadWaiting {
    /// Has this future of the loop's done once there is something to take, at the deadline at the
    /// latest; it is a time of the loop's.
    fn tell(
        &self,
        event_loop: &Bound<'_, PyAny>,
        future: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<()> {
        let waker = Waker::from(Arc::new(LoopWaker {
            event_loop: event_loop.clone().unbind(),
            future: future.clone().unbind(),
        }));
        let deadline = deadline.map(|at| {
            let then = Then::Settle(future.clone().unbind());
            Deadline::set(event_loop, at, then)
        });
        let deadline = deadline.transpose()?;
        let (waits, before) = {
            let mut place = lock(&self.place);
            place.stage.look(&waker);
            let before = mem::replace(&mut place.deadline, deadline);
            (matches!(place.stage, Stage::Waits(_)), before)
        };
        drop(before);
        if !waits {
            settle(future);
        }
        Ok(())
    }

    /// The slot; where there is none by now, the call's time is over.
    fn take(&self, py: Python<'_>) -> PyResult<BulkheadPermit> {
        let slot = self.slot(py)?;
        Ok(BulkheadPermit::new(slot, &self.counts))
    }

    /// Takes the slot and calls an async function in it, as BulkheadPartition.begin does.
    fn begin<'py>(
        &self,
        owner: &Bound<'py, PyAny>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let slot = self.slot(owner.py())?;
        call::begin(slot, &self.counts, owner, function, args, kwargs)
    }

    /// Leaves the queue, or gives back the slot that was handed over meanwhile.
    fn leave(&self, py: Python<'_>) {
        let stage = self.end();
        attached(py, || drop(stage));
    }
}

impl Drop for BulkheadWaiting {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Makes a future of the loop that runs on this thread done; it may be so already, or its loop may
/// have closed.
pub(super) fn settle(future: &Bound<'_, PyAny>) {
    let none = future.py().None();
    let name = intern!(future.py(), "set_result");
    drop(calling::call_method(future, name, [none.bind(future.py())]));
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
        let running = RUNNING.import(py, "asyncio", "_get_running_loop")?;
        let running = calling::call(running, [])?;
        let future = self.future.bind(py);
        if running.is(&self.event_loop) {
            // On the loop's own thread: it need not be woken.
            settle(future);
            return Ok(());
        }
        let (settle, none) = (settle_function(py)?, py.None());
        let (settle, none) = (settle.bind(py), none.bind(py));
        let name = intern!(py, "call_soon_threadsafe");
        calling::call_method(self.event_loop.bind(py), name, [settle, future, none, none])?;
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
