//! The queue through which the Python threads of one owner get their work.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// Work for at most so many threads, which the owner starts when [`JobQueue::put`] says so.
///
/// Of several idle threads the last one to become idle works first: what it needs is still at hand,
/// and those that are not needed stay idle and end.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct JobQueue(Mutex<State>);

struct State {
    jobs: VecDeque<Py<PyAny>>,
    threads: usize,
    most: usize,
    /// Threads that will ask for a job without being woken: just started, or done with their work.
    coming: usize,
    /// Threads that wait to be woken, none of which has been.
    idle: Vec<Arc<Sleeper>>,
    is_closed: bool,
}

/// A thread that waits for what it is to do.
#[derive(Default)]
struct Sleeper {
    next: Mutex<Option<Next>>,
    woken: Condvar,
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
        Self(Mutex::new(State {
            jobs: VecDeque::new(),
            threads: 0,
            most,
            coming: 0,
            idle: Vec::new(),
            is_closed: false,
        }))
    }

    /// Adds a job. True if a thread more is to be started for it, which is counted already.
    fn put(&self, py: Python<'_>, job: Py<PyAny>) -> bool {
        let mut state = lock(&self.0);
        state.jobs.push_back(job);
        if state.jobs.len() <= state.coming {
            return false;
        }
        let Some(sleeper) = state.idle.pop() else {
            return state.grow();
        };
        let job = state.jobs.pop_front().expect("one was just added");
        drop(state);
        // Without Python's lock, which the thread needs as soon as it is woken.
        py.detach(|| sleeper.wake(Next::Run(job)));
        false
    }

    /// A thread is done with its job and about to ask for the next.
    fn come(&self) {
        lock(&self.0).coming += 1;
    }

    /// The next job, for a thread that is coming; None if it is to end, which is counted already:
    /// nothing came within so many seconds, or there are too many threads.
    fn get(&self, py: Python<'_>, patience: f64) -> Option<Py<PyAny>> {
        let mut state = lock(&self.0);
        state.coming -= 1;
        let next = match state.next() {
            Some(next) => next,
            None => {
                let sleeper = Arc::new(Sleeper::default());
                state.idle.push(Arc::clone(&sleeper));
                drop(state);
                py.detach(|| self.sleep(&sleeper, patience))
            }
        };
        match next {
            Next::Run(job) => Some(job),
            Next::End => None,
        }
    }

    /// Changes how many threads there may be; how many more are to be started now.
    fn resize(&self, most: usize) -> usize {
        let mut state = lock(&self.0);
        state.most = most;
        while state.threads > most && state.end_one() {}
        let missing = state.jobs.len().saturating_sub(state.coming);
        (0..missing).take_while(|_| state.grow()).count()
    }

    /// A thread that was to be started, for this job or none, could not be. False if another thread
    /// has taken the job; else it is taken back.
    fn without_thread(&self, job: Option<&Bound<'_, PyAny>>) -> bool {
        let mut state = lock(&self.0);
        state.threads -= 1;
        state.coming -= 1;
        let place = job.and_then(|job| state.jobs.iter().position(|other| other.is(job)));
        let taken_back = place.and_then(|place| state.jobs.remove(place));
        drop(state);
        taken_back.is_some()
    }

    /// Has all threads end once nothing is left to do.
    fn close(&self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        while state.end_one() {}
    }
}

impl JobQueue {
    fn sleep(&self, sleeper: &Arc<Sleeper>, patience: f64) -> Next {
        let patience = Duration::try_from_secs_f64(patience).unwrap_or(Duration::MAX);
        if let Some(next) = sleeper.wait(patience) {
            return next;
        }
        let mut state = lock(&self.0);
        let place = state
            .idle
            .iter()
            .position(|other| Arc::ptr_eq(other, sleeper));
        if let Some(place) = place {
            state.idle.remove(place);
            state.threads -= 1;
            return Next::End;
        }
        drop(state);
        // Somebody is about to wake it.
        loop {
            if let Some(next) = sleeper.wait(Duration::MAX) {
                return next;
            }
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
        self.coming += usize::from(may);
        may
    }

    /// Ends an idle thread, if there is one.
    fn end_one(&mut self) -> bool {
        let ended = self.idle.pop();
        self.threads -= usize::from(ended.is_some());
        ended.map(|sleeper| sleeper.wake(Next::End)).is_some()
    }
}

impl Sleeper {
    fn wake(&self, next: Next) {
        *lock(&self.next) = Some(next);
        self.woken.notify_one();
    }

    fn wait(&self, patience: Duration) -> Option<Next> {
        let since = Instant::now();
        let mut next = lock(&self.next);
        while next.is_none() {
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                return None;
            }
            let woken = self.woken.wait_timeout(next, left);
            next = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        next.take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
