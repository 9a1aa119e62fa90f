//! The machine does what a naive model does: a list of outcomes, looked at whole each time.

use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Machine, Outcome, Permit, State, Verdict, WindowKind};
use kailash_core::time::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;

const DRAW: f64 = 0.5;
/// The share of calls that each stage of a ramp admits.
const SHARES: [f64; 3] = [0.05, 0.25, 0.5];

#[derive(Clone, Debug)]
enum Step {
    /// A call is made, by this draw of chance.
    Begin(f64),
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
    /// Every outcome of this generation.
    outcomes: Vec<Ended>,
    /// When calls failed that had counted as overdue before, in a time window.
    late_failures: Vec<u64>,
    /// The watched calls in flight.
    watched: Vec<Watched>,
    /// The quarter of the slow threshold in which overdue calls were last looked for.
    looked: u64,
    /// How many outcomes the machine has memory for in this generation.
    memory: usize,
    resized: bool,
    in_a_row: u32,
    openings_in_a_row: u32,
    totals: Totals,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    tick: u64,
    failed: bool,
    slow: bool,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    call: usize,
    generation: u64,
    quarter: u64,
    has_counted: bool,
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
    Ramp {
        stage: usize,
        since: u64,
    },
    Forced,
    Disabled,
    MetricsOnly,
}

