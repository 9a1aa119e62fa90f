//! What an order changes, what it tells of it, and what a change of settings keeps.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::time::Duration;

use kailash_core::circuit_breaker::{
    Cause, Config, Machine, Outcome, Permit, State, Transition, Verdict, WindowKind,
};
use kailash_core::time::Timestamp;

const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);
const DRAW: f64 = 0.5;

fn machine(config: &Config) -> Machine {
    Machine::new(config).unwrap()
}

fn end(machine: &Machine, outcome: Outcome) {
    let permit = machine.try_acquire(NOW, DRAW).0.unwrap();
    if let Verdict::Trip(trip) = machine.record(permit, outcome, Some(NOW)) {
        machine.trip(trip, NOW, DRAW).unwrap();
    }
}

type Order = fn(&Machine, Timestamp) -> Option<Transition>;

/// One breaker in each state.
fn in_each_state() -> Vec<(&'static str, Machine)> {
    let config = Config {
        failure_threshold: 1,
        recovery_timeout: Duration::from_secs(1),
        jitter_enabled: false,
        ..Config::default()
    };
    let told = |order: Order| {
        let machine = machine(&config);
        order(&machine, NOW).unwrap();
        machine
    };
    let opened = machine(&config);
    end(&opened, Outcome::Failure);
    let half_open = machine(&config);
    let carried_out = match half_open.record_manual(Outcome::Failure, Timestamp::ZERO, DRAW) {
        (Verdict::Trip(trip), _) => half_open.trip(trip, Timestamp::ZERO, DRAW),
        _ => None,
    };
    assert!(carried_out.is_some());
    half_open.wake(NOW).unwrap();
    vec![
        ("closed", machine(&config)),
        ("open", opened),
        ("half-open", half_open),
        ("forced open", told(Machine::force_open)),
        ("disabled", told(Machine::disable)),
        ("metrics-only", told(Machine::metrics_only)),
    ]
}

#[test]
fn an_order_tells_the_change_that_it_made_and_no_other() {
    // What each state becomes by the order; the same state for no change.
    let orders: [(&str, Order, [&str; 6]); 6] = [
        ("force_open", Machine::force_open, ["forced open"; 6]),
        ("force_close", Machine::force_close, ["closed"; 6]),
        ("reset", Machine::reset, ["closed"; 6]),
        ("disable", Machine::disable, ["disabled"; 6]),
        ("metrics_only", Machine::metrics_only, ["metrics-only"; 6]),
        (
            "enable",
            Machine::enable,
            [
                "closed",
                "open",
                "half-open",
                "forced open",
                "closed",
                "closed",
            ],
        ),
    ];
    let state_of = |name: &str| match name {
        "closed" => State::Closed,
        "half-open" => State::HalfOpen,
        "disabled" => State::Disabled,
        "metrics-only" => State::MetricsOnly,
        _ => State::Open,
    };
    for (name, order, after) in orders {
        for ((before, machine), after) in in_each_state().into_iter().zip(after) {
            assert_eq!(machine.state(NOW), state_of(before), "{before}");
            let news = order(&machine, NOW);
            let expected = (before != after).then(|| Transition {
                from: state_of(before),
                to: state_of(after),
                cause: Cause::Told,
                at: NOW,
                forced: after == "forced open",
                wait: None,
            });
            assert_eq!(news, expected, "{name} while {before}");
            assert_eq!(machine.state(NOW), state_of(after), "{name} while {before}");
            let passes_all = ["closed", "disabled", "metrics-only"].contains(&after);
            assert_eq!(
                machine.admit().is_some(),
                passes_all,
                "{name} while {before}"
            );
            let snapshot = machine.snapshot(NOW);
            assert_eq!(
                snapshot.forced,
                after == "forced open",
                "{name} while {before}"
            );
        }
    }
}

/// Five failures in a row open it, and no rate does.
fn in_a_row(window_size: u32) -> Config {
    Config {
        failure_threshold: 5,
        error_rate_threshold: None,
        window_size,
        ..Config::default()
    }
}

