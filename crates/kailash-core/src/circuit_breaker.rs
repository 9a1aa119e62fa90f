//! The circuit breaker's machine.
//!
//! ```text
//!                 failures in a row, a rate
//!      ┌────────┐ ───────────────────────────▶ ┌──────┐
//!      │ closed │                              │ open │ ◀─┐
//!      └────────┘ ◀──┐                         └──────┘   │ a probe failed, was slow
//!                    │ success_threshold           │      │ or lapsed
//!                    │ probes succeeded            │ wait over
//!                    │                        ┌───────────┐
//!                    └─────────────────────── │ half-open │
//!                                             └───────────┘
//! ```
//!
//! Where it is asked for, a ramp comes between half-open and closed, and reads half-open: a growing
//! share of the calls passes, judged as in a closed breaker.
//!
//! Beside these, someone may force it open, disable it, or let it only count (metrics-only).
//!
//! All methods take `&self` and may be called from any number of threads at once, except that two
//! of [`Machine::force_open`], [`Machine::force_close`], [`Machine::reset`], [`Machine::disable`],
//! [`Machine::metrics_only`], [`Machine::enable`] and [`Machine::reconfigure`] must not overlap: a
//! shell holds a lock around them. A call that is admitted while closed takes no lock and
//! allocates nothing.
//!
//! A permit carries the generation it was given in, and every transition starts another one: what
//! began in an older generation changes nothing when it ends late. Generations wrap after 2^32
//! transitions, so a call that lasts that many is taken for a new one.

mod backoff;
mod call;
mod config;
#[cfg(all(test, not(any(kailash_loom, kailash_shuttle))))]
mod generation_tests;
#[cfg(all(test, any(kailash_loom, kailash_shuttle)))]
mod interleaving_tests;
mod order;
mod overdue;
mod probe;
mod ramp;
mod refusal;
mod settings;
#[cfg(all(test, kailash_shuttle))]
mod shuttle_tests;
mod snapshot;
mod state;
mod window;

use call::Role;
pub use call::{News, Outcome, Permit, Rejected, Transition, Trip, Verdict};
pub use config::{Config, WindowKind};
pub use snapshot::{Counts, Snapshot};
pub use state::{Cause, State};

use crate::config::ConfigError;
use crate::once_box::OnceBox;
use crate::sync::{AtomicU64, Ordering};
use crate::time::Timestamp;
use overdue::Overdue;
use probe::{Leases, Stamp};
use settings::Settings;
use snapshot::Totals;
use state::{Opening, Phase, Word};
use window::{Call, Extent, Rings, Starts, Tally, Tickets, Window};

/// One circuit breaker.
///
/// ```
/// use core::time::Duration;
/// use kailash_core::circuit_breaker::{Config, Machine, Outcome, State, Verdict};
/// use kailash_core::time::Timestamp;
///
/// let machine = Machine::new(&Config { failure_threshold: 1, ..Config::default() })?;
/// let (now, draw) = (Timestamp::ZERO, 0.5);
///
/// let permit = machine.try_acquire(now, draw).0.expect("closed lets calls pass");
/// let Verdict::Trip(trip) = machine.record(permit, Outcome::Failure, Some(now)) else {
///     panic!("one failure is enough");
/// };
/// let news = machine.trip(trip, now, draw).expect("nobody else opened it");
/// assert_eq!((news.from, news.to), (State::Closed, State::Open));
///
/// let rejected = machine.try_acquire(now, draw).0.expect_err("open refuses calls");
/// assert_eq!(rejected.retry_after, Some(Duration::from_secs(60)));
/// assert_eq!(machine.state(now + Duration::from_secs(60)), State::HalfOpen);
/// # Ok::<(), kailash_core::config::ConfigError>(())
/// ```
///
/// The fields stand in this order in memory. What each call reads comes first, what each call writes
/// comes last, and what calls hardly touch lies between, a cache line long: so writers do not take
/// the readers' line away, and a million breakers need no padding for it.
#[repr(C)]
pub struct Machine {
    word: AtomicU64,
    /// Failures in a row under their generation: generation 32 bits, failures 32.
    in_a_row: AtomicU64,
    starts: Starts,
    rings: Rings,
    settings: Settings,
    /// The newest opening's deadline, under the tag that the state word names it by.
    until: AtomicU64,
    /// The generation of the newest opening that was left for half-open, and the opening.
    left: AtomicU64,
    leases: Leases,
    totals: Totals,
    /// Made when calls are first watched.
    overdue: OnceBox<Overdue>,
    tickets: Tickets,
}

