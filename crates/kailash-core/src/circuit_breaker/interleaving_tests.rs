//! The machine while two or three threads do one thing each: under loom within the preemption bound,
//! and under many random schedules of shuttle, since loom leaves some interleavings out.

use alloc::vec::Vec;
use core::time::Duration;

#[cfg(kailash_loom)]
use loom::{sync::Arc, thread};
#[cfg(kailash_shuttle)]
use shuttle::{sync::Arc, thread};

use super::*;

const DRAW: f64 = 0.5;

const fn at(secs: u64) -> Timestamp {
    Timestamp::from_nanos(secs * 1_000_000_000)
}

fn config() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        half_open_requests: 1,
        jitter_enabled: false,
        ..Config::default()
    }
}

#[cfg(kailash_loom)]
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[cfg(kailash_shuttle)]
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let model = std::sync::Arc::new(model);
    let again = std::sync::Arc::clone(&model);
    shuttle::check_random(move || model(), 2000);
    shuttle::check_pct(move || again(), 2000, 3);
}

fn opened(config: &Config) -> Arc<Machine> {
    let machine = Arc::new(Machine::new(config).unwrap());
    fail(&machine, at(0));
    machine
}

fn fail(machine: &Machine, now: Timestamp) -> Option<Transition> {
    let (verdict, _) = machine.record_manual(Outcome::Failure, now, DRAW);
    carry_out(machine, verdict, now)
}

fn carry_out(machine: &Machine, verdict: Verdict, now: Timestamp) -> Option<Transition> {
    match verdict {
        Verdict::Unchanged => None,
        Verdict::Closed(transition) => Some(transition),
        Verdict::Trip(trip) => machine.trip(trip, now, DRAW),
    }
}

#[test]
fn never_more_probes_than_allowed_are_in_flight() {
    explore(|| {
        let machine = opened(&Config {
            half_open_requests: 2,
            ..config()
        });
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.try_acquire(at(60), DRAW).0.ok())
            })
            .collect();
        let mut permits = Vec::from([machine.try_acquire(at(60), DRAW).0.ok()]);
        permits.extend(callers.into_iter().map(|caller| caller.join().unwrap()));
        assert_eq!(permits.iter().flatten().count(), 2);
        let status = machine.snapshot(at(60));
        assert_eq!((status.probes_in_flight, status.rejections), (2, 1));
        for permit in permits.into_iter().flatten() {
            let _ = machine.record(permit, Outcome::Cancelled, Some(at(61)));
        }
        assert_eq!(machine.snapshot(at(61)).probes_in_flight, 0);
        assert_eq!(machine.next_due(at(61)), None, "no lease is left behind");
    });
}

#[test]
fn a_late_result_changes_nothing_whenever_it_arrives() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        let late = machine.try_acquire(at(0), DRAW).0.unwrap();
        fail(&machine, at(0));
        let straggler = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.record(late, Outcome::Success, Some(at(60))))
        };
        let probe = machine.try_acquire(at(60), DRAW).0.unwrap();
        assert_eq!(straggler.join().unwrap(), Verdict::Unchanged);
        assert_eq!(machine.state(at(60)), State::HalfOpen);
        assert_eq!(machine.snapshot(at(60)).probes_in_flight, 1);
        let verdict = machine.record(probe, Outcome::Success, Some(at(60)));
        assert!(matches!(verdict, Verdict::Closed(_)));
        assert_eq!(machine.snapshot(at(60)).window_calls, 0);
    });
}

#[test]
fn of_two_trips_one_opens_and_all_agree_on_its_end() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        let permits = [0, 1].map(|_| machine.try_acquire(at(0), DRAW).0.unwrap());
        let racers: Vec<_> = permits
            .into_iter()
            .zip([1, 2])
            .map(|(permit, now)| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    let verdict = machine.record(permit, Outcome::Failure, Some(at(now)));
                    carry_out(&machine, verdict, at(now))
                })
            })
            .collect();
        let seen = machine.try_acquire(at(2), DRAW).0.err();
        let news: Vec<_> = racers
            .into_iter()
            .filter_map(|racer| racer.join().unwrap())
            .collect();
        assert_eq!(news.len(), 1, "one transition, told once");
        let end = news[0].at + news[0].wait.unwrap();
        assert_eq!(machine.next_due(at(2)), Some(end));
        assert_eq!(machine.snapshot(at(2)).openings, 1);
        if let Some(wait) = seen.and_then(|seen| seen.retry_after) {
            assert_eq!(at(2) + wait, end, "what is announced happens");
        }
    });
}

