//! Circuit breakers: calls to a dependency that fails are refused until it has recovered.
//!
//! ```
//! use kailash::circuit_breaker::{CallError, Config, Manager, State};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let breakers = Manager::new();
//! let config = Config { failure_threshold: 2, ..Config::default() };
//! let breaker = breakers.get_or_create("database", config)?;
//!
//! async fn query() -> Result<u32, &'static str> { Err("connection refused") }
//!
//! for _ in 0..2 {
//!     assert_eq!(breaker.call(query).await, Err(CallError::Inner("connection refused")));
//! }
//! assert_eq!(breaker.state(), State::Open);
//! assert!(matches!(breaker.call(query).await, Err(CallError::Rejected(_))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Each transition is an event for `tracing`, of the target `kailash::circuit_breaker` and with the
//! fields `breaker`, `from`, `to`, `cause` and, for an opening, `wait`: a warning where it opens,
//! information else. Each refusal is one for debugging, with `breaker`, `state`, `cause` and
//! `retry_after`. A call that passes says nothing, and is in no span of the breaker's own: that would
//! cost as much as the breaker itself though nobody listens. Whoever wants one instruments the call.
//!
//! For metrics there are [`CircuitBreaker::counts`] and [`CircuitBreaker::all_durations`], which never
//! fall, and [`Keyed::series`], which are few however many keys there are; the example
//! `circuit_breaker_metrics` writes them as Prometheus reads them.

#[cfg(feature = "tower")]
mod admission;
mod agenda;
mod call;
mod classify;
mod context;
mod event;
mod journal;
mod keyed;
mod manager;
mod permit;
mod preset;
mod ready;
mod rejected;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kailash_core::circuit_breaker as machine;
use kailash_core::circuit_breaker::{Machine, Verdict};
use kailash_core::time::Timestamp;
use tracing::level_filters::LevelFilter;

#[cfg(feature = "tower")]
pub(crate) use admission::{Admission, Refusal};
pub use classify::{boxed_refusal_is_ignored, refusal_is_ignored};
pub use event::{Event, EventKind, Events};
pub use kailash_core::circuit_breaker::{
    Cause, Config, Counts, Outcome, Snapshot, State, Transition, WindowKind,
};
pub use keyed::{KeyCounts, Keyed, KeyedConfig, KeyedSnapshot, Series};
pub use manager::{CreateError, Manager};
pub use permit::{OwnedPermit, Permit};
pub use preset::{Overrides, PresetError, Presets, ROOT};
pub use rejected::{CallError, Rejected};

use crate::clock::Clock;
use crate::foreign::contained;
use crate::histogram;
use crate::{ConfigError, Name};
#[cfg(feature = "tower")]
pub(crate) use classify::outcome_of;
use context::{Audience, Context};
use journal::{Journal, News};
use permit::ran;
use rejected::Refused;

/// A circuit breaker, shared by its clones.
///
/// It may be used from any number of threads and tasks. A call that is admitted while closed takes
/// no lock and allocates nothing.
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Shared>);

/// In this order in memory: what each call reads, the machine, which ends with what each call writes,
/// and what calls do not touch.
#[repr(C)]
struct Shared {
    context: Arc<Context>,
    /// How often somebody began to want to hear of calls, since the call that last found nobody and
    /// set it to zero.
    listeners_came: AtomicU32,
    /// Made when somebody first wants to know.
    audience: OnceLock<Box<Audience>>,
    name: Arc<str>,
    machine: Machine,
    /// Held while the breaker is told something, and while the state may change.
    journal: Mutex<Journal>,
}

impl CircuitBreaker {
    /// A breaker in its initial state, on the machine's monotonic clock.
    ///
    /// # Errors
    /// When a field of the config is out of range.
    pub fn new(name: impl Into<Arc<str>>, config: Config) -> Result<Self, ConfigError> {
        Self::with_clock(name, config, Clock::monotonic())
    }

    /// A breaker in its initial state, on a clock of the caller's.
    ///
    /// # Errors
    /// When a field of the config is out of range.
    pub fn with_clock(
        name: impl Into<Arc<str>>,
        config: Config,
        clock: Clock,
    ) -> Result<Self, ConfigError> {
        let context = Arc::new(Context::new(clock));
        Self::within(context, name.into(), Arc::new(config))
    }

