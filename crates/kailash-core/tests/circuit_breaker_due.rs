//! What time alone brings about, as a shell's timer asks for it, and what a full window changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::VecDeque;
use std::time::Duration;

use kailash_core::circuit_breaker::{
    Cause, Config, Counts, Machine, Outcome, State, Transition, Verdict, WindowKind,
};
use kailash_core::time::Timestamp;

const DRAW: f64 = 0.5;

const fn at(secs: u64) -> Timestamp {
    Timestamp::from_nanos(secs * 1_000_000_000)
}

fn end(machine: &Machine, outcome: Outcome, now: Timestamp) -> Option<Transition> {
    let permit = machine.try_acquire(now, DRAW).0.unwrap();
    carry_out(machine, machine.record(permit, outcome, Some(now)), now)
}

fn carry_out(machine: &Machine, verdict: Verdict, now: Timestamp) -> Option<Transition> {
    match verdict {
        Verdict::Trip(trip) => machine.trip(trip, now, DRAW),
        Verdict::Closed(news) => Some(news),
        Verdict::Unchanged => None,
    }
}

fn config() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        recovery_timeout: Duration::from_secs(10),
        max_wait_duration_in_half_open: Duration::from_secs(5),
        jitter_enabled: false,
        ..Config::default()
    }
}

#[test]
fn a_timer_learns_when_an_opening_and_a_lease_end_and_carries_it_out() {
    let machine = Machine::new(&config()).unwrap();
    assert_eq!(machine.next_due(at(0)), None, "closed");
    let news = end(&machine, Outcome::Failure, at(0)).unwrap();
    assert_eq!(
        news,
        Transition {
            from: State::Closed,
            to: State::Open,
            cause: Cause::ConsecutiveFailures,
            at: at(0),
            forced: false,
            wait: Some(Duration::from_secs(10)),
        }
    );

    assert_eq!(machine.next_due(at(1)), Some(at(10)));
    assert_eq!(machine.wake(at(9)), None, "too early");
    assert_eq!(machine.state(at(9)), State::Open);
    let woken = machine.wake(at(11)).unwrap();
    assert_eq!(
        (woken.from, woken.to, woken.cause, woken.at),
        (State::Open, State::HalfOpen, Cause::WaitOver, at(10)),
        "it took effect at its deadline"
    );
    assert_eq!(machine.wake(at(11)), None, "half-open already");

    assert_eq!(machine.next_due(at(11)), None, "no probe is in flight");
    let first = machine.try_acquire(at(12), DRAW).0.unwrap();
    let second = machine.try_acquire(at(13), DRAW).0.unwrap();
    assert_eq!(
        machine.next_due(at(13)),
        Some(at(17)),
        "the first probe's lease"
    );
    assert_eq!(machine.settle(at(16), DRAW), None, "nothing has lapsed");
    let lapsed = machine.settle(at(18), DRAW).unwrap();
    assert_eq!(
        (lapsed.from, lapsed.to, lapsed.cause, lapsed.at),
        (State::HalfOpen, State::Open, Cause::ProbeLapsed, at(17))
    );
    assert_eq!(machine.next_due(at(18)), Some(at(37)), "twice as long");
    for late in [first, second] {
        let verdict = machine.record(late, Outcome::Success, Some(at(18)));
        assert_eq!(carry_out(&machine, verdict, at(18)), None);
    }
}

#[test]
fn a_call_tells_the_changes_that_were_due_before_it() {
    let machine = Machine::new(&config()).unwrap();
    let changes = |now| {
        let (result, news) = machine.try_acquire(now, DRAW);
        let told: Vec<_> = news.into_iter().map(|news| (news.to, news.at)).collect();
        (result.map(|permit| permit.is_probe()).ok(), told)
    };
    assert_eq!(changes(at(0)), (Some(false), vec![]));
    end(&machine, Outcome::Failure, at(0));
    assert_eq!(changes(at(9)), (None, vec![]));
    assert_eq!(
        changes(at(10)),
        (Some(true), vec![(State::HalfOpen, at(10))])
    );
    assert_eq!(changes(at(11)), (Some(true), vec![]));
    // The first probe lapsed at 15; the second opening, twice as long, is over at 35.
    assert_eq!(
        changes(at(40)),
        (
            Some(true),
            vec![(State::Open, at(15)), (State::HalfOpen, at(35))]
        )
    );
}

