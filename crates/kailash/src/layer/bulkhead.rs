//! A partition as a tower layer.
//!
//! - **Ready**: while the partition has no free slot the service is ready at once, without asking the
//!   service within; the call then waits in the partition's queue or is refused, as the layer is told.
//!   Else the service is as ready as the one within, and that very instance gets the call.
//! - **Slots** are taken by calls, not by readiness: a service that is made ready and never called holds
//!   none. A call that had to wait makes a clone of the service within ready once it has its slot; what the
//!   instance that was ready before holds, such as a slot of a concurrency limit, is let go when the waiting
//!   begins. An instance whose call is refused stays ready, and keeps what it holds until its next call.
//! - **A slot is held** until the response future ends, or with
//!   [`until_body_ends`](BulkheadLayer::until_body_ends) until the response's body does, however either
//!   ends.
//! - **The timeout** covers waiting and running together, to the end of the response future. The clock of a
//!   call that needs not wait starts when the service within first has to.
//! - **Cancelled**: a response future that is dropped leaves the queue at once, or gives its slot back after
//!   the call within is dropped.
//!
//! A timeout needs a tokio runtime with time.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::bulkhead::{Admission, CallError, Full, OwnedPermit, Partition, Waiting};

/// Runs the calls of services in the slots of a partition.
///
/// All services that one layer makes, and all their clones, share the partition. See the [module](self)
/// for what it promises.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use kailash::bulkhead::{CallError, Partition, PartitionConfig, PartitionType};
/// use kailash::layer::bulkhead::BulkheadLayer;
/// use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
///
/// async fn query(id: u32) -> Result<String, BoxError> {
///     Ok(format!("row {id}"))
/// }
///
/// let partition = Partition::new(PartitionConfig::new("database", PartitionType::Database))?;
/// let mut service = ServiceBuilder::new()
///     .map_err(CallError::into_boxed)
///     .layer(BulkheadLayer::new(partition.clone()))
///     .service_fn(query);
/// assert_eq!(service.ready().await?.call(7).await?, "row 7");
/// assert_eq!(partition.snapshot().run, 1);
/// # Ok::<(), BoxError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Debug)]
pub struct BulkheadLayer<H = UntilResponse> {
    partition: Partition,
    admission: Admission,
    hold: PhantomData<fn() -> H>,
}

impl BulkheadLayer {
    /// A layer whose calls wait in the partition's queue, with its priority and timeout.
    #[must_use]
    pub const fn new(partition: Partition) -> Self {
        Self {
            partition,
            admission: Admission {
                priority: None,
                timeout: None,
            },
            hold: PhantomData,
        }
    }

    /// A layer that holds a slot until the body of the HTTP response ends.
    #[must_use]
    pub fn until_body_ends(self) -> BulkheadLayer<UntilBody> {
        BulkheadLayer {
            partition: self.partition,
            admission: self.admission,
            hold: PhantomData,
        }
    }
}

impl<H> BulkheadLayer<H> {
    /// A layer whose calls ask for their slots like this.
    #[must_use]
    pub fn with_admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// A layer whose calls never wait: they are refused when no slot is free.
    #[must_use]
    pub fn rejecting(mut self) -> Self {
        self.admission.timeout = Some(Duration::ZERO);
        self
    }
}

impl<H> Clone for BulkheadLayer<H> {
    fn clone(&self) -> Self {
        Self {
            partition: self.partition.clone(),
            ..*self
        }
    }
}

impl<S, H> Layer<S> for BulkheadLayer<H> {
    type Service = BulkheadService<S, H>;

    fn layer(&self, inner: S) -> Self::Service {
        BulkheadService {
            inner,
            partition: self.partition.clone(),
            admission: self.admission,
            is_ready: false,
            hold: PhantomData,
        }
    }
}

/// A service whose calls run in the slots of a partition, made by a [`BulkheadLayer`].
///
/// A clone shares the partition and must be made ready itself.
#[derive(Debug)]
pub struct BulkheadService<S, H = UntilResponse> {
    inner: S,
    partition: Partition,
    admission: Admission,
    /// Whether this instance of the service within was made ready and not called since.
    is_ready: bool,
    hold: PhantomData<fn() -> H>,
}

impl<S: Clone, H> Clone for BulkheadService<S, H> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            partition: self.partition.clone(),
            admission: self.admission,
            is_ready: false,
            hold: PhantomData,
        }
    }
}

