//! The machine under long random schedules: several threads that live with it for a while.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::time::Duration;
use std::sync::{Mutex, PoisonError};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::thread;

use super::*;

const DRAW: f64 = 0.5;
const SECOND: u64 = 1_000_000_000;
const PROBES: u32 = 2;

/// Explores `scenario` under schedules that are even, and under such that let a thread stall long.
fn explore(schedules: usize, scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(scenario.clone(), schedules);
    shuttle::check_pct(scenario, schedules, 4);
}

fn config() -> Config {
    Config {
        failure_threshold: 3,
        success_threshold: 2,
        half_open_requests: PROBES,
        window_size: 8,
        min_calls_before_evaluation: 4,
        recovery_timeout: Duration::from_secs(10),
        max_recovery_timeout: Duration::from_secs(40),
        max_wait_duration_in_half_open: Duration::from_secs(6),
        jitter_enabled: false,
        ..Config::default()
    }
}

/// What the threads of one run share; the machine is all of it that shuttle interleaves.
struct Run {
    machine: Machine,
    now: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    transitions: Vec<Transition>,
    refused: u64,
    was_reset: bool,
    /// Probes that callers hold, by generation.
    probes: BTreeMap<u32, u32>,
}

impl Run {
    fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            machine: Machine::new(config).unwrap(),
            now: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn pass(&self, secs: u64) {
        self.now.fetch_add(secs * SECOND, Ordering::Relaxed);
    }

