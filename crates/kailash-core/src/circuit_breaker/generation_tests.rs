//! Where a breaker's generations stand makes no difference, nor does their wrap; and what a thread
//! does that has stalled since an earlier one changes nothing.

use core::mem;
use core::time::Duration;
use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::call::Role;
use super::probe::NO_SLOT;
use super::state::{in_generation, precedes};
use super::*;

const DRAW: f64 = 0.5;

const fn at(secs: u64) -> Timestamp {
    Timestamp::from_nanos(secs * 1_000_000_000)
}

/// A breaker that has been through so many transitions.
fn in_its(generation: u32, config: &Config) -> Machine {
    let machine = Machine::new(config).expect("the config is right");
    let word = Word::unpack(machine.word.load(Ordering::Relaxed));
    let word = Word { generation, ..word };
    machine.word.store(word.pack(), Ordering::Relaxed);
    machine
        .in_a_row
        .store(in_generation(generation, 0), Ordering::Relaxed);
    let left = in_generation(generation, machine.left().pack());
    machine.left.store(left, Ordering::Relaxed);
    let class = machine.rings.class_for(machine.settings.window());
    // In steps: one that is longer than half of all generations goes backwards.
    for step in [generation / 3, generation / 3 * 2, generation] {
        for generation in [step.saturating_sub(1), step] {
            machine.window(generation).prepare(generation, class, 0);
        }
    }
    machine
}

#[derive(Clone, Debug)]
enum Step {
    Begin(f64),
    End(usize, Outcome),
    Manual(Outcome),
    Pass(u64),
    Order(fn(&Machine, Timestamp) -> Option<Transition>),
    Reconfigure(Config),
    Wake,
    Settle,
    Abandon,
}

struct Breaker {
    machine: Machine,
    now: Timestamp,
    in_flight: Vec<Permit>,
    /// What the last step was told.
    refused: Option<Rejected>,
    news: Vec<Transition>,
}

/// All that can be seen of a step.
#[derive(Debug, PartialEq)]
struct Seen {
    refused: Option<Rejected>,
    news: Vec<Transition>,
    state: State,
    due: Option<Timestamp>,
    snapshot: Snapshot,
}

impl Breaker {
    fn in_its(generation: u32, config: &Config) -> Self {
        Self {
            machine: in_its(generation, config),
            now: Timestamp::ZERO,
            in_flight: Vec::new(),
            refused: None,
            news: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Seen {
        let (machine, now) = (&self.machine, self.now);
        match step {
            Step::Begin(draw) => {
                let (result, news) = machine.try_acquire(now, *draw);
                self.news.extend(news);
                match result {
                    Ok(permit) => self.begin(permit),
                    Err(refused) => self.refused = Some(refused),
                }
            }
            Step::End(which, outcome) => {
                if let Some(which) = which.checked_rem(self.in_flight.len()) {
                    let permit = self.in_flight.swap_remove(which);
                    let verdict = machine.record(permit, *outcome, Some(now));
                    self.carry_out(verdict);
                }
            }
            Step::Manual(outcome) => {
                let (verdict, news) = machine.record_manual(*outcome, now, DRAW);
                self.news.extend(news);
                self.carry_out(verdict);
            }
            Step::Pass(millis) => self.now = now + Duration::from_millis(*millis),
            Step::Order(order) => self.news.extend(order(machine, now)),
            Step::Reconfigure(config) => machine
                .reconfigure(config, now)
                .expect("the config is right"),
            Step::Wake => self.news.extend(machine.wake(now)),
            Step::Settle => self.news.extend(machine.settle(now, DRAW)),
            Step::Abandon => machine.abandon_probes(now),
        }
        Seen {
            refused: self.refused.take(),
            news: mem::take(&mut self.news),
            state: self.machine.state(self.now),
            due: self.machine.next_due(self.now),
            snapshot: self.machine.snapshot(self.now),
        }
    }

    fn begin(&mut self, permit: Permit) {
        let (permit, verdict) = if self.machine.watches() {
            self.machine.watch(permit)
        } else {
            (permit, Verdict::Unchanged)
        };
        self.in_flight.push(permit);
        self.carry_out(verdict);
    }

    fn carry_out(&mut self, verdict: Verdict) {
        self.news.extend(match verdict {
            Verdict::Trip(trip) => self.machine.trip(trip, self.now, DRAW),
            Verdict::Closed(news) => Some(news),
            Verdict::Unchanged => None,
        });
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let window = (
        any::<bool>(),
        prop_oneof![Just(4_u32), Just(100), Just(200)],
    );
    let calls = (1..4_u32, 1..3_u32, 1..3_u32);
    (window, calls, any::<[bool; 2]>()).prop_map(|((is_timed, size), calls, [ramps, watches])| {
        Config {
            window: if is_timed {
                WindowKind::Time
            } else {
                WindowKind::Count
            },
            window_size: size,
            window_duration: Duration::from_secs(4),
            failure_threshold: calls.0,
            success_threshold: calls.1,
            half_open_requests: calls.2,
            min_calls_before_evaluation: 3,
            recovery_timeout: Duration::from_secs(2),
            max_recovery_timeout: Duration::from_secs(9),
            max_wait_duration_in_half_open: Duration::from_secs(3),
            slow_call_threshold: Some(Duration::from_secs(1)),
            overdue_calls_enabled: watches,
            ramp_enabled: ramps,
            ..Config::default()
        }
    })
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Success),
        4 => Just(Outcome::Failure),
        1 => Just(Outcome::RetryAfter(Duration::from_secs(5))),
        1 => Just(Outcome::Ignored),
        1 => Just(Outcome::Cancelled),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let orders: [fn(&Machine, Timestamp) -> Option<Transition>; 6] = [
        Machine::force_open,
        Machine::force_close,
        Machine::reset,
        Machine::disable,
        Machine::metrics_only,
        Machine::enable,
    ];
    prop_oneof![
        10 => (0.0..1.0).prop_map(Step::Begin),
        10 => (any::<usize>(), outcomes()).prop_map(|(which, outcome)| Step::End(which, outcome)),
        2 => outcomes().prop_map(Step::Manual),
        6 => (0..2500_u64).prop_map(Step::Pass),
        1 => (0..orders.len()).prop_map(move |order| Step::Order(orders[order])),
        1 => configs().prop_map(Step::Reconfigure),
        1 => Just(Step::Wake),
        1 => Just(Step::Settle),
        1 => Just(Step::Abandon),
    ]
}

/// Generations of all sizes, and those from which a few steps lead over the wrap.
fn generations() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => (1..20_u32).prop_map(|before| u32::MAX - before),
        1 => Just(u32::MAX / 2),
        1 => any::<u32>(),
    ]
}

