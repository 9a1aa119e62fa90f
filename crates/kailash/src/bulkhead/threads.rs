//! The threads of one partition, which run its blocking work.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread without work lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Threads that start when there is work and end when there has been none for a while.
pub(super) struct Threads {
    shared: Arc<Shared>,
    keep_alive: Duration,
}

/// Work for a thread, which until then can be withdrawn.
pub(super) trait Work: Send + Sync {
    /// Does the work, once, unless it was withdrawn.
    fn run(&self);

    /// Withdraws the work; whether it will now never start.
    fn withdraw(&self) -> bool;
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Arc<dyn Work>>,
    most: usize,
    running: usize,
    /// Threads that wait for work and have not been promised any.
    idle: usize,
    /// Idle threads that were woken for a job and have not taken it yet.
    promised: usize,
    started: u64,
    is_ended: bool,
}

impl Threads {
    pub(super) fn new(most: u32) -> Self {
        Self::with_keep_alive(most, KEEP_ALIVE)
    }

    fn with_keep_alive(most: u32, keep_alive: Duration) -> Self {
        let state = State {
            most: most as usize,
            ..State::default()
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            keep_alive,
        }
    }

    /// Runs a job on one of the threads, at once if one is idle or may be started.
    ///
    /// The error says why no thread could be started, if there is none at all to take the job.
    pub(super) fn run(&self, name: &str, job: Arc<dyn Work>) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            state.idle -= 1;
            state.promised += 1;
            drop(state);
            self.shared.work.notify_one();
            return Ok(());
        }
        if state.running >= state.most {
            return Ok(());
        }
        let started = self.start(name, &mut state);
        if state.running > 0 {
            return Ok(());
        }
        // Under the lock, and without a thread, the queue can hold no other job than this.
        let job = state.jobs.pop_back();
        drop(state);
        drop(job);
        started
    }

    /// Takes a withdrawn job out of the queue.
    pub(super) fn forget(&self, job: &Arc<dyn Work>) {
        let mut state = self.shared.lock();
        let position = state.jobs.iter().position(|other| Arc::ptr_eq(other, job));
        let job = position.and_then(|position| state.jobs.remove(position));
        drop(state);
        drop(job);
    }

    /// Changes how many threads there may be; surplus ones end when they have nothing to do.
    pub(super) fn resize(&self, name: &str, most: u32) {
        let mut state = self.shared.lock();
        state.most = most as usize;
        let waiting = state.jobs.len().saturating_sub(state.promised);
        let room = state.most.saturating_sub(state.running);
        for _ in 0..waiting.min(room) {
            if self.start(name, &mut state).is_err() {
                break;
            }
        }
    }

    /// How many threads there are now.
    pub(super) fn count(&self) -> usize {
        self.shared.lock().running
    }
}

impl Threads {
    fn start(&self, name: &str, state: &mut State) -> io::Result<()> {
        let (shared, keep_alive) = (Arc::clone(&self.shared), self.keep_alive);
        let thread = thread::Builder::new().name(format!("{name}-{}", state.started + 1));
        thread.spawn(move || shared.work(keep_alive))?;
        state.started += 1;
        state.running += 1;
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().is_ended = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under the lock, so a poisoned one still holds whole figures.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, keep_alive: Duration) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                // The job tells its caller of a panic; what is left can only come from dropping a
                // result that nobody took.
                let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
                drop(job);
                state = self.lock();
            }
            if state.is_ended || state.running > state.most {
                break;
            }
            state.idle += 1;
            let nothing =
                |state: &mut State| state.jobs.is_empty() && state.promised == 0 && !state.is_ended;
            let waited = self.work.wait_timeout_while(state, keep_alive, nothing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.promised > 0 {
                state.promised -= 1;
                continue;
            }
            state.idle -= 1;
            if state.jobs.is_empty() {
                break;
            }
        }
        state.running -= 1;
    }
}