#[test]
fn what_never_ends_is_never_due() {
    let machine = Machine::new(&Config {
        recovery_timeout: Duration::MAX,
        max_recovery_timeout: Duration::MAX,
        ..config()
    })
    .unwrap();
    let news = end(&machine, Outcome::Failure, at(0)).unwrap();
    assert_eq!(news.wait, None);
    assert_eq!(machine.next_due(at(1)), None);
    assert_eq!(machine.wake(at(1_000_000)), None);
    machine.force_open(at(1));
    assert_eq!(machine.next_due(at(1)), None);
    assert_eq!(machine.wake(at(1_000_000)), None);
}

/// More calls than the smallest ring holds: good calls take a shorter path from then on.
const MANY: usize = 300;

#[test]
fn a_success_ends_a_row_of_failures_in_a_full_window_too() {
    let machine = Machine::new(&Config {
        failure_threshold: 5,
        error_rate_threshold: None,
        ..config()
    })
    .unwrap();
    for _ in 0..MANY {
        end(&machine, Outcome::Success, at(0));
    }
    for _ in 0..3 {
        for outcome in [[Outcome::Failure; 4].as_slice(), &[Outcome::Success]].concat() {
            assert_eq!(end(&machine, outcome, at(0)), None);
        }
        assert_eq!(machine.snapshot(at(0)).consecutive_failures, 0);
    }
    for _ in 0..4 {
        assert_eq!(end(&machine, Outcome::Failure, at(0)), None);
    }
    assert!(end(&machine, Outcome::Failure, at(0)).is_some());
}

#[test]
fn good_calls_push_bad_ones_out_of_a_full_window() {
    let machine = Machine::new(&Config {
        failure_threshold: 1_000_000,
        error_rate_threshold: None,
        slow_call_rate_threshold: Some(1.0),
        window_size: 128,
        ..config()
    })
    .unwrap();
    let slow = |machine: &Machine| {
        let permit = machine.admit().unwrap().started_at(at(0));
        machine.record(permit, Outcome::Success, Some(at(60)))
    };
    for round in 0..4 {
        for _ in 0..MANY {
            end(&machine, Outcome::Success, at(0));
        }
        let clean = machine.snapshot(at(0));
        assert_eq!(
            (clean.window_failures, clean.window_slow),
            (0, 0),
            "round {round}"
        );
        assert_eq!(clean.window_calls, 128);
        for _ in 0..7 {
            end(&machine, Outcome::Failure, at(0));
            assert_eq!(slow(&machine), Verdict::Unchanged);
        }
        let seen = machine.snapshot(at(0));
        assert_eq!(
            (seen.window_failures, seen.window_slow),
            (7, 7),
            "round {round}"
        );
        if round % 2 == 1 {
            // The next generation counts in the other window.
            machine.reset(at(0));
        }
    }
}

#[test]
fn a_watched_call_that_ended_in_time_is_not_overdue_in_a_full_window_either() {
    let machine = Machine::new(&Config {
        slow_call_threshold: Some(Duration::from_secs(4)),
        overdue_calls_enabled: true,
        ..config()
    })
    .unwrap();
    for _ in 0..MANY {
        let permit = machine.admit().unwrap().started_at(at(1));
        let (permit, verdict) = machine.watch(permit);
        assert_eq!(verdict, Verdict::Unchanged);
        assert_eq!(
            machine.record(permit, Outcome::Success, Some(at(2))),
            Verdict::Unchanged
        );
    }
    let permit = machine.admit().unwrap().started_at(at(60));
    let (permit, verdict) = machine.watch(permit);
    assert_eq!(verdict, Verdict::Unchanged);
    assert_eq!(machine.snapshot(at(60)).slow_calls, 0);
    assert_eq!(
        machine.record(permit, Outcome::Ignored, Some(at(60))),
        Verdict::Unchanged
    );
}

