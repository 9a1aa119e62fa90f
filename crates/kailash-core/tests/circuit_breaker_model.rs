//! The machine does what a naive model does: a list of outcomes, looked at whole each time.

use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Machine, Outcome, Permit, State, Verdict};
use kailash_core::time::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;

const DRAW: f64 = 0.5;

#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// Ends the call in flight that this number picks.
    End(usize, Outcome),
    Record(Outcome),
    Pass(u64),
    Tell(Order),
    Resize(u32),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    ForceOpen,
    ForceClose,
    Reset,
    Disable,
    MetricsOnly,
    Enable,
}

struct Model {
    config: Config,
    now: u64,
    generation: u64,
    phase: Phase,
    /// Failed, slow: every outcome of this generation.
    outcomes: Vec<(bool, bool)>,
    /// How many outcomes the machine has memory for in this generation.
    memory: usize,
    resized: bool,
    in_a_row: u32,
    openings_in_a_row: u32,
    totals: Totals,
}

/// What has counted since the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    calls: u64,
    failures: u64,
    slow: u64,
    rejections: u64,
    openings: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Closed,
    Open {
        until: u64,
    },
    HalfOpen {
        leases: Vec<(usize, u64)>,
        successes: u32,
    },
    Forced,
    Disabled,
    MetricsOnly,
}

impl Model {
    fn enter(&mut self, phase: Phase) {
        self.generation += 1;
        self.phase = phase;
        self.outcomes.clear();
        self.memory = memory(self.config.window_size);
        self.in_a_row = 0;
    }

    fn open(&mut self, at: u64) {
        self.totals.openings += 1;
        self.openings_in_a_row += 1;
        let factor = self
            .config
            .exponential_backoff_multiplier
            .powi(self.openings_in_a_row as i32 - 1);
        let wait = (self.config.recovery_timeout.as_secs_f64() * factor)
            .min(self.config.max_recovery_timeout.as_secs_f64());
        let until = at + (wait * 1e9).round() as u64;
        self.enter(Phase::Open { until });
    }

    /// Carries out a lapse whose time has come.
    fn settle(&mut self) {
        if let Phase::HalfOpen { leases, .. } = &self.phase {
            let first = leases.iter().map(|&(_, deadline)| deadline).min();
            if let Some(deadline) = first.filter(|&deadline| deadline <= self.now) {
                self.total(true, false);
                self.open(deadline);
            }
        }
    }

    fn total(&mut self, failed: bool, slow: bool) {
        self.totals.calls += 1;
        self.totals.failures += u64::from(failed);
        self.totals.slow += u64::from(slow);
    }

    fn wait_over(&mut self) {
        if let Phase::Open { until } = self.phase
            && until <= self.now
        {
            self.enter(Phase::HalfOpen {
                leases: Vec::new(),
                successes: 0,
            });
        }
    }

    fn begin(&mut self, call: usize) -> Option<u64> {
        self.settle();
        self.wait_over();
        let deadline = self.now + self.config.max_wait_duration_in_half_open.as_nanos() as u64;
        let most = self.config.half_open_requests as usize;
        match &mut self.phase {
            Phase::HalfOpen { leases, .. } if leases.len() < most => leases.push((call, deadline)),
            Phase::Open { .. } | Phase::Forced | Phase::HalfOpen { .. } => {
                self.totals.rejections += 1;
                return None;
            }
            _ => {}
        }
        Some(self.generation)
    }

    fn end(&mut self, call: usize, generation: u64, ran: u64, outcome: Outcome) {
        self.settle();
        if generation != self.generation {
            return;
        }
        let slow = self
            .config
            .slow_call_threshold
            .is_some_and(|t| u128::from(ran) >= t.as_nanos());
        let counts = self
            .config
            .cancelled_counts_after
            .is_some_and(|t| u128::from(ran) >= t.as_nanos());
        let now = self.now;
        match &mut self.phase {
            Phase::Closed | Phase::MetricsOnly => match outcome {
                Outcome::Success => self.count(false, slow),
                Outcome::Failure | Outcome::RetryAfter(_) => self.count(true, slow),
                Outcome::Cancelled if counts => self.count(true, slow),
                Outcome::Ignored | Outcome::Cancelled => {}
            },
            Phase::HalfOpen { leases, successes } => {
                leases.retain(|&(id, _)| id != call);
                match outcome {
                    Outcome::Success if !slow => {
                        *successes += 1;
                        let closes = *successes >= self.config.success_threshold;
                        self.total(false, false);
                        if closes {
                            self.close();
                        }
                    }
                    Outcome::Success | Outcome::Failure | Outcome::RetryAfter(_) => {
                        let failed = outcome != Outcome::Success;
                        self.total(failed, !failed);
                        self.open(now);
                    }
                    Outcome::Ignored | Outcome::Cancelled => {}
                }
            }
            _ => {}
        }
    }

