//! The circuit breaker as a tower layer.
//!
//! - **Ready**: while the breaker refuses calls the service is ready at once, and the call is
//!   answered with the refusal, as of the call: a service may be kept ready for long, and how long
//!   to wait must be true then. The service within is not asked, so one that is never ready stops
//!   no refusal. Else the service is as ready as the one within, and that very instance gets the
//!   call.
//! - **Probes**: a half-open breaker's slot is taken by the call, not by readiness: a service that
//!   is made ready and never called holds none. If more are made ready than there are slots, the
//!   calls that come last are refused.
//! - **An error while getting ready** is passed on. It counts as the classifier says, by default
//!   as a failure: a dependency that nobody can connect to must open its breaker too.
//! - **Cancelled**: a response future that is dropped is a cancelled call, whose clock started
//!   with the call, even where a panic elsewhere in its task drops it.
//! - **Panics** of the service within, or of the classifier, are failures and go on.
//! - **Streams**: a call ends with its response, which for HTTP is the head of it. What becomes of
//!   the body is not seen.
//! - **Kept**: each thread holds the breaker whose call ended last on it, until a call of another ends
//!   there or the thread does. So long its key is not forgotten, and subscriptions to it do not end.
//!
//! A caller that waits for the service within to be ready is woken by that service alone; a breaker
//! that opens meanwhile refuses it then.
//!
//! A refused service whose inner instance was made ready before keeps it so, with whatever that
//! instance holds, such as a slot of a concurrency limit, until its next call or its end.

mod classify;
mod http;

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use classify::{BoxedRefusalIsIgnored, Classify, ErrIsFailure, RefusalIsIgnored};
pub use http::{HttpStatus, http_outcome};

use crate::circuit_breaker::{Admission, CallError, CircuitBreaker, Refusal, Rejected};
use crate::foreign::OnUnwind;

/// Puts services behind a circuit breaker.
///
/// All services that one layer makes, and all their clones, share the breaker. See the
/// [module](self) for what it promises, and [`layer`](crate::layer) for an example.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = ErrIsFailure> {
    breaker: CircuitBreaker,
    classifier: C,
}

impl CircuitBreakerLayer {
    /// A layer where an `Err` counts as a failure, and any response as a success.
    ///
    /// So does the refusal of a layer within; [`RefusalIsIgnored`] tells them apart.
    #[must_use]
    pub fn new(breaker: CircuitBreaker) -> Self {
        Self::with_classifier(breaker, ErrIsFailure)
    }
}

impl<C> CircuitBreakerLayer<C> {
    /// A layer where `classifier` says how a call ended: [`HttpStatus`], a [`Classify`] of your
    /// own, or a closure.
    ///
    /// Around other layers of this library, whose refusals say nothing about the dependency, wrap it in
    /// [`RefusalIsIgnored`].
    ///
    /// ```
    /// use kailash::circuit_breaker::{CircuitBreaker, Config, Outcome};
    /// use kailash::layer::circuit_breaker::CircuitBreakerLayer;
    ///
    /// type Answer = Result<String, std::io::Error>;
    ///
    /// let breaker = CircuitBreaker::new("files", Config::default())?;
    /// let layer = CircuitBreakerLayer::with_classifier(breaker, |answer: &Answer| match answer {
    ///     Ok(_) => Outcome::Success,
    ///     Err(error) if error.kind() == std::io::ErrorKind::NotFound => Outcome::Ignored,
    ///     Err(_) => Outcome::Failure,
    /// });
    /// # drop(layer);
    /// # Ok::<(), kailash::ConfigError>(())
    /// ```
    #[must_use]
    pub fn with_classifier(breaker: CircuitBreaker, classifier: C) -> Self {
        Self {
            breaker,
            classifier,
        }
    }
}

impl<S, C: Clone> Layer<S> for CircuitBreakerLayer<C> {
    type Service = CircuitBreakerService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreakerService {
            inner,
            breaker: self.breaker.clone(),
            classifier: self.classifier.clone(),
            refusal: None,
        }
    }
}

