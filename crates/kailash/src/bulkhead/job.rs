//! Blocking work on its way through a partition's threads.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Span;

use super::threads::Work;
use super::{CURRENT, Full, OwnedPermit, Partition, Reason};

/// What a function panicked with, for `std::panic::resume_unwind`.
pub type Panicked = Box<dyn Any + Send>;

/// Blocking work that was given to a partition's threads; dropping it cancels what has not begun.
#[must_use = "dropping it cancels work that has not begun"]
pub struct Job {
    work: Arc<dyn Work>,
    partition: Partition,
}

struct Task<F, D> {
    // Whoever takes it, the thread or a cancelling caller, has the work.
    parts: Mutex<Option<Parts<F, D>>>,
}

struct Parts<F, D> {
    permit: OwnedPermit,
    span: Span,
    work: F,
    done: D,
}

impl Job {
    pub(super) fn spawn<F, T, D>(permit: OwnedPermit, work: F, done: D) -> Result<Self, Full>
    where
        F: FnOnce() -> T + Send + 'static,
        T: 'static,
        D: FnOnce(Result<T, Panicked>) + Send + 'static,
    {
        let partition = permit.partition().clone();
        let inner = &partition.0;
        let parts = Parts {
            permit,
            span: Span::current(),
            work,
            done,
        };
        let work: Arc<dyn Work> = Arc::new(Task {
            parts: Mutex::new(Some(parts)),
        });
        if let Err(error) = inner.threads.run(&inner.name, Arc::clone(&work)) {
            tracing::warn!(partition = &*inner.name, %error, "no thread could be started");
            work.withdraw();
            return Err(inner.refuse(inner.slots.occupancy(), Reason::NoThread));
        }
        Ok(Self { work, partition })
    }

    /// Cancels the work if it has not begun: its slot is free and it never starts. Returns whether so.
    #[must_use]
    pub fn cancel(self) -> bool {
        self.withdraw()
    }

    fn withdraw(&self) -> bool {
        let is_withdrawn = self.work.withdraw();
        if is_withdrawn {
            self.partition.0.threads.forget(&self.work);
        }
        is_withdrawn
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.partition.name()).finish()
    }
}

impl<F, D> Task<F, D> {
    fn take(&self) -> Option<Parts<F, D>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.take()
    }
}

impl<F, T, D> Work for Task<F, D>
where
    F: FnOnce() -> T + Send,
    D: FnOnce(Result<T, Panicked>) + Send,
{
    fn run(&self) {
        let Some(parts) = self.take() else { return };
        let Parts {
            permit,
            span,
            work,
            done,
        } = parts;
        let work = || span.in_scope(work);
        let work = || CURRENT.sync_scope(permit.partition().clone(), work);
        let outcome = catch_unwind(AssertUnwindSafe(work));
        // The caller finds the slot free when it learns the outcome.
        drop(permit);
        drop(span);
        done(outcome);
    }

    fn withdraw(&self) -> bool {
        let Some(Parts { permit, .. }) = self.take() else {
            return false;
        };
        permit.end_unused();
        true
    }
}
