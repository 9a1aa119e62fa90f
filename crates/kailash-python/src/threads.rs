//! The queue through which the Python threads of one owner get their work.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// Work for at most so many threads, which the owner starts when [`JobQueue::put`] says so.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct JobQueue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: VecDeque<Py<PyAny>>,
    threads: usize,
    most: usize,
    /// Threads that wait for work, those among them that have been woken and not yet run.
    idle: usize,
    is_closed: bool,
}

/// What a thread is to do.
enum Next {
    Run(Py<PyAny>),
    End,
}

#[pymethods]
impl JobQueue {
    #[new]
    fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                threads: 0,
                most,
                idle: 0,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a job. True if a thread more is to be started for it, which is counted already.
    fn put(&self, py: Python<'_>, job: Py<PyAny>) -> bool {
        let mut state = self.lock();
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle {
            return state.grow();
        }
        drop(state);
        // Without Python's lock, which the thread needs as soon as it is woken.
        py.detach(|| self.changed.notify_one());
        false
    }

    /// The next job; None if the thread is to end, which is counted already: nothing came within so
    /// many seconds, or there are too many threads.
    fn get(&self, py: Python<'_>, patience: f64) -> Option<Py<PyAny>> {
        let next = {
            let mut state = self.lock();
            let next = state.next();
            if next.is_none() {
                state.idle += 1;
            }
            next
        };
        let next = next.or_else(|| py.detach(|| self.wait(patience)));
        match next? {
            Next::Run(job) => Some(job),
            Next::End => None,
        }
    }

    /// Changes how many threads there may be; how many more are to be started now.
    fn resize(&self, most: usize) -> usize {
        let mut state = self.lock();
        state.most = most;
        let missing = state.jobs.len().saturating_sub(state.idle);
        let started = (0..missing).take_while(|_| state.grow()).count();
        drop(state);
        self.changed.notify_all();
        started
    }

    /// A thread that was to be started, for this job or none, could not be. False if another thread
    /// has taken the job; else it is taken back.
    fn without_thread(&self, job: Option<&Bound<'_, PyAny>>) -> bool {
        let mut state = self.lock();
        state.threads -= 1;
        let place = job.and_then(|job| state.jobs.iter().position(|other| other.is(job)));
        let taken_back = place.and_then(|place| state.jobs.remove(place));
        drop(state);
        taken_back.is_some()
    }

    /// Has all threads end once nothing is left to do.
    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as an idle thread.
    fn wait(&self, patience: f64) -> Option<Next> {
        let patience = Duration::try_from_secs_f64(patience).unwrap_or(Duration::MAX);
        let since = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(next) = state.next() {
                state.idle -= 1;
                return Some(next);
            }
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                state.idle -= 1;
                state.threads -= 1;
                return None;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn next(&mut self) -> Option<Next> {
        if self.threads > self.most || (self.is_closed && self.jobs.is_empty()) {
            self.threads -= 1;
            return Some(Next::End);
        }
        self.jobs.pop_front().map(Next::Run)
    }

    /// Counts a thread more, if there may be one.
    fn grow(&mut self) -> bool {
        let may = self.threads < self.most;
        self.threads += usize::from(may);
        may
    }
}