proptest! {
    #[test]
    fn a_breaker_does_the_same_in_whatever_generation_it_is(
        config in configs(),
        generation in generations(),
        steps in vec(steps(), 1..60),
    ) {
        let mut first = Breaker::in_its(0, &config);
        let mut later = Breaker::in_its(generation, &config);
        for step in &steps {
            prop_assert_eq!(first.step(step), later.step(step), "{:?}", step);
        }
    }
}

fn config() -> Config {
    Config {
        failure_threshold: 3,
        success_threshold: 1,
        ..Config::default()
    }
}

#[test]
fn a_success_of_an_earlier_generation_ends_no_row_of_failures() {
    let machine = in_its(7, &config());
    assert_eq!(machine.failed_again(7), 1);
    machine.succeeded(5);
    assert_eq!(machine.failed_again(7), 2);
    assert_eq!(machine.failed_again(5), 0, "nor does a failure count in it");
    machine.succeeded(7);
    assert_eq!(machine.failed_again(7), 1);
}

#[test]
fn a_thread_that_stalled_on_its_way_to_half_open_takes_no_lease() {
    let machine = in_its(7, &config());
    assert_eq!(machine.lease(6, at(1)), Role::Probe(NO_SLOT));
    assert_eq!(machine.leases.earliest(6), None);
    assert_eq!(machine.lease(7, at(1)), Role::Probe(0));
}

#[test]
fn a_thread_that_stalled_brings_no_older_opening_back() {
    let machine = in_its(7, &config());
    let opening = |cause| Opening::new(1, 2, cause);
    machine.leave(opening(Cause::ErrorRate), 9);
    machine.leave(opening(Cause::ProbeFailed), 8);
    assert_eq!(machine.left().cause, Cause::ErrorRate);
    machine.leave(opening(Cause::SlowCallRate), 9);
    assert_eq!(machine.left().cause, Cause::ErrorRate);
    machine.leave(opening(Cause::SlowCallRate), 10);
    assert_eq!(machine.left().cause, Cause::SlowCallRate);
}

#[test]
fn generations_come_one_after_the_other_across_their_wrap() {
    for (before, after) in [(0, 1), (u32::MAX, 0), (u32::MAX - 5, 3), (5, u32::MAX / 2)] {
        assert!(precedes(before, after), "{before}, {after}");
        assert!(!precedes(after, before), "{after}, {before}");
        assert!(!precedes(after, after));
    }
}

/// A breaker whose window is full of good calls.
fn quiet(generation: u32) -> Machine {
    let machine = in_its(generation, &config());
    for _ in 0..200 {
        let permit = machine.admit().expect("it is closed");
        assert_eq!(
            machine.record(permit, Outcome::Success, Some(at(1))),
            Verdict::Unchanged
        );
    }
    machine
}

/// Whether a good call that began now is recorded the short way.
fn is_short(machine: &Machine) -> bool {
    let permit = machine.admit().expect("it lets all calls pass");
    machine.record_good(&permit, Some(at(1)))
}

