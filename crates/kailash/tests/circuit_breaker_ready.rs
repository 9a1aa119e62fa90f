//! Waiting for a breaker, and falling back from one.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use kailash::circuit_breaker::{CircuitBreaker, Config, Manager, Rejected, State};
use kailash::clock::{Clock, ManualClock};

const S: fn(u64) -> Duration = Duration::from_secs;

fn config() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        jitter_enabled: false,
        ..Config::default()
    }
}

fn manual() -> (CircuitBreaker, ManualClock) {
    let (clock, hand) = Clock::manual();
    (
        CircuitBreaker::with_clock("test", config(), clock).unwrap(),
        hand,
    )
}

fn on_tokio(config: Config) -> CircuitBreaker {
    CircuitBreaker::with_clock("test", config, Clock::tokio()).unwrap()
}

#[test]
fn a_closed_breaker_is_ready_at_once_and_needs_no_runtime() {
    let (breaker, _) = manual();
    let context = &mut Context::from_waker(Waker::noop());
    assert!(pin!(breaker.ready()).poll(context).is_ready());
    assert!(pin!(breaker.wait_until_closed()).poll(context).is_ready());
}

#[tokio::test(start_paused = true)]
async fn ready_waits_just_as_long_as_a_refusal_announces() {
    let breaker = on_tokio(config());
    breaker.record_failure();
    let announced = breaker.try_acquire().unwrap_err().retry_after.unwrap();
    let before = tokio::time::Instant::now();
    breaker.ready().await;
    assert_eq!(before.elapsed(), announced);
    assert_eq!(breaker.state(), State::HalfOpen);
    assert!(breaker.try_acquire().is_ok());
}

