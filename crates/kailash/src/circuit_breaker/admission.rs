//! What the tower layer asks of a breaker: a look ahead, and permits that futures carry away.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use kailash_core::circuit_breaker as machine;

use super::{CircuitBreaker, Outcome, Rejected, dropped};

thread_local! {
    /// A reference to the breaker that was called last on this thread.
    ///
    /// The next call takes it along and gives it back, so that in the long run a call counts no
    /// references: that would be two atomic operations, half of what a call costs, on a word that
    /// all threads of a breaker share.
    static SPARE: Cell<Option<CircuitBreaker>> = const { Cell::new(None) };
}

/// Leave to make one call: an [`OwnedPermit`](super::OwnedPermit) that never pauses.
///
/// Dropped without a verdict it is a cancelled call, dropped by a panic a failure.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Present until the drop.
    breaker: Option<CircuitBreaker>,
    permit: Option<machine::Permit>,
}

impl Admission {
    /// The call ended so; what is told later changes nothing.
    #[inline]
    pub(crate) fn record(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take()
            && let Some(breaker) = &self.breaker
        {
            breaker.finish(permit, outcome);
        }
    }
}

impl Drop for Admission {
    #[inline]
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.record(dropped());
        }
        let breaker = self.breaker.take();
        // A thread that ends keeps none.
        let _ = SPARE.try_with(|spare| spare.set(breaker));
    }
}

/// A refusal that was told ahead of its call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal(machine::Rejected);

impl CircuitBreaker {
    /// Whether all calls pass, as they do while closed.
    #[inline]
    pub(crate) fn passes_all(&self) -> bool {
        self.0.machine.admit().is_some()
    }

    /// Why a call would be refused now; it counts nothing and takes no probe's slot.
    #[cold]
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let now = self.settled();
        self.0.machine.refusal(now).map(Refusal)
    }

    /// Refuses a call because of what was told ahead of it, even if another would pass by now.
    #[cold]
    pub(crate) fn refuse(&self, Refusal(told): Refusal) -> Rejected {
        let now = self.settled();
        let due = machine::Rejected {
            retry_after: told.retry_after.map(|_| Duration::ZERO),
            ..told
        };
        let rejected = self.0.machine.refusal(now).unwrap_or(due);
        self.0.machine.count_refusal();
        self.reject(rejected)
    }

    /// Admits a call if all calls pass and none is watched.
    ///
    /// Apart from [`CircuitBreaker::admit_or_refuse`], so that the closed path moves no union of
    /// an admission and a refusal through memory.
    #[inline]
    pub(crate) fn admit_owned(&self) -> Option<Admission> {
        if self.0.machine.watches() {
            return None;
        }
        let permit = self.admit()?;
        Some(self.admission(permit))
    }

    /// Admits a call and watches it where that is asked for, or says why not.
    #[cold]
    pub(crate) fn admit_or_refuse(&self) -> Result<Admission, Rejected> {
        let mut permit = self.acquire()?;
        if self.0.machine.watches() {
            permit = self.watch(permit)?;
        }
        Ok(self.admission(permit))
    }

    #[inline]
    fn admission(&self, permit: machine::Permit) -> Admission {
        let breaker = match SPARE.try_with(Cell::take) {
            Ok(Some(spare)) if Arc::ptr_eq(&spare.0, &self.0) => spare,
            _ => self.clone(),
        };
        Admission {
            breaker: Some(breaker),
            permit: Some(permit),
        }
    }
}