    fn record(&mut self, outcome: Outcome) {
        self.settle();
        self.wait_over();
        let now = self.now;
        match (&mut self.phase, outcome) {
            (_, Outcome::Ignored | Outcome::Cancelled) => {}
            (Phase::Closed | Phase::MetricsOnly, _) => {
                self.count(outcome == Outcome::Failure, false)
            }
            (Phase::HalfOpen { .. }, Outcome::Failure) => {
                self.total(true, false);
                self.open(now);
            }
            (Phase::HalfOpen { successes, .. }, _) => {
                *successes += 1;
                let closes = *successes >= self.config.success_threshold;
                self.total(false, false);
                if closes {
                    self.close();
                }
            }
            _ => {}
        }
    }

    fn close(&mut self) {
        self.openings_in_a_row = 0;
        self.enter(Phase::Closed);
    }

    fn count(&mut self, failed: bool, slow: bool) {
        self.outcomes.push((failed, slow));
        self.total(failed, slow);
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
        // A rate that a new window size has made true opens it at the next failure, not at a success.
        let looks = !self.resized || failed || slow || self.outcomes.len() == self.required();
        if self.phase == Phase::Closed && looks && self.would_open() {
            self.openings_in_a_row = 0;
            self.open(self.now);
        }
    }

    fn would_open(&self) -> bool {
        let window = self.window();
        let reached = |part: usize, share: Option<f64>| {
            share.is_some_and(|share| part > 0 && part as f64 >= share * window.len() as f64)
        };
        let slow = window.iter().filter(|call| call.1).count();
        let failed = window.iter().filter(|call| call.0).count();
        let rates = window.len() >= self.required()
            && (reached(failed, self.config.error_rate_threshold)
                || reached(slow, self.config.slow_call_rate_threshold));
        self.in_a_row >= self.config.failure_threshold || rates
    }

    fn window(&self) -> &[(bool, bool)] {
        let from = self
            .outcomes
            .len()
            .saturating_sub(self.config.window_size as usize);
        &self.outcomes[from..]
    }

    fn tell(&mut self, order: Order) {
        let phase = match order {
            Order::ForceOpen => Phase::Forced,
            Order::ForceClose | Order::Reset | Order::Enable => Phase::Closed,
            Order::Disable => Phase::Disabled,
            Order::MetricsOnly => Phase::MetricsOnly,
        };
        let ends = matches!(self.phase, Phase::Disabled | Phase::MetricsOnly);
        if matches!(order, Order::Enable) && !ends {
            return;
        }
        if phase != self.phase || matches!(order, Order::Reset) {
            self.openings_in_a_row = 0;
            self.totals.openings += u64::from(phase == Phase::Forced);
            self.enter(phase);
        }
        if matches!(order, Order::Reset) {
            self.totals = Totals::default();
        }
    }

    fn resize(&mut self, window_size: u32) {
        let counts = matches!(self.phase, Phase::Closed | Phase::MetricsOnly);
        if counts && memory(window_size) > self.memory {
            let from = self.outcomes.len().saturating_sub(self.memory);
            self.outcomes.drain(..from);
            self.memory = memory(window_size);
        }
        self.config.window_size = window_size;
        self.resized = true;
    }

    fn required(&self) -> usize {
        let Config {
            min_calls_before_evaluation,
            window_size,
            ..
        } = self.config;
        min_calls_before_evaluation.min(window_size) as usize
    }

    fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { until } if until <= self.now => State::HalfOpen,
            Phase::Open { .. } | Phase::Forced => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::Disabled => State::Disabled,
            Phase::MetricsOnly => State::MetricsOnly,
        }
    }
}

fn memory(window_size: u32) -> usize {
    (window_size as usize).next_power_of_two().max(128)
}

