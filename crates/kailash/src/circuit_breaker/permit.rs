//! Leave to make one call, which gives itself back.

use std::mem;
use std::thread;
use std::time::Duration;

use kailash_core::circuit_breaker as machine;
use kailash_core::time::Timestamp;

use super::{CircuitBreaker, Outcome, Rejected};
use crate::foreign::OnUnwind;

/// Leave to make one call, which borrows its breaker.
///
/// Dropped without a verdict it is a cancelled call, dropped by a panic a failure, whoever panics: a
/// permit that is kept across an await does not know its call's panics from others in its task. Where
/// that matters, [`CircuitBreaker::call`] does.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once is a cancelled call"]
pub struct Permit<'a> {
    pub(super) breaker: &'a CircuitBreaker,
    pub(super) inner: Option<machine::Permit>,
}

/// Leave to make one call, which keeps its breaker alive.
///
/// Dropped without a verdict it is a cancelled call, dropped by a panic a failure, whoever panics: a
/// permit that is kept across an await does not know its call's panics from others in its task. Where
/// that matters, [`CircuitBreaker::call`] does.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once is a cancelled call"]
pub struct OwnedPermit {
    pub(super) breaker: CircuitBreaker,
    pub(super) inner: Option<machine::Permit>,
    pub(super) paused: Option<Timestamp>,
}

macro_rules! permit {
    ($($permit:ty),*) => {$(
        impl $permit {
            /// The call succeeded.
            pub fn success(self) {
                self.record(Outcome::Success);
            }

            /// The call failed.
            pub fn failure(self) {
                self.record(Outcome::Failure);
            }

            /// The call says nothing about the dependency.
            pub fn ignore(self) {
                self.record(Outcome::Ignored);
            }

            /// Watches the call while it runs, where `overdue_calls_enabled` says so: it counts as slow
            /// once it has run for `slow_call_threshold`, though it has not ended.
            ///
            /// For calls that end by themselves, and not for a permit that is kept.
            ///
            /// # Errors
            /// When other calls turn out to be overdue, and open the breaker.
            #[inline]
            pub fn watched(mut self) -> Result<Self, Rejected> {
                if self.breaker.0.machine.watches()
                    && let Some(permit) = self.inner.take()
                {
                    self.inner = Some(self.breaker.watch(permit)?);
                }
                Ok(self)
            }

            /// The call ended so. Answers how long it ran, where calls are timed.
            #[inline]
            pub fn record(mut self, outcome: Outcome) -> Option<Duration> {
                self.resume_if_paused();
                let permit = self.inner.take()?;
                self.breaker.finish(permit, outcome)
            }
        }

        impl Drop for $permit {
            #[inline]
            fn drop(&mut self) {
                self.resume_if_paused();
                if let Some(permit) = self.inner.take() {
                    self.breaker.finish(permit, dropped());
                }
            }
        }
    )*};
}

permit!(Permit<'_>, OwnedPermit);

impl<'a> Permit<'a> {
    #[inline]
    pub(super) fn new(breaker: &'a CircuitBreaker, permit: machine::Permit) -> Self {
        Self {
            breaker,
            inner: Some(permit),
        }
    }

    /// The same leave, as a permit that borrows nothing.
    pub fn into_owned(mut self) -> OwnedPermit {
        OwnedPermit {
            breaker: self.breaker.clone(),
            inner: self.inner.take(),
            paused: None,
        }
    }
}

impl Permit<'_> {
    /// It never pauses.
    #[inline(always)]
    fn resume_if_paused(&mut self) {}
}

impl OwnedPermit {
    #[inline(always)]
    fn resume_if_paused(&mut self) {
        if self.paused.is_some() {
            self.resume();
        }
    }

    /// Stops the call's clock, for work that goes on in pieces: what passes until
    /// [`OwnedPermit::resume`], or the end of the call, makes it neither slow nor long. A probe's lease goes on.
    ///
    /// Not for a permit that is [watched](OwnedPermit::watched): that one becomes overdue while it is paused, too.
    pub fn pause(&mut self) {
        self.paused
            .get_or_insert_with(|| self.breaker.clock().now());
    }

    /// Lets the call's clock go on.
    pub fn resume(&mut self) {
        let Some(paused) = self.paused.take() else {
            return;
        };
        let rest = self.breaker.clock().now().since(paused);
        self.inner = self.inner.take().map(|permit| match permit.started() {
            Some(started) => permit.started_at(started + rest),
            None => permit,
        });
    }
}

#[inline]
pub(super) fn ran(permit: &machine::Permit, now: Option<Timestamp>) -> Option<Duration> {
    Some(now?.since(permit.started()?))
}

#[cold]
fn dropped() -> Outcome {
    if thread::panicking() {
        Outcome::Failure
    } else {
        Outcome::Cancelled
    }
}

/// A call that is made here, and so knows its own panics: they are failures as they happen.
///
/// Dropped it is a cancelled call, whatever else in its task unwinds then.
pub(super) struct Call<'a> {
    breaker: &'a CircuitBreaker,
    permit: Option<machine::Permit>,
}

impl CircuitBreaker {
    /// Admits a call that is made here, and watches it where that is asked for.
    #[inline(always)]
    pub(super) fn begin(&self) -> Result<Call<'_>, Rejected> {
        let mut permit = self.acquire().map_err(|refused| self.reject(refused))?;
        if self.0.machine.watches() {
            permit = self.watch(permit)?;
        }
        Ok(Call {
            breaker: self,
            permit: Some(permit),
        })
    }
}

impl Call<'_> {
    /// Does a part of the call.
    #[inline(always)]
    pub(super) fn part<R>(&mut self, part: impl FnOnce() -> R) -> R {
        let guard = OnUnwind(|| self.end(Outcome::Failure));
        let result = part();
        mem::forget(guard);
        result
    }

    /// Where it stands: moving a permit just before its end costs as much as the ticket.
    #[inline(always)]
    pub(super) fn end(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            self.breaker.finish(permit, outcome);
        }
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}