#[test]
fn whoever_only_reads_the_state_sees_a_lapse_at_its_deadline() {
    let machine = Machine::new(&config()).unwrap();
    end(&machine, Outcome::Failure, at(0));
    let _hung = machine.try_acquire(at(10), DRAW).0.unwrap();
    assert_eq!(machine.state(at(14)), State::HalfOpen);
    assert_eq!(machine.state(at(15)), State::Open);
}

#[test]
fn probes_that_are_abandoned_leave_the_opening_as_it_was() {
    let machine = Machine::new(&config()).unwrap();
    end(&machine, Outcome::Failure, at(0));
    let parents = machine.try_acquire(at(10), DRAW).0.unwrap();
    machine.abandon_probes(at(10));
    let seen = machine.snapshot(at(10));
    assert_eq!((seen.probes_in_flight, seen.openings_in_a_row), (0, 1));
    assert_eq!(seen.cause, Some(Cause::ConsecutiveFailures));
    let again = end(&machine, Outcome::Failure, at(11)).unwrap();
    assert_eq!(
        again.wait,
        Some(Duration::from_secs(20)),
        "the second in a row"
    );
    assert_eq!(
        machine.record(parents, Outcome::Success, Some(at(11))),
        Verdict::Unchanged
    );
}

#[test]
fn a_machine_shows_its_state() {
    let shown = format!("{:?}", Machine::new(&config()).unwrap());
    assert!(shown.contains("Closed"), "{shown}");
}

#[test]
fn a_probe_that_failed_opens_it_from_its_own_end_however_late_that_is_carried_out() {
    let machine = Machine::new(&config()).unwrap();
    end(&machine, Outcome::Failure, at(0));
    let probe = machine.try_acquire(at(10), DRAW).0.unwrap();
    let Verdict::Trip(trip) = machine.record(probe, Outcome::Failure, Some(at(11))) else {
        panic!("a failed probe opens it");
    };
    let news = machine.trip(trip, at(13), DRAW).unwrap();
    assert_eq!(
        (news.at, news.wait),
        (at(11), Some(Duration::from_secs(20)))
    );
    assert_eq!(machine.next_due(at(13)), Some(at(31)));
}

#[test]
fn a_snapshot_announces_a_wait_only_while_there_is_one_and_it_has_an_end() {
    let machine = Machine::new(&config()).unwrap();
    end(&machine, Outcome::Failure, at(0));
    let wait = |machine: &Machine, secs| machine.snapshot(at(secs)).retry_after;
    assert_eq!(wait(&machine, 4), Some(Duration::from_secs(6)));
    assert_eq!(wait(&machine, 10), None, "it is over");

    let forever = Config {
        recovery_timeout: Duration::MAX,
        ..config()
    };
    let machine = Machine::new(&forever).unwrap();
    end(&machine, Outcome::Failure, at(0));
    assert_eq!(wait(&machine, 4), None, "it has no end");
}

#[test]
fn the_success_that_ends_a_recovery_tells_that_the_breaker_has_closed() {
    for ramp_enabled in [false, true] {
        let machine = Machine::new(&Config {
            ramp_enabled,
            min_calls_before_evaluation: 1,
            ..config()
        })
        .unwrap();
        end(&machine, Outcome::Failure, at(0));
        // The probe, and one call of each stage of the ramp.
        let successes = if ramp_enabled { 4 } else { 1 };
        let told: Vec<_> = (0..successes)
            .map(|_| {
                let permit = machine.try_acquire(at(11), 0.0).0.unwrap();
                let verdict = machine.record(permit, Outcome::Success, Some(at(12)));
                carry_out(&machine, verdict, at(12))
            })
            .collect();
        let closed = Transition {
            from: State::HalfOpen,
            to: State::Closed,
            cause: Cause::ProbesSucceeded,
            at: at(12),
            forced: false,
            wait: None,
        };
        let (last, before) = told.split_last().unwrap();
        assert_eq!(*last, Some(closed));
        assert!(before.iter().all(Option::is_none), "{before:?}");
    }
}

