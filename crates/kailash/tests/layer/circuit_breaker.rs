//! What the circuit breaker's tower layer promises: tower's contract, and the breaker's own.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Barrier, Mutex};
use std::task::Context;
use std::thread;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use futures_util::{FutureExt, StreamExt, poll, stream};
use kailash::circuit_breaker::{
    CallError, CircuitBreaker, Config, KeyedConfig, Manager, Outcome, Rejected, State,
};
use kailash::clock::{Clock, ManualClock};
#[cfg(feature = "http")]
use kailash::layer::circuit_breaker::RefusalIsIgnored;
use kailash::layer::circuit_breaker::{
    CircuitBreakerLayer, CircuitBreakerService, HttpStatus, http_outcome,
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::dependency::{Dependency, Readiness, Seen, Work, dependency};

const S: fn(u64) -> Duration = Duration::from_secs;

/// One failure opens it, for ten seconds; two probes at once, of which two must succeed.
fn breaker() -> (CircuitBreaker, ManualClock) {
    let config = Config {
        failure_threshold: 1,
        success_threshold: 2,
        half_open_requests: 2,
        recovery_timeout: S(10),
        exponential_backoff_multiplier: 1.0,
        jitter_enabled: false,
        ..Config::default()
    };
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("test", config, clock).unwrap();
    (breaker, hand)
}

fn half_open() -> (CircuitBreaker, ManualClock) {
    let (breaker, hand) = breaker();
    breaker.record_failure();
    hand.advance(S(10));
    assert_eq!(breaker.state(), State::HalfOpen);
    (breaker, hand)
}

type Guarded = CircuitBreakerService<Dependency>;

fn guarded(breaker: &CircuitBreaker) -> (Guarded, Arc<Seen>) {
    let (dependency, seen) = dependency();
    let layer = CircuitBreakerLayer::new(breaker.clone());
    (layer.layer(dependency), seen)
}

fn is_ready(service: &mut Guarded) -> bool {
    service.ready().now_or_never().is_some()
}

async fn call(service: &mut Guarded, work: Work) -> Result<&'static str, CallError<&'static str>> {
    service.ready().await?.call(work).await
}

fn refusal<T: std::fmt::Debug, E: std::fmt::Debug>(result: Result<T, CallError<E>>) -> Rejected {
    match result {
        Err(CallError::Rejected(rejected)) => rejected,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn calls_pass_while_closed_and_errors_open_it() {
    let (breaker, hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
    let failed = call(&mut service, Work::Fails).await;
    assert_eq!(failed, Err(CallError::Inner("down")));
    let rejected = refusal(call(&mut service, Work::Succeeds).await);
    assert_eq!(rejected.retry_after, Some(S(10)));
    assert_eq!((seen.called(), breaker.snapshot().rejections), (2, 1));

    hand.advance(S(10));
    assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
    assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_service_that_is_never_ready_stops_no_refusal() {
    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    seen.becomes(Readiness::Never);
    assert!(!is_ready(&mut service), "closed: as ready as its service");
    breaker.record_failure();
    let asked = seen.asked();
    for refused in 1..=3 {
        assert!(is_ready(&mut service));
        refusal(service.call(Work::Succeeds).await);
        assert_eq!(breaker.snapshot().rejections, refused);
    }
    breaker.force_open();
    assert!(is_ready(&mut service));
    assert!(refusal(service.call(Work::Succeeds).await).forced);
    assert_eq!(seen.asked(), asked, "an open breaker asks nobody");
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    assert!(is_ready(&mut service));
    let clone = service.clone();
    // The dependency panics if another instance of it is called.
    assert_eq!(service.call(Work::Succeeds).await, Ok("done"));
    assert_eq!(seen.asked(), 1);
    drop(clone);
}

#[tokio::test]
async fn a_clone_must_be_made_ready_itself() {
    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    assert!(is_ready(&mut service));
    let mut clone = service.clone();
    let unready = catch_unwind(AssertUnwindSafe(|| clone.call(Work::Succeeds)));
    assert!(unready.is_err(), "the service within sees the breach");
    breaker.force_close();

    assert!(is_ready(&mut clone));
    assert_eq!((seen.asked(), seen.called()), (2, 0));
}

#[tokio::test]
async fn a_clone_of_a_service_that_is_ready_to_refuse_is_not() {
    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    breaker.force_open();
    assert!(is_ready(&mut service));
    let mut clone = service.clone();
    breaker.force_close();
    assert_eq!(call(&mut clone, Work::Succeeds).await, Ok("done"));
    refusal(service.call(Work::Succeeds).await);
    assert_eq!((seen.asked(), seen.called()), (1, 1));
}

#[tokio::test]
async fn readiness_to_refuse_is_for_one_call_of_one_instance() {
    let (breaker, _hand) = breaker();
    let (mut service, _seen) = guarded(&breaker);
    breaker.force_open();
    assert!(is_ready(&mut service));
    let clone = service.clone();
    refusal(service.call(Work::Succeeds).await);
    for mut unready in [service, clone] {
        breaker.force_close();
        // Nobody refuses it, so the service within sees the breach.
        let called = catch_unwind(AssertUnwindSafe(|| unready.call(Work::Succeeds)));
        assert!(called.is_err());
    }
}

#[tokio::test]
async fn what_was_made_ready_to_refuse_never_calls_a_service_that_was_not_asked() {
    let (breaker, hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    breaker.record_failure();
    assert!(is_ready(&mut service));
    hand.advance(S(11));
    let rejected = refusal(service.call(Work::Succeeds).await);
    assert_eq!(rejected.retry_after, Some(Duration::ZERO), "come back now");
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.rejections, snapshot.probes_in_flight), (1, 0));
    assert_eq!((seen.asked(), seen.called()), (0, 0));

    assert!(is_ready(&mut service));
    assert_eq!(seen.asked(), 1);
}

#[tokio::test]
async fn a_refusal_says_how_long_to_wait_from_the_call_on_however_long_it_was_ready() {
    let (breaker, hand) = breaker();
    let (mut service, _seen) = guarded(&breaker);
    breaker.record_failure();
    assert!(is_ready(&mut service));
    hand.advance(S(4));
    let rejected = refusal(service.call(Work::Succeeds).await);
    assert_eq!(rejected.retry_after, Some(S(6)));

    assert!(is_ready(&mut service));
    breaker.force_open();
    let rejected = refusal(service.call(Work::Succeeds).await);
    assert_eq!((rejected.forced, rejected.retry_after), (true, None));
}

#[tokio::test]
async fn readiness_is_asked_for_anew_once_an_open_breaker_lets_probes_pass() {
    let (breaker, hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    breaker.record_failure();
    assert!(is_ready(&mut service));
    hand.advance(S(10));
    assert!(is_ready(&mut service), "asked twice before the call");
    assert_eq!(service.call(Work::Succeeds).await, Ok("done"));
    assert_eq!(seen.asked(), 1);
}

#[tokio::test]
async fn a_breaker_that_opens_between_readiness_and_call_refuses() {
    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    assert!(is_ready(&mut service));
    breaker.record_failure();
    refusal(service.call(Work::Succeeds).await);
    assert_eq!((seen.asked(), seen.called()), (1, 0));
    assert_eq!(breaker.snapshot().rejections, 1);
}

#[tokio::test]
async fn an_error_while_getting_ready_is_passed_on_and_counts() {
    let (breaker, hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    seen.becomes(Readiness::Fails);
    let failed = service.ready().await.map(drop);
    assert_eq!(failed, Err(CallError::Inner("cannot connect")));
    assert_eq!(breaker.state(), State::Open);

    hand.advance(S(10));
    assert!(service.clone().ready().await.is_err());
    assert_eq!(breaker.state(), State::Open, "it counts like a probe's");
    assert_eq!(breaker.snapshot().probes_in_flight, 0);
    assert_eq!(seen.called(), 0);
}

#[tokio::test]
async fn an_error_while_getting_ready_counts_as_the_classifier_says() {
    let (breaker, _hand) = breaker();
    let (dependency, seen) = dependency();
    let own_fault = |result: &Result<&str, &str>| match result {
        Err("cannot connect") => Outcome::Ignored,
        Err(_) => Outcome::Failure,
        Ok(_) => Outcome::Success,
    };
    let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), own_fault);
    let mut service = layer.layer(dependency);
    seen.becomes(Readiness::Fails);
    assert!(service.ready().await.is_err());
    assert_eq!(breaker.state(), State::Closed);

    seen.becomes(Readiness::Ready);
    assert!(
        service
            .ready()
            .await
            .unwrap()
            .call(Work::Fails)
            .await
            .is_err()
    );
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_dropped_response_is_a_cancelled_call() {
    let (breaker, hand) = breaker();
    let (mut service, _seen) = guarded(&breaker);
    for _ in 0..100 {
        assert!(is_ready(&mut service));
        let mut response = Box::pin(service.call(Work::Hangs));
        assert!(poll!(&mut response).is_pending());
        hand.advance(Duration::from_millis(999));
    }
    assert_eq!(breaker.state(), State::Closed, "callers that hang up early");

    assert!(is_ready(&mut service));
    let never_polled = service.call(Work::Hangs);
    hand.advance(S(1));
    drop(never_polled);
    assert_eq!(
        breaker.state(),
        State::Open,
        "the clock started with the call"
    );
}

#[tokio::test]
async fn a_cancelled_probe_gives_its_slot_back() {
    let (breaker, _hand) = half_open();
    let (mut service, _seen) = guarded(&breaker);
    for _ in 0..20 {
        assert!(is_ready(&mut service));
        let response = service.call(Work::Hangs);
        assert_eq!(breaker.snapshot().probes_in_flight, 1);
        drop(response);
        assert_eq!(breaker.snapshot().probes_in_flight, 0);
    }
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[tokio::test]
async fn what_began_before_the_breaker_opened_changes_nothing_when_it_ends_late() {
    let (breaker, hand) = breaker();
    let failing = CircuitBreakerLayer::new(breaker.clone());
    let (send, receive) = tokio::sync::oneshot::channel();
    let receive = Mutex::new(Some(receive));
    let mut late = failing.layer(service_fn(|()| {
        let receive = receive.lock().unwrap().take().unwrap();
        async move { receive.await.unwrap() }
    }));
    let late = late.ready().await.unwrap().call(());
    breaker.record_failure();
    hand.advance(S(10));
    assert_eq!(breaker.state(), State::HalfOpen);
    send.send(Err::<(), _>("down")).unwrap();
    assert_eq!(late.await, Err(CallError::Inner("down")));
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[tokio::test]
async fn exactly_as_many_probes_pass_as_there_are_slots() {
    let (breaker, _hand) = half_open();
    let (service, seen) = guarded(&breaker);
    let mut ready: Vec<_> = (0..8).map(|_| service.clone()).collect();
    assert!(ready.iter_mut().all(is_ready));
    assert_eq!(
        breaker.snapshot().probes_in_flight,
        0,
        "readiness takes no slot"
    );
    let responses: Vec<_> = ready
        .iter_mut()
        .map(|ready| ready.call(Work::Hangs))
        .collect();
    assert_eq!((seen.called(), breaker.snapshot().rejections), (2, 6));

    let asked = seen.asked();
    let mut another = service.clone();
    let rejected = refusal(call(&mut another, Work::Succeeds).await);
    assert_eq!(rejected.state, State::HalfOpen);
    assert_eq!(seen.asked(), asked, "refused without asking the service");
    drop(responses);
    assert_eq!(call(&mut another, Work::Succeeds).await, Ok("done"));
}

#[test]
fn threads_that_meet_a_half_open_breaker_at_once_get_its_slots_and_no_more() {
    for _ in 0..50 {
        let (breaker, _hand) = half_open();
        let (service, seen) = guarded(&breaker);
        let start = Barrier::new(8);
        let end = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                let mut service = service.clone();
                let (start, end) = (&start, &end);
                scope.spawn(move || {
                    start.wait();
                    assert!(is_ready(&mut service));
                    let response = service.call(Work::Hangs);
                    end.wait();
                    drop(response);
                });
            }
        });
        assert_eq!((seen.called(), breaker.snapshot().rejections), (2, 6));
        assert_eq!(breaker.snapshot().probes_in_flight, 0);
    }
}

#[tokio::test]
async fn a_service_made_ready_and_never_called_leaks_nothing() {
    let (breaker, _hand) = half_open();
    let (service, _seen) = guarded(&breaker);
    for _ in 0..100 {
        assert!(is_ready(&mut service.clone()));
    }
    let mut service = service;
    assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
    assert_eq!(call(&mut service, Work::Succeeds).await, Ok("done"));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_panic_is_a_failure_wherever_the_service_panics() {
    for work in [Work::PanicsInCall, Work::PanicsInFuture] {
        let (breaker, _hand) = breaker();
        let (mut service, _seen) = guarded(&breaker);
        let panicked = AssertUnwindSafe(call(&mut service, work)).catch_unwind();
        assert!(panicked.await.is_err());
        assert_eq!(breaker.state(), State::Open, "{work:?}");
    }

    let (breaker, _hand) = breaker();
    let (mut service, seen) = guarded(&breaker);
    seen.becomes(Readiness::Panics);
    assert!(catch_unwind(AssertUnwindSafe(|| is_ready(&mut service))).is_err());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_panic_counts_when_it_happens_and_once_though_the_future_is_kept() {
    let (breaker, hand) = breaker();
    let patient = Config {
        failure_threshold: 10,
        ..breaker.config()
    };
    breaker.reconfigure(patient).unwrap();
    let (mut service, _seen) = guarded(&breaker);
    assert!(is_ready(&mut service));
    let mut response = Box::pin(service.call(Work::PanicsInFuture));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let polled = catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(&mut cx)));
    assert!(polled.is_err());
    assert_eq!(
        breaker.snapshot().failures,
        1,
        "before the future is dropped"
    );
    // From a second on, a call that is dropped while it runs would count.
    hand.advance(S(60));
    drop(response);
    assert_eq!(breaker.snapshot().failures, 1, "and not again afterwards");
}

#[tokio::test]
async fn a_panic_elsewhere_cancels_the_responses_it_drops_and_fails_none() {
    let (breaker, _hand) = breaker();
    let (service, _seen) = guarded(&breaker);
    let handler = tokio::spawn(async move {
        let mut in_flight: Vec<_> = (0..5)
            .map(|_| Box::pin(service.clone().oneshot(Work::Hangs)))
            .collect();
        for response in &mut in_flight {
            assert!(poll!(response).is_pending());
        }
        panic!("a mistake of the handler, in none of the calls");
    });
    assert!(handler.await.unwrap_err().is_panic());
    let status = breaker.snapshot();
    assert_eq!((status.state, status.failures), (State::Closed, 0));
}

#[tokio::test]
async fn a_classifier_that_panics_is_a_failure() {
    let (breaker, _hand) = breaker();
    let (dependency, _seen) = dependency();
    let confused = |_: &Result<&str, &str>| -> Outcome { panic!("no idea") };
    let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), confused);
    let response = layer.layer(dependency).oneshot(Work::Succeeds);
    assert!(AssertUnwindSafe(response).catch_unwind().await.is_err());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn calls_behind_several_breakers_count_for_their_own_in_any_order() {
    let (left, _hand) = breaker();
    let (right, _hand) = breaker();
    let (mut on_left, _seen) = guarded(&left);
    let (mut on_right, _seen) = guarded(&right);
    for _ in 0..10 {
        assert!(is_ready(&mut on_left) && is_ready(&mut on_right));
        let (first, second) = (on_left.call(Work::Succeeds), on_right.call(Work::Succeeds));
        assert!(first.await.is_ok() && second.await.is_ok());
        assert_eq!(call(&mut on_right, Work::Succeeds).await, Ok("done"));
        assert_eq!(call(&mut on_right, Work::Succeeds).await, Ok("done"));
    }
    assert_eq!((left.snapshot().calls, right.snapshot().calls), (10, 30));
    assert!(call(&mut on_right, Work::Fails).await.is_err());
    assert_eq!((left.state(), right.state()), (State::Closed, State::Open));
}

#[test]
fn a_call_may_end_on_another_thread_and_outlive_its_service() {
    let (breaker, _hand) = breaker();
    for _ in 0..10 {
        let (mut service, _seen) = guarded(&breaker);
        assert!(is_ready(&mut service));
        let response = service.call(Work::Succeeds);
        drop(service);
        let ended = thread::spawn(move || response.now_or_never());
        assert_eq!(ended.join().unwrap(), Some(Ok("done")));
    }
    assert_eq!(breaker.snapshot().calls, 10);
}

#[tokio::test]
async fn disabled_and_metrics_only_let_all_calls_pass() {
    let (breaker, _hand) = breaker();
    let (mut service, _seen) = guarded(&breaker);
    for order in [CircuitBreaker::disable, CircuitBreaker::metrics_only] {
        order(&breaker);
        for _ in 0..3 {
            let failed = call(&mut service, Work::Fails).await;
            assert_eq!(failed, Err(CallError::Inner("down")));
        }
    }
    assert_eq!(breaker.snapshot().rejections, 0);
}

#[tokio::test(start_paused = true)]
async fn it_fits_into_a_stack_with_buffers_limits_and_boxes() {
    let (breaker, hand) = breaker();
    let (dependency, seen) = dependency();
    let stack = ServiceBuilder::new()
        .boxed_clone()
        .buffer(8)
        .map_err(CallError::into_boxed)
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .concurrency_limit(1)
        .service(dependency.map_err(BoxError::from));
    let send = |work| stack.clone().oneshot(work);

    assert_eq!(send(Work::Succeeds).await.unwrap(), "done");
    assert_eq!(send(Work::Fails).await.unwrap_err().to_string(), "down");
    let refused = send(Work::Succeeds).await.unwrap_err();
    let rejected = refused.downcast_ref::<Rejected>().expect("a refusal");
    assert_eq!(rejected.retry_after, Some(S(10)));

    hand.advance(S(10));
    // The first takes the limit's only slot; the second waits for it as long as its caller does.
    let hanging = tokio::spawn(send(Work::Hangs));
    while seen.called() < 3 {
        tokio::task::yield_now().await;
    }
    let waiting = tokio::time::timeout(S(1), send(Work::Succeeds));
    assert!(waiting.await.is_err());
    hanging.abort();
    assert!(hanging.await.is_err());
    for _ in 0..2 {
        assert_eq!(send(Work::Succeeds).await.unwrap(), "done");
    }
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().probes_in_flight, 0);
    assert_eq!(seen.called(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_limit_whose_slots_are_taken_delays_no_refusal() {
    let (breaker, _hand) = breaker();
    let (dependency, _seen) = dependency();
    let service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .concurrency_limit(1)
        .service(dependency);
    let mut first = service.clone();
    let hanging = first.ready().await.unwrap().call(Work::Hangs);
    let mut second = service.clone();
    assert!(second.ready().now_or_never().is_none(), "no slot is free");
    breaker.record_failure();
    assert!(second.ready().now_or_never().is_some());
    refusal(second.call(Work::Succeeds).await);
    drop(hanging);
}

#[tokio::test]
async fn a_refusal_from_within_can_be_told_from_a_failure() {
    let (outer, _hand) = breaker();
    let (inner, _hand) = breaker();
    let (dependency, _seen) = dependency();
    let classify = |result: &Result<_, CallError<_>>| match result {
        Ok(_) => Outcome::Success,
        Err(CallError::Rejected(_)) => Outcome::Ignored,
        Err(CallError::Inner(_)) => Outcome::Failure,
    };
    let service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::with_classifier(
            outer.clone(),
            classify,
        ))
        .layer(CircuitBreakerLayer::new(inner.clone()))
        .service(dependency);
    inner.force_open();
    let refused = service.clone().oneshot(Work::Succeeds).await;
    assert!(matches!(
        refused,
        Err(CallError::Inner(CallError::Rejected(_)))
    ));
    assert_eq!(outer.state(), State::Closed);
    inner.force_close();
    assert!(service.oneshot(Work::Fails).await.is_err());
    assert_eq!(outer.state(), State::Open);
}

fn answer(status: u16) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder()
        .status(status)
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn http_answers_from_500_are_failures() {
    for (status, state) in [
        (200, State::Closed),
        (301, State::Closed),
        (404, State::Closed),
        (429, State::Closed),
        (500, State::Open),
        (503, State::Open),
    ] {
        let (breaker, _hand) = breaker();
        let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), HttpStatus);
        let server = service_fn(move |()| async move { Ok::<_, Infallible>(answer(status)) });
        let answered = layer.layer(server).oneshot(()).await.unwrap();
        assert_eq!(answered.status(), status, "the answer is passed on");
        assert_eq!(breaker.state(), state, "{status}");
    }

    let (breaker, _hand) = breaker();
    let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), HttpStatus);
    let unreachable = service_fn(|()| async { Err::<Response<Body>, _>("connection refused") });
    assert!(layer.layer(unreachable).oneshot(()).await.is_err());
    assert_eq!(breaker.state(), State::Open);
}

