//! A call's place in a partition's queue.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use kailash_core::bulkhead::Ticket;
use kailash_core::time::Timestamp;

use super::{Full, OwnedPermit, Partition, Permit, Reason};

/// A place in a partition's queue: a future of a permit that needs no runtime and no timer.
///
/// Dropping it leaves the queue at once, or gives back the slot that it had already been handed. Its
/// deadline is the business of whoever polls it: see [`Waiting::time_left`] and [`Waiting::expire`].
/// A call whose deadline has come is also passed over when a slot comes free.
#[must_use = "dropping it leaves the queue"]
pub struct Waiting(Place);

enum Place {
    Ready(Option<OwnedPermit>),
    Queued(Queued),
}

struct Queued {
    partition: Partition,
    ticket: Ticket,
    waiter: Arc<Waiter>,
    since: Timestamp,
    deadline: Timestamp,
    is_over: bool,
}

/// What the queue knows a waiting call by.
#[derive(Default)]
pub(super) struct Waiter {
    verdict: AtomicU8,
    waker: AtomicWaker,
}

/// How a wait ended.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Verdict {
    Start = 1,
    Expired,
    Hopeless,
    Evicted,
    Closed,
}

impl Waiting {
    pub(super) fn ready(permit: OwnedPermit) -> Self {
        Self(Place::Ready(Some(permit)))
    }

    pub(super) fn queued(
        partition: Partition,
        ticket: Ticket,
        waiter: Arc<Waiter>,
        since: Timestamp,
        deadline: Timestamp,
    ) -> Self {
        Self(Place::Queued(Queued {
            partition,
            ticket,
            waiter,
            since,
            deadline,
            is_over: false,
        }))
    }

    /// How long the call may still wait; `None` if nothing bounds it or it need not wait.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        match &self.0 {
            Place::Queued(queued) if queued.deadline != Timestamp::NEVER => {
                Some(queued.deadline.since(queued.partition.0.clock.now()))
            }
            _ => None,
        }
    }

    /// Gives the place up because the call's time is over, and says so.
    ///
    /// A slot that was handed over but not yet taken goes to the next waiter.
    ///
    /// # Panics
    /// After the future has given its permit.
    pub fn expire(self) -> Full {
        let partition = match &self.0 {
            Place::Ready(permit) => {
                let permit = permit.as_ref().expect("expired after its end");
                permit.partition().clone()
            }
            Place::Queued(queued) => queued.partition.clone(),
        };
        drop(self);
        partition.0.expire()
    }
}

impl Future for Waiting {
    type Output = Result<OwnedPermit, Full>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Place::Ready(permit) => {
                let permit = permit.take().expect("polled after its end");
                Poll::Ready(Ok(permit))
            }
            Place::Queued(queued) => queued.poll(context),
        }
    }
}

impl Queued {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<OwnedPermit, Full>> {
        assert!(!self.is_over, "polled after its end");
        self.waiter.waker.register(context.waker());
        let Some(verdict) = self.waiter.verdict() else {
            return Poll::Pending;
        };
        self.is_over = true;
        let inner = &self.partition.0;
        Poll::Ready(match verdict {
            Verdict::Start => {
                inner.waits.record(inner.clock.now().since(self.since));
                Ok(Permit::new(&self.partition).into_owned())
            }
            Verdict::Expired => Err(inner.expire()),
            Verdict::Evicted => {
                inner.evicted.fetch_add(1, Ordering::Relaxed);
                Err(inner.refuse(inner.slots.occupancy(), Reason::Evicted))
            }
            Verdict::Hopeless => Err(inner.refuse(inner.slots.occupancy(), Reason::Hopeless)),
            Verdict::Closed => Err(inner.refuse(inner.slots.occupancy(), Reason::Closed)),
        })
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let inner = &self.partition.0;
        let has_left = inner.leave(self.ticket);
        // The verdict is given under the lock that was just held: it stands.
        if !has_left && matches!(self.waiter.verdict(), Some(Verdict::Start)) {
            inner.give_back();
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waiting = f.debug_tuple("Waiting");
        match &self.0 {
            Place::Ready(permit) => waiting.field(permit).finish(),
            Place::Queued(queued) => waiting.field(&queued.partition.name()).finish(),
        }
    }
}

impl Waiter {
    /// Ends the wait; under the queue's lock, then woken without it.
    pub(super) fn decide(&self, verdict: Verdict) {
        self.verdict.store(verdict as u8, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    fn verdict(&self) -> Option<Verdict> {
        const VERDICTS: [Verdict; 5] = [
            Verdict::Start,
            Verdict::Expired,
            Verdict::Hopeless,
            Verdict::Evicted,
            Verdict::Closed,
        ];
        let verdict = self.verdict.load(Ordering::Acquire);
        VERDICTS.into_iter().find(|other| *other as u8 == verdict)
    }
}