#[test]
fn the_wait_that_a_dependency_asks_for_holds_whoever_looks_meanwhile() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        // So that the breaker that opens was not made open.
        machine.force_open(at(0));
        machine.force_close(at(0));
        let asked = Duration::from_secs(300);
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let permit = machine.admit().unwrap();
                let verdict = machine.record(permit, Outcome::RetryAfter(asked), Some(at(0)));
                carry_out(&machine, verdict, at(0)).unwrap().wait
            })
        };
        let refused = machine.refuse(at(0));
        let _ = (machine.state(at(0)), machine.next_due(at(0)));
        assert_eq!(caller.join().unwrap(), Some(asked));
        let told = refused.and_then(|refused| refused.retry_after);
        assert!(told.is_none_or(|told| told == asked), "{told:?}");
        assert_eq!(machine.next_due(at(1)), Some(at(300)));
    });
}

#[test]
fn counts_never_fall_while_a_reload_copies_a_window() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        for _ in 0..2 {
            let permit = machine.admit().unwrap();
            let _ = machine.record(permit, Outcome::Success, None);
        }
        let reader = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || [(); 2].map(|()| machine.counts().calls))
        };
        let wider = Config {
            window_size: 256,
            ..config()
        };
        machine.reconfigure(&wider, at(0)).unwrap();
        assert_eq!(reader.join().unwrap(), [2, 2]);
        assert_eq!(machine.snapshot(at(0)).window_calls, 2);
    });
}

#[test]
fn outcomes_at_the_same_moment_are_all_counted() {
    explore(|| {
        let config = Config {
            failure_threshold: 100,
            ..config()
        };
        let machine = Arc::new(Machine::new(&config).unwrap());
        let callers: Vec<_> = [Outcome::Failure, Outcome::Success]
            .into_iter()
            .map(|outcome| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    let permit = machine.admit().unwrap();
                    assert_eq!(machine.record(permit, outcome, None), Verdict::Unchanged);
                })
            })
            .collect();
        let permit = machine.admit().unwrap();
        assert_eq!(
            machine.record(permit, Outcome::Failure, None),
            Verdict::Unchanged
        );
        for caller in callers {
            caller.join().unwrap();
        }
        let status = machine.snapshot(at(0));
        assert_eq!((status.window_calls, status.window_failures), (3, 2));
        assert_eq!((status.calls, status.failures), (3, 2));
    });
}

#[test]
fn a_close_and_a_failed_probe_at_the_same_moment_are_one_transition() {
    explore(|| {
        let machine = opened(&Config {
            half_open_requests: 2,
            ..config()
        });
        let permits = [0, 1].map(|_| machine.try_acquire(at(60), DRAW).0.unwrap());
        let racers: Vec<_> = permits
            .into_iter()
            .zip([Outcome::Success, Outcome::Failure])
            .map(|(permit, outcome)| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    let verdict = machine.record(permit, outcome, Some(at(61)));
                    carry_out(&machine, verdict, at(61))
                })
            })
            .collect();
        let news: Vec<_> = racers
            .into_iter()
            .filter_map(|racer| racer.join().unwrap())
            .collect();
        assert_eq!(news.len(), 1);
        assert_eq!(machine.state(at(61)), news[0].to);
        assert_eq!(news[0].from, State::HalfOpen);
    });
}

#[test]
fn a_reset_forgets_what_is_in_flight_whenever_it_comes() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        let permit = machine.try_acquire(at(0), DRAW).0.unwrap();
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let verdict = machine.record(permit, Outcome::Failure, Some(at(1)));
                carry_out(&machine, verdict, at(1))
            })
        };
        machine.reset(at(1));
        caller.join().unwrap();
        assert_eq!(machine.state(at(1)), State::Closed);
        let status = machine.snapshot(at(1));
        assert_eq!((status.window_calls, status.consecutive_failures), (0, 0));
    });
}