/// Calls of a dependency of which three of five run into a timeout, and what the breaker makes of it.
fn with_timeouts(window: WindowKind, overdue_calls_enabled: bool) -> (u64, Option<Cause>) {
    let machine = Machine::new(&Config {
        failure_threshold: 1_000,
        error_rate_threshold: Some(0.5),
        slow_call_rate_threshold: Some(1.0),
        slow_call_threshold: Some(Duration::from_secs(1)),
        min_calls_before_evaluation: 10,
        window,
        overdue_calls_enabled,
        ..config()
    })
    .unwrap();
    let mut in_flight = VecDeque::new();
    for second in 1..100 {
        let now = at(second);
        for call in 0..5 {
            let permit = machine.admit().unwrap().started_at(now);
            let (permit, verdict) = machine.watch(permit);
            assert_eq!(verdict, Verdict::Unchanged);
            in_flight.push_back((permit, call % 5 < 3, second));
        }
        let mut left = VecDeque::new();
        for (permit, hangs, began) in in_flight.drain(..) {
            if hangs && began + 3 > second {
                left.push_back((permit, hangs, began));
                continue;
            }
            let outcome = if hangs {
                Outcome::Failure
            } else {
                Outcome::Success
            };
            let verdict = machine.record(permit, outcome, Some(now));
            if let Some(news) = carry_out(&machine, verdict, now) {
                return (second, Some(news.cause));
            }
        }
        in_flight = left;
    }
    (100, None)
}

#[test]
fn timeouts_open_it_by_the_error_rate_whether_they_count_as_overdue_or_not() {
    for window in [WindowKind::Count, WindowKind::Time] {
        for overdue in [false, true] {
            let (second, cause) = with_timeouts(window, overdue);
            assert_eq!(cause, Some(Cause::ErrorRate), "{window:?}, {overdue}");
            assert!(second < 12, "{window:?}, {overdue}: second {second}");
        }
    }
}

#[test]
fn a_call_that_failed_after_it_was_overdue_is_one_call_slow_and_failed() {
    for window in [WindowKind::Count, WindowKind::Time] {
        let machine = Machine::new(&Config {
            failure_threshold: 3,
            error_rate_threshold: None,
            slow_call_rate_threshold: Some(1.0),
            slow_call_threshold: Some(Duration::from_secs(4)),
            min_calls_before_evaluation: 100,
            window,
            overdue_calls_enabled: true,
            ..config()
        })
        .unwrap();
        let watch = |now| machine.watch(machine.admit().unwrap().started_at(now)).0;
        let hung = [watch(at(1)), watch(at(1))];
        end(&machine, Outcome::Success, at(2));
        let _ = machine.record(watch(at(7)), Outcome::Success, Some(at(7)));
        let seen = |machine: &Machine| {
            let seen = machine.snapshot(at(8));
            let window = (seen.window_calls, seen.window_failures, seen.window_slow);
            (window, seen.failures, seen.slow_calls)
        };
        assert_eq!(seen(&machine), ((4, 0, 2), 0, 2), "{window:?}");
        for (permit, failed) in hung.into_iter().zip(1..) {
            let verdict = machine.record(permit, Outcome::Failure, Some(at(8)));
            assert_eq!(verdict, Verdict::Unchanged);
            assert_eq!(
                seen(&machine),
                ((4, failed, 2), failed.into(), 2),
                "{window:?}"
            );
        }
        assert_eq!(machine.snapshot(at(8)).consecutive_failures, 2);
    }
}

#[test]
fn counts_add_up_and_are_told_apart() {
    let one = Counts {
        calls: 10,
        failures: 4,
        slow_calls: 3,
        rejections: 2,
        openings: 1,
    };
    let two = Counts {
        calls: 20,
        failures: 8,
        slow_calls: 6,
        rejections: 4,
        openings: 2,
    };
    assert_eq!(one + one, two);
    assert_eq!(two - one, one);
    assert_eq!(one - two, Counts::default(), "never below zero");
    let most = Counts {
        calls: u64::MAX,
        ..one
    };
    assert_eq!((most + one).calls, u64::MAX);
}
