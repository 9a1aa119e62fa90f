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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    /// A limit that only a hang reaches.
    const GENEROUS: Duration = Duration::from_secs(60);

    /// Says that it has begun, then waits until its sender is gone.
    struct Held {
        begun: mpsc::Sender<String>,
        until: Mutex<mpsc::Receiver<()>>,
    }

    impl Work for Held {
        fn run(&self) {
            let name = thread::current().name().unwrap().to_owned();
            self.begun.send(name).unwrap();
            assert!(self.until.lock().unwrap().recv().is_err());
        }

        fn withdraw(&self) -> bool {
            false
        }
    }

    fn held(begun: &mpsc::Sender<String>) -> (mpsc::Sender<()>, Arc<dyn Work>) {
        let (hold, until) = mpsc::channel();
        let begun = begun.clone();
        let until = Mutex::new(until);
        (hold, Arc::new(Held { begun, until }))
    }

    fn eventually(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < GENEROUS, "it never came");
            thread::yield_now();
        }
    }

    #[test]
    fn idle_threads_end_and_start_again() {
        let threads = Threads::with_keep_alive(4, Duration::from_millis(1));
        let (begun, begins) = mpsc::channel();
        for _ in 0..3 {
            let jobs = [(); 3].map(|()| held(&begun));
            for (_, job) in &jobs {
                threads.run("p", Arc::clone(job)).unwrap();
            }
            for _ in 0..3 {
                begins.recv_timeout(GENEROUS).unwrap();
            }
            assert_eq!(threads.count(), 3);
            drop(jobs);
            eventually(|| threads.count() == 0);
        }
    }

    #[test]
    fn an_idle_thread_is_used_before_another_is_started() {
        let threads = Threads::with_keep_alive(4, GENEROUS);
        let (begun, begins) = mpsc::channel();
        for _ in 0..100 {
            let (hold, job) = held(&begun);
            threads.run("p", job).unwrap();
            assert_eq!(begins.recv_timeout(GENEROUS).unwrap(), "p-1");
            drop(hold);
            eventually(|| threads.shared.lock().idle == 1);
        }
        assert_eq!(threads.count(), 1);
    }

    #[test]
    fn more_threads_take_the_work_that_waits_and_surplus_ones_end() {
        let threads = Threads::with_keep_alive(1, GENEROUS);
        let (begun, begins) = mpsc::channel();
        let jobs = [(); 3].map(|()| held(&begun));
        for (_, job) in &jobs {
            threads.run("p", Arc::clone(job)).unwrap();
        }
        begins.recv_timeout(GENEROUS).unwrap();
        assert!(begins.try_recv().is_err());
        threads.resize("p", 3);
        begins.recv_timeout(GENEROUS).unwrap();
        begins.recv_timeout(GENEROUS).unwrap();
        threads.resize("p", 1);
        drop(jobs);
        eventually(|| threads.count() == 1);
    }

    #[test]
    fn threads_end_with_their_partition() {
        let threads = Threads::with_keep_alive(1, GENEROUS);
        let (begun, begins) = mpsc::channel();
        let (hold, job) = held(&begun);
        threads.run("p", job).unwrap();
        begins.recv_timeout(GENEROUS).unwrap();
        let shared = Arc::downgrade(&threads.shared);
        drop(threads);
        drop(hold);
        eventually(|| shared.strong_count() == 0);
    }

    #[test]
    fn a_panic_that_nobody_hears_ends_no_thread() {
        struct Bad;
        impl Work for Bad {
            fn run(&self) {
                panic!("on purpose");
            }
            fn withdraw(&self) -> bool {
                false
            }
        }
        let threads = Threads::with_keep_alive(1, GENEROUS);
        threads.run("p", Arc::new(Bad)).unwrap();
        let (begun, begins) = mpsc::channel();
        let (_hold, job) = held(&begun);
        threads.run("p", job).unwrap();
        assert_eq!(begins.recv_timeout(GENEROUS).unwrap(), "p-1");
    }
}