impl<S, H, Request> Service<Request> for BulkheadService<S, H>
where
    S: Service<Request> + Clone,
    H: Hold<S::Response>,
{
    type Response = H::Held;
    type Error = CallError<S::Error>;
    type Future = ResponseFuture<S, Request, H>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.is_ready && self.partition.has_room() {
            ready!(self.inner.poll_ready(cx)).map_err(CallError::Inner)?;
            self.is_ready = true;
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request) -> Self::Future {
        if self.is_ready
            && let Some(permit) = self.partition.take_free_owned()
        {
            self.is_ready = false;
            let future = self.inner.call(request);
            return ResponseFuture::new(State::Running {
                future,
                timer: None,
                permit: Some(permit),
                admission: self.admission,
            });
        }
        self.enter(request)
    }
}

impl<S, H> BulkheadService<S, H> {
    fn enter<Request>(&mut self, request: Request) -> ResponseFuture<S, Request, H>
    where
        S: Service<Request> + Clone,
    {
        let waiting = match self.partition.enqueue(self.admission) {
            Err(full) => return ResponseFuture::new(State::Refused { full: Some(full) }),
            Ok(waiting) => waiting,
        };
        let service = self.inner.clone();
        // What this instance's readiness holds, the clone may have to wait for.
        self.inner = service.clone();
        self.is_ready = false;
        ResponseFuture::new(State::Waiting {
            waiting: Some(waiting),
            timer: self.partition.deadline(self.admission).map(Timer::new),
            service: Some(service),
            request: Some(request),
            admission: self.admission,
        })
    }
}

pin_project! {
    /// The response of a [`BulkheadService`].
    pub struct ResponseFuture<S, Request, H = UntilResponse>
    where
        S: Service<Request>,
    {
        #[pin]
        state: State<S, S::Future, Request>,
        hold: PhantomData<fn() -> H>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, F, Request> {
        Waiting {
            waiting: Option<Waiting>,
            #[pin]
            timer: Option<Timer>,
            service: Option<S>,
            request: Option<Request>,
            admission: Admission,
        },
        GettingReady {
            service: S,
            request: Option<Request>,
            #[pin]
            timer: Option<Timer>,
            // After the service, whose work ends before its slot is free.
            permit: Option<OwnedPermit>,
            admission: Admission,
        },
        Running {
            #[pin]
            future: F,
            #[pin]
            timer: Option<Timer>,
            // After the future, for the same reason.
            permit: Option<OwnedPermit>,
            admission: Admission,
        },
        Refused { full: Option<Full> },
        Ended,
    }
}

pin_project! {
    /// The end of a call's time.
    struct Timer {
        #[pin]
        sleep: Sleep,
        timeout: Duration,
    }
}

impl Timer {
    fn new((deadline, timeout): (tokio::time::Instant, Duration)) -> Self {
        let sleep = tokio::time::sleep_until(deadline);
        Self { sleep, timeout }
    }
}

/// The timeout that is over, if it is.
fn poll_timer(timer: Pin<&mut Option<Timer>>, cx: &mut Context<'_>) -> Poll<Duration> {
    let Some(timer) = timer.as_pin_mut() else {
        return Poll::Pending;
    };
    let timer = timer.project();
    timer.sleep.poll(cx).map(|()| *timer.timeout)
}

impl<S, Request, H> ResponseFuture<S, Request, H>
where
    S: Service<Request>,
{
    fn new(state: State<S, S::Future, Request>) -> Self {
        let hold = PhantomData;
        Self { state, hold }
    }
}

impl<S, Request, H> Future for ResponseFuture<S, Request, H>
where
    S: Service<Request>,
    H: Hold<S::Response>,
{
    type Output = Result<H::Held, CallError<S::Error>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Running {
                    future,
                    mut timer,
                    permit,
                    admission,
                } => {
                    if let Poll::Ready(result) = future.poll(cx) {
                        let permit = permit.take().expect("a call that runs has a slot");
                        let result = result.map_err(CallError::Inner);
                        return Poll::Ready(result.map(|response| H::hold(response, permit)));
                    }
                    let running = permit.as_ref().expect("a call that runs has a slot");
                    if timer.is_none() {
                        let deadline = running.partition().deadline(*admission);
                        timer.set(deadline.map(Timer::new));
                    }
                    let timeout = ready!(poll_timer(timer, cx));
                    let timed_out = running.partition().time_out(timeout);
                    state.set(State::Ended);
                    return Poll::Ready(Err(timed_out.into()));
                }
                StateProjection::Waiting {
                    waiting,
                    timer,
                    service,
                    request,
                    admission,
                } => {
                    let place = waiting.as_mut().expect("a call that waits has a place");
                    let full = match Pin::new(place).poll(cx) {
                        Poll::Ready(Ok(permit)) => {
                            let service = service.take().expect("it is called once");
                            let (request, admission) = (request.take(), *admission);
                            let next = |timer| State::GettingReady {
                                service,
                                request,
                                timer,
                                permit: Some(permit),
                                admission,
                            };
                            // The same end as before: a sleep that was polled stays where it is.
                            let left = timer.as_ref().get_ref().as_ref();
                            let end = left.map(|timer| (timer.sleep.deadline(), timer.timeout));
                            state.set(next(end.map(Timer::new)));
                            continue;
                        }
                        Poll::Ready(Err(full)) => full,
                        Poll::Pending => {
                            ready!(poll_timer(timer, cx));
                            waiting.take().expect("it was just polled").expire()
                        }
                    };
                    State::Refused { full: Some(full) }
                }
                StateProjection::GettingReady {
                    service,
                    request,
                    mut timer,
                    permit,
                    admission,
                } => match service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let request = request.take().expect("it is called once");
                        let future = service.call(request);
                        let left = timer.as_ref().get_ref().as_ref();
                        let end = left.map(|timer| (timer.sleep.deadline(), timer.timeout));
                        State::Running {
                            future,
                            timer: end.map(Timer::new),
                            permit: permit.take(),
                            admission: *admission,
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        state.set(State::Ended);
                        return Poll::Ready(Err(CallError::Inner(error)));
                    }
                    Poll::Pending => {
                        let timeout = ready!(poll_timer(timer.as_mut(), cx));
                        let running = permit.as_ref().expect("a call that runs has a slot");
                        let timed_out = running.partition().time_out(timeout);
                        state.set(State::Ended);
                        return Poll::Ready(Err(timed_out.into()));
                    }
                },
                StateProjection::Refused { full } => {
                    let full = full.take().expect("polled again after its end");
                    return Poll::Ready(Err(full.into()));
                }
                StateProjection::Ended => panic!("polled again after its end"),
            };
            state.set(next);
        }
    }
}

