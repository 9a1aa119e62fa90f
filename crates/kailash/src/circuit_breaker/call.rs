//! Whole calls behind a breaker.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::classify::outcome_of;
use super::permit::Call;
use super::{CallError, CircuitBreaker, Outcome, Rejected};

impl CircuitBreaker {
    /// Runs a call behind the breaker: an `Err` counts as a failure.
    ///
    /// It does not look into the error. Around a partition or another breaker, whose refusals say
    /// nothing about the dependency, it is
    /// [`call_with`](CircuitBreaker::call_with)`(`[`refusal_is_ignored`](super::refusal_is_ignored)`, …)`;
    /// and it is [`Partition::call`](crate::bulkhead::Partition::call) that answers what may fail as one
    /// result.
    ///
    /// The breaker is asked when the future is first polled. Dropping it while it runs is a cancelled call, even
    /// where a panic elsewhere in its task drops it. A panic out of the call itself is a failure, and goes on.
    ///
    /// # Errors
    /// [`CallError::Rejected`] if the breaker refuses the call, which is then never made;
    /// [`CallError::Inner`] with the call's own error.
    pub fn call<F, T, E>(
        &self,
        call: impl FnOnce() -> F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(outcome_of, call)
    }

    /// Runs a call behind the breaker, where `classify` says how it ended: a closure, or
    /// [`refusal_is_ignored`](super::refusal_is_ignored).
    ///
    /// A classifier that panics counts as a failure, and the panic goes on.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_with<F, T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        F: Future<Output = Result<T, E>>,
    {
        Calling::ToBegin {
            breaker: self,
            parts: Some((call, classify)),
        }
    }

    /// Runs a call behind the breaker, or `fallback` where the breaker refuses it.
    ///
    /// The call's own error is no reason to fall back: it counts as a failure and is answered. The
    /// fallback runs outside the breaker, so that what comes of it counts for nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// use kailash::circuit_breaker::{CircuitBreaker, Config, Rejected};
    ///
    /// let breaker = CircuitBreaker::new("prices", Config::default())?;
    /// let ask = || async { Ok::<_, std::io::Error>(12) };
    /// let cached = async |_: Rejected| Ok(11);
    ///
    /// assert_eq!(breaker.call_or(cached, ask).await?, 12);
    /// breaker.force_open();
    /// assert_eq!(breaker.call_or(cached, ask).await?, 11);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The call's own error, or the fallback's.
    pub fn call_or<F, G, T, E>(
        &self,
        fallback: impl FnOnce(Rejected) -> G,
        call: impl FnOnce() -> F,
    ) -> impl Future<Output = Result<T, E>>
    where
        F: Future<Output = Result<T, E>>,
        G: Future<Output = Result<T, E>>,
    {
        CallingOr::Calling {
            calling: self.call(call),
            fallback: Some(fallback),
        }
    }

    /// Runs a blocking call behind the breaker, or `fallback` where the breaker refuses it, as
    /// [`CircuitBreaker::call_or`] does.
    ///
    /// # Errors
    /// The call's own error, or the fallback's.
    pub fn call_sync_or<T, E>(
        &self,
        fallback: impl FnOnce(Rejected) -> Result<T, E>,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.call_sync(call) {
            Ok(value) => Ok(value),
            Err(CallError::Inner(error)) => Err(error),
            Err(CallError::Rejected(rejected)) => fallback(rejected),
        }
    }

    /// Runs a blocking call behind the breaker: an `Err` counts as a failure, so does a panic.
    ///
    /// As for errors that say nothing about the dependency see [`CircuitBreaker::call`].
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync<T, E>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, CallError<E>> {
        self.call_sync_with(outcome_of, call)
    }

    /// Runs a blocking call behind the breaker, where `classify` says how it ended.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync_with<T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let mut made = self.begin()?;
        let result = made.part(call);
        let outcome = made.part(|| classify(&result));
        made.end(outcome);
        result.map_err(CallError::Inner)
    }
}