impl Machine {
    /// A breaker in its initial state.
    ///
    /// # Errors
    /// When a field of the config is out of range.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let checked = config.checked()?;
        let (rings, leases) = (Rings::new(), Leases::new());
        let class = rings.class_for(checked.window);
        leases.make_room(checked.half_open_requests);
        let left = match config.initial_state {
            State::HalfOpen => state::in_generation(0, Opening::FIRST.pack()),
            _ => 0,
        };
        Ok(Self {
            word: AtomicU64::new(Word::start(config.initial_state).pack()),
            in_a_row: AtomicU64::new(0),
            starts: Starts::new(class),
            rings,
            settings: Settings::new(&checked),
            until: AtomicU64::new(0),
            left: AtomicU64::new(left),
            leases,
            totals: Totals::default(),
            overdue: OnceBox::new(),
            tickets: Tickets::new(),
        })
    }

    /// Admits a call if the breaker lets every call pass; one load.
    ///
    /// `None` means that [`Machine::try_acquire`] must decide, which needs the time.
    #[inline]
    #[must_use]
    pub fn admit(&self) -> Option<Permit> {
        let bits = self.word.load(Ordering::Acquire);
        let permit = || Permit::new(state::generation(bits), Role::Plain, None);
        state::passes_all(bits).then(permit)
    }

    /// Whether calls must be timed from their start, because slow or cancelled ones can count.
    ///
    /// Where they need not be, a shell can save reading the clock on the closed path.
    #[inline]
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.settings.is_timed()
    }

    /// Whether [`Machine::record`] needs the time for this permit.
    #[inline]
    #[must_use]
    pub fn needs_time(&self, permit: &Permit) -> bool {
        permit.is_timed() || self.settings.needs_end()
    }

    /// Whether calls are to be watched while they run: see [`Machine::watch`].
    #[inline]
    #[must_use]
    pub fn watches(&self) -> bool {
        self.settings.watches()
    }

    /// Watches an admitted call that ends by itself, so that it counts as slow as soon as it has run
    /// for `slow_call_threshold`; and counts those that have.
    ///
    /// Permits that someone takes by hand may be kept for long, and are better not watched. After a
    /// trip the permit's generation is over: ask for another.
    pub fn watch(&self, permit: Permit) -> (Permit, Verdict) {
        let (Role::Plain, Some(now)) = (permit.role(), permit.started()) else {
            return (permit, Verdict::Unchanged);
        };
        let generation = permit.generation();
        let bits = self.word.load(Ordering::Acquire);
        if generation != state::generation(bits) || !Word::unpack(bits).phase.has_window() {
            return (permit, Verdict::Unchanged);
        }
        let quarter = self.settings.quarter(now);
        let overdue = self.overdue.get_or_init(Overdue::new);
        let verdict = self.count_overdue(bits, overdue.take(generation, quarter), now);
        if verdict != Verdict::Unchanged {
            return (permit, verdict);
        }
        let in_the_way = overdue.begin(generation, quarter);
        let permit = permit.with_role(Role::Watched(overdue::low_bits(quarter)));
        (permit, self.count_overdue(bits, in_the_way, now))
    }

    /// Counts calls that still run as slow ones.
    fn count_overdue(&self, bits: u64, calls: u32, now: Timestamp) -> Verdict {
        if calls == 0 {
            return Verdict::Unchanged;
        }
        let generation = state::generation(bits);
        let extent = self.extent(Some(now));
        let call = Call {
            generation,
            failed: false,
            slow: true,
        };
        // More than a window would only push each other out of it, or make this caller wait.
        let counted = calls.min(extent.window_size).min(1 << 16);
        let window = self.window(generation);
        let mut newest = None;
        for _ in 0..counted {
            let Some(tally) = window.record(call, extent) else {
                return Verdict::Unchanged;
            };
            newest = tally;
        }
        self.totals.slow.add(u64::from(calls));
        self.totals.unticketed.add(u64::from(calls - counted));
        let cause = newest.and_then(|tally| self.rate_reached(tally));
        self.verdict(bits, cause)
    }

    fn extent(&self, now: Option<Timestamp>) -> Extent {
        let now = now.unwrap_or(Timestamp::ZERO);
        Extent {
            window_size: self.settings.window_size(),
            tick: self.tick(now),
            required: self.settings.min_calls(),
        }
    }

    #[inline]
    fn window(&self, generation: u32) -> Window<'_> {
        Window::of(generation, &self.starts, &self.tickets, &self.rings)
    }

    fn tick(&self, now: Timestamp) -> u64 {
        self.settings.tick(now).unwrap_or(0)
    }

    /// Admits a call, or says why not.
    ///
    /// `draw` is chance, from 0 up to 1. The news are the changes that were due by now.
    pub fn try_acquire(&self, now: Timestamp, draw: f64) -> (Result<Permit, Rejected>, News) {
        let mut news = News::default();
        let result = self.acquire(now, draw, &mut news);
        if result.is_err() {
            self.totals.rejections.add(1);
        }
        (result, news)
    }

    fn acquire(&self, now: Timestamp, draw: f64, news: &mut News) -> Result<Permit, Rejected> {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            let permit = |generation, role| Permit::new(generation, role, Some(now));
            match word.phase {
                Phase::Closed | Phase::MetricsOnly | Phase::Disabled => {
                    return Ok(permit(word.generation, Role::Plain));
                }
                Phase::ForcedOpen => {
                    return Err(Rejected {
                        state: State::Open,
                        forced: true,
                        retry_after: None,
                        cause: Cause::Told,
                    });
                }
                Phase::Open(opening) => {
                    let until = self.deadline(bits, opening, now);
                    if now < until {
                        return Err(Rejected {
                            state: State::Open,
                            forced: false,
                            retry_after: (until != Timestamp::NEVER).then(|| until.since(now)),
                            cause: opening.cause,
                        });
                    }
                    let Some(next) = self.half_open(bits, word, opening, 1) else {
                        continue;
                    };
                    news.add(Some(half_opened(until)));
                    return Ok(permit(next, self.lease(next, now)));
                }
                Phase::HalfOpen {
                    in_flight,
                    successes,
                } => {
                    if let Some(lapse) = self.lapse(word.generation, now) {
                        news.add(self.trip(lapse, now, draw));
                        continue;
                    }
                    if in_flight >= self.settings.half_open_requests() {
                        return Err(Rejected {
                            state: State::HalfOpen,
                            forced: false,
                            retry_after: None,
                            cause: self.left().cause,
                        });
                    }
                    let phase = Phase::HalfOpen {
                        in_flight: in_flight + 1,
                        successes,
                    };
                    if self.replace(bits, Word { phase, ..word }) {
                        let lease = self.lease(word.generation, now);
                        return Ok(permit(word.generation, lease));
                    }
                }
                Phase::Ramp { stage } => {
                    if ramp::admits(stage, draw) {
                        return Ok(permit(word.generation, Role::Plain));
                    }
                    return Err(Rejected {
                        state: State::HalfOpen,
                        forced: false,
                        retry_after: None,
                        cause: self.left().cause,
                    });
                }
            }
        }
    }

    /// Records how an admitted call ended.
    ///
    /// `now` is needed where [`Machine::needs_time`] says so. The permit's slot, if it had one, is
    /// free afterwards.
    #[inline]
    pub fn record(&self, permit: Permit, outcome: Outcome, now: Option<Timestamp>) -> Verdict {
        if outcome == Outcome::Success && self.record_good(&permit, now) {
            return Verdict::Unchanged;
        }
        self.record_slowly(permit, outcome, now)
    }

    /// Records a call that succeeded, if all there is to do is to count it and to end a row of failures:
    /// most calls are good ones of a quiet breaker, and take one ticket and nothing else.
    ///
    /// Answers whether it did. Where it did not, the permit is still to be recorded.
    #[inline]
    #[must_use]
    pub fn record_good(&self, permit: &Permit, now: Option<Timestamp>) -> bool {
        let bits = self.word.load(Ordering::Acquire);
        let generation = state::generation(bits);
        let in_a_row = self.in_a_row.load(Ordering::Relaxed);
        let counted = permit.role() == Role::Plain
            && !self.settings.is_slow(permit.ran(now))
            && generation == permit.generation()
            && state::counts(bits)
            && self.window(generation).record_good(generation);
        if counted && in_a_row as u32 != 0 {
            self.succeeded(generation);
        }
        counted
    }

    #[inline(never)]
    fn record_slowly(&self, permit: Permit, outcome: Outcome, now: Option<Timestamp>) -> Verdict {
        if let Role::Probe(slot) = permit.role() {
            return self.record_probe(&permit, slot, outcome, now);
        }
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        if word.generation != permit.generation() || !word.phase.has_window() {
            return Verdict::Unchanged;
        }
        let still_counts = match permit.role() {
            Role::Watched(quarter) => {
                let overdue = self.overdue.get();
                overdue.is_none_or(|overdue| overdue.end(permit.generation(), quarter))
            }
            _ => true,
        };
        let ran = permit.ran(now);
        let failed = match outcome {
            Outcome::Success => false,
            Outcome::Failure | Outcome::RetryAfter(_) => true,
            Outcome::Ignored => return Verdict::Unchanged,
            Outcome::Cancelled if self.settings.counts_cancelled(ran) => true,
            Outcome::Cancelled => return Verdict::Unchanged,
        };
        let verdict = if still_counts {
            let slow = self.settings.is_slow(ran);
            self.count(bits, failed, slow, now)
        } else {
            // It stands in the window already, as a slow call.
            let window = self.window(word.generation);
            let tally = failed.then(|| window.fail_slow(word.generation, self.extent(now)));
            self.judge(bits, failed, tally.flatten())
        };
        match (verdict, word.phase) {
            (Verdict::Trip(trip), _) => Verdict::Trip(Trip {
                wait: outcome.retry_after(),
                ..trip
            }),
            (_, Phase::Ramp { stage }) => self.climb(bits, word, stage, now),
            (verdict, _) => verdict,
        }
    }

    /// Records an outcome that no permit was taken for, of a call that ended now.
    ///
    /// While closed it counts like any other; while half-open it counts like a probe's; else it
    /// changes nothing.
    pub fn record_manual(&self, outcome: Outcome, now: Timestamp, draw: f64) -> (Verdict, News) {
        let mut news = News::default();
        loop {
            news.add(self.settle(now, draw));
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            match word.phase {
                Phase::Open(opening) => {
                    let until = self.deadline(bits, opening, now);
                    if now < until {
                        return (Verdict::Unchanged, news);
                    }
                    if self.half_open(bits, word, opening, 0).is_some() {
                        news.add(Some(half_opened(until)));
                    }
                }
                Phase::HalfOpen { .. } => {
                    let verdict = match outcome {
                        Outcome::Success => self.end_probe(word.generation, true, 0, Some(now)),
                        Outcome::Failure | Outcome::RetryAfter(_) => Verdict::Trip(Trip {
                            wait: outcome.retry_after(),
                            ..trip(word.generation, Cause::ProbeFailed)
                        }),
                        Outcome::Ignored | Outcome::Cancelled => Verdict::Unchanged,
                    };
                    return (verdict, news);
                }
                _ => {
                    let permit = Permit::new(word.generation, Role::Plain, None);
                    return (self.record(permit, outcome, Some(now)), news);
                }
            }
        }
    }

    fn count(&self, bits: u64, failed: bool, slow: bool, now: Option<Timestamp>) -> Verdict {
        let generation = state::generation(bits);
        let call = Call {
            generation,
            failed,
            slow,
        };
        let window = self.window(generation);
        let Some(tally) = window.record(call, self.extent(now)) else {
            return Verdict::Unchanged;
        };
        if slow {
            self.totals.slow.add(1);
        }
        self.judge(bits, failed, tally)
    }

    /// What comes of an outcome that the window has taken, and of the rates if they may have risen.
    fn judge(&self, bits: u64, failed: bool, tally: Option<Tally>) -> Verdict {
        let in_a_row = self.count_in_a_row(state::generation(bits), failed);
        let rate = || tally.and_then(|tally| self.rate_reached(tally));
        self.verdict(bits, in_a_row.or_else(rate))
    }

    fn count_in_a_row(&self, generation: u32, failed: bool) -> Option<Cause> {
        if !failed {
            self.succeeded(generation);
            return None;
        }
        self.totals.failures.add(1);
        let in_a_row = self.failed_again(generation);
        let reached = in_a_row >= self.settings.failure_threshold();
        reached.then_some(Cause::ConsecutiveFailures)
    }

    /// What comes of a rule that was reached, in the state of `bits`.
    fn verdict(&self, bits: u64, reached: Option<Cause>) -> Verdict {
        let word = Word::unpack(bits);
        match (reached, word.phase) {
            (Some(cause), Phase::Closed | Phase::Ramp { .. }) => {
                Verdict::Trip(trip(word.generation, cause))
            }
            _ => Verdict::Unchanged,
        }
    }

    fn rate_reached(&self, tally: Tally) -> Option<Cause> {
        if tally.calls < self.settings.min_calls() {
            return None;
        }
        if let Some(rate) = self.settings.error_rate()
            && rate.is_reached(tally.failures, tally.calls)
        {
            return Some(Cause::ErrorRate);
        }
        let rate = self.settings.slow_call_rate()?;
        let reached = rate.is_reached(tally.slow, tally.calls);
        reached.then_some(Cause::SlowCallRate)
    }

    fn failed_again(&self, generation: u32) -> u32 {
        let mut seen = self.in_a_row.load(Ordering::Relaxed);
        loop {
            if state::precedes(generation, state::generation(seen)) {
                // A straggler: the count belongs to a later generation by now.
                return 0;
            }
            let before = if state::generation(seen) == generation {
                seen as u32
            } else {
                0
            };
            let after = before.saturating_add(1);
            match self.in_a_row.compare_exchange_weak(
                seen,
                state::in_generation(generation, after),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return after,
                Err(other) => seen = other,
            }
        }
    }

    /// Ends a row of failures, if there is one.
    // Kept out of `record_good`, which mostly finds none.
    #[inline(never)]
    fn succeeded(&self, generation: u32) {
        let seen = self.in_a_row.load(Ordering::Relaxed);
        // One of an earlier generation too: it is over, but each success would look here again.
        if seen as u32 != 0 && !state::precedes(generation, state::generation(seen)) {
            // A failure that came between takes the success for one that came before it.
            let none = state::in_generation(generation, 0);
            let _ = self
                .in_a_row
                .compare_exchange(seen, none, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    #[cold]
    fn record_probe(
        &self,
        permit: &Permit,
        slot: u32,
        outcome: Outcome,
        now: Option<Timestamp>,
    ) -> Verdict {
        let lapse = now.and_then(|now| self.lapse(permit.generation(), now));
        if self.is_in(permit.generation()) {
            self.leases.give_back(slot, permit.generation());
        }
        if let Some(lapse) = lapse {
            return Verdict::Trip(lapse);
        }
        let ran = permit.ran(now);
        let failed = |cause| Trip {
            at: now,
            wait: outcome.retry_after(),
            ..trip(permit.generation(), cause)
        };
        match outcome {
            Outcome::Ignored | Outcome::Cancelled => {
                self.end_probe(permit.generation(), false, 1, now)
            }
            Outcome::Success if self.settings.is_slow(ran) => {
                Verdict::Trip(failed(Cause::ProbeSlow))
            }
            Outcome::Success => self.end_probe(permit.generation(), true, 1, now),
            // It stays counted as in flight: the transition that follows ends its generation.
            Outcome::Failure | Outcome::RetryAfter(_) => Verdict::Trip(failed(Cause::ProbeFailed)),
        }
    }

    /// Takes `ended` probes out of flight and closes the breaker after the last success it needs.
    fn end_probe(
        &self,
        generation: u32,
        succeeded: bool,
        ended: u32,
        at: Option<Timestamp>,
    ) -> Verdict {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            let Phase::HalfOpen {
                in_flight,
                successes,
            } = word.phase
            else {
                return Verdict::Unchanged;
            };
            if word.generation != generation {
                return Verdict::Unchanged;
            }
            let successes = successes + u32::from(succeeded);
            if succeeded && successes >= self.settings.success_threshold() {
                let next = ramp::after_probes(self.settings.ramps());
                if self.enter(bits, word, next, at) {
                    self.totals.unticketed.add(1);
                    return recovered(next, at);
                }
                continue;
            }
            let phase = Phase::HalfOpen {
                in_flight: in_flight.saturating_sub(ended),
                successes,
            };
            if self.replace(bits, Word { phase, ..word }) {
                if succeeded {
                    self.totals.unticketed.add(1);
                }
                return Verdict::Unchanged;
            }
        }
    }

    /// Opens the breaker as decided, unless it has changed its state since.
    ///
    /// `draw` is chance, from 0 up to 1, and decides the jitter.
    pub fn trip(&self, trip: Trip, now: Timestamp, draw: f64) -> Option<Transition> {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            if word.generation != trip.generation {
                return None;
            }
            let (from, in_a_row) = match word.phase {
                Phase::Closed => (State::Closed, 1),
                Phase::HalfOpen { .. } | Phase::Ramp { .. } => {
                    (State::HalfOpen, self.left().in_a_row + 1)
                }
                _ => return None,
            };
            let tag = Stamp::unpack(self.until.load(Ordering::Acquire)).tag + 1;
            let opening = Opening::new(tag, in_a_row, trip.cause);
            let open = word.next(Phase::Open(opening));
            if !self.replace(bits, open) {
                continue;
            }
            let at = trip.at.unwrap_or(now);
            let wait = match trip.wait {
                Some(wait) => wait.min(self.settings.max_recovery_timeout()),
                None => self.settings.wait(opening.in_a_row, draw),
            };
            let until = self.install(open.pack(), opening, at + wait);
            self.totals.openings.add(1);
            self.count_failed_probe(trip.cause);
            return Some(Transition {
                from,
                to: State::Open,
                cause: trip.cause,
                at,
                forced: false,
                wait: (until != Timestamp::NEVER).then(|| until.since(at)),
            });
        }
    }

    /// A probe that fails counts once it has opened the breaker: then it was not late.
    fn count_failed_probe(&self, cause: Cause) {
        let counter = match cause {
            Cause::ProbeFailed | Cause::ProbeLapsed => &self.totals.failures,
            Cause::ProbeSlow => &self.totals.slow,
            _ => return,
        };
        counter.add(1);
        self.totals.unticketed.add(1);
    }

    /// Carries out what time alone has brought about: a probe whose lease is over.
    ///
    /// Whoever reads the state calls this first, so that a lapse takes effect at its deadline.
    pub fn settle(&self, now: Timestamp, draw: f64) -> Option<Transition> {
        let word = Word::unpack(self.word.load(Ordering::Acquire));
        let Phase::HalfOpen { .. } = word.phase else {
            return None;
        };
        let lapse = self.lapse(word.generation, now)?;
        self.trip(lapse, now, draw)
    }

    /// Makes an open breaker half-open if its wait is over, without a call.
    ///
    /// A shell with subscribers calls it from a timer at [`Machine::next_due`], so that they hear
    /// of it though nobody calls.
    pub fn wake(&self, now: Timestamp) -> Option<Transition> {
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        let Phase::Open(opening) = word.phase else {
            return None;
        };
        let until = self.deadline(bits, opening, now);
        if now < until {
            return None;
        }
        self.half_open(bits, word, opening, 0)?;
        Some(half_opened(until))
    }

    /// When time alone will change the state: the end of an opening, or the first lease of a probe.
    #[must_use]
    pub fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        let due = match word.phase {
            Phase::Open(opening) => Some(self.deadline(bits, opening, now)),
            Phase::HalfOpen { .. } => self.leases.earliest(word.generation),
            _ => None,
        };
        due.filter(|&due| due != Timestamp::NEVER)
    }

    /// The state by time: an open breaker whose wait is over reads half-open, one whose probe has
    /// lapsed reads open.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> State {
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        match word.phase {
            Phase::Open(opening) if now >= self.deadline(bits, opening, now) => State::HalfOpen,
            Phase::HalfOpen { .. } if self.lapse(word.generation, now).is_some() => State::Open,
            phase => phase.state(),
        }
    }

    /// Moves to the next generation with an empty window.
    fn enter(&self, bits: u64, word: Word, phase: Phase, now: Option<Timestamp>) -> bool {
        let next = word.next(phase);
        let class = self.rings.class_for(self.settings.window());
        let tick = self.tick(now.unwrap_or(Timestamp::ZERO));
        let window = self.window(next.generation);
        window.prepare(next.generation, class, tick);
        self.replace(bits, next)
    }

    fn half_open(&self, bits: u64, word: Word, opening: Opening, in_flight: u32) -> Option<u32> {
        let next = word.next(Phase::HalfOpen {
            in_flight,
            successes: 0,
        });
        self.leave(opening, next.generation);
        if !self.replace(bits, next) {
            return None;
        }
        self.leases
            .sweep(next.generation, || self.is_in(next.generation));
        Some(next.generation)
    }

    /// Frees the slots of all probes in flight, which decide nothing any more, and ends an opening
    /// that was only begun.
    ///
    /// For the child of a fork: the threads that do either go on in its parent.
    pub fn abandon_probes(&self, now: Timestamp) {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            let successes = match word.phase {
                Phase::HalfOpen { successes, .. } => successes,
                Phase::Open(opening) => {
                    self.decide_deadline(bits, opening, now);
                    return;
                }
                _ => return,
            };
            let next = word.next(Phase::HalfOpen {
                in_flight: 0,
                successes,
            });
            if self.replace(bits, next) {
                self.leases
                    .sweep(next.generation, || self.is_in(next.generation));
                return;
            }
        }
    }

    /// Notes which opening is left for half-open, unless a later one has been by now: a thread that
    /// stalls here cannot bring an older one back.
    fn leave(&self, opening: Opening, next: u32) {
        let left = state::in_generation(next, opening.pack());
        let mut seen = self.left.load(Ordering::Acquire);
        while state::precedes(state::generation(seen), next) {
            match self
                .left
                .compare_exchange(seen, left, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// The opening that was left last for half-open.
    fn left(&self) -> Opening {
        Opening::unpack(self.left.load(Ordering::Acquire))
    }

    fn lease(&self, generation: u32, now: Timestamp) -> Role {
        let deadline = now + self.settings.probe_lease();
        let is_current = || self.is_in(generation);
        Role::Probe(self.leases.take(generation, deadline, is_current))
    }

    /// The trip for a probe of this generation whose lease is over.
    fn lapse(&self, generation: u32, now: Timestamp) -> Option<Trip> {
        let earliest = self.leases.earliest(generation)?;
        (earliest <= now && earliest != Timestamp::NEVER).then_some(Trip {
            generation,
            cause: Cause::ProbeLapsed,
            at: Some(earliest),
            wait: None,
        })
    }

    /// When this opening ends; never, as far as can be told, while the thread that opened it is
    /// between its two steps: only that one knows how long to wait.
    #[inline]
    fn deadline(&self, open: u64, opening: Opening, now: Timestamp) -> Timestamp {
        let stamp = Stamp::unpack(self.until.load(Ordering::Acquire));
        if stamp.is_of(opening.tag) {
            return stamp.time();
        }
        if state::generation(open) == 0 {
            // It was made so, without a time: whoever looks first decides, for all.
            return self.decide_deadline(open, opening, now);
        }
        Timestamp::NEVER
    }

    #[cold]
    fn decide_deadline(&self, open: u64, opening: Opening, now: Timestamp) -> Timestamp {
        let wait = self.settings.wait(opening.in_a_row, 0.5);
        self.install(open, opening, now + wait)
    }

    fn install(&self, open: u64, opening: Opening, until: Timestamp) -> Timestamp {
        let new = Stamp::new(opening.tag, until);
        loop {
            let seen = self.until.load(Ordering::Acquire);
            let stamp = Stamp::unpack(seen);
            if stamp.is_of(opening.tag) {
                return stamp.time();
            }
            // Looked at after `seen` was loaded: a newer opening's deadline is never overwritten.
            if self.word.load(Ordering::Acquire) != open {
                return new.time();
            }
            let replaced =
                self.until
                    .compare_exchange(seen, new.pack(), Ordering::AcqRel, Ordering::Relaxed);
            if replaced.is_ok() {
                return new.time();
            }
        }
    }

    fn is_in(&self, generation: u32) -> bool {
        state::generation(self.word.load(Ordering::Acquire)) == generation
    }

    fn replace(&self, bits: u64, word: Word) -> bool {
        self.word
            .compare_exchange(bits, word.pack(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let word = Word::unpack(self.word.load(Ordering::Relaxed));
        f.debug_struct("Machine")
            .field("word", &word)
            .finish_non_exhaustive()
    }
}

fn trip(generation: u32, cause: Cause) -> Trip {
    Trip {
        generation,
        cause,
        at: None,
        wait: None,
    }
}

/// What the last success of a recovery leads to: the breaker has closed, or goes on up its ramp.
fn recovered(next: Phase, at: Option<Timestamp>) -> Verdict {
    if next != Phase::Closed {
        return Verdict::Unchanged;
    }
    Verdict::Closed(Transition {
        from: State::HalfOpen,
        to: State::Closed,
        cause: Cause::ProbesSucceeded,
        at: at.unwrap_or(Timestamp::ZERO),
        forced: false,
        wait: None,
    })
}

fn half_opened(at: Timestamp) -> Transition {
    Transition {
        from: State::Open,
        to: State::HalfOpen,
        cause: Cause::WaitOver,
        at,
        forced: false,
        wait: None,
    }
}
