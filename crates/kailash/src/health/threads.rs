//! Threads for checks that block, counted so that those which never end are seen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// How many threads the checks of one monitor may have at once, leaked ones among them.
pub(super) const MOST_THREADS: usize = 256;

/// The threads of one monitor's checks.
#[derive(Clone, Default)]
pub(super) struct Threads(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    running: usize,
    leaked: usize,
}

/// Why there is no answer from a thread.
pub(super) enum NoAnswer {
    /// The thread of the same check's earlier run goes on.
    StillRunning,
    /// All threads are taken, so many of them by runs that were given up.
    NoThread { leaked: usize },
    /// The work panicked with this text.
    Panicked(String),
}

/// Whether a thread of one check goes on; each check has one.
#[derive(Clone, Default)]
pub(super) struct Place(Arc<Mutex<Occupied>>);

#[derive(Clone, Copy, Default, PartialEq)]
enum Occupied {
    #[default]
    Free,
    Awaited,
    Leaked,
}

impl Threads {
    pub(super) fn leaked(&self) -> usize {
        lock(&self.0).leaked
    }

    /// Runs work on a thread of its own. Dropping the future gives the thread up, which is then
    /// counted as leaked until it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        place: &Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let waiting = self.enter(place)?;
        let leaving = Leaving {
            threads: self.clone(),
            place: place.clone(),
        };
        let (answer, answered) = oneshot::channel();
        let thread = thread::Builder::new().name("kailash-check".to_owned());
        let spawned = thread.spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            // Before the answer, so that who has it finds the place free.
            drop(leaving);
            let _ = answer.send(result);
        });
        if spawned.is_err() {
            let leaked = self.leaked();
            return Err(NoAnswer::NoThread { leaked });
        }
        let result = answered.await;
        drop(waiting);
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(NoAnswer::Panicked(panic_text(&*panic))),
            Err(_) => Err(NoAnswer::Panicked("no text".to_owned())),
        }
    }

    fn enter(&self, place: &Place) -> Result<Waiting, NoAnswer> {
        let mut counts = lock(&self.0);
        let mut occupied = lock(&place.0);
        if *occupied != Occupied::Free {
            return Err(NoAnswer::StillRunning);
        }
        if counts.running >= MOST_THREADS {
            let leaked = counts.leaked;
            return Err(NoAnswer::NoThread { leaked });
        }
        counts.running += 1;
        *occupied = Occupied::Awaited;
        Ok(Waiting {
            threads: self.clone(),
            place: place.clone(),
        })
    }
}

/// Held by who waits for the answer.
struct Waiting {
    threads: Threads,
    place: Place,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut counts = lock(&self.threads.0);
        let mut occupied = lock(&self.place.0);
        if *occupied == Occupied::Awaited {
            *occupied = Occupied::Leaked;
            counts.leaked += 1;
        }
    }
}

/// Held by the thread.
struct Leaving {
    threads: Threads,
    place: Place,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut counts = lock(&self.threads.0);
        let mut occupied = lock(&self.place.0);
        counts.running -= 1;
        if *occupied == Occupied::Leaked {
            counts.leaked -= 1;
        }
        *occupied = Occupied::Free;
    }
}

/// The text of a panic, if it has one.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no text").to_owned()
}

/// No holder of these locks can panic halfway, so a poisoned one is as good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