#[tokio::test]
async fn ready_follows_the_hand_of_a_manual_clock() {
    let (breaker, hand) = manual();
    breaker.record_failure();
    let mut ready = pin!(breaker.ready());
    assert!(futures_util::poll!(&mut ready).is_pending());
    hand.advance(S(59));
    assert!(futures_util::poll!(&mut ready).is_pending());
    hand.advance(S(1));
    assert!(futures_util::poll!(&mut ready).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_forced_open_is_not_ready_until_it_is_told_otherwise() {
    let breaker = on_tokio(config());
    breaker.force_open();
    let mut ready = pin!(breaker.ready());
    let a_year = tokio::time::timeout(S(365 * 24 * 3600), &mut ready);
    assert!(a_year.await.is_err());
    breaker.force_close();
    assert!(futures_util::poll!(&mut ready).is_ready());
}

#[tokio::test]
async fn a_probes_end_makes_a_half_open_breaker_ready_again() {
    let (breaker, hand) = manual();
    breaker
        .reconfigure(Config {
            half_open_requests: 1,
            ..config()
        })
        .unwrap();
    breaker.record_failure();
    hand.advance(S(60));
    let probe = breaker.try_acquire().unwrap();
    let mut ready = pin!(breaker.ready());
    assert!(futures_util::poll!(&mut ready).is_pending());
    probe.ignore();
    assert!(futures_util::poll!(&mut ready).is_ready());
}

#[tokio::test]
async fn a_lapsed_probe_sends_those_who_wait_back_to_waiting() {
    let (breaker, hand) = manual();
    breaker
        .reconfigure(Config {
            half_open_requests: 1,
            exponential_backoff_multiplier: 1.0,
            ..config()
        })
        .unwrap();
    breaker.record_failure();
    hand.advance(S(60));
    let _probe = breaker.try_acquire().unwrap();
    let mut ready = pin!(breaker.ready());
    assert!(futures_util::poll!(&mut ready).is_pending());
    hand.advance(S(60));
    assert!(futures_util::poll!(&mut ready).is_pending());
    assert_eq!(breaker.state(), State::Open);
    hand.advance(S(60));
    assert!(futures_util::poll!(&mut ready).is_ready());
}

#[tokio::test(start_paused = true)]
async fn waiting_until_closed_ends_with_the_last_probe_needed() {
    let breaker = on_tokio(Config {
        success_threshold: 2,
        ..config()
    });
    breaker.record_failure();
    let mut closed = pin!(breaker.wait_until_closed());
    assert!(futures_util::poll!(&mut closed).is_pending());
    breaker.ready().await;
    breaker.try_acquire().unwrap().success();
    assert!(futures_util::poll!(&mut closed).is_pending());
    breaker.try_acquire().unwrap().success();
    assert!(futures_util::poll!(&mut closed).is_ready());
    breaker.force_open();
    let mut closed = pin!(breaker.wait_until_closed());
    assert!(futures_util::poll!(&mut closed).is_pending());
    breaker.disable();
    assert!(futures_util::poll!(&mut closed).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_waiters_never_have_more_probes_in_flight_than_allowed() {
    let breaker = on_tokio(Config {
        half_open_requests: 3,
        success_threshold: 10_000,
        slow_call_threshold: None,
        ..config()
    });
    breaker.record_failure();
    let (in_flight, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let refused = AtomicUsize::new(0);
    let callers = (0..1000).map(|_| async {
        loop {
            breaker.ready().await;
            let Ok(permit) = breaker.try_acquire() else {
                refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let now = in_flight.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(S(1)).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
            return permit.success();
        }
    });
    join_all(callers).await;
    assert_eq!(most.load(Ordering::Relaxed), 3);
    assert_eq!(
        refused.load(Ordering::Relaxed),
        0,
        "on one thread, who is told that a slot is free can take it"
    );
    assert_eq!(breaker.snapshot().probe_successes, 1000);
}

// Bug class 17: something that waits keeps the breaker, or the program, alive.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_leaves_nothing_behind() {
    let manager = Manager::with_clock(Clock::tokio());
    let breaker = manager.get_or_create("gone", config()).unwrap();
    breaker.record_failure();
    let name = Arc::downgrade(breaker.name());
    let waiter = breaker.clone();
    let waiting = tokio::spawn(async move { waiter.ready().await });
    let mut events = manager.subscribe_transitions();
    {
        let mut ready = pin!(breaker.ready());
        assert!(futures_util::poll!(&mut ready).is_pending());
        let mut heard = pin!(events.recv());
        assert!(futures_util::poll!(&mut heard).is_pending());
    }
    tokio::task::yield_now().await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    manager.remove("gone");
    drop(breaker);
    assert!(name.upgrade().is_none(), "nobody waits any more");
    drop((events, manager));
    assert_eq!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks(),
        0
    );
}

#[test]
fn waiting_does_not_look_before_something_has_happened() {
    let (breaker, hand) = manual();
    breaker.record_failure();
    let mut ready = pin!(breaker.ready());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut poll = || {
        let context = &mut Context::from_waker(&waker);
        ready.as_mut().poll(context).is_ready()
    };
    assert!(!poll());
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    hand.advance(S(60));
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert!(poll());
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_fallback_answers_for_a_refused_call_and_for_no_other() {
    let (breaker, _) = manual();
    let fallen_back = AtomicUsize::new(0);
    let fallback = async |rejected: Rejected| {
        fallen_back.fetch_add(1, Ordering::Relaxed);
        assert_eq!(rejected.retry_after, Some(S(60)));
        Ok::<_, &str>(0)
    };
    assert_eq!(breaker.call_or(fallback, async || Ok(7)).await, Ok(7));
    let error = breaker.call_or(fallback, async || Err("down")).await;
    assert_eq!(
        (error, fallen_back.load(Ordering::Relaxed)),
        (Err("down"), 0)
    );
    assert_eq!(breaker.call_or(fallback, async || Ok(7)).await, Ok(0));
    assert_eq!(fallen_back.load(Ordering::Relaxed), 1);

    let fallback = |rejected: Rejected| Err::<u32, _>(rejected.to_string());
    let refused = breaker.call_sync_or(fallback, || Ok(7)).unwrap_err();
    assert!(refused.starts_with("circuit breaker \"test\" is open"));
}

#[tokio::test]
async fn what_comes_of_a_fallback_counts_for_nothing() {
    let (breaker, _) = manual();
    breaker.force_open();
    let before = breaker.counts();
    let failing = async |_| Err::<(), _>("the cache is empty");
    assert!(breaker.call_or(failing, async || Ok(())).await.is_err());
    let after = breaker.counts();
    assert_eq!(
        (after.calls, after.failures),
        (before.calls, before.failures)
    );
    assert_eq!(after.rejections, before.rejections + 1);
}