#[test]
fn whoever_stalls_as_a_probe_takes_no_later_probes_lease() {
    explore(|| {
        let machine = opened(&Config {
            half_open_requests: 2,
            ..config()
        });
        let first = machine.try_acquire(at(60), DRAW).0.unwrap();
        let staller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.try_acquire(at(60), DRAW).0.ok())
        };
        let verdict = machine.record(first, Outcome::Failure, Some(at(60)));
        carry_out(&machine, verdict, at(60));
        let (probe, _) = machine.try_acquire(at(180), DRAW);
        if let Some(early) = staller.join().unwrap() {
            let _ = machine.record(early, Outcome::Cancelled, Some(at(60)));
        }
        assert!(probe.is_ok());
        assert_eq!(machine.next_due(at(180)), Some(at(240)), "its lease lapses");
    });
}

/// Fails a call, which was admitted while closed, on another thread.
fn fails_elsewhere(machine: &Arc<Machine>) -> thread::JoinHandle<Option<Transition>> {
    let permit = machine.try_acquire(at(0), DRAW).0.unwrap();
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        let verdict = machine.record(permit, Outcome::Failure, Some(at(0)));
        carry_out(&machine, verdict, at(0))
    })
}

#[test]
fn what_an_order_tells_follows_from_what_was_told_before() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        let caller = fails_elsewhere(&machine);
        let forced = machine.force_open(at(0)).unwrap();
        let tripped = caller.join().unwrap();
        assert_eq!(tripped.is_some(), forced.from == State::Open);
    });
}

#[test]
fn no_opening_inherits_the_deadline_of_one_that_was_closed_by_force() {
    explore(|| {
        let machine = Arc::new(Machine::new(&config()).unwrap());
        let caller = fails_elsewhere(&machine);
        machine.force_close(at(50));
        if let Some(second) = fail(&machine, at(50)) {
            assert_eq!(second.wait, Some(Duration::from_secs(60)));
            assert_eq!(machine.next_due(at(50)), Some(at(110)));
        }
        caller.join().unwrap();
    });
}

#[test]
fn whoever_stalls_while_it_becomes_half_open_frees_no_later_probes_lease() {
    explore(|| {
        let machine = opened(&Config {
            half_open_requests: 2,
            ..config()
        });
        let staller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.try_acquire(at(60), DRAW).0.ok())
        };
        // What became half-open for the staller is over, and half-open again, for another probe.
        machine.force_close(at(60));
        fail(&machine, at(61));
        let probe = machine.try_acquire(at(121), DRAW).0;
        if let Some(early) = staller.join().unwrap() {
            let _ = machine.record(early, Outcome::Cancelled, Some(at(60)));
        }
        if probe.is_ok() {
            assert_eq!(machine.snapshot(at(121)).probes_in_flight, 1);
            assert_eq!(machine.next_due(at(121)), Some(at(181)), "its lease");
        }
    });
}

#[test]
fn a_probe_that_ends_while_it_lapses_decides_once() {
    explore(|| {
        let machine = opened(&config());
        let probe = machine.try_acquire(at(60), DRAW).0.unwrap();
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let verdict = machine.record(probe, Outcome::Success, Some(at(119)));
                carry_out(&machine, verdict, at(119))
            })
        };
        let lapse = machine.settle(at(120), DRAW);
        let ended = caller.join().unwrap();
        let news: Vec<_> = [lapse, ended].into_iter().flatten().collect();
        assert_eq!(news.len(), 1, "{news:?}");
        assert_eq!(machine.state(at(120)), news[0].to);
        assert_eq!(machine.snapshot(at(120)).calls, 2, "it is one call");
    });
}

#[test]
fn an_order_stands_whatever_a_probe_decides_meanwhile() {
    explore(|| {
        let machine = opened(&config());
        let probe = machine.try_acquire(at(60), DRAW).0.unwrap();
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let verdict = machine.record(probe, Outcome::Success, Some(at(61)));
                carry_out(&machine, verdict, at(61))
            })
        };
        let forced = machine.force_open(at(61)).unwrap();
        let closed = caller.join().unwrap();
        let before = closed.map_or(State::HalfOpen, |closed| closed.to);
        assert_eq!(forced.from, before);
        assert!(machine.snapshot(at(61)).forced);
        assert!(machine.try_acquire(at(999), DRAW).0.is_err());
    });
}

