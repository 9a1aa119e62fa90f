//! A future that runs in a slot.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, Timeout, timeout_at};

use super::{CURRENT, Partition, Permit, RunError};
use crate::foreign::OnUnwind;

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
        let mut this = self.project();
        // Whoever catches the panic may drop the future later.
        let guard = OnUnwind(|| drop(this.permit.take()));
        let ended = match this.running.as_mut().project() {
            RunningProjection::Unbounded { future } => future.poll(cx).map(Ok),
            RunningProjection::Bounded { future, timeout } => future.poll(cx).map_err(|_| *timeout),
            RunningProjection::Over => panic!("polled again after its end"),
        };
        let ended = ended.map(|ended| {
            this.running.set(Running::Over);
            ended
        });
        mem::forget(guard);
        let ended = ready!(ended);
        let permit = this.permit.take().expect("what runs has a slot");
        Poll::Ready(ended.map_err(|timeout| permit.partition.0.time_out(timeout).into()))
    }
}