impl Model {
    fn new(config: Config) -> Self {
        let phase = match config.initial_state {
            State::Closed => Phase::Closed,
            State::Open => Phase::Open {
                until: config.recovery_timeout.as_nanos() as u64,
            },
            State::HalfOpen => Phase::HalfOpen {
                leases: Vec::new(),
                successes: 0,
            },
            State::Disabled => Phase::Disabled,
            State::MetricsOnly => Phase::MetricsOnly,
        };
        Self {
            memory: memory(config.window_size),
            openings_in_a_row: matches!(config.initial_state, State::Open | State::HalfOpen).into(),
            config,
            now: 0,
            generation: 0,
            phase,
            outcomes: Vec::new(),
            late_failures: Vec::new(),
            watched: Vec::new(),
            looked: 0,
            resized: false,
            in_a_row: 0,
            totals: Totals::default(),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.generation += 1;
        self.phase = phase;
        self.outcomes.clear();
        self.late_failures.clear();
        self.memory = memory(self.config.window_size);
        self.in_a_row = 0;
    }

    fn open(&mut self, at: u64, asked: Option<Duration>) {
        self.totals.openings += 1;
        self.openings_in_a_row += 1;
        let factor = self
            .config
            .exponential_backoff_multiplier
            .powi(self.openings_in_a_row as i32 - 1);
        let backoff = self.config.recovery_timeout.as_secs_f64() * factor;
        let wait = asked.map_or(backoff, |asked| asked.as_secs_f64());
        let wait = wait.min(self.config.max_recovery_timeout.as_secs_f64());
        let until = at + (wait * 1e9).round() as u64;
        self.enter(Phase::Open { until });
    }

    /// Carries out a lapse whose time has come.
    fn settle(&mut self) {
        if let Phase::HalfOpen { leases, .. } = &self.phase {
            let first = leases.iter().map(|&(_, deadline)| deadline).min();
            if let Some(deadline) = first.filter(|&deadline| deadline <= self.now) {
                self.total(true, false);
                self.open(deadline, None);
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

    fn begin(&mut self, call: usize, draw: f64) -> Option<u64> {
        self.settle();
        self.wait_over();
        let deadline = self.now + self.config.max_wait_duration_in_half_open.as_nanos() as u64;
        let most = self.config.half_open_requests as usize;
        match &mut self.phase {
            Phase::HalfOpen { leases, .. } if leases.len() < most => leases.push((call, deadline)),
            Phase::Ramp { stage, .. } if draw < SHARES[*stage] => {}
            Phase::Ramp { .. } | Phase::Open { .. } | Phase::Forced | Phase::HalfOpen { .. } => {
                self.totals.rejections += 1;
                return None;
            }
            _ => {}
        }
        Some(self.generation)
    }

    /// Watches a call that was admitted now, and counts the calls that are overdue by now.
    fn watch(&mut self, call: usize) {
        let Some(quarter) = self.quarter().filter(|_| self.counts()) else {
            return;
        };
        let generation = self.generation;
        let mut overdue = 0;
        if quarter > self.looked {
            self.looked = quarter;
            for other in &mut self.watched {
                let is_due = quarter - other.quarter >= 5 && !other.has_counted;
                if is_due && other.generation == generation {
                    other.has_counted = true;
                    overdue += 1;
                }
            }
        }
        if overdue > 0 {
            self.totals.calls += overdue;
            self.totals.slow += overdue;
            let ended = Ended {
                tick: self.tick(),
                failed: false,
                slow: true,
            };
            let most = match self.config.window {
                // More would only push each other out of it.
                WindowKind::Count => u64::from(self.config.window_size),
                WindowKind::Time => u64::MAX,
            };
            let written = overdue.min(most);
            self.outcomes.extend((0..written).map(|_| ended));
            self.look(None);
        }
        if self.generation == generation {
            self.watched.push(Watched {
                call,
                generation,
                quarter,
                has_counted: false,
            });
        }
    }

    fn end(&mut self, call: usize, generation: u64, ran: u64, outcome: Outcome) {
        self.settle();
        let watched = self.watched.iter().position(|other| other.call == call);
        let watched = watched.map(|place| self.watched.swap_remove(place));
        if generation != self.generation {
            return;
        }
        let reaches =
            |time: Option<Duration>| time.is_some_and(|t| u128::from(ran) >= t.as_nanos());
        let slow = reaches(self.config.slow_call_threshold);
        let failed = match outcome {
            Outcome::Success => Some(false),
            Outcome::Failure | Outcome::RetryAfter(_) => Some(true),
            Outcome::Cancelled if reaches(self.config.cancelled_counts_after) => Some(true),
            Outcome::Ignored | Outcome::Cancelled => None,
        };
        if let Phase::HalfOpen { leases, .. } = &mut self.phase {
            leases.retain(|&(id, _)| id != call);
            let failed = failed.filter(|_| outcome != Outcome::Cancelled);
            if let Some(failed) = failed {
                self.probed(failed, slow && !failed, asked(outcome));
            }
        } else if let Some(failed) = failed.filter(|_| self.counts()) {
            if watched.is_some_and(|watched| watched.has_counted) {
                self.totals.failures += u64::from(failed);
                self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
                if failed {
                    self.fail_overdue();
                    self.look(asked(outcome));
                }
            } else {
                self.count(failed, slow, asked(outcome));
            }
            self.climb();
        }
    }

    fn record(&mut self, outcome: Outcome) {
        self.settle();
        self.wait_over();
        let failed = outcome != Outcome::Success;
        if matches!(self.phase, Phase::HalfOpen { .. }) {
            self.probed(failed, false, asked(outcome));
        } else if self.counts() {
            self.count(failed, false, asked(outcome));
            self.climb();
        }
    }

    /// What comes of a probe that has ended and says something.
    fn probed(&mut self, failed: bool, slow: bool, asked: Option<Duration>) {
        self.total(failed, slow);
        let Phase::HalfOpen { successes, .. } = &mut self.phase else {
            panic!("probes are of a half-open breaker");
        };
        *successes += 1;
        if failed || slow {
            self.open(self.now, asked);
        } else if *successes >= self.config.success_threshold {
            if self.config.ramp_enabled {
                let since = self.tick();
                self.enter(Phase::Ramp { stage: 0, since });
            } else {
                self.close();
            }
        }
    }

    /// Ends a stage of the ramp that has seen enough calls.
    fn climb(&mut self) {
        let Phase::Ramp { stage, since } = self.phase else {
            return;
        };
        let is_timed = self.config.window == WindowKind::Time;
        let spans_its_time = is_timed && self.tick() - since >= 15;
        if self.window().len() < self.required() && !spans_its_time {
            return;
        }
        if stage + 1 == SHARES.len() {
            self.close();
        } else {
            self.enter(Phase::Ramp {
                stage: stage + 1,
                since: self.tick(),
            });
        }
    }

    fn close(&mut self) {
        self.openings_in_a_row = 0;
        self.enter(Phase::Closed);
    }

    fn count(&mut self, failed: bool, slow: bool, asked: Option<Duration>) {
        self.outcomes.push(Ended {
            tick: self.tick(),
            failed,
            slow,
        });
        self.total(failed, slow);
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
        // A rate that has become true because calls left the window, or by a new size of it, opens the
        // breaker at the next failure and not at a success.
        let (may_wait, seen) = match self.config.window {
            WindowKind::Count => (self.resized, self.outcomes.len()),
            WindowKind::Time => (true, self.window().len()),
        };
        if !may_wait || failed || slow || seen == self.required() {
            self.look(asked);
        }
    }

    fn look(&mut self, asked: Option<Duration>) {
        if self.would_open() {
            self.trip(asked);
        }
    }

    fn trip(&mut self, asked: Option<Duration>) {
        match self.phase {
            Phase::Closed => self.openings_in_a_row = 0,
            Phase::Ramp { .. } => {}
            _ => return,
        }
        self.open(self.now, asked);
    }

    fn counts(&self) -> bool {
        let phase = &self.phase;
        matches!(
            phase,
            Phase::Closed | Phase::MetricsOnly | Phase::Ramp { .. }
        )
    }

    /// The step of a time window.
    fn tick(&self) -> u64 {
        self.now / (self.config.window_duration.as_nanos() as u64 / 16)
    }

    /// The quarter of the slow threshold, where calls are watched.
    fn quarter(&self) -> Option<u64> {
        let threshold = self.config.slow_call_threshold?;
        let is_on = self.config.overdue_calls_enabled;
        is_on.then(|| self.now / (threshold.as_nanos() as u64 / 4))
    }

    fn would_open(&self) -> bool {
        let window = self.window();
        let reached = |part: usize, share: Option<f64>| {
            share.is_some_and(|share| part > 0 && part as f64 / window.len() as f64 >= share)
        };
        let slow = window.iter().filter(|call| call.slow).count();
        let failed = self.failed();
        let rates = window.len() >= self.required()
            && (reached(failed, self.config.error_rate_threshold)
                || reached(slow, self.config.slow_call_rate_threshold));
        self.in_a_row >= self.config.failure_threshold || rates
    }

    /// A call that counted as overdue has failed: the newest slow one that has not, or in a time
    /// window any. Where there is none, it is one more.
    fn fail_overdue(&mut self) {
        let tick = self.tick();
        if self.config.window == WindowKind::Time {
            if self.window().iter().any(|call| call.slow) {
                self.late_failures.push(tick);
                return;
            }
        } else {
            let from = self.outcomes.len() - self.window().len();
            let mut newest = self.outcomes[from..].iter_mut().rev();
            if let Some(call) = newest.find(|call| call.slow && !call.failed) {
                call.failed = true;
                return;
            }
        }
        self.totals.calls += 1;
        self.outcomes.push(Ended {
            tick,
            failed: true,
            slow: false,
        });
    }

    /// Failures in the window.
    fn failed(&self) -> usize {
        let window = self.window();
        let failed = window.iter().filter(|call| call.failed).count();
        let since = (self.tick() + 1).saturating_sub(16);
        let late = self.late_failures.iter().filter(|tick| **tick >= since);
        (failed + late.count()).min(window.len())
    }

    fn window(&self) -> &[Ended] {
        if self.config.window == WindowKind::Time {
            let since = (self.tick() + 1).saturating_sub(16);
            let from = self.outcomes.partition_point(|call| call.tick < since);
            return &self.outcomes[from..];
        }
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
        let counts = counts && self.config.window == WindowKind::Count;
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
            window,
            ..
        } = self.config;
        let most = match window {
            WindowKind::Count => window_size,
            WindowKind::Time => u32::MAX,
        };
        min_calls_before_evaluation.min(most) as usize
    }

    fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { until } if until <= self.now => State::HalfOpen,
            Phase::Open { .. } | Phase::Forced => State::Open,
            Phase::HalfOpen { .. } | Phase::Ramp { .. } => State::HalfOpen,
            Phase::Disabled => State::Disabled,
            Phase::MetricsOnly => State::MetricsOnly,
        }
    }
}

fn asked(outcome: Outcome) -> Option<Duration> {
    match outcome {
        Outcome::RetryAfter(wait) => Some(wait).filter(|wait| !wait.is_zero()),
        _ => None,
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
        (
            prop_oneof![Just(WindowKind::Count), Just(WindowKind::Time)],
            prop_oneof![Just(3), Just(16), Just(40)],
            any::<bool>(),
            any::<bool>(),
            prop_oneof![
                6 => Just(State::Closed),
                1 => Just(State::Open),
                1 => Just(State::HalfOpen),
                1 => Just(State::MetricsOnly),
                1 => Just(State::Disabled),
            ],
        ),
    )
        .prop_map(
            |(
                (failures, successes, probes, window_size, min),
                (errors, slow, cancelled),
                slow_at,
                (window, span, watches, ramps, initial_state),
            )| {
                Config {
                    window,
                    window_duration: Duration::from_secs(span),
                    overdue_calls_enabled: watches && slow.and(slow_at).is_some_and(|at| at > 0),
                    ramp_enabled: ramps,
                    initial_state,
                    failure_threshold: failures * if failures > 4 { 1000 } else { 1 },
                    success_threshold: successes,
                    half_open_requests: probes,
                    window_size,
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
    let asks = (0..50_u64).prop_map(|wait| Outcome::RetryAfter(Duration::from_secs(wait)));
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        3 => Just(Outcome::Failure),
        1 => asks.clone(),
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
        20 => (0.0..1.0).prop_map(Step::Begin),
        20 => (any::<usize>(), outcome.clone()).prop_map(|(n, outcome)| Step::End(n, outcome)),
        10 => prop_oneof![
            4 => Just(Outcome::Success),
            3 => Just(Outcome::Failure),
            1 => asks
        ].prop_map(Step::Record),
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
        // An open breaker begins its wait when it is first looked at.
        machine.settle(Timestamp::ZERO, DRAW);
        let _ = machine.snapshot(Timestamp::ZERO);
        let mut model = Model::new(config);
        let mut in_flight: Vec<(usize, u64, u64, Permit)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            let now = Timestamp::from_nanos(model.now);
            match step {
                Step::Begin(draw) => {
                    machine.settle(now, DRAW);
                    let told = machine.refusal(now);
                    let (result, _) = machine.try_acquire(now, draw);
                    // On a ramp chance refuses too, which nobody can tell ahead.
                    if told.is_some() || !model.config.ramp_enabled {
                        prop_assert_eq!(told, result.as_ref().err().copied(), "step {}: told ahead", id);
                    }
                    let generation = model.begin(id, draw);
                    prop_assert_eq!(result.is_ok(), generation.is_some(), "step {}: {:?}", id, &result);
                    if let (Ok(mut permit), Some(generation)) = (result, generation) {
                        if machine.watches() {
                            let verdict;
                            (permit, verdict) = machine.watch(permit);
                            carry_out(&machine, verdict, now);
                            model.watch(id);
                        }
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
            let failed = model.failed() as u32;
            let slow = window.iter().filter(|call| call.slow).count() as u32;
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