#[test]
fn a_reset_frees_the_slots_of_probes_whenever_it_comes() {
    explore(|| {
        let machine = opened(&config());
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let probe = machine.try_acquire(at(60), DRAW).0.unwrap();
                machine.record(probe, Outcome::Ignored, Some(at(60)))
            })
        };
        machine.reset(at(60));
        assert_eq!(caller.join().unwrap(), Verdict::Unchanged);
        assert_eq!(machine.state(at(60)), State::Closed);
        fail(&machine, at(60));
        assert!(machine.try_acquire(at(120), DRAW).0.is_ok());
        assert_eq!(machine.next_due(at(120)), Some(at(180)));
    });
}

#[test]
fn a_reload_keeps_what_was_counted_before_it_and_at_most_loses_what_ends_meanwhile() {
    explore(|| {
        let wide = Config {
            failure_threshold: 100,
            ..config()
        };
        let machine = Arc::new(Machine::new(&wide).unwrap());
        for _ in 0..2 {
            fail(&machine, at(0));
        }
        let permit = machine.try_acquire(at(0), DRAW).0.unwrap();
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.record(permit, Outcome::Failure, Some(at(0))))
        };
        let wider = Config {
            window_size: 256,
            ..wide.clone()
        };
        machine.reconfigure(&wider, at(0)).unwrap();
        assert_eq!(caller.join().unwrap(), Verdict::Unchanged);
        let status = machine.snapshot(at(0));
        // A call that is copied between its ticket and its bit shows the slot's older bit.
        assert!((2..=3).contains(&status.window_calls), "{status:?}");
        assert!((2..=status.window_calls).contains(&status.window_failures));
        assert!((2..=3).contains(&status.calls), "{status:?}");
        assert!((2..=3).contains(&status.consecutive_failures), "{status:?}");
    });
}

#[test]
fn a_reload_keeps_the_failures_in_a_row_though_a_call_begins_and_fails_meanwhile() {
    explore(|| {
        let wide = Config {
            failure_threshold: 100,
            ..config()
        };
        let machine = Arc::new(Machine::new(&wide).unwrap());
        for _ in 0..2 {
            fail(&machine, at(0));
        }
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let permit = machine.admit().unwrap();
                machine.record(permit, Outcome::Failure, Some(at(0)))
            })
        };
        let wider = Config {
            window_size: 256,
            ..wide.clone()
        };
        machine.reconfigure(&wider, at(0)).unwrap();
        assert_eq!(caller.join().unwrap(), Verdict::Unchanged);
        let status = machine.snapshot(at(0));
        assert!((2..=3).contains(&status.consecutive_failures), "{status:?}");
    });
}

#[test]
fn a_failure_that_was_missed_at_its_moment_is_seen_by_the_next() {
    explore(|| {
        let machine = Arc::new(
            Machine::new(&Config {
                failure_threshold: 100,
                window_size: 4,
                min_calls_before_evaluation: 2,
                ..config()
            })
            .unwrap(),
        );
        let caller = fails_elsewhere(&machine);
        let permit = machine.admit().unwrap();
        let verdict = machine.record(permit, Outcome::Success, None);
        let opened = carry_out(&machine, verdict, at(0)).or(caller.join().unwrap());
        let next = fail(&machine, at(0));
        assert!(opened.is_some() != next.is_some(), "{opened:?} {next:?}");
    });
}

#[test]
fn a_straggler_is_at_most_one_outcome_of_a_window_it_does_not_belong_to() {
    explore(|| {
        let machine = Arc::new(
            Machine::new(&Config {
                failure_threshold: 100,
                ..config()
            })
            .unwrap(),
        );
        let caller = fails_elsewhere(&machine);
        // Two transitions at once bring the straggler's own ring back into use.
        machine.force_open(at(0));
        machine.force_close(at(0));
        caller.join().unwrap();
        let status = machine.snapshot(at(0));
        assert_eq!(
            (status.state, status.consecutive_failures),
            (State::Closed, 0)
        );
        assert!(status.window_calls <= 1, "{status:?}");
        assert!(fail(&machine, at(0)).is_none());
    });
}