    fn seen(&self, see: impl FnOnce(&mut Seen)) {
        see(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn tell(&self, news: impl IntoIterator<Item = Transition>) {
        self.seen(|seen| seen.transitions.extend(news));
    }

    fn begin(&self) -> Option<Permit> {
        let now = self.now();
        let (result, news) = self.machine.try_acquire(now, thread_rng().r#gen());
        self.tell(news);
        let Ok(mut permit) = result else {
            self.seen(|seen| seen.refused += 1);
            return None;
        };
        if self.machine.watches() {
            let verdict;
            (permit, verdict) = self.machine.watch(permit);
            self.carry_out(verdict, now);
        }
        if permit.is_probe() {
            self.seen(|seen| {
                let held = seen.probes.entry(permit.generation()).or_default();
                *held += 1;
                assert!(*held <= PROBES, "{held} probes of one half-open");
            });
        }
        Some(permit)
    }

    fn end(&self, permit: Permit, outcome: Outcome) {
        let now = self.now();
        if permit.is_probe() {
            self.seen(|seen| *seen.probes.get_mut(&permit.generation()).unwrap() -= 1);
        }
        let verdict = self.machine.record(permit, outcome, Some(now));
        self.carry_out(verdict, now);
    }

    fn record(&self, outcome: Outcome) {
        let now = self.now();
        let (verdict, news) = self.machine.record_manual(outcome, now, DRAW);
        self.tell(news);
        self.carry_out(verdict, now);
    }

    fn carry_out(&self, verdict: Verdict, now: Timestamp) {
        let news = match verdict {
            Verdict::Unchanged => None,
            Verdict::Closed(transition) => Some(transition),
            Verdict::Trip(trip) => self.machine.trip(trip, now, DRAW),
        };
        self.tell(news);
    }

    fn look(&self) {
        let now = self.now();
        self.tell(self.machine.settle(now, DRAW));
        self.tell(self.machine.wake(now));
        let in_flight = self.machine.snapshot(now).probes_in_flight;
        assert!(in_flight <= PROBES, "{in_flight} probes in flight");
    }

    fn command(&self) {
        self.look();
        let now = self.now();
        let machine = &self.machine;
        let news = match thread_rng().gen_range(0..7) {
            0 => machine.force_open(now),
            1 | 2 => machine.force_close(now),
            3 => {
                self.seen(|seen| seen.was_reset = true);
                machine.reset(now)
            }
            4 => machine.disable(now),
            5 => machine.metrics_only(now),
            _ => machine.enable(now),
        };
        self.tell(news);
    }

    /// What one thread does: calls that overlap, time that passes, and orders if it may give them.
    ///
    /// Answers the calls that are still in flight.
    fn live(&self, steps: u32, orders: bool) -> Vec<Permit> {
        let mut in_flight = Vec::new();
        for _ in 0..steps {
            match thread_rng().gen_range(0..16) {
                0..6 => in_flight.extend(self.begin()),
                6..10 => {
                    if let Some(permit) = in_flight.pop() {
                        self.end(permit, outcome());
                    }
                }
                10 => self.record(outcome()),
                11 | 12 => self.pass(thread_rng().gen_range(0..8)),
                13 if orders => self.command(),
                _ => self.look(),
            }
        }
        in_flight
    }

    /// What must hold while all threads stand still and these calls are in flight.
    fn check_in_flight(&self, in_flight: &[Permit]) {
        let word = Word::unpack(self.machine.word.load(Ordering::Relaxed));
        let Phase::HalfOpen {
            in_flight: counted, ..
        } = word.phase
        else {
            return;
        };
        let probes = in_flight.iter().filter(|permit| permit.is_probe());
        let current = probes.filter(|permit| permit.generation() == word.generation);
        let current = current.count() as u32;
        let due = self.machine.leases.earliest(word.generation);
        let is_lapsing = due.is_some_and(|due| due <= self.now());
        // A probe that failed is in flight until its trip, which has been carried out by now.
        assert_eq!(counted, current, "probes counted and held");
        assert_eq!(
            due.is_some(),
            current > 0,
            "probes have leases, and others none"
        );
        assert!(!is_lapsing || self.machine.state(self.now()) == State::Open);
    }

    /// What must hold once all calls have ended.
    fn check(&self) {
        let now = self.now();
        let word = Word::unpack(self.machine.word.load(Ordering::Relaxed));
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match word.phase {
            Phase::HalfOpen { in_flight, .. } => {
                assert_eq!(in_flight, 0, "a probe's slot has leaked");
                assert_eq!(self.machine.next_due(now), None, "a lease has leaked");
                State::HalfOpen
            }
            phase => phase.state(),
        };
        is_one_path(&seen.transitions, state);
        if let Phase::Open(_) = word.phase {
            let until = self.machine.next_due(now).unwrap();
            let told = |news: &Transition| news.wait.map(|wait| news.at + wait) == Some(until);
            assert!(
                seen.transitions.iter().any(told),
                "it ends when it was said"
            );
        }
        if !seen.was_reset {
            let snapshot = self.machine.snapshot(now);
            let openings = seen
                .transitions
                .iter()
                .filter(|news| news.to == State::Open);
            assert_eq!(snapshot.openings, openings.count() as u64);
            assert_eq!(snapshot.rejections, seen.refused);
            assert!(snapshot.failures <= snapshot.calls);
            assert!(snapshot.slow_calls <= snapshot.calls);
        }
    }
}

fn outcome() -> Outcome {
    match thread_rng().gen_range(0..8) {
        0..3 => Outcome::Success,
        3..6 => Outcome::Failure,
        6 => Outcome::Ignored,
        _ => Outcome::Cancelled,
    }
}

/// The transitions, in whatever order they were told, are one walk from closed to `last`: each is a
/// change that its cause allows, and every state is left as often as it is entered.
fn is_one_path(transitions: &[Transition], last: State) {
    let states = [
        State::Closed,
        State::Open,
        State::HalfOpen,
        State::Disabled,
        State::MetricsOnly,
    ];
    for news in transitions {
        let allowed = match news.cause {
            Cause::ConsecutiveFailures | Cause::ErrorRate | Cause::SlowCallRate => {
                news.from != State::Open && news.to == State::Open
            }
            Cause::ProbeFailed | Cause::ProbeSlow | Cause::ProbeLapsed => {
                (news.from, news.to) == (State::HalfOpen, State::Open)
            }
            Cause::WaitOver => (news.from, news.to) == (State::Open, State::HalfOpen),
            Cause::ProbesSucceeded => (news.from, news.to) == (State::HalfOpen, State::Closed),
            Cause::Told => news.from != news.to || news.forced,
        };
        assert!(allowed, "{news:?}");
    }
    for state in states {
        let left = transitions.iter().filter(|news| news.from == state).count();
        let entered = transitions.iter().filter(|news| news.to == state).count();
        let begun = usize::from(state == State::Closed);
        let ended = usize::from(state == last);
        let told = transitions;
        assert_eq!(
            begun + entered,
            left + ended,
            "{state}, at {last}: {told:?}"
        );
    }
}

fn live_together(run: &Arc<Run>, threads: u32, steps: u32, orders: bool) {
    let others: Vec<_> = (1..threads)
        .map(|_| {
            let run = Arc::clone(run);
            thread::spawn(move || run.live(steps, false))
        })
        .collect();
    let mut in_flight = run.live(steps, orders);
    for other in others {
        in_flight.extend(other.join().unwrap());
    }
    run.check_in_flight(&in_flight);
    for permit in in_flight {
        run.end(permit, outcome());
    }
}

#[test]
fn shuttle_calls_from_many_threads_keep_every_invariant() {
    explore(8000, || {
        let run = Run::new(&config());
        live_together(&run, 4, 20, false);
        run.check();
    });
}

#[test]
fn shuttle_overdue_calls_in_a_time_window_keep_every_invariant() {
    explore(8000, || {
        let run = Run::new(&Config {
            window: WindowKind::Time,
            window_duration: Duration::from_secs(32),
            slow_call_threshold: Some(Duration::from_secs(8)),
            overdue_calls_enabled: true,
            ..config()
        });
        live_together(&run, 4, 20, false);
        run.check();
    });
}

#[test]
fn shuttle_a_ramp_keeps_every_invariant() {
    explore(8000, || {
        let run = Run::new(&Config {
            failure_threshold: 4,
            min_calls_before_evaluation: 1,
            ramp_enabled: true,
            ..config()
        });
        live_together(&run, 4, 30, true);
        run.check();
    });
}

#[test]
fn shuttle_orders_among_calls_keep_every_invariant() {
    explore(8000, || {
        let run = Run::new(&config());
        live_together(&run, 4, 16, true);
        run.check();
    });
}

/// Four threads end twenty calls each, with outcomes by chance.
fn count_together(config: &Config, outcomes: fn() -> Outcome) -> (Snapshot, u64) {
    let run = Run::new(config);
    let failed = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (run, failed) = (Arc::clone(&run), Arc::clone(&failed));
            thread::spawn(move || {
                for _ in 0..20 {
                    let outcome = outcomes();
                    if outcome == Outcome::Failure {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    run.end(run.begin().unwrap(), outcome);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let failed = failed.load(Ordering::Relaxed);
    (run.machine.snapshot(run.now()), failed)
}

#[test]
fn shuttle_no_outcome_of_many_threads_is_lost() {
    for window in [WindowKind::Count, WindowKind::Time] {
        explore(1000, move || {
            let counts = Config {
                failure_threshold: 1000,
                error_rate_threshold: None,
                window,
                window_size: 128,
                ..config()
            };
            let some = || {
                let fails = thread_rng().r#gen();
                if fails {
                    Outcome::Failure
                } else {
                    Outcome::Success
                }
            };
            let (seen, failed) = count_together(&counts, some);
            let window = (seen.window_calls, u64::from(seen.window_failures));
            assert_eq!(window, (80, failed));
            assert_eq!((seen.calls, seen.failures), (80, failed));
            let (seen, _) = count_together(&counts, || Outcome::Failure);
            assert_eq!((seen.window_failures, seen.consecutive_failures), (80, 80));
        });
    }
}
