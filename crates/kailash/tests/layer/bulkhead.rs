//! What the bulkhead's tower layer promises: tower's contract, and the partition's own.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use kailash::bulkhead::*;
use kailash::circuit_breaker::{self, CircuitBreaker, State};
use kailash::clock::Clock;
use kailash::layer::bulkhead::{BulkheadLayer, BulkheadService};
use kailash::layer::circuit_breaker::{
    BoxedRefusalIsIgnored, CircuitBreakerLayer, ErrIsFailure, HttpStatus, RefusalIsIgnored,
};
use tokio::task::yield_now;
use tower::limit::ConcurrencyLimit;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::dependency::{Dependency, Readiness, Seen, Work, dependency};

const S: fn(u64) -> Duration = Duration::from_secs;

fn partition(slots: u32, queue_size: u32) -> Partition {
    let config = PartitionConfig {
        max_concurrent_operations: slots,
        queue_size,
        timeout: Some(S(3)),
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    Partition::with_clock(config, Clock::tokio()).unwrap()
}

fn assert_whole(partition: &Partition) {
    let snapshot = partition.snapshot();
    assert_eq!((snapshot.active, snapshot.queued), (0, 0));
}

type Guarded = BulkheadService<Dependency>;
type Answer = Result<&'static str, CallError<&'static str>>;

fn guarded(layer: &BulkheadLayer) -> (Guarded, Arc<Seen>) {
    let (dependency, seen) = dependency();
    (layer.layer(dependency), seen)
}

async fn call(service: &mut Guarded, work: Work) -> Answer {
    service.ready().await?.call(work).await
}

fn full(answer: Answer) -> Reason {
    match answer {
        Err(CallError::Full(full)) => full.reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_held_until_the_response_future_ends() {
    let partition = partition(1, 0);
    let (mut service, _) = guarded(&BulkheadLayer::new(partition.clone()));
    let mut answer = Box::pin(service.ready().await.unwrap().call(Work::Takes(S(1))));
    assert!((&mut answer).now_or_never().is_none());
    assert_eq!(partition.snapshot().active, 1);
    assert_eq!(answer.await, Ok("done"));
    assert_whole(&partition);
    let failed = call(&mut service, Work::Fails).await;
    assert_eq!(failed, Err(CallError::Inner("down")));
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_full_partition_refuses_at_once_and_asks_no_service_within() {
    let partition = partition(1, 5);
    let (mut service, seen) = guarded(&BulkheadLayer::new(partition.clone()).rejecting());
    seen.becomes(Readiness::Never);
    let permit = partition.try_acquire().unwrap();
    let refused = call(&mut service, Work::Succeeds).now_or_never().unwrap();
    assert_eq!(full(refused), Reason::Busy);
    assert_eq!((seen.asked(), seen.called()), (0, 0));
    assert_eq!(partition.snapshot().refused, 1);
    drop(permit);
    assert!(service.ready().now_or_never().is_none(), "it is asked now");
}

#[tokio::test(start_paused = true)]
async fn so_does_a_ceiling_over_all_partitions() {
    let manager = Manager::with_defaults().under_ceiling(1).unwrap();
    let [api, database] = ["api", "database"].map(|name| manager.get(name).unwrap());
    let (mut service, seen) = guarded(&BulkheadLayer::new(api).rejecting());
    seen.becomes(Readiness::Never);
    let _permit = database.try_acquire().unwrap();
    let refused = call(&mut service, Work::Succeeds).now_or_never().unwrap();
    assert_eq!(full(refused), Reason::Ceiling);
    assert_eq!(seen.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_and_never_called_holds_no_slot() {
    let partition = partition(1, 0);
    let layer = BulkheadLayer::new(partition.clone());
    let mut services = [(); 3].map(|()| guarded(&layer).0);
    for service in &mut services {
        service.ready().await.unwrap();
        assert_eq!(partition.snapshot().active, 0);
    }
    let [first, second, _] = &mut services;
    let held = first.call(Work::Takes(S(1)));
    assert_eq!(full(second.call(Work::Succeeds).await), Reason::Busy);
    drop(held);
    // What was made ready before is still.
    assert_eq!(second.call(Work::Succeeds).await, Ok("done"));
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_never_waits_for_its_own_readiness() {
    let partition = partition(1, 1);
    let within = service_fn(|()| async { Ok::<_, Infallible>("done") });
    let mut service = BulkheadLayer::new(partition.clone()).layer(ConcurrencyLimit::new(within, 1));
    for _ in 0..3 {
        let ready = service.ready().await.unwrap();
        let permit = partition.try_acquire().unwrap();
        let mut response = Box::pin(ready.call(()));
        assert!((&mut response).now_or_never().is_none(), "it waits");
        drop(permit);
        assert_eq!(response.await, Ok("done"));
        assert_whole(&partition);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_wait_in_the_order_of_their_priority() {
    let partition = partition(1, 10);
    let permit = partition.try_acquire().unwrap();
    let order = Mutex::new(Vec::new());
    let calls = [5, 9, 1].map(|priority| {
        let layer = BulkheadLayer::new(partition.clone()).with_admission(Admission {
            priority: Some(Priority::new(priority).unwrap()),
            ..Admission::default()
        });
        let order = &order;
        async move {
            let (mut service, seen) = guarded(&layer);
            assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
            assert_eq!(seen.called(), 1);
            order.lock().unwrap().push(priority);
        }
    });
    let release = async {
        yield_now().await;
        assert_eq!(partition.snapshot().queued, 3);
        drop(permit);
    };
    tokio::join!(join_all(calls), release);
    assert_eq!(*order.lock().unwrap(), [1, 5, 9]);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_over_in_the_queue_never_starts() {
    let partition = partition(1, 10);
    let (mut service, seen) = guarded(&BulkheadLayer::new(partition.clone()));
    let permit = partition.try_acquire().unwrap();
    let begin = tokio::time::Instant::now();
    let late = call(&mut service, Work::Succeeds).await;
    assert_eq!(full(late), Reason::Waited);
    assert_eq!((begin.elapsed().as_secs(), seen.called()), (3, 0));
    drop(permit);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_over_while_it_runs_is_dropped_and_frees_its_slot() {
    let partition = partition(1, 10);
    let (mut service, _) = guarded(&BulkheadLayer::new(partition.clone()));
    let late = call(&mut service, Work::Takes(S(60))).await;
    let Err(CallError::TimedOut(timed_out)) = late else {
        panic!("{late:?}")
    };
    assert_eq!(timed_out.timeout, S(3));
    assert_whole(&partition);

    // One timeout for waiting and running, and for a service that does not get ready.
    let begin = tokio::time::Instant::now();
    let permit = partition.try_acquire().unwrap();
    let waits = call(&mut service, Work::Takes(S(60)));
    let release = async {
        tokio::time::sleep(S(2)).await;
        drop(permit);
    };
    let (late, ()) = tokio::join!(waits, release);
    assert!(matches!(late, Err(CallError::TimedOut(_))));
    assert_eq!(begin.elapsed().as_secs(), 3);
    assert_whole(&partition);

    let (mut service, seen) = guarded(&BulkheadLayer::new(partition.clone()));
    seen.becomes(Readiness::Never);
    let late = service.call(Work::Succeeds).await;
    assert!(matches!(late, Err(CallError::TimedOut(_))));
    assert_eq!((seen.called(), partition.snapshot().timed_out), (0, 3));
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn an_error_while_getting_ready_is_the_services_own() {
    let partition = partition(1, 1);
    let (mut service, seen) = guarded(&BulkheadLayer::new(partition.clone()));
    seen.becomes(Readiness::Fails);
    let error = CallError::Inner("cannot connect");
    assert_eq!(call(&mut service, Work::Succeeds).await, Err(error.clone()));
    // After a wait, in a slot.
    let permit = partition.try_acquire().unwrap();
    let mut answer = Box::pin(service.ready().await.unwrap().call(Work::Succeeds));
    assert!((&mut answer).now_or_never().is_none());
    drop(permit);
    assert_eq!(answer.await, Err(error));
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_closed_partition_says_so() {
    let partition = partition(1, 1);
    let (mut service, _) = guarded(&BulkheadLayer::new(partition.clone()));
    let _permit = partition.try_acquire().unwrap();
    let waits = service.ready().await.unwrap().call(Work::Succeeds);
    partition.close();
    assert!(matches!(waits.await, Err(CallError::Closed(_))));
    let refused = call(&mut service, Work::Succeeds).await;
    assert!(matches!(refused, Err(CallError::Closed(_))));
}

/// Drops the response after every number of polls it can take, in a partition that is free, busy and left.
#[tokio::test(start_paused = true)]
async fn a_response_may_be_dropped_at_every_await_point() {
    for is_busy in [false, true] {
        for polls in 0..8 {
            let partition = partition(1, 1);
            let mut permit = is_busy.then(|| partition.try_acquire().unwrap());
            let body = service_fn(|()| async {
                yield_now().await;
                yield_now().await;
                Ok::<_, Infallible>(())
            });
            let mut service = BulkheadLayer::new(partition.clone()).layer(body);
            let mut answer = Box::pin(service.ready().await.unwrap().call(()));
            let mut context = Context::from_waker(Waker::noop());
            for poll in 0..polls {
                if poll == 3 {
                    drop(permit.take());
                }
                if answer.as_mut().poll(&mut context).is_ready() {
                    break;
                }
            }
            drop(answer);
            drop(permit);
            assert_whole(&partition);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_the_slot_back() {
    let partition = partition(1, 1);
    for work in [Work::PanicsInCall, Work::PanicsInFuture] {
        for waits in [false, true] {
            let (mut service, _) = guarded(&BulkheadLayer::new(partition.clone()));
            let permit = waits.then(|| partition.try_acquire().unwrap());
            let calls = async {
                let answer = AssertUnwindSafe(call(&mut service, work)).catch_unwind();
                assert!(answer.await.is_err());
            };
            let release = async {
                yield_now().await;
                drop(permit);
            };
            tokio::join!(calls, release);
            assert_whole(&partition);
        }
    }
}

fn streaming(
    partition: &Partition,
) -> impl Service<(), Response = Response<Held>, Error = BoxError> {
    let within = service_fn(|()| async {
        let chunks = ["a", "b"].map(Ok::<_, Infallible>);
        Ok::<_, BoxError>(Response::new(Body::from_stream(stream::iter(chunks))))
    });
    ServiceBuilder::new()
        .map_err(CallError::into_boxed)
        .layer(BulkheadLayer::new(partition.clone()).until_body_ends())
        .service(within)
}

type Held = kailash::layer::bulkhead::HeldBody<Body>;

#[tokio::test(start_paused = true)]
async fn a_slot_may_be_held_until_the_body_ends() {
    let partition = partition(1, 0);
    let mut service = streaming(&partition);
    let response = service.ready().await.unwrap().call(()).await.unwrap();
    assert_eq!(partition.snapshot().active, 1);
    // Longer than the partition's timeout, which covers the response.
    tokio::time::sleep(S(60)).await;
    let mut chunks = Body::new(response.into_body()).into_data_stream();
    assert_eq!(chunks.next().await.unwrap().unwrap(), "a");
    assert_eq!(partition.snapshot().active, 1);
    assert_eq!(chunks.next().await.unwrap().unwrap(), "b");
    assert!(chunks.next().await.is_none());
    assert_whole(&partition);

    let response = service.ready().await.unwrap().call(()).await.unwrap();
    assert_eq!(partition.snapshot().active, 1);
    drop(response);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_or_is_empty_holds_no_slot() {
    let partition = partition(1, 0);
    let within = service_fn(|is_empty: bool| async move {
        let chunks = stream::iter([Err::<&str, _>("broken")]);
        let body = if is_empty {
            Body::empty()
        } else {
            Body::from_stream(chunks)
        };
        Ok::<_, Infallible>(Response::new(body))
    });
    let layer = BulkheadLayer::new(partition.clone()).until_body_ends();
    let mut service = layer.layer(within);
    let empty = service.ready().await.unwrap().call(true).await.unwrap();
    assert_whole(&partition);
    drop(empty);
    let broken = service.ready().await.unwrap().call(false).await.unwrap();
    let mut chunks = Body::new(broken.into_body()).into_data_stream();
    assert!(chunks.next().await.unwrap().is_err());
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_full_partition_is_neutral_to_a_breaker_around_it_and_keeps_no_probe() {
    let partition = partition(1, 0);
    let config = circuit_breaker::Config {
        failure_threshold: 1,
        success_threshold: 1,
        half_open_requests: 1,
        recovery_timeout: S(10),
        jitter_enabled: false,
        ..circuit_breaker::Config::default()
    };
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("b", config, clock).unwrap();
    let (dependency, _) = dependency();
    let mut service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::with_classifier(
            breaker.clone(),
            RefusalIsIgnored(ErrIsFailure),
        ))
        .layer(BulkheadLayer::new(partition.clone()))
        .map_err(io::Error::other)
        .service(dependency);
    let mut call = async |work| service.ready().await?.call(work).await;
    type Refused = circuit_breaker::CallError<CallError<io::Error>>;
    let is_refused_within = |answer: Result<&str, Refused>| {
        let full = |error| matches!(error, Refused::Inner(CallError::Full(_)));
        answer.is_err_and(full)
    };

    let permit = partition.try_acquire().unwrap();
    assert!(is_refused_within(call(Work::Succeeds).await));
    assert_eq!(breaker.state(), State::Closed);
    drop(permit);
    assert!(call(Work::Fails).await.is_err());
    assert_eq!(breaker.state(), State::Open);

    hand.advance(S(10));
    let permit = partition.try_acquire().unwrap();
    for _ in 0..3 {
        // Each is a probe that its partition refuses.
        assert!(is_refused_within(call(Work::Succeeds).await));
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    drop(permit);
    assert_eq!(call(Work::Succeeds).await.unwrap(), "done");
    assert_eq!(breaker.state(), State::Closed);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn an_http_status_still_counts_where_refusals_are_ignored() {
    let partition = partition(1, 0);
    let config = circuit_breaker::Config {
        failure_threshold: 1,
        ..circuit_breaker::Config::default()
    };
    let breaker = CircuitBreaker::new("b", config).unwrap();
    let classifier = RefusalIsIgnored(HttpStatus);
    let mut service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::with_classifier(
            breaker.clone(),
            classifier,
        ))
        .layer(BulkheadLayer::new(partition.clone()))
        .service_fn(|status: u16| async move {
            let answer = Response::builder().status(status);
            Ok::<_, Infallible>(answer.body(()).unwrap())
        });
    let mut call = async |status| service.ready().await?.call(status).await;

    let permit = partition.try_acquire().unwrap();
    for _ in 0..5 {
        assert!(call(200).await.is_err());
        assert_eq!(breaker.state(), State::Closed);
    }
    drop(permit);
    assert_eq!(call(200).await.unwrap().status(), 200);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(call(503).await.unwrap().status(), 503);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_found_in_boxes_and_behind_other_layers() {
    let partition = partition(1, 0);
    let [outer, inner] = ["outer", "inner"].map(|name| {
        let config = circuit_breaker::Config {
            failure_threshold: 1,
            ..circuit_breaker::Config::default()
        };
        CircuitBreaker::new(name, config).unwrap()
    });
    // From outside in: the breaker that is looked at, errors that are boxed or not, a partition, a breaker.
    let layer = |breaker: &CircuitBreaker| {
        CircuitBreakerLayer::with_classifier(breaker.clone(), BoxedRefusalIsIgnored(ErrIsFailure))
    };
    let mut boxed = ServiceBuilder::new()
        .layer(layer(&outer))
        .map_err(BoxError::from)
        .layer(BulkheadLayer::new(partition.clone()))
        .layer(CircuitBreakerLayer::new(inner.clone()))
        .service_fn(async |()| Err::<(), _>(io::Error::other("down")));
    let mut within = ServiceBuilder::new()
        .layer(layer(&outer))
        .layer(BulkheadLayer::new(partition.clone()))
        .layer(CircuitBreakerLayer::new(inner.clone()))
        .service_fn(async |()| Err::<(), _>(BoxError::from("down")));
    let mut buffered = ServiceBuilder::new()
        .layer(layer(&outer))
        .buffer(1)
        .layer(BulkheadLayer::new(partition.clone()))
        .layer(CircuitBreakerLayer::new(inner.clone()))
        .service_fn(async |()| Err::<(), _>(io::Error::other("down")));
    let mut call = async || {
        let boxed = boxed.ready().await.unwrap().call(()).await.is_err();
        let within = within.ready().await.unwrap().call(()).await.is_err();
        let buffered = buffered.ready().await.unwrap().call(()).await.is_err();
        boxed && within && buffered
    };
    let slot = partition.try_acquire().unwrap();
    assert!(call().await);
    drop(slot);
    inner.force_open();
    assert!(call().await);
    assert_eq!(outer.snapshot().failures, 0);
    assert_eq!(outer.snapshot().calls, 0, "they are no successes either");
    inner.force_close();
    assert!(call().await);
    assert_eq!(outer.state(), State::Open, "what fails still counts");
}

#[tokio::test]
async fn the_errors_of_a_stack_are_what_they_are() {
    let partition = partition(1, 0);
    let mut service = ServiceBuilder::new()
        .map_err(CallError::into_boxed)
        .layer(BulkheadLayer::new(partition.clone()).rejecting())
        .service_fn(|()| pending::<Result<(), BoxError>>());
    let held = service.ready().await.unwrap().call(());
    let refused = service.ready().await.unwrap().call(()).await.unwrap_err();
    assert_eq!(refused.downcast::<Full>().unwrap().active, 1);
    drop(held);
    assert_whole(&partition);
}

struct Inside(Arc<AtomicU32>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_calls_of_clones_never_exceed_the_limit() {
    let partition = partition(10, 1_000);
    let inside = Arc::new(AtomicU32::new(0));
    let within = service_fn({
        let inside = Arc::clone(&inside);
        move |()| {
            let inside = Arc::clone(&inside);
            async move {
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 10);
                let _inside = Inside(inside);
                yield_now().await;
                Ok::<_, Infallible>(())
            }
        }
    });
    let service = BulkheadLayer::new(partition.clone()).layer(within);
    let calls = (0..1_000).map(|number| {
        let mut service = service.clone();
        tokio::spawn(async move {
            let mut answer = Box::pin(service.ready().await.unwrap().call(()));
            if number % 7 == 0 {
                // Polled once, then given up.
                let _ = Pin::new(&mut answer).now_or_never();
                return;
            }
            answer.await.unwrap();
        })
    });
    let answers = join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(partition.snapshot().peak_active <= 10);
    assert_whole(&partition);
}
