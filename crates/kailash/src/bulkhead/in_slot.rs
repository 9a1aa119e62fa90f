//! A future that runs in a slot.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, Timeout, timeout_at};

use super::{CURRENT, Partition, Permit, RunError};

pin_project! {
    /// Gives the slot back once the future is gone: after its end, its timeout, its panic or its drop.
    pub(super) struct InSlot<'a, F> {
        #[pin]
        running: Running<F>,
        // After the future, whose work ends before its slot is free.
        permit: Option<Permit<'a>>,
    }
}

pin_project! {
    #[project = RunningProjection]
    enum Running<F> {
        Unbounded {
            #[pin]
            future: TaskLocalFuture<Partition, F>,
        },
        Bounded {
            #[pin]
            future: Timeout<TaskLocalFuture<Partition, F>>,
            timeout: Duration,
        },
        Over,
    }
}

impl<'a, F: Future> InSlot<'a, F> {
    pub(super) fn new(
        permit: Permit<'a>,
        deadline: Option<(Instant, Duration)>,
        future: F,
    ) -> Self {
        let future = CURRENT.scope(permit.partition.clone(), future);
        let running = match deadline {
            None => Running::Unbounded { future },
            Some((deadline, timeout)) => Running::Bounded {
                future: timeout_at(deadline, future),
                timeout,
            },
        };
        Self {
            running,
            permit: Some(permit),
        }
    }
}

impl<F: Future> Future for InSlot<'_, F> {
    type Output = Result<F::Output, RunError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut ending = Ending {
            running: this.running,
            permit: this.permit,
        };
        let ended = match ending.running.as_mut().project() {
            RunningProjection::Unbounded { future } => future.poll(cx).map(Ok),
            RunningProjection::Bounded { future, timeout } => future.poll(cx).map_err(|_| *timeout),
            RunningProjection::Over => panic!("polled again after its end"),
        };
        let Poll::Ready(ended) = ended else {
            mem::forget(ending);
            return Poll::Pending;
        };
        ending.running.set(Running::Over);
        let permit = ending.permit.take().expect("what runs has a slot");
        Poll::Ready(ended.map_err(|timeout| permit.partition.0.time_out(timeout).into()))
    }
}

/// Ends a call as it is dropped, by a panic too: whoever catches that may drop the call's future later.
struct Ending<'f, 'a, F> {
    running: Pin<&'f mut Running<F>>,
    permit: &'f mut Option<Permit<'a>>,
}

impl<F> Drop for Ending<'_, '_, F> {
    fn drop(&mut self) {
        self.running.set(Running::Over);
        drop(self.permit.take());
    }
}
