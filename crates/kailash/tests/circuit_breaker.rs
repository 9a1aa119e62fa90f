//! What the breaker's shell promises: guards, cancellation, panics, events, the registry.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use kailash::circuit_breaker::{
    CallError, CircuitBreaker, Config, EventKind, Events, Manager, Outcome, State,
};
use kailash::clock::{Clock, ManualClock};
use tokio::time::timeout;

const S: fn(u64) -> Duration = Duration::from_secs;
/// Longer than any machine needs.
const LIMIT: Duration = Duration::from_secs(20);

fn breaker(config: Config) -> (CircuitBreaker, ManualClock) {
    let (clock, hand) = Clock::manual();
    let config = Config {
        jitter_enabled: false,
        ..config
    };
    (
        CircuitBreaker::with_clock("test", config, clock).unwrap(),
        hand,
    )
}

fn one_failure_opens() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        ..Config::default()
    }
}

fn many_failures_open() -> Config {
    Config {
        failure_threshold: 1_000_000,
        error_rate_threshold: None,
        ..Config::default()
    }
}

#[test]
fn nothing_is_slow_or_overdue_unless_both_the_threshold_and_the_rate_are_set() {
    let opens = |threshold, rate| {
        let (breaker, hand) = breaker(Config {
            slow_call_threshold: threshold,
            slow_call_rate_threshold: rate,
            overdue_calls_enabled: true,
            min_calls_before_evaluation: 2,
            cancelled_counts_after: None,
            ..many_failures_open()
        });
        let start = || breaker.try_acquire_owned().unwrap().watched().unwrap();
        let hung = [start(), start()];
        hand.advance(S(8));
        // A call that begins is what looks for those that are overdue.
        let is_refused = breaker
            .try_acquire_owned()
            .and_then(|it| it.watched())
            .is_err();
        hung.into_iter().for_each(|permit| permit.success());
        (is_refused, breaker.snapshot().slow_calls)
    };
    assert_eq!(opens(Some(S(4)), Some(0.5)), (true, 2));
    assert_eq!(opens(Some(S(4)), None), (false, 0));
    assert_eq!(opens(None, Some(0.5)), (false, 0));
    assert_eq!(opens(None, None), (false, 0));
}