#[test]
fn a_window_that_outgrows_its_memory_keeps_its_outcomes_and_the_failures_in_a_row() {
    let machine = machine(&in_a_row(100));
    for _ in 0..3 {
        end(&machine, Outcome::Success);
    }
    for _ in 0..4 {
        end(&machine, Outcome::Failure);
    }
    let before = machine.snapshot(NOW);
    let in_flight = machine.admit().unwrap();
    machine.reconfigure(&in_a_row(10_000), NOW).unwrap();
    assert_eq!(machine.snapshot(NOW), before);
    // It belongs to the generation before.
    let late = machine.record(in_flight, Outcome::Failure, Some(NOW));
    assert_eq!((late, machine.snapshot(NOW)), (Verdict::Unchanged, before));
    end(&machine, Outcome::Failure);
    assert_eq!(machine.state(NOW), State::Open);
}

#[test]
fn settings_that_fit_change_nothing_for_calls_in_flight() {
    let machine = machine(&in_a_row(100));
    for window_size in [100, 50, 128] {
        let in_flight = machine.admit().unwrap();
        machine.reconfigure(&in_a_row(window_size), NOW).unwrap();
        let failures = machine.snapshot(NOW).failures;
        let ended = machine.record(in_flight, Outcome::Failure, Some(NOW));
        assert_eq!(ended, Verdict::Unchanged);
        assert_eq!(
            machine.snapshot(NOW).failures,
            failures + 1,
            "{window_size}"
        );
    }
}

#[test]
fn a_window_of_another_kind_or_duration_begins_empty_and_one_of_the_same_goes_on() {
    let time = |seconds| Config {
        window: WindowKind::Time,
        window_duration: Duration::from_secs(seconds),
        ..in_a_row(100)
    };
    let machine = machine(&in_a_row(100));
    let change = |config: &Config| {
        end(&machine, Outcome::Failure);
        end(&machine, Outcome::Success);
        let before = machine.snapshot(NOW).window_calls;
        machine.reconfigure(config, NOW).unwrap();
        let after = machine.snapshot(NOW).window_calls;
        assert!(after == before || after == 0, "{before} became {after}");
        after
    };
    assert_eq!(change(&time(10)), 0, "another kind");
    assert_eq!(change(&time(10)), 2, "the same");
    assert_eq!(change(&time(20)), 0, "another duration");
    assert_eq!(change(&in_a_row(100)), 0, "another kind again");
    assert_eq!(
        machine.snapshot(NOW).calls,
        8,
        "no call was forgotten or counted twice"
    );
}

#[test]
fn a_time_window_of_any_duration_goes_on_where_it_stays_the_same() {
    for nanos in [10_000_000, 16_000_000_007, 33_333_333_333] {
        let config = Config {
            window: WindowKind::Time,
            window_duration: Duration::from_nanos(nanos),
            ..in_a_row(100)
        };
        let machine = machine(&config);
        end(&machine, Outcome::Failure);
        let more_probes = Config {
            half_open_requests: 5,
            ..config
        };
        machine.reconfigure(&more_probes, NOW).unwrap();
        assert_eq!(machine.snapshot(NOW).window_failures, 1, "{nanos} ns");
    }
}