fn configs() -> impl Strategy<Value = Config> {
    let share = prop_oneof![
        Just(None),
        Just(Some(0.5)),
        Just(Some(1.0)),
        (0.01..=1.0).prop_map(Some)
    ];
    let window = prop_oneof![1..=3_u32, 1..=300_u32];
    (
        (1..=6_u32, 1..=4_u32, 1..=6_u32, window, 1..=20_u32),
        (
            share.clone(),
            share,
            prop_oneof![Just(None), Just(Some(0)), (1..=10_u64).prop_map(Some)],
        ),
        prop_oneof![Just(None), (0..=10_u64).prop_map(Some)],
    )
        .prop_map(
            |((failures, successes, probes, window, min), (errors, slow, cancelled), slow_at)| {
                Config {
                    failure_threshold: failures * if failures > 4 { 1000 } else { 1 },
                    success_threshold: successes,
                    half_open_requests: probes,
                    window_size: window,
                    min_calls_before_evaluation: min,
                    error_rate_threshold: errors,
                    slow_call_rate_threshold: slow_at.and(slow),
                    slow_call_threshold: slow.and(slow_at).map(Duration::from_secs),
                    cancelled_counts_after: cancelled.map(Duration::from_secs),
                    recovery_timeout: Duration::from_secs(5),
                    max_recovery_timeout: Duration::from_secs(30),
                    max_wait_duration_in_half_open: Duration::from_secs(7),
                    jitter_enabled: false,
                    ..Config::default()
                }
            },
        )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        4 => Just(Outcome::Failure),
        1 => Just(Outcome::Ignored),
        1 => Just(Outcome::Cancelled),
    ];
    let order = prop_oneof![
        1 => Just(Order::ForceOpen),
        3 => Just(Order::ForceClose),
        2 => Just(Order::Reset),
        1 => Just(Order::Disable),
        2 => Just(Order::MetricsOnly),
        3 => Just(Order::Enable),
    ];
    let step = prop_oneof![
        20 => Just(Step::Begin),
        20 => (any::<usize>(), outcome.clone()).prop_map(|(n, outcome)| Step::End(n, outcome)),
        10 => prop_oneof![Just(Outcome::Success), Just(Outcome::Failure)].prop_map(Step::Record),
        6 => (0..8_u64).prop_map(Step::Pass),
        1 => order.prop_map(Step::Tell),
        1 => (1..=600_u32).prop_map(Step::Resize),
    ];
    vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_machine_decides_as_a_naive_model_does(config in configs(), steps in steps()) {
        let machine = Machine::new(&config).unwrap();
        let mut model = Model {
            config,
            now: 0,
            generation: 0,
            phase: Phase::Closed,
            outcomes: Vec::new(),
            memory: 0,
            resized: false,
            in_a_row: 0,
            openings_in_a_row: 0,
            totals: Totals::default(),
        };
        model.memory = memory(model.config.window_size);
        let mut in_flight: Vec<(usize, u64, u64, Permit)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            let now = Timestamp::from_nanos(model.now);
            match step {
                Step::Begin => {
                    let (result, _) = machine.try_acquire(now, DRAW);
                    let generation = model.begin(id);
                    prop_assert_eq!(result.is_ok(), generation.is_some(), "step {}: {:?}", id, &result);
                    if let (Ok(permit), Some(generation)) = (result, generation) {
                        in_flight.push((id, generation, model.now, permit));
                    }
                }
                Step::End(_, _) if in_flight.is_empty() => {}
                Step::End(pick, outcome) => {
                    let (call, generation, began, permit) = in_flight.swap_remove(pick % in_flight.len());
                    carry_out(&machine, machine.record(permit, outcome, Some(now)), now);
                    model.end(call, generation, model.now - began, outcome);
                }
                Step::Record(outcome) => {
                    let (verdict, _) = machine.record_manual(outcome, now, DRAW);
                    carry_out(&machine, verdict, now);
                    model.record(outcome);
                }
                Step::Pass(seconds) => model.now += seconds * 1_000_000_000,
                Step::Tell(order) => {
                    machine.settle(now, DRAW);
                    model.settle();
                    tell(&machine, order, now);
                    model.tell(order);
                }
                Step::Resize(window_size) => {
                    machine.settle(now, DRAW);
                    model.settle();
                    // Beyond its memory a window starts a generation, which drops calls in flight.
                    if window_size as usize > model.memory && !in_flight.is_empty() {
                        continue;
                    }
                    model.resize(window_size);
                    machine.reconfigure(&model.config, now).unwrap();
                }
            }
            let now = Timestamp::from_nanos(model.now);
            machine.settle(now, DRAW);
            model.settle();
            let found = machine.snapshot(now);
            prop_assert_eq!(found.state, model.state(), "step {}", id);
            prop_assert_eq!(found.forced, model.phase == Phase::Forced);
            prop_assert_eq!(found.consecutive_failures, model.in_a_row, "step {}", id);
            let in_window = (found.window_calls, found.window_failures, found.window_slow);
            let window = model.window();
            let failed = window.iter().filter(|call| call.0).count() as u32;
            let slow = window.iter().filter(|call| call.1).count() as u32;
            prop_assert_eq!(in_window, (window.len() as u32, failed, slow), "step {}", id);
            let totals = Totals {
                calls: found.calls,
                failures: found.failures,
                slow: found.slow_calls,
                rejections: found.rejections,
                openings: found.openings,
            };
            prop_assert_eq!(totals, model.totals, "step {}", id);
            if let Phase::HalfOpen { leases, successes } = &model.phase {
                prop_assert_eq!(found.probes_in_flight as usize, leases.len());
                prop_assert_eq!(found.probe_successes, *successes);
            }
            if let Phase::Open { until } = model.phase && until > model.now {
                let wait = found.retry_after.unwrap().as_nanos() as u64;
                prop_assert_eq!(wait, until - model.now);
            }
            if model.phase == Phase::MetricsOnly {
                prop_assert_eq!(found.would_open.is_some(), model.would_open());
            }
        }
    }
}

fn carry_out(machine: &Machine, verdict: Verdict, now: Timestamp) {
    if let Verdict::Trip(trip) = verdict {
        machine.trip(trip, now, DRAW);
    }
}

fn tell(machine: &Machine, order: Order, now: Timestamp) {
    let _ = match order {
        Order::ForceOpen => machine.force_open(now),
        Order::ForceClose => machine.force_close(now),
        Order::Reset => machine.reset(now),
        Order::Disable => machine.disable(now),
        Order::MetricsOnly => machine.metrics_only(now),
        Order::Enable => machine.enable(now),
    };
}
