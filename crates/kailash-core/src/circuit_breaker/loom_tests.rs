//! The machine under every interleaving of two or three threads, within the preemption bound.

use alloc::vec::Vec;

use loom::sync::Arc;
use loom::thread;

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

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
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
        if let Some(seen) = seen {
            assert_eq!(
                at(2) + seen.retry_after.unwrap(),
                end,
                "what is announced happens"
            );
        }
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