pin_project! {
    /// What is to be called, and then the call. One in the other's place: written as async functions, a call
    /// would hold what it is made of once for each of them.
    #[project = CallingProjection]
    enum Calling<'a, M, F, C> {
        ToBegin {
            breaker: &'a CircuitBreaker,
            parts: Option<(M, C)>,
        },
        Running {
            #[pin]
            running: Running<'a, F, C>,
        },
        // What it was made of is gone, though it may be kept itself.
        Over,
    }
}

impl<M, F, C, T, E> Future for Calling<'_, M, F, C>
where
    M: FnOnce() -> F,
    F: Future<Output = Result<T, E>>,
    C: FnOnce(&Result<T, E>) -> Outcome,
{
    type Output = Result<T, CallError<E>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut ending = Ending(self.as_mut());
            let running = match ending.0.as_mut().project() {
                CallingProjection::Running { running } => {
                    let polled = running.poll(cx);
                    if polled.is_pending() {
                        mem::forget(ending);
                    }
                    return polled.map_err(CallError::Inner);
                }
                CallingProjection::Over => panic!("polled again after its end"),
                CallingProjection::ToBegin { breaker, parts } => {
                    let (call, classify) = parts.take().expect("it begins once");
                    let mut made = breaker.begin()?;
                    Running {
                        future: made.part(call),
                        made,
                        classify: Some(classify),
                    }
                }
            };
            ending.0.set(Calling::Running { running });
            mem::forget(ending);
        }
    }
}

/// Ends a call as it is dropped, by a panic too: whoever catches that may drop the call's future later.
struct Ending<'f, 'a, M, F, C>(Pin<&'f mut Calling<'a, M, F, C>>);

impl<M, F, C> Drop for Ending<'_, '_, M, F, C> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.set(Calling::Over);
    }
}

pin_project! {
    /// A call, and then what is done instead, one in the other's place.
    #[project = CallingOrProjection]
    enum CallingOr<P, B, G> {
        Calling {
            #[pin]
            calling: P,
            fallback: Option<B>,
        },
        FallingBack {
            #[pin]
            fallback: G,
        },
        // As in `Calling`.
        Over,
    }
}

impl<P, B, G, T, E> Future for CallingOr<P, B, G>
where
    P: Future<Output = Result<T, CallError<E>>>,
    B: FnOnce(Rejected) -> G,
    G: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = loop {
            let fallback = match self.as_mut().project() {
                CallingOrProjection::FallingBack { fallback } => break ready!(fallback.poll(cx)),
                CallingOrProjection::Calling { calling, fallback } => {
                    match ready!(calling.poll(cx)) {
                        Ok(value) => break Ok(value),
                        Err(CallError::Inner(error)) => break Err(error),
                        Err(CallError::Rejected(rejected)) => {
                            let fall_back = fallback.take().expect("a call is refused once");
                            fall_back(rejected)
                        }
                    }
                }
                CallingOrProjection::Over => panic!("polled again after its end"),
            };
            self.set(Self::FallingBack { fallback });
        };
        self.set(Self::Over);
        Poll::Ready(result)
    }
}

pin_project! {
    struct Running<'a, F, C> {
        #[pin]
        future: F,
        // After the future, so that it is counted when what it was about has ended.
        made: Call<'a>,
        classify: Option<C>,
    }
}

impl<F, C, T, E> Future for Running<'_, F, C>
where
    F: Future<Output = Result<T, E>>,
    C: FnOnce(&Result<T, E>) -> Outcome,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = this.made.part(|| {
            this.future.poll(cx).map(|result| {
                let classify = this.classify.take().expect("polled again after its end");
                let outcome = classify(&result);
                (result, outcome)
            })
        });
        let (result, outcome) = ready!(polled);
        this.made.end(outcome);
        Poll::Ready(result)
    }
}