impl<S, Request, H> fmt::Debug for ResponseFuture<S, Request, H>
where
    S: Service<Request>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ResponseFuture");
        match &self.state {
            State::Waiting { waiting, .. } => shown.field("waiting", waiting),
            State::GettingReady { permit, .. } | State::Running { permit, .. } => {
                shown.field("permit", permit)
            }
            State::Refused { full } => shown.field("refused", full),
            State::Ended => shown.field("ended", &true),
        };
        shown.finish_non_exhaustive()
    }
}

/// Until when a call holds its slot: [`UntilResponse`] or [`UntilBody`].
pub trait Hold<Response>: sealed::Sealed {
    /// The response that holds the slot, if it does.
    type Held;

    /// A response has come.
    #[doc(hidden)]
    fn hold(response: Response, permit: OwnedPermit) -> Self::Held;
}

mod sealed {
    /// Only this module says until when a slot is held.
    pub trait Sealed {}
}

/// A slot is held until the response has come.
#[derive(Debug)]
pub enum UntilResponse {}

/// A slot is held until the body of the response has ended, whether it was read or dropped.
#[derive(Debug)]
pub enum UntilBody {}

impl sealed::Sealed for UntilResponse {}
impl sealed::Sealed for UntilBody {}

impl<Response> Hold<Response> for UntilResponse {
    type Held = Response;

    #[inline]
    fn hold(response: Response, permit: OwnedPermit) -> Response {
        drop(permit);
        response
    }
}

impl<B: Body> Hold<http::Response<B>> for UntilBody {
    type Held = http::Response<HeldBody<B>>;

    fn hold(response: http::Response<B>, permit: OwnedPermit) -> Self::Held {
        response.map(|body| {
            let permit = (!body.is_end_stream()).then_some(permit);
            HeldBody { body, permit }
        })
    }
}

pin_project! {
    /// A body that holds its call's slot until it ends.
    #[derive(Debug)]
    pub struct HeldBody<B> {
        #[pin]
        body: B,
        // After the body, which ends before its slot is free.
        permit: Option<OwnedPermit>,
    }
}

impl<B: Body> Body for HeldBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let goes_on = matches!(&frame, Some(Ok(_))) && !this.body.is_end_stream();
        if !goes_on {
            this.permit.take();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