fn outcome(status: u16, headers: &[(header::HeaderName, &str)]) -> Outcome {
    let status = StatusCode::from_u16(status).unwrap();
    let headers = headers.iter().cloned();
    let headers = headers.map(|(name, value)| (name, value.parse().unwrap()));
    http_outcome(status, &headers.collect())
}

#[test]
fn retry_after_is_read_as_seconds_or_as_a_date_and_from_503_and_429_only() {
    let after = |status, value| outcome(status, &[(header::RETRY_AFTER, value)]);
    for status in [429, 503] {
        assert_eq!(after(status, "120"), Outcome::RetryAfter(S(120)));
    }
    assert_eq!(after(500, "120"), Outcome::Failure);
    assert_eq!(after(301, "120"), Outcome::Success);
    assert_eq!(after(503, " 7 "), Outcome::RetryAfter(S(7)));
    let endless = "99999999999999999999999";
    assert_eq!(after(503, endless), Outcome::RetryAfter(S(u64::MAX)));
    for neither in [
        "",
        "-1",
        "+1",
        "1.5",
        "1 s",
        "soon",
        "Wed, 31 Feb 2026 25:00:00 GMT",
    ] {
        assert_eq!(after(503, neither), Outcome::Failure, "{neither:?}");
        assert_eq!(after(429, neither), Outcome::Success, "{neither:?}");
    }

    let dated = |value| {
        let date = (header::DATE, "Wed, 25 Nov 2026 15:00:00 GMT");
        outcome(503, &[date, (header::RETRY_AFTER, value)])
    };
    let in_90_s = Outcome::RetryAfter(S(90));
    assert_eq!(dated("Wed, 25 Nov 2026 15:01:30 GMT"), in_90_s);
    assert_eq!(dated("Wednesday, 25-Nov-26 15:01:30 GMT"), in_90_s);
    assert_eq!(dated("Wed Nov 25 15:01:30 2026"), in_90_s);
    let over = dated("Wed, 25 Nov 2026 14:59:59 GMT");
    assert_eq!(over, Outcome::RetryAfter(Duration::ZERO));

    // Without a date of the answer's, the wall clock decides: this one is far ahead of it.
    let Outcome::RetryAfter(long) = after(503, "Fri, 31 Dec 9999 23:59:59 GMT") else {
        panic!("a date in the future");
    };
    assert!(long > S(1_000_000_000));
}