    fn within(
        context: Arc<Context>,
        name: Arc<str>,
        config: Arc<Config>,
    ) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(Shared {
            machine: Machine::new(&config)?,
            context,
            listeners_came: AtomicU32::new(0),
            audience: OnceLock::new(),
            name,
            journal: Mutex::new(Journal::new(config)),
        })))
    }

    /// The breaker's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The settings as they are now.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::clone(&self.journal().config)
    }

    /// The state by time: an open breaker whose wait is over reads half-open.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.machine.state(self.settled())
    }

    /// Everything about the breaker at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.0.machine.snapshot(self.settled())
    }

    /// A span to run one call in: `circuit_breaker`, with the breaker's name and its state.
    ///
    /// No call opens one by itself, since even a span that nobody listens to costs as much as the
    /// breaker does while closed.
    ///
    /// ```
    /// use kailash::circuit_breaker::{CircuitBreaker, Config};
    /// use tracing::Instrument;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let breaker = CircuitBreaker::new("api", Config::default())?;
    /// let answer = breaker.call(async || Ok::<_, ()>(42));
    /// assert_eq!(answer.instrument(breaker.span()).await, Ok(42));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn span(&self) -> tracing::Span {
        let state = self.state();
        tracing::info_span!("circuit_breaker", breaker = &*self.0.name, %state)
    }

    /// What it has counted since it was made. No reset sets it back: this is for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.machine.counts()
    }

    /// How long calls took since the last reset; `None` unless its manager was told to
    /// [record durations](Manager::record_durations) and a call has ended since then. Those of keys
    /// are recorded together: see [`Keyed::durations`].
    #[must_use]
    pub fn durations(&self) -> Option<histogram::Snapshot> {
        let durations = self.0.audience.get()?.durations.get()?;
        Some(durations.since_reset())
    }

    /// As [`CircuitBreaker::durations`], but no reset sets it back: this is for metrics.
    #[must_use]
    pub fn all_durations(&self) -> Option<histogram::Snapshot> {
        let durations = self.0.audience.get()?.durations.get()?;
        Some(durations.histogram.snapshot())
    }

    /// Asks for leave to make one call.
    ///
    /// # Errors
    /// When the breaker refuses the call.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejected> {
        match self.acquire() {
            Ok(permit) => Ok(Permit::new(self, permit)),
            Err(refused) => Err(self.reject(refused)),
        }
    }

    /// Asks for leave to make one call, as a permit that borrows nothing.
    ///
    /// # Errors
    /// When the breaker refuses the call.
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Rejected> {
        self.try_acquire().map(Permit::into_owned)
    }

    #[inline]
    fn acquire(&self) -> Result<machine::Permit, Refused> {
        match self.admit() {
            Some(permit) => Ok(permit),
            None => self.acquire_slowly(),
        }
    }

    /// Admits a call if all calls pass, as they do while closed.
    #[inline]
    fn admit(&self) -> Option<machine::Permit> {
        let permit = self.0.machine.admit()?;
        if self.0.machine.is_timed() || self.tells_calls() {
            return Some(permit.started_at(self.clock().now()));
        }
        Some(permit)
    }

    // Not cold: it is all that an open breaker does.
    #[inline(never)]
    fn acquire_slowly(&self) -> Result<machine::Permit, Refused> {
        // What changes nothing needs no lock.
        let rejected = match self.0.machine.refuse(self.clock().now()) {
            Some(rejected) => rejected,
            None => match self.acquire_in_turn() {
                Ok(permit) => return Ok(permit),
                Err(rejected) => rejected,
            },
        };
        Err(self.tell_refusal(rejected))
    }

    #[cold]
    fn acquire_in_turn(&self) -> Result<machine::Permit, machine::Rejected> {
        self.change(|machine, now, draw, news| {
            let (result, changes) = machine.try_acquire(now, draw);
            news.extend(changes);
            result
        })
    }

    /// Tells of a refusal that was counted.
    #[inline]
    fn tell_refusal(&self, rejected: machine::Rejected) -> Refused {
        if LevelFilter::current() >= LevelFilter::DEBUG {
            self.log_refusal(rejected.state, rejected.cause, rejected.retry_after);
        }
        if self.tells_calls() {
            self.tell(EventKind::Rejected);
        }
        rejected.into()
    }

    /// Kept out, so that a refusal which nobody logs is not laid out in memory for it.
    #[cold]
    fn log_refusal(&self, state: State, cause: Cause, retry_after: Option<Duration>) {
        let breaker = &*self.0.name;
        let retry_after = retry_after.map(tracing::field::debug);
        contained(|| {
            tracing::debug!(breaker, %state, %cause, retry_after, "circuit breaker refused a call");
        });
    }

    #[inline]
    fn reject(&self, refused: Refused) -> Rejected {
        refused.by(self.name_to_give())
    }

    /// Kept out of whatever may be refused, which would be longer for it and no faster.
    #[inline(never)]
    fn name_to_give(&self) -> Name {
        Name::of(&self.0.name)
    }

    #[inline(always)]
    fn finish(&self, permit: machine::Permit, outcome: Outcome) -> Option<Duration> {
        let (is_counted, now) = self.count_good(&permit, outcome);
        if is_counted {
            return ran(&permit, now);
        }
        self.finish_slowly(permit, outcome, now)
    }

    /// Counts a call if it is a good one and that is all there is to do. Answers whether it did, and when the
    /// call ended where that matters.
    #[inline(always)]
    fn count_good(&self, permit: &machine::Permit, outcome: Outcome) -> (bool, Option<Timestamp>) {
        let needs_time = self.0.machine.needs_time(permit);
        let now = needs_time.then(|| self.clock().now());
        let is_counted = outcome == Outcome::Success
            && !self.tells_calls()
            && self.0.machine.record_good(permit, now);
        (is_counted, now)
    }

    /// Kept out of `finish`, so that what most calls need is inlined into them.
    #[inline(never)]
    fn finish_slowly(
        &self,
        permit: machine::Permit,
        outcome: Outcome,
        now: Option<Timestamp>,
    ) -> Option<Duration> {
        let ran = ran(&permit, now);
        let mut is_news = false;
        if self.0.machine.admit().is_none() {
            // A call that ends while others are refused may be what changes that.
            is_news = self.finish_in_turn(permit, outcome, now);
        } else if let verdict @ (Verdict::Trip(_) | Verdict::Closed(_)) =
            self.0.machine.record(permit, outcome, now)
        {
            is_news = self.carry_out(verdict);
        }
        // Told once all is done, and the end before what it brought about.
        if self.tells_calls() {
            self.tell_end(outcome, ran);
        }
        if is_news {
            self.tell_news();
        }
        ran
    }

    #[cold]
    fn watch(&self, permit: machine::Permit) -> Result<machine::Permit, Rejected> {
        let (permit, verdict) = self.0.machine.watch(permit);
        if verdict == Verdict::Unchanged {
            return Ok(permit);
        }
        // Its generation ends here, so it decides nothing.
        if self.carry_out(verdict) {
            self.tell_news();
        }
        self.acquire().map_err(|refused| self.reject(refused))
    }

    /// Answers whether there is news to tell.
    #[cold]
    fn carry_out(&self, verdict: Verdict) -> bool {
        let carry_out = |machine: &Machine, now, draw, news: &mut News| {
            news.extend(carried_out(machine, verdict, now, draw));
        };
        self.change_untold(carry_out).1
    }

    /// Answers whether there is news to tell.
    #[cold]
    fn finish_in_turn(
        &self,
        permit: machine::Permit,
        outcome: Outcome,
        ended: Option<Timestamp>,
    ) -> bool {
        let finish = |machine: &Machine, now, draw, news: &mut News| {
            let verdict = machine.record(permit, outcome, ended);
            news.extend(carried_out(machine, verdict, now, draw));
        };
        let ((), is_news) = self.change_untold(finish);
        if !is_news {
            // A probe's slot may be free now.
            self.wake_waiters();
        }
        is_news
    }

    /// Counts a success that no permit was taken for.
    pub fn record_success(&self) {
        self.record(Outcome::Success);
    }

    /// Counts a failure that no permit was taken for.
    pub fn record_failure(&self) {
        self.record(Outcome::Failure);
    }

    pub(crate) fn record(&self, outcome: Outcome) {
        let record = |machine: &Machine, now, draw, news: &mut News| {
            let (verdict, changes) = machine.record_manual(outcome, now, draw);
            news.extend(changes);
            news.extend(carried_out(machine, verdict, now, draw));
        };
        let ((), is_news) = self.change_untold(record);
        if self.tells_calls() {
            self.tell_end(outcome, None);
        }
        if is_news {
            self.tell_news();
        }
    }

    /// Opens the breaker until [`CircuitBreaker::force_close`] or [`CircuitBreaker::reset`]; or until
    /// it is told to let all calls pass, by [`CircuitBreaker::disable`] or
    /// [`CircuitBreaker::metrics_only`].
    pub fn force_open(&self) {
        self.command(Machine::force_open);
    }

    /// Closes the breaker, whatever its state, and pins nothing: it opens again as ever.
    pub fn force_close(&self) {
        self.command(Machine::force_close);
    }

    /// Closes the breaker from any state and forgets all counts.
    pub fn reset(&self) {
        self.command(Machine::reset);
        let durations = self.0.audience.get().and_then(|it| it.durations.get());
        if let Some(durations) = durations {
            durations.reset();
        }
    }

    /// Lets all calls pass and counts nothing, until [`CircuitBreaker::enable`] or another order.
    pub fn disable(&self) {
        self.command(Machine::disable);
    }

    /// Lets all calls pass and counts them, so that a snapshot says what it would have done, until
    /// [`CircuitBreaker::enable`] or another order.
    pub fn metrics_only(&self) {
        self.command(Machine::metrics_only);
    }

    /// Ends [`CircuitBreaker::disable`] and [`CircuitBreaker::metrics_only`]: the breaker is closed, and
    /// its window empty.
    pub fn enable(&self) {
        self.command(Machine::enable);
    }

    fn command(&self, order: impl FnOnce(&Machine, Timestamp) -> Option<Transition>) {
        self.change(|machine, now, draw, news| {
            // What time has brought comes first, so that the news of the order follows from it.
            news.extend(machine.settle(now, draw));
            news.extend(machine.wake(now));
            news.extend(order(machine, now));
        });
    }

    /// Changes the settings and keeps state and counts; a new `window_size` begins with the newest
    /// outcomes, another kind of window or duration of one begins empty. Calls in flight count for
    /// nothing where the window outgrows its memory or begins empty, and where calls were watched for
    /// being overdue by another `slow_call_threshold`, or are no longer.
    ///
    /// # Errors
    /// When a field of the config is out of range; nothing has changed then.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        let config = Arc::new(config);
        self.reconfigure_to(|| config)
    }

    /// As [`CircuitBreaker::reconfigure`], to settings that are looked up when it is the caller's turn.
    fn reconfigure_to(&self, config: impl FnOnce() -> Arc<Config>) -> Result<(), ConfigError> {
        let mut journal = self.journal();
        let config = config();
        self.0.machine.reconfigure(&config, self.clock().now())?;
        journal.config = config;
        drop(journal);
        // More probes may be allowed now.
        self.wake_waiters();
        Ok(())
    }

    /// Subscribes to all that happens from now on, calls too.
    ///
    /// A subscriber can neither delay nor break a call: one that falls more than 1,024 events
    /// behind loses the oldest, and is told how many. It keeps no breaker alive either. The first one
    /// costs some 80 KiB for as long as the breaker lives; [`Manager::subscribe`] costs them once for
    /// all of its breakers.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let topics = &self.audience().topics;
        let events = topics.all(Arc::clone(self.name()), self.clock());
        self.mind_calls();
        self.make_appointments();
        events
    }

    /// As [`CircuitBreaker::subscribe`], to transitions only: calls cost nothing then.
    #[must_use]
    pub fn subscribe_transitions(&self) -> Events {
        let topics = &self.audience().topics;
        let events = topics.transitions(Arc::clone(self.name()), self.clock());
        self.make_appointments();
        events
    }

    /// The five newest transitions, the oldest first, each with how long ago it took effect.
    #[must_use]
    pub fn transitions(&self) -> Vec<(Transition, Duration)> {
        let now = self.settled();
        let journal = self.journal();
        let kept = journal.kept();
        kept.map(|news| (*news, now.since(news.at))).collect()
    }

    /// Whether it has not changed its state since it was made.
    fn is_as_made(&self) -> bool {
        self.journal().kept().next().is_none()
    }

    /// Whether it is closed because somebody told it to.
    fn was_told_to_close(&self) -> bool {
        let journal = self.journal();
        let last = journal.kept().last();
        last.is_some_and(|news| news.to == State::Closed && news.cause == Cause::Told)
    }

    /// Frees the slots of all probes in flight, which decide nothing any more.
    ///
    /// For the child of a fork: the calls that hold them go on in its parent, and so does whoever
    /// was telling a transition. A breaker that another thread was changing at the moment of the fork
    /// stays locked in the child, whose next change of it waits for ever: fork while no other thread
    /// uses breakers, or make new ones in the child.
    pub fn abandon_probes(&self) {
        self.0.machine.abandon_probes(self.clock().now());
        if let Ok(mut journal) = self.0.journal.try_lock() {
            journal.stop_telling();
        }
    }

    #[inline]
    fn tells_calls(&self) -> bool {
        self.0.listeners_came.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn clock(&self) -> &Clock {
        &self.0.context.clock
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // A panic cannot leave a journal half-written: each change to it is one assignment.
        let journal = self.0.journal.lock();
        journal.unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may change the state, and has the changes told in their order.
    #[cold]
    fn change<R>(&self, act: impl FnOnce(&Machine, Timestamp, f64, &mut News) -> R) -> R {
        let (result, is_news) = self.change_untold(act);
        if is_news {
            self.tell_news();
        }
        result
    }

    /// Does what may change the state, and answers too whether there is news to tell.
    ///
    /// All that may is done under one lock, so that transitions enter the journal as they happen.
    /// They are told when it is free again.
    #[cold]
    fn change_untold<R>(
        &self,
        act: impl FnOnce(&Machine, Timestamp, f64, &mut News) -> R,
    ) -> (R, bool) {
        let mut journal = self.journal();
        let Context { clock, chance, .. } = &*self.0.context;
        let (now, mut news) = (clock.now(), News::default());
        let result = act(&self.0.machine, now, chance.draw(), &mut news);
        let is_news = journal.note(news);
        let is_sooner = self.keep_appointments(&mut journal, now);
        drop(journal);
        if is_sooner {
            self.tell_sooner();
        }
        if is_news {
            // Now, and not when it is told: who is told may take long.
            self.wake_waiters();
        }
        (result, is_news)
    }

    /// Tells what the journal holds. One at a time does it, and tells what others add meanwhile.
    #[cold]
    fn tell_news(&self) {
        if !self.journal().start_telling() {
            return;
        }
        let next = || self.journal().next_to_tell();
        while let Some(transition) = next() {
            self.publish(transition);
        }
    }

    /// The time now, after what was due by then has been carried out.
    fn settled(&self) -> Timestamp {
        let now = self.clock().now();
        let due = self.0.machine.next_due(now);
        if due.is_none_or(|due| due > now) {
            return now;
        }
        self.change(|machine, now, draw, news| {
            news.extend(machine.settle(now, draw));
            now
        })
    }

    /// Carries out what time alone has brought about, so that subscribers hear of it.
    fn wake(&self) {
        self.change(|machine, now, draw, news| {
            news.extend(machine.settle(now, draw));
            news.extend(machine.wake(now));
        });
    }

    /// When time alone changes the state.
    ///
    /// Asked in its turn: a probe is admitted before it has its lease, and who waits until the lease
    /// is over is told of none that comes in between.
    fn next_due(&self) -> Timestamp {
        let _turn = self.journal();
        let due = self.0.machine.next_due(self.clock().now());
        due.unwrap_or(Timestamp::NEVER)
    }

    #[cold]
    fn publish(&self, transition: Transition) {
        let Transition {
            from,
            to,
            cause,
            wait,
            forced,
            ..
        } = transition;
        let meaning = match (to, forced) {
            (State::Open, false) => "opened: calls are refused until the wait is over, then probed",
            (State::Open, true) => "forced open: calls are refused until it is closed or reset",
            (State::HalfOpen, _) => "half-open: a few calls pass as probes",
            (State::Closed, _) => "closed: calls pass",
            (State::Disabled, _) => "disabled: calls pass, none is counted",
            (State::MetricsOnly, _) => "metrics-only: calls pass and are counted",
        };
        contained(|| {
            let breaker = &*self.0.name;
            let wait = wait.map(tracing::field::debug);
            if to == State::Open {
                tracing::warn!(breaker, %from, %to, %cause, wait, "circuit breaker {meaning}");
            } else {
                tracing::info!(breaker, %from, %to, %cause, wait, "circuit breaker {meaning}");
            }
        });
        self.tell(EventKind::Transition(transition));
    }
}

fn carried_out(
    machine: &Machine,
    verdict: Verdict,
    now: Timestamp,
    draw: f64,
) -> Option<Transition> {
    match verdict {
        Verdict::Unchanged => None,
        Verdict::Closed(transition) => Some(transition),
        Verdict::Trip(trip) => machine.trip(trip, now, draw),
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.0.name)
            .field("machine", &self.0.machine)
            .finish_non_exhaustive()
    }
}