#[test]
fn what_a_call_or_its_fallback_held_is_given_back_at_its_end_though_its_future_is_kept() {
    let (breaker, _) = breaker(Config::default());
    let held = Arc::new(());
    let holds = || {
        let held = Arc::clone(&held);
        poll_fn(move |_| {
            let _until_it_is_dropped = &held;
            Poll::Ready(Ok::<_, ()>(()))
        })
    };
    let (replaces, kept, mut broken) = (holds(), holds(), holds());
    let mut call = pin!(breaker.call(holds));
    let mut unreplaced = pin!(breaker.call_or(|_| replaces, holds));
    let panics = poll_fn(move |context| {
        assert!(broken.poll_unpin(context).is_pending(), "on purpose");
        Poll::Pending::<Result<(), ()>>
    });
    let mut panicking = pin!(AssertUnwindSafe(breaker.call(|| panics)).catch_unwind());
    assert!(call.as_mut().now_or_never().is_some());
    assert!(unreplaced.as_mut().now_or_never().is_some());
    assert!(panicking.as_mut().now_or_never().is_some());
    assert_eq!(Arc::strong_count(&held), 2, "all but what is here is gone");

    breaker.force_open();
    let mut refused = pin!(breaker.call(|| kept));
    let mut replaced = pin!(breaker.call_or(|_| holds(), holds));
    assert!(refused.as_mut().now_or_never().is_some());
    assert!(replaced.as_mut().now_or_never().is_some());
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn a_call_is_hardly_larger_than_what_it_makes() {
    let (breaker, _) = breaker(Config::default());
    let ask = || {
        let kibibyte = [1_u8; 1024];
        async move {
            tokio::task::yield_now().await;
            Ok::<_, ()>(kibibyte.len())
        }
    };
    let most = size_of_val(&ask()) + 64;
    assert!(most > 1024, "it is held across its await");
    let [carried, classified, replaced] = [(); 3].map(|()| ask());
    let classify = |_: &Result<usize, ()>| Outcome::Success;
    let sizes = [
        size_of_val(&breaker.call(ask)),
        size_of_val(&breaker.call(|| carried)),
        size_of_val(&breaker.call_with(classify, || classified)),
        size_of_val(&breaker.call_or(|_| ask(), || replaced)),
    ];
    assert!(sizes.iter().all(|&size| size <= most), "{sizes:?}");
}

#[tokio::test]
async fn an_open_breaker_does_not_make_the_call() {
    let (breaker, hand) = breaker(one_failure_opens());
    let made = AtomicUsize::new(0);
    let call = |result: Result<u32, &'static str>| {
        let made = &made;
        breaker.call(move || async move {
            made.fetch_add(1, Ordering::Relaxed);
            result
        })
    };
    assert_eq!(call(Ok(7)).await, Ok(7));
    assert_eq!(call(Err("down")).await, Err(CallError::Inner("down")));
    let Err(CallError::Rejected(rejected)) = call(Ok(7)).await else {
        panic!("an open breaker let a call through");
    };
    assert_eq!(rejected.retry_after, Some(S(60)));
    assert_eq!(
        rejected.to_string(),
        "circuit breaker \"test\" is open (consecutive_failures), retry in 60.000 s"
    );
    assert_eq!(made.load(Ordering::Relaxed), 2);
    hand.advance(S(60));
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(call(Ok(7)).await, Ok(7));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_hangs_trips_it_though_every_caller_times_out_outside() {
    let config = Config {
        failure_threshold: 3,
        ..Config::default()
    };
    let breaker = CircuitBreaker::with_clock("test", config, Clock::tokio()).unwrap();
    let hang = pending::<Result<(), ()>>;
    for _ in 0..50 {
        assert!(
            timeout(Duration::from_millis(900), breaker.call(hang))
                .await
                .is_err()
        );
    }
    assert_eq!(
        breaker.state(),
        State::Closed,
        "callers that hang up early are no failures"
    );
    for _ in 0..3 {
        assert!(timeout(S(1), breaker.call(hang)).await.is_err());
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_cancelled_probe_gives_its_slot_back() {
    let (breaker, hand) = breaker(Config {
        half_open_requests: 1,
        ..one_failure_opens()
    });
    breaker.record_failure();
    hand.advance(S(60));
    for _ in 0..20 {
        let mut call = Box::pin(breaker.call(pending::<Result<(), ()>>));
        assert!(futures_util::poll!(&mut call).is_pending());
        assert!(
            breaker.try_acquire().is_err(),
            "the only probe is in flight"
        );
        drop(call);
        assert_eq!(breaker.snapshot().probes_in_flight, 0);
    }
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.call(|| async { Ok::<_, ()>(1) }).await, Ok(1));
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_panic_is_a_failure_and_leaks_nothing() {
    let (breaker, hand) = breaker(one_failure_opens());
    let call = || breaker.call_sync(|| -> Result<(), ()> { panic!("in the call") });
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(breaker.state(), State::Open);
    hand.advance(S(60));
    let classify = |_: &Result<(), ()>| -> Outcome { panic!("in the classifier") };
    let call = || breaker.call_sync_with(classify, || Ok(()));
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(breaker.state(), State::Open);
    let status = breaker.snapshot();
    assert_eq!((status.failures, status.probes_in_flight), (2, 0));
}

#[tokio::test]
async fn a_panic_out_of_a_future_is_a_failure_once_wherever_it_panics() {
    async fn fails_in_poll() -> Result<(), ()> {
        panic!("in the future")
    }
    let in_making = |_: ()| -> std::future::Ready<Result<(), ()>> { panic!("in the making") };
    let (breaker, hand) = breaker(many_failures_open());
    let failures = || breaker.snapshot().failures;

    let mut call = Box::pin(breaker.call(fails_in_poll));
    let polled = AssertUnwindSafe(&mut call).catch_unwind();
    assert!(polled.await.is_err());
    assert_eq!(failures(), 1, "before the future is dropped");
    // From a second on, a call that is dropped while it runs would count.
    hand.advance(S(60));
    drop(call);
    assert_eq!(failures(), 1, "and not again afterwards");

    let call = AssertUnwindSafe(breaker.call(|| in_making(()))).catch_unwind();
    assert!(call.await.is_err());
    assert_eq!(failures(), 2);

    let confused = |_: &Result<(), ()>| -> Outcome { panic!("in the classifier") };
    let call = breaker.call_with(confused, || async { Ok(()) });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!((failures(), breaker.snapshot().calls), (3, 3));
}

#[tokio::test]
async fn a_panic_elsewhere_cancels_the_calls_it_drops_and_fails_none() {
    let (breaker, _) = breaker(one_failure_opens());
    let own = breaker.clone();
    let handler = tokio::spawn(async move {
        let call = || Box::pin(own.call(pending::<Result<(), ()>>));
        let mut in_flight: Vec<_> = (0..5).map(|_| call()).collect();
        for call in &mut in_flight {
            assert!(futures_util::poll!(call).is_pending());
        }
        panic!("a mistake of the handler, in none of the calls");
    });
    assert!(handler.await.unwrap_err().is_panic());
    let status = breaker.snapshot();
    assert_eq!((status.state, status.failures), (State::Closed, 0));
}

#[tokio::test]
async fn a_panic_between_two_breakers_fails_the_outer_call_and_cancels_the_inner() {
    let (outer, _) = breaker(many_failures_open());
    let (inner, _) = breaker(many_failures_open());
    let call = outer.call(|| async {
        let mut query = Box::pin(inner.call(pending::<Result<(), ()>>));
        assert!(futures_util::poll!(&mut query).is_pending());
        let rows = Vec::<Result<(), ()>>::new();
        let first = rows[0];
        query.await.unwrap();
        first
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!(
        (outer.snapshot().failures, inner.snapshot().failures),
        (1, 0)
    );
}

#[test]
fn a_permit_that_a_panic_drops_is_a_failure() {
    let (breaker, _) = breaker(many_failures_open());
    let call = || {
        let _permit = breaker.try_acquire().unwrap();
        panic!("while it is held");
    };
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(breaker.snapshot().failures, 1);
}

#[test]
fn a_dropped_permit_is_a_cancelled_call() {
    let (breaker, hand) = breaker(one_failure_opens());
    drop(breaker.try_acquire().unwrap());
    assert_eq!(breaker.state(), State::Closed);
    let permit = breaker.try_acquire_owned().unwrap();
    hand.advance(S(1));
    drop(permit);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn every_entry_point_classifies_alike() {
    let (breaker, _) = breaker(many_failures_open());
    let classify = |result: &Result<u32, &str>| match result {
        Ok(..500) => Outcome::Success,
        Err("not found") => Outcome::Ignored,
        Ok(_) | Err(_) => Outcome::Failure,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for result in [Ok(200), Ok(503), Err("not found"), Err("reset")] {
        let _ = breaker.call_sync_with(classify, || result);
        let _ = runtime.block_on(breaker.call_with(classify, || async { result }));
        breaker.try_acquire().unwrap().record(classify(&result));
    }
    let status = breaker.snapshot();
    assert_eq!((status.calls, status.failures), (9, 6));
}

#[tokio::test]
async fn a_thousand_callers_at_the_moment_of_recovery_are_as_many_probes_as_allowed() {
    let (breaker, hand) = breaker(Config {
        half_open_requests: 3,
        ..one_failure_opens()
    });
    breaker.record_failure();
    hand.advance(S(60));
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let breaker = breaker.clone();
            tokio::task::spawn_blocking(move || breaker.try_acquire_owned().ok())
        })
        .collect();
    let mut permits = Vec::new();
    for caller in callers {
        permits.extend(caller.await.unwrap());
    }
    assert_eq!(permits.len(), 3);
}

async fn states_until_closed(events: &mut Events) -> Vec<State> {
    let mut heard = Vec::new();
    while heard.last() != Some(&State::Closed) {
        if let EventKind::Transition(change) = events.recv().await.unwrap().kind {
            heard.push(change.to);
        }
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn subscribers_hear_each_change_once_and_without_a_call() {
    let breaker = CircuitBreaker::with_clock("test", one_failure_opens(), Clock::tokio()).unwrap();
    let (mut one, mut two) = (breaker.subscribe(), breaker.subscribe());
    breaker.record_failure();
    let recover = async {
        tokio::time::sleep(S(3600)).await;
        breaker.record_success();
    };
    let listen = (states_until_closed(&mut one), states_until_closed(&mut two));
    let (one, two, ()) = tokio::join!(listen.0, listen.1, recover);
    let all = [State::Open, State::HalfOpen, State::Closed];
    assert_eq!((&one[..], &two[..]), (&all[..], &all[..]));
}

#[test]
fn a_subscriber_that_does_not_listen_loses_the_oldest_and_is_told() {
    let (breaker, _) = breaker(many_failures_open());
    let mut events = breaker.subscribe();
    for _ in 0..2000 {
        breaker.record_failure();
    }
    assert_eq!(events.try_recv().unwrap().kind, EventKind::Lost(976));
    let ended = EventKind::Ended {
        outcome: Outcome::Failure,
        ran: None,
        is_slow: false,
    };
    assert_eq!(events.try_recv().unwrap().kind, ended);
    assert_eq!(events.lost_so_far(), 976);
    assert_eq!(breaker.snapshot().failures, 2000);
}

#[test]
fn a_breaker_that_nobody_holds_is_gone() {
    let manager = Manager::new();
    let breaker = manager.get_or_create("gone", one_failure_opens()).unwrap();
    let name = Arc::downgrade(breaker.name());
    let mut events = breaker.subscribe();
    let mut all = manager.subscribe();
    breaker.record_failure();
    manager.remove("gone");
    drop(breaker);
    assert_eq!(events.try_recv().into_iter().count(), 1, "its end");
    assert_eq!(events.try_recv().into_iter().count(), 1, "its opening");
    assert_eq!(events.recv().now_or_never(), Some(None));
    while all.try_recv().is_some() {}
    drop(events);
    assert!(name.upgrade().is_none());
}

#[test]
fn settings_change_live_and_keep_state_and_counts() {
    let (breaker, _) = breaker(Config {
        failure_threshold: 10,
        ..Config::default()
    });
    for _ in 0..4 {
        breaker.record_failure();
    }
    let wrong = Config {
        window_size: 0,
        ..breaker.config()
    };
    assert_eq!(breaker.reconfigure(wrong).unwrap_err().field, "window_size");
    let config = Config {
        failure_threshold: 5,
        window_size: 5000,
        ..breaker.config()
    };
    breaker.reconfigure(config.clone()).unwrap();
    assert_eq!(breaker.config(), config);
    assert_eq!(breaker.snapshot().window_failures, 4);
    breaker.record_failure();
    assert_eq!(
        breaker.state(),
        State::Open,
        "five failures in a row, four of them from before"
    );
}

#[test]
fn a_thousand_calls_in_flight_survive_a_reload() {
    let (breaker, _) = breaker(one_failure_opens());
    let permits: Vec<_> = (0..1000).map(|_| breaker.try_acquire().unwrap()).collect();
    breaker
        .reconfigure(Config {
            window_size: 65_536,
            ..breaker.config()
        })
        .unwrap();
    for permit in permits {
        permit.success();
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn one_registry_gives_one_breaker_per_name() {
    let breakers = Manager::new();
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let breakers = breakers.clone();
            std::thread::spawn(move || {
                breakers.get_or_create("db", None).unwrap().record_success();
            })
        })
        .collect();
    for racer in racers {
        racer.join().unwrap();
    }
    assert_eq!(breakers.get("db").unwrap().snapshot().calls, 8);
    assert_eq!(breakers.all().len(), 1);
    assert!(breakers.get("other").is_none());
}

#[test]
fn a_listener_may_use_its_breaker() {
    let (breaker, _) = breaker(one_failure_opens());
    let mut events = breaker.subscribe();
    breaker.record_failure();
    let heard = std::iter::from_fn(|| events.try_recv());
    let changed = |kind| matches!(kind, EventKind::Transition(_));
    assert!(heard.map(|event| event.kind).any(changed));
    breaker.force_open();
    assert!(breaker.snapshot().forced);
    assert!(breaker.call_sync(|| Ok::<_, ()>(())).is_err());
}

#[test]
fn who_listens_at_the_latest_time_there_is_hears_what_happened_and_then_nothing() {
    let (tell, told) = mpsc::channel();
    let listens = thread::spawn(move || {
        let (breaker, hand) = breaker(one_failure_opens());
        let mut events = breaker.subscribe_transitions();
        hand.advance(Duration::MAX);
        tell.send(events.try_recv().is_none()).unwrap();
        // Its wait would end later than the latest time.
        breaker.record_failure();
        let EventKind::Transition(opened) = events.try_recv().unwrap().kind else {
            panic!("it hears of transitions only")
        };
        tell.send(opened.to == State::Open).unwrap();
        tell.send(events.try_recv().is_none()).unwrap();
        tell.send(events.recv().now_or_never().is_none()).unwrap();
    });
    for step in 0..4 {
        assert_eq!(told.recv_timeout(LIMIT), Ok(true), "step {step}");
    }
    listens.join().unwrap();
}
