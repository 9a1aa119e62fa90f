//! When the time of calls is over, by the clocks of event loops; and what loops keep alive.
//!
//! Nearly all deadlines are taken back before they come, and a timer of a loop's takes longer to
//! set and to cancel than all else that a wait is made of. So there is one for all deadlines of a
//! loop: it is set for the first, is left to ring though nobody may care for it any more, and is
//! then set for the next.
//!
//! The timers also keep alive the futures that are waited for: a loop that closes drops its timers,
//! and with them the futures and the tasks behind them, which Rust must not hold any longer.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefMethods, PyWeakrefReference};

use crate::calling;

// How far ahead a timer rings at most, in seconds: no loop waits for ever, and some not for long.
const LONGEST: f64 = 86_400.0;

/// What is done when a deadline comes.
pub(crate) enum Then {
    /// This future of the loop's is done, which lives until then or until the loop closes.
    Settle(Py<PyAny>),
    /// `expire()` is called on what this leads to. It does not keep it alive: who has nobody else is
    /// collected, though the loop may never run again.
    Expire(Py<PyWeakrefReference>),
}

/// A deadline that has not come yet; dropped, it is taken back.
pub(crate) struct Deadline {
    // The loop's timers hold them.
    all: Weak<Deadlines>,
    key: Key,
}

impl Deadline {
    /// A deadline that comes when the loop's clock shows `at`; at infinity, it never does.
    pub(crate) fn set(event_loop: &Bound<'_, PyAny>, at: f64, then: Then) -> PyResult<Self> {
        let all = Deadlines::of(event_loop)?;
        let (key, rings) = {
            let mut state = lock(&all.state);
            state.set += 1;
            let key = (Moment(at), state.set);
            state.set_for.insert(key, then);
            (key, state.rings_by(at))
        };
        if !rings {
            all.set_timer(event_loop)?;
        }
        let all = Arc::downgrade(&all);
        Ok(Self { all, key })
    }

    /// The future, as what is waited for has come before the deadline; None if the deadline came
    /// first, or the loop has closed.
    pub(crate) fn take_future(&self) -> Option<Py<PyAny>> {
        match self.take()? {
            Then::Settle(future) => Some(future),
            Then::Expire(_) => None,
        }
    }

    fn take(&self) -> Option<Then> {
        let all = self.all.upgrade()?;
        lock(&all.state).set_for.remove(&self.key)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // Without the lock: it may be the last to know what was to be done.
        drop(self.take());
    }
}

/// When, and the how manieth that was set.
type Key = (Moment, u64);

/// What a loop's clock shows.
#[derive(Clone, Copy)]
struct Moment(f64);

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Moment {}

thread_local! {
    /// Those of the loop that was asked for last on this thread.
    static NEWEST: RefCell<Weak<Deadlines>> = const { RefCell::new(Weak::new()) };
}

/// The deadlines of one loop; there may be more of them, which all keep to this.
struct Deadlines {
    event_loop: Py<PyWeakrefReference>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    set_for: BTreeMap<Key, Then>,
    /// How many deadlines have been set.
    set: u64,
    /// When the loop's timers will ring, the first of them last: each was set to ring before those
    /// that there were.
    timers: Vec<f64>,
}

impl State {
    fn rings_by(&self, at: f64) -> bool {
        self.timers.last().is_some_and(|timer| *timer <= at)
    }
}

impl Deadlines {
    fn of(event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let newest = NEWEST.with_borrow(Weak::upgrade);
        if let Some(newest) = newest {
            let known = newest.event_loop.bind(event_loop.py()).upgrade();
            if known.is_some_and(|known| known.is(event_loop)) {
                return Ok(newest);
            }
        }
        let made = Arc::new(Self {
            event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
            state: Mutex::default(),
        });
        NEWEST.set(Arc::downgrade(&made));
        Ok(made)
    }

    /// Has a timer ring no later than the first deadline.
    fn set_timer(self: &Arc<Self>, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let first = {
            let state = lock(&self.state);
            let Some(&(Moment(first), _)) = state.set_for.keys().next() else {
                return Ok(());
            };
            if state.rings_by(first) {
                return Ok(());
            }
            first
        };
        let at = first.min(time(event_loop)? + LONGEST);
        let py = event_loop.py();
        let bell = Bell {
            deadlines: Arc::clone(self),
            at,
        };
        // The caller's context would be kept until the timer rings.
        let context = py.import(intern!(py, "contextvars"))?;
        let context = context.getattr(intern!(py, "Context"))?.call0()?;
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "context"), context)?;
        let call_at = event_loop.getattr(intern!(py, "call_at"))?;
        let when = (at, bell).into_pyobject(py)?;
        calling::call_all(&call_at, &when, Some(&keywords))?;
        lock(&self.state).timers.push(at);
        Ok(())
    }
}

/// What a loop's timer calls.
#[pyclass(frozen, module = "kailash._native")]
struct Bell {
    deadlines: Arc<Deadlines>,
    at: f64,
}

#[pymethods]
impl Bell {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let all = &self.deadlines;
        let Some(event_loop) = all.event_loop.bind(py).upgrade() else {
            return Ok(());
        };
        // Loops ring early, by what their clock cannot tell apart.
        let now = time(&event_loop)?.max(self.at);
        let due = {
            let mut state = lock(&all.state);
            while state.timers.pop_if(|timer| *timer <= now).is_some() {}
            let later = state.set_for.split_off(&(Moment(now), u64::MAX));
            mem::replace(&mut state.set_for, later)
        };
        for then in due.values() {
            match then {
                Then::Settle(future) => settle(future.bind(py)),
                Then::Expire(owner) => {
                    let owner = owner.bind(py).upgrade();
                    let expire = |owner| calling::call_method(owner, intern!(py, "expire"), []);
                    if let Some(Err(error)) = owner.as_ref().map(expire) {
                        error.write_unraisable(py, owner.as_ref());
                    }
                }
            }
        }
        all.set_timer(&event_loop)
    }
}

/// What the loop's clock shows.
fn time(event_loop: &Bound<'_, PyAny>) -> PyResult<f64> {
    let name = intern!(event_loop.py(), "time");
    calling::call_method(event_loop, name, [])?.extract()
}

/// Has `owner.expire()` called when a loop's clock shows a time, unless it is cancelled before.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadDeadline(Mutex<Option<Deadline>>);

#[pymethods]
impl BulkheadDeadline {
    #[new]
    fn new(event_loop: &Bound<'_, PyAny>, at: f64, owner: &Bound<'_, PyAny>) -> PyResult<Self> {
        let then = Then::Expire(PyWeakrefReference::new(owner)?.unbind());
        let deadline = Deadline::set(event_loop, at, then)?;
        Ok(Self(Mutex::new(Some(deadline))))
    }

    /// Takes it back.
    fn cancel(&self) {
        let deadline = lock(&self.0).take();
        drop(deadline);
    }
}

/// Makes a future of the loop that runs on this thread done; it may be so already, or its loop may
/// have closed.
pub(crate) fn settle(future: &Bound<'_, PyAny>) {
    let none = future.py().None();
    let name = intern!(future.py(), "set_result");
    drop(calling::call_method(future, name, [none.bind(future.py())]));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