#[test]
fn a_window_that_shrinks_while_calls_are_watched_holds_the_newest_outcomes() {
    let config = |window_size, seconds| Config {
        window_size,
        failure_threshold: 1_000,
        error_rate_threshold: Some(0.5),
        slow_call_rate_threshold: Some(1.0),
        slow_call_threshold: Some(Duration::from_secs(seconds)),
        overdue_calls_enabled: true,
        min_calls_before_evaluation: 1_000,
        ..Config::default()
    };
    let machine = machine(&config(1_000, 5));
    for call in 0..1024 {
        let failed = call < 128 || call % 64 == 0;
        let outcome = if failed {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        end(&machine, outcome);
        if machine.state(NOW) != State::Closed {
            machine.force_close(NOW);
        }
    }
    let before = machine.counts();
    machine.reconfigure(&config(100, 7), NOW).unwrap();
    let seen = machine.snapshot(NOW);
    let window = (seen.window_calls, seen.window_failures, seen.state);
    assert_eq!(window, (100, 1, State::Closed));
    assert_eq!(machine.counts(), before);
}

#[test]
fn a_larger_window_leaves_probes_in_flight_and_openings_as_they_are() {
    let config = Config {
        failure_threshold: 1,
        success_threshold: 1,
        recovery_timeout: Duration::from_secs(1),
        jitter_enabled: false,
        ..in_a_row(100)
    };
    let larger = Config {
        window_size: 1_000,
        ..config.clone()
    };
    let later = NOW + Duration::from_secs(2);
    let machine = machine(&config);
    end(&machine, Outcome::Failure);
    let probe = machine.try_acquire(later, DRAW).0.unwrap();
    machine.reconfigure(&larger, later).unwrap();
    let verdict = machine.record(probe, Outcome::Success, Some(later));
    assert!(matches!(verdict, Verdict::Closed(_)), "{verdict:?}");
}

#[test]
fn what_a_reset_forgot_comes_back_after_no_number_of_generations() {
    let machine = machine(&Config {
        window: WindowKind::Time,
        window_duration: Duration::from_secs(3600),
        ..in_a_row(100)
    });
    // Generations this far apart look alike to a bucket.
    for resets in [1, 2, 255, 256, 511, 512, 513, 1024] {
        end(&machine, Outcome::Failure);
        assert_eq!(machine.snapshot(NOW).window_failures, 1);
        for _ in 0..resets {
            machine.reset(NOW);
        }
        let seen = machine.snapshot(NOW);
        let window = (seen.window_calls, seen.window_failures);
        assert_eq!(window, (0, 0), "after {resets} resets");
    }
    assert_eq!(machine.counts().calls, 8);
}

#[test]
fn settings_change_an_open_breaker_when_it_opens_again() {
    let config = |seconds| Config {
        failure_threshold: 1,
        recovery_timeout: Duration::from_secs(seconds),
        jitter_enabled: false,
        window_size: 100 * u32::try_from(seconds).unwrap(),
        ..Config::default()
    };
    let machine = machine(&config(10));
    end(&machine, Outcome::Failure);
    machine.reconfigure(&config(20), NOW).unwrap();
    let refused = machine.try_acquire(NOW, DRAW).0.unwrap_err();
    assert_eq!(refused.retry_after, Some(Duration::from_secs(10)));
    machine.force_close(NOW);
    end(&machine, Outcome::Failure);
    let refused = machine.try_acquire(NOW, DRAW).0.unwrap_err();
    assert_eq!(refused.retry_after, Some(Duration::from_secs(20)));
}

/// Watched calls that hang from `began` on.
fn hang(machine: &Machine, calls: usize, began: Timestamp) -> Vec<Permit> {
    let begin = |_| {
        let permit = machine.admit().unwrap().started_at(began);
        let (permit, verdict) = machine.watch(permit);
        assert_eq!(verdict, Verdict::Unchanged);
        permit
    };
    (0..calls).map(begin).collect()
}

fn watching(slow_call_threshold: Duration) -> Config {
    Config {
        overdue_calls_enabled: true,
        slow_call_threshold: Some(slow_call_threshold),
        slow_call_rate_threshold: Some(0.5),
        min_calls_before_evaluation: 1,
        ..Config::default()
    }
}

#[test]
fn another_threshold_for_slow_calls_takes_no_young_call_for_an_overdue_one() {
    for (from, to) in [(1000, 500), (1000, 3000), (1000, 1), (500, 1000)] {
        for start in 0..40_u64 {
            let [from, to] = [from, to].map(Duration::from_millis);
            let machine = machine(&watching(from));
            let began = Timestamp::ZERO + Duration::from_millis(3_600_000 + 97 * start);
            let _young = hang(&machine, 20, began);
            let now = began + Duration::from_millis(20).min(to / 2);
            machine.reconfigure(&watching(to), now).unwrap();
            hang(&machine, 1, now);
            assert_eq!(machine.state(now), State::Closed, "{from:?} to {to:?}");
            assert_eq!(machine.snapshot(now).slow_calls, 0);
        }
    }
}

#[test]
fn a_longer_threshold_for_slow_calls_still_finds_the_calls_that_hang() {
    let machine = machine(&watching(Duration::from_secs(1)));
    let mut now = Timestamp::ZERO + Duration::from_secs(3600);
    for permit in hang(&machine, 3, now) {
        let _ = machine.record(permit, Outcome::Success, Some(now));
    }
    let longer = watching(Duration::from_secs(5));
    machine.reconfigure(&longer, now).unwrap();
    let _hung = hang(&machine, 20, now);
    now = now + Duration::from_millis(6500);
    let (_, verdict) = machine.watch(machine.admit().unwrap().started_at(now));
    assert!(matches!(verdict, Verdict::Trip(_)), "{verdict:?}");
    assert_eq!(machine.snapshot(now).slow_calls, 20);
}
