//! Code that is not ours and is called by us: the calls themselves, those who log, and the wakers of those who
//! wait.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// Logs, or wakes those who listen. They are foreign: their panic is not the call's, and within a
/// permit that a panic drops it would end the process.
pub(crate) fn contained(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

/// Waits, and contains the panic of the waker: tokio wakes those who wait one after the other, and
/// would leave all behind the one that panics asleep.
pub(crate) async fn woken_alone<T>(wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    poll_fn(|context| {
        let waker = Waker::from(Arc::new(Contained(context.waker().clone())));
        wait.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

struct Contained(Waker);

impl Wake for Contained {
    fn wake(self: Arc<Self>) {
        contained(|| self.0.wake_by_ref());
    }
}

/// Does something if it is dropped; who forgets it in time has not panicked.
pub(crate) struct OnUnwind<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnUnwind<F> {
    // So that what the closure refers to can be kept in registers.
    #[inline(always)]
    fn drop(&mut self) {
        self.0();
    }
}