#[tokio::test]
async fn the_wait_that_an_answer_asks_for_is_how_long_the_breaker_is_open() {
    for (asked, waited) in [("30", S(30)), ("86400", S(600))] {
        let (breaker, _hand) = breaker();
        let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), HttpStatus);
        let server = layer.layer(service_fn(move |()| async move {
            let mut answer = answer(429);
            let headers = answer.headers_mut();
            headers.insert(header::RETRY_AFTER, asked.parse().unwrap());
            Ok::<_, Infallible>(answer)
        }));
        server.clone().oneshot(()).await.unwrap();
        let rejected = refusal(server.oneshot(()).await);
        assert_eq!(rejected.retry_after, Some(waited), "{asked}");
    }
}

#[cfg(feature = "http")]
#[tokio::test]
async fn a_request_that_cannot_be_built_is_no_failure_and_one_without_an_answer_is() {
    let (breaker, _hand) = breaker();
    // A port that was free a moment ago: nobody listens.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), RefusalIsIgnored(HttpStatus));
    let client = layer.layer(client);
    let get = |url: &str| {
        let url = reqwest::Url::parse(url).unwrap();
        let request = reqwest::Request::new(reqwest::Method::GET, url);
        client.clone().oneshot(request)
    };
    // Longer than a URL may be.
    let too_long = format!("{nobody}{}", "x".repeat(70_000));
    for _ in 0..5 {
        assert!(get(&too_long).await.is_err());
    }
    let status = breaker.snapshot();
    assert_eq!((status.state, status.calls), (State::Closed, 0));
    assert!(get(&nobody).await.is_err());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn calls_that_hang_open_the_breaker_while_they_run_where_overdue_calls_count() {
    let (breaker, hand) = breaker();
    let overdue = Config {
        overdue_calls_enabled: true,
        slow_call_threshold: Some(S(4)),
        min_calls_before_evaluation: 3,
        ..breaker.config()
    };
    breaker.reconfigure(overdue).unwrap();
    let (mut service, seen) = guarded(&breaker);
    let hanging: Vec<_> = (0..3)
        .map(|_| {
            assert!(is_ready(&mut service));
            service.call(Work::Hangs)
        })
        .collect();
    hand.advance(S(8));
    assert!(is_ready(&mut service));
    refusal(service.call(Work::Succeeds).await);
    assert_eq!((breaker.state(), seen.called()), (State::Open, 3));
    drop(hanging);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_call_ends_with_the_head_of_its_response_whatever_becomes_of_the_body() {
    let (breaker, _hand) = breaker();
    let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), HttpStatus);
    let server = service_fn(|()| async {
        let parts = [Ok("half"), Err("connection lost")];
        Ok::<_, Infallible>(Response::new(Body::from_stream(stream::iter(parts))))
    });
    let answered = layer.layer(server).oneshot(()).await.unwrap();
    assert_eq!(breaker.snapshot().window_calls, 1);
    let parts = answered.into_body().into_data_stream();
    let parts: Vec<_> = parts.map(|part| part.is_ok()).collect().await;
    assert_eq!(parts, [true, false]);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_refusal_answers_503_and_when_to_come_back() {
    let (breaker, hand) = breaker();
    let refuse = || {
        breaker
            .try_acquire()
            .unwrap_err()
            .to_http_response::<Body>()
    };
    breaker.record_failure();
    hand.advance(Duration::from_millis(8_001));
    let answer = refuse();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()[header::RETRY_AFTER], "2", "rounded up");

    breaker.force_open();
    let answer = refuse();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.headers().contains_key(header::RETRY_AFTER));
}

