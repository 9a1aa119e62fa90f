//! A check of the user's own.

use std::future::Future;
use std::sync::Arc;

use crate::health::{BoxFuture, Check, Outcome, Run};

/// A check made of a function.
///
/// It answers with an [`Outcome`] or what becomes one: a `bool`, a
/// [`Status`](crate::health::Status), or a `Result` whose error is shown.
///
/// ```
/// use kailash::health::{Outcome, checks::Custom};
///
/// let queue = Custom::new(|| async { Outcome::healthy().detail("waiting", 3) });
/// let disk = Custom::blocking(|| std::fs::metadata("/var/lib/orders").map(drop));
/// # drop((queue, disk));
/// ```
pub struct Custom(Box<dyn Fn(Run) -> BoxFuture<'static, Outcome> + Send + Sync>);

impl Custom {
    /// A check that calls an async function, which must not block.
    pub fn new<F, Fut>(function: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<Outcome>> + Send + 'static,
    {
        Self(Box::new(move |_| {
            let answer = function();
            Box::pin(async move { answer.await.into() })
        }))
    }

    /// A check that calls a function which may block, on a thread of its own.
    pub fn blocking<F, T>(function: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Into<Outcome>,
    {
        let function = Arc::new(function);
        Self(Box::new(move |run| {
            let function = Arc::clone(&function);
            Box::pin(async move {
                let answer = run.on_thread(move || function().into()).await;
                answer.unwrap_or_else(|no_answer| no_answer)
            })
        }))
    }
}

impl Check for Custom {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        // The call itself is inside the run: a function that panics before its first await harms
        // no one.
        Box::pin(async { (self.0)(run.clone()).await })
    }
}