#[test]
fn a_good_call_of_a_quiet_breaker_takes_the_short_way() {
    for generation in [0, 1, u32::MAX] {
        let machine = quiet(generation);
        let before = machine.counts().calls;
        assert!(is_short(&machine));
        assert_eq!(machine.counts().calls, before + 1, "it is counted");
    }
}

#[test]
fn no_call_that_may_change_more_than_a_count_takes_the_short_way() {
    let machine = quiet(4);
    let slow = machine.admit().expect("it is closed").started_at(at(1));
    assert!(!machine.record_good(&slow, Some(at(100))), "a slow one");
    let late = Permit::new(2, Role::Plain, None);
    assert!(
        !machine.record_good(&late, None),
        "one of an earlier generation"
    );
    let probe = Permit::new(4, Role::Probe(0), None);
    assert!(!machine.record_good(&probe, None), "a probe");

    assert_eq!((machine.failed_again(4), machine.failed_again(4)), (1, 2));
    assert!(is_short(&machine));
    assert_eq!(machine.failed_again(4), 1, "the row has ended");

    machine.disable(at(1));
    assert!(!is_short(&machine), "nothing is counted");
    machine.force_close(at(1));
    assert!(!is_short(&machine), "the window is not full any more");
}

#[test]
fn a_row_of_failures_of_an_earlier_generation_is_in_nobodys_way() {
    let machine = quiet(4);
    machine
        .in_a_row
        .store(in_generation(2, 2), Ordering::Relaxed);
    assert!(is_short(&machine));
}

#[test]
fn the_first_success_after_an_opening_is_the_only_one_that_looks_at_its_row() {
    let machine = quiet(4);
    let after_a_success = |generation| {
        let row = in_generation(generation, 2);
        machine.in_a_row.store(row, Ordering::Relaxed);
        assert!(is_short(&machine));
        machine.in_a_row.load(Ordering::Relaxed)
    };
    for over in [2, 3, 4] {
        assert_eq!(after_a_success(over), in_generation(4, 0));
    }
    assert_eq!(after_a_success(5), in_generation(5, 2), "it has just begun");
}

#[test]
fn a_reload_adds_the_row_of_failures_before_it_to_one_that_has_begun_since() {
    let machine = quiet(2);
    let carried = |generation, failures| {
        let seen = in_generation(generation, failures);
        machine.in_a_row.store(seen, Ordering::Relaxed);
        machine.carry_failures_in_a_row(2, 3);
        machine.in_a_row.load(Ordering::Relaxed)
    };
    assert_eq!(carried(2, 5), in_generation(3, 5), "two more failed late");
    assert_eq!(carried(3, 1), in_generation(3, 4), "one has failed since");
    assert_eq!(carried(3, u32::MAX), in_generation(3, u32::MAX));
    for (generation, failures) in [(3, 0), (4, 1), (1, 1)] {
        let kept = in_generation(generation, failures);
        assert_eq!(carried(generation, failures), kept, "another row");
    }
}

#[test]
fn a_probe_that_ends_4096_generations_late_frees_nobodys_lease() {
    let machine = in_its(
        2,
        &Config {
            initial_state: State::HalfOpen,
            ..config()
        },
    );
    let (late, _) = machine.try_acquire(at(1), DRAW);
    for _ in 0..2048 {
        machine.force_close(at(1));
        machine.force_open(at(1));
    }
    machine.force_close(at(1));
    machine.leases.sweep(1, || true);
    assert_eq!(machine.leases.earliest(2), None);
    // As many generations on as a lease's tag can tell apart.
    let word = Word {
        generation: 2 + 4096,
        phase: Phase::HalfOpen {
            in_flight: 0,
            successes: 0,
        },
    };
    machine.word.store(word.pack(), Ordering::Relaxed);
    let (own, _) = machine.try_acquire(at(2), DRAW);
    let lease = machine.next_due(at(2));
    assert!(own.is_ok() && lease.is_some());
    let late = late.expect("it was half-open");
    assert_eq!(
        machine.record(late, Outcome::Success, Some(at(2))),
        Verdict::Unchanged
    );
    assert_eq!(machine.next_due(at(2)), lease);
}

#[test]
fn an_opening_that_a_fork_cut_in_two_ends_in_the_child() {
    let machine = in_its(7, &config());
    let word = Word {
        generation: 8,
        phase: Phase::Open(Opening::new(1, 1, Cause::ErrorRate)),
    };
    machine.word.store(word.pack(), Ordering::Relaxed);
    assert_eq!(machine.next_due(at(1)), None, "its thread is to say when");
    machine.abandon_probes(at(1));
    assert_eq!(machine.next_due(at(1)), Some(at(61)));
    machine.abandon_probes(at(9));
    assert_eq!(machine.next_due(at(9)), Some(at(61)), "once");
}
