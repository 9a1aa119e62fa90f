//! A place in a partition's queue, for asyncio and for plain threads.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kailash::bulkhead::{Full, OwnedPermit, Waiting};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::{BulkheadPermit, Counts, Slot, call, lock, raise_full};
use crate::calling;
use crate::deadline::{Deadline, Then, settle};
use crate::runtime::{self, attached, deliver, settle_function};

// How often a thread that waits looks whether the user pressed Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// A place in a queue.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadWaiting {
    place: Arc<Place>,
    counts: Arc<Counts>,
}

struct Place {
    state: Mutex<State>,
    generation: u64,
}

struct State {
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
        let state = State {
            stage: Stage::Waits(waiting),
            deadline: None,
        };
        let place = Place {
            state: Mutex::new(state),
            generation: runtime::generation(),
        };
        Self {
            place: Arc::new(place),
            counts,
        }
    }

    fn slot(&self, py: Python<'_>) -> PyResult<Slot> {
        let mut stage = self.place.end();
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

impl Place {
    /// What there was, of which nothing is left in here.
    fn end(&self) -> Stage {
        let (stage, deadline) = {
            let mut state = lock(&self.state);
            let stage = mem::replace(&mut state.stage, Stage::Left);
            (stage, state.deadline.take())
        };
        drop(deadline);
        if self.generation == runtime::generation() {
            return stage;
        }
        // The place is the parent's.
        mem::forget(stage);
        Stage::Left
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
            place: Arc::downgrade(&self.place),
        }));
        let then = Then::Settle(future.clone().unbind());
        let deadline = Deadline::set(event_loop, deadline.unwrap_or(f64::INFINITY), then)?;
        // A slot that comes meanwhile is told of without the lock.
        let (waits, before) = attached(event_loop.py(), || {
            let mut state = lock(&self.place.state);
            state.stage.look(&waker);
            let before = state.deadline.replace(deadline);
            (matches!(state.stage, Stage::Waits(_)), before)
        });
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
        let stage = self.place.end();
        attached(py, || drop(stage));
    }
}

impl Drop for BulkheadWaiting {
    fn drop(&mut self) {
        drop(self.place.end());
    }
}

struct LoopWaker {
    event_loop: Py<PyAny>,
    // It leads to the task that waits, which is the loop's to keep.
    place: Weak<Place>,
}

impl Wake for LoopWaker {
    fn wake(self: Arc<Self>) {
        deliver(move |py| {
            let Some(place) = self.place.upgrade() else {
                return;
            };
            let deadline = |state: &State| state.deadline.as_ref()?.take_future();
            let future = deadline(&lock(&place.state));
            let is_told = future.is_some_and(|future| self.tell(future.bind(py)).is_ok());
            // A loop that has closed has nobody waiting on it, and what is left of its tasks may
            // never be collected: the slot goes to the next.
            if !is_told && self.has_closed(py) {
                drop(place.end());
            }
        });
    }
}

impl LoopWaker {
    fn tell(&self, future: &Bound<'_, PyAny>) -> PyResult<()> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = future.py();
        let running = RUNNING.import(py, "asyncio", "_get_running_loop")?;
        let running = calling::call(running, [])?;
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

    fn has_closed(&self, py: Python<'_>) -> bool {
        let name = intern!(py, "is_closed");
        let closed = calling::call_method(self.event_loop.bind(py), name, []);
        closed.is_ok_and(|closed| closed.is_truthy().unwrap_or(false))
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
