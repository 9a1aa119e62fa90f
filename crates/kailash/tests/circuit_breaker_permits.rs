//! Permits that outlive their caller's frame, and what a forked child makes of them.

use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker, Config, Outcome, State};
use kailash::clock::{Clock, ManualClock};

const SECOND: Duration = Duration::from_secs(1);

fn breaker(config: Config) -> (CircuitBreaker, ManualClock) {
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("b", config, clock).expect("valid settings");
    (breaker, hand)
}

#[test]
fn a_paused_call_does_not_grow_longer() {
    let (breaker, hand) = breaker(Config::default());
    let mut permit = breaker.try_acquire_owned().unwrap();
    hand.advance(2 * SECOND);
    permit.pause();
    hand.advance(60 * SECOND);
    permit.pause();
    permit.resume();
    permit.resume();
    hand.advance(SECOND);
    assert_eq!(permit.record(Outcome::Success), Some(3 * SECOND));
    assert_eq!(breaker.snapshot().slow_calls, 0);
}

#[test]
fn the_five_newest_transitions_are_kept_with_their_age() {
    let (breaker, hand) = breaker(Config::default());
    for _ in 0..3 {
        breaker.force_open();
        hand.advance(SECOND);
        breaker.force_close();
        hand.advance(SECOND);
    }
    let kept = breaker.transitions();
    let seen: Vec<_> = kept
        .iter()
        .map(|(news, ago)| (news.to, ago.as_secs()))
        .collect();
    let (open, closed) = (State::Open, State::Closed);
    assert_eq!(
        seen,
        [(closed, 5), (open, 4), (closed, 3), (open, 2), (closed, 1)]
    );
}

#[test]
fn abandoned_probes_free_their_slots_and_decide_nothing() {
    let (breaker, hand) = breaker(Config {
        failure_threshold: 1,
        half_open_requests: 1,
        success_threshold: 2,
        jitter_enabled: false,
        ..Config::default()
    });
    breaker.record_failure();
    hand.advance(60 * SECOND);
    breaker.try_acquire().unwrap().success();
    let lost = breaker.try_acquire_owned().unwrap();
    assert!(breaker.try_acquire().is_err(), "its one slot is taken");

    breaker.abandon_probes();
    assert_eq!(breaker.snapshot().probes_in_flight, 0);
    assert_eq!(breaker.snapshot().openings_in_a_row, 1);
    lost.failure();
    assert_eq!(
        breaker.state(),
        State::HalfOpen,
        "a late failure changes nothing"
    );
    hand.advance(120 * SECOND);
    assert_eq!(breaker.state(), State::HalfOpen, "its lease lapses nowhere");
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), State::Closed, "the success before counts");
}

#[test]
fn a_call_that_ends_while_it_is_paused_ran_until_its_pause() {
    let (breaker, clock) = breaker(Config::default());
    let mut given_up = breaker.try_acquire_owned().unwrap();
    given_up.pause();
    clock.advance(Duration::from_secs(30));
    drop(given_up);
    assert_eq!(breaker.snapshot().failures, 0, "it was cancelled at once");

    let mut good = breaker.try_acquire_owned().unwrap();
    clock.advance(Duration::from_millis(10));
    good.pause();
    clock.advance(Duration::from_secs(30));
    assert_eq!(
        good.record(Outcome::Success),
        Some(Duration::from_millis(10))
    );
    assert_eq!(breaker.snapshot().slow_calls, 0);
}