fn assert_send<T: Send + Sync + 'static>(_: &T) {}

#[tokio::test]
async fn service_and_response_may_cross_threads() {
    let (breaker, _hand) = breaker();
    let layer = CircuitBreakerLayer::new(breaker);
    let mut service = layer.layer(service_fn(|()| std::future::ready(Ok::<_, ()>(()))));
    assert_send(&service);
    let response: Pin<Box<dyn Future<Output = _> + Send + Sync>> =
        Box::pin(service.ready().await.unwrap().call(()));
    assert_eq!(response.await, Ok(()));
    let headers = header::HeaderMap::new();
    assert_eq!(http_outcome(StatusCode::OK, &headers), Outcome::Success);
}

#[tokio::test]
async fn a_thread_holds_the_breaker_it_called_last_until_it_calls_another() {
    async fn call(breaker: CircuitBreaker) {
        let ok = service_fn(async |()| Ok::<_, std::io::Error>(()));
        let service = CircuitBreakerLayer::new(breaker).layer(ok);
        service.oneshot(()).await.unwrap();
    }
    let (clock, hand) = Clock::manual();
    let manager = Manager::with_clock(clock);
    let hosts = manager.keyed("host", KeyedConfig::default()).unwrap();
    call(hosts.get("a")).await;
    let mut events = hosts.get("a").subscribe_transitions();
    hand.advance(S(48 * 3600));
    assert_eq!(hosts.forget_idle(), 0);
    call(manager.get_or_create("other", None).unwrap()).await;
    assert_eq!(hosts.forget_idle(), 1);
    assert!(events.recv().await.is_none());
}