fn in_a_time_window() -> Config {
    Config {
        failure_threshold: 100,
        error_rate_threshold: None,
        window: WindowKind::Time,
        window_duration: Duration::from_secs(16),
        ..config()
    }
}

#[test]
fn a_bucket_is_made_new_once_and_loses_no_outcome() {
    explore(|| {
        let machine = Arc::new(Machine::new(&in_a_time_window()).unwrap());
        fail(&machine, at(0));
        // A whole round of the ring later: the place of the first failure's bucket.
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || fail(&machine, at(16)))
        };
        fail(&machine, at(16));
        caller.join().unwrap();
        let status = machine.snapshot(at(16));
        assert_eq!((status.window_calls, status.window_failures), (2, 2));
        assert_eq!((status.calls, status.failures), (3, 3));
    });
}

#[test]
fn calls_that_end_on_both_sides_of_a_bucket_are_all_counted() {
    explore(|| {
        let machine = Arc::new(Machine::new(&in_a_time_window()).unwrap());
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || fail(&machine, at(15)))
        };
        fail(&machine, at(16));
        caller.join().unwrap();
        let status = machine.snapshot(at(16));
        assert_eq!((status.window_calls, status.window_failures), (2, 2));
    });
}

#[test]
fn an_overdue_call_counts_once_whenever_it_ends() {
    explore(|| {
        let machine = Arc::new(
            Machine::new(&Config {
                overdue_calls_enabled: true,
                slow_call_threshold: Some(Duration::from_secs(4)),
                slow_call_rate_threshold: Some(1.0),
                ..config()
            })
            .unwrap(),
        );
        let (call, _) = machine.watch(machine.try_acquire(at(0), DRAW).0.unwrap());
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.record(call, Outcome::Success, Some(at(6))))
        };
        let (next, verdict) = machine.watch(machine.try_acquire(at(6), DRAW).0.unwrap());
        assert_eq!(verdict, Verdict::Unchanged);
        assert_eq!(caller.join().unwrap(), Verdict::Unchanged);
        let status = machine.snapshot(at(6));
        assert_eq!((status.calls, status.slow_calls), (1, 1));
        assert_eq!((status.window_calls, status.window_slow), (1, 1));
        let _ = machine.record(next, Outcome::Success, Some(at(6)));
        assert_eq!(machine.snapshot(at(6)).calls, 2);
    });
}

#[test]
fn calls_that_begin_at_the_same_moment_are_all_watched() {
    explore(|| {
        let machine = Arc::new(
            Machine::new(&Config {
                overdue_calls_enabled: true,
                slow_call_threshold: Some(Duration::from_secs(4)),
                slow_call_rate_threshold: Some(1.0),
                ..config()
            })
            .unwrap(),
        );
        let caller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.watch(machine.try_acquire(at(4), DRAW).0.unwrap()))
        };
        let own = machine.watch(machine.try_acquire(at(4), DRAW).0.unwrap());
        let other = caller.join().unwrap();
        let looker = machine.watch(machine.try_acquire(at(10), DRAW).0.unwrap());
        assert_eq!(machine.snapshot(at(10)).slow_calls, 2);
        drop((own, other, looker));
    });
}

#[test]
fn calls_that_end_a_stage_of_the_ramp_together_end_one() {
    explore(|| {
        let machine = opened(&Config {
            failure_threshold: 1,
            min_calls_before_evaluation: 2,
            error_rate_threshold: None,
            ramp_enabled: true,
            ..config()
        });
        let probe = machine.try_acquire(at(60), DRAW).0.unwrap();
        let _ = machine.record(probe, Outcome::Success, Some(at(60)));
        let permits = [0, 1].map(|_| machine.try_acquire(at(60), 0.0).0.unwrap());
        let callers: Vec<_> = permits
            .into_iter()
            .map(|permit| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.record(permit, Outcome::Success, Some(at(60))))
            })
            .collect();
        for caller in callers {
            assert_eq!(caller.join().unwrap(), Verdict::Unchanged);
        }
        assert_eq!(machine.snapshot(at(60)).ramp_share, Some(0.25));
    });
}
