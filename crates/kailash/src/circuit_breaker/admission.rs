//! What the tower layer asks of a breaker: a look ahead, and permits that futures carry away.

use std::time::Duration;

use kailash_core::circuit_breaker as machine;
use kailash_core::time::Timestamp;

use super::{CircuitBreaker, Outcome, Refused, Rejected, Shared};
use crate::spare::{self, Spare};

thread_local! {
    /// A reference to the breaker that was called last on this thread.
    static SPARE: Spare<Shared> = const { Spare::new(None) };
}

/// Leave to make one call: an [`OwnedPermit`](super::OwnedPermit) that never pauses.
///
/// Dropped without a verdict it is a cancelled call, whatever unwinds then: whoever holds it tells the
/// call's own panics as they happen.
///
/// What must not be inlined is given its parts by value: a future that hands out no reference to them can be
/// kept in registers, from the call to its end.
#[derive(Debug)]
pub(crate) struct Admission(
    /// Present until it is told how the call ended.
    Option<Admitted>,
);

#[derive(Debug)]
struct Admitted {
    breaker: CircuitBreaker,
    permit: machine::Permit,
}

impl Admission {
    /// The call ended so; what is told later changes nothing.
    #[inline(always)]
    pub(crate) fn record(&mut self, outcome: Outcome) {
        let Some(Admitted { breaker, permit }) = self.0.take() else {
            return;
        };
        let (is_counted, now) = breaker.count_good(&permit, outcome);
        if is_counted {
            spare::keep(&SPARE, breaker.0);
        } else {
            end_slowly(breaker, permit, outcome, now);
        }
    }

    /// The call panicked.
    #[inline(always)]
    pub(crate) fn panicked(&mut self) {
        if let Some(Admitted { breaker, permit }) = self.0.take() {
            end(breaker, permit, Outcome::Failure);
        }
    }
}

impl Drop for Admission {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(Admitted { breaker, permit }) = self.0.take() {
            end(breaker, permit, Outcome::Cancelled);
        }
    }
}

#[cold]
#[inline(never)]
fn end(breaker: CircuitBreaker, permit: machine::Permit, outcome: Outcome) {
    breaker.finish(permit, outcome);
    spare::keep(&SPARE, breaker.0);
}

// Not cold: it is what a failing call does.
#[inline(never)]
fn end_slowly(
    breaker: CircuitBreaker,
    permit: machine::Permit,
    outcome: Outcome,
    now: Option<Timestamp>,
) {
    breaker.finish_slowly(permit, outcome, now);
    spare::keep(&SPARE, breaker.0);
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
    // Not cold: it is what an open breaker does.
    #[inline(never)]
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        // Where a call is refused, nothing else is due.
        let refusal = self.0.machine.refusal(self.clock().now());
        refusal
            .or_else(|| self.0.machine.refusal(self.settled()))
            .map(Refusal)
    }

    /// Refuses a call because of what was told ahead of it, even if another would pass by now.
    #[inline]
    pub(crate) fn refuse(&self, refusal: &Refusal) -> Rejected {
        self.reject(self.refused(refusal))
    }

    // Not cold either.
    #[inline(never)]
    fn refused(&self, refusal: &Refusal) -> Refused {
        // The service may have been ready for long, so how long to wait is read off now.
        let rejected = self.0.machine.refuse(self.clock().now());
        let rejected = rejected.unwrap_or_else(|| self.refuse_what_is_due(refusal));
        self.tell_refusal(rejected)
    }

    #[cold]
    fn refuse_what_is_due(&self, &Refusal(told): &Refusal) -> machine::Rejected {
        let refused = self.0.machine.refuse(self.settled());
        refused.unwrap_or_else(|| {
            self.0.machine.count_refusal();
            machine::Rejected {
                retry_after: told.retry_after.map(|_| Duration::ZERO),
                ..told
            }
        })
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
        let mut permit = self.acquire().map_err(|refused| self.reject(refused))?;
        if self.0.machine.watches() {
            permit = self.watch(permit)?;
        }
        Ok(self.admission(permit))
    }

    #[inline]
    fn admission(&self, permit: machine::Permit) -> Admission {
        Admission(Some(Admitted {
            breaker: CircuitBreaker(spare::take(&SPARE, &self.0)),
            permit,
        }))
    }
}