/// A service behind a circuit breaker, made by a [`CircuitBreakerLayer`].
///
/// A clone shares the breaker and must be made ready itself. A call without readiness goes to the
/// service within as it is, which may panic.
#[derive(Debug)]
pub struct CircuitBreakerService<S, C = ErrIsFailure> {
    inner: S,
    breaker: CircuitBreaker,
    classifier: C,
    /// Set while this instance is ready to refuse: the service within was not asked.
    refusal: Option<Refusal>,
}

impl<S: Clone, C: Clone> Clone for CircuitBreakerService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            breaker: self.breaker.clone(),
            classifier: self.classifier.clone(),
            refusal: None,
        }
    }
}

impl<S, C, Request> Service<Request> for CircuitBreakerService<S, C>
where
    S: Service<Request>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = ResponseFuture<S::Future, C>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.refusal.is_some() || !self.breaker.passes_all() {
            self.refusal = self.breaker.refusal();
            if self.refusal.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
        let guard = OnUnwind(|| self.breaker.record_failure());
        let ready = self.inner.poll_ready(cx);
        let ready = match ready {
            Poll::Ready(Err(error)) => {
                let failed = Err(error);
                let outcome = self.classifier.classify(&failed);
                self.breaker.record(outcome);
                Poll::Ready(failed.map(drop).map_err(CallError::Inner))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        };
        mem::forget(guard);
        ready
    }

    // Always, here and in `poll`: a future that comes out of a function in parts, and is moved at once, must be
    // all in memory before it can be read in larger parts. That takes as long as the rest of the call.
    #[inline(always)]
    fn call(&mut self, request: Request) -> Self::Future {
        let admission = if let Some(refusal) = self.refusal.take() {
            return ResponseFuture::rejected(self.breaker.refuse(&refusal));
        } else if let Some(admission) = self.breaker.admit_owned() {
            admission
        } else {
            match self.breaker.admit_or_refuse() {
                Ok(admission) => admission,
                Err(rejected) => return ResponseFuture::rejected(rejected),
            }
        };
        self.admitted(admission, request)
    }
}

impl<S, C: Clone> CircuitBreakerService<S, C> {
    #[inline(always)]
    fn admitted<Request>(
        &mut self,
        mut admission: Admission,
        request: Request,
    ) -> ResponseFuture<S::Future, C>
    where
        S: Service<Request>,
    {
        let guard = OnUnwind(|| admission.panicked());
        let (future, classifier) = (self.inner.call(request), self.classifier.clone());
        mem::forget(guard);
        ResponseFuture {
            state: State::Called {
                future,
                admission,
                classifier,
            },
        }
    }
}

pin_project! {
    /// The response of a [`CircuitBreakerService`]; dropped early it is a cancelled call.
    pub struct ResponseFuture<F, C = ErrIsFailure> {
        #[pin]
        state: State<F, C>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, C> {
        Called {
            #[pin]
            future: F,
            admission: Admission,
            classifier: C,
        },
        Rejected {
            rejected: Option<Rejected>,
        },
    }
}

impl<F, C> ResponseFuture<F, C> {
    #[inline]
    fn rejected(rejected: Rejected) -> Self {
        Self {
            state: State::Rejected {
                rejected: Some(rejected),
            },
        }
    }
}

impl<F, C, T, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    C: Classify<T, E>,
{
    type Output = Result<T, CallError<E>>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Called {
                future,
                admission,
                classifier,
            } => {
                // Whoever catches the panic may drop the future later, which would be a
                // cancelled call.
                let guard = OnUnwind(|| admission.panicked());
                let polled = future.poll(cx).map(|result| {
                    let outcome = classifier.classify(&result);
                    (result, outcome)
                });
                mem::forget(guard);
                let (result, outcome) = ready!(polled);
                admission.record(outcome);
                Poll::Ready(result.map_err(CallError::Inner))
            }
            StateProjection::Rejected { rejected } => {
                let rejected = rejected.take().expect("polled again after its end");
                Poll::Ready(Err(CallError::Rejected(rejected)))
            }
        }
    }
}

impl<F, C> fmt::Debug for ResponseFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ResponseFuture");
        match &self.state {
            State::Called { admission, .. } => shown.field("admission", admission),
            State::Rejected { rejected } => shown.field("rejected", rejected),
        };
        shown.finish_non_exhaustive()
    }
}
