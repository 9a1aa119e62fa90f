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
//! Each transition is an event for `tracing`, with the fields `breaker`, `from`, `to`, `cause` and,
//! for an opening, `wait`: a warning where it opens, information else. Each refusal is one for
//! debugging, with `state` for the transition's two. A call that passes says nothing, and is in no
//! span of the breaker's own: that would cost as much as the breaker itself though nobody listens.
//! Whoever wants one instruments the call.

#[cfg(feature = "tower")]
mod admission;
mod event;
mod manager;

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use kailash_core::circuit_breaker as machine;
use kailash_core::circuit_breaker::{Machine, Verdict};
use kailash_core::time::Timestamp;
use tokio::sync::broadcast;

#[cfg(feature = "tower")]
pub(crate) use admission::{Admission, Refusal};
pub use event::{Event, EventKind, Events};
pub use kailash_core::circuit_breaker::{
    Cause, Config, Outcome, Snapshot, State, Transition, WindowKind,
};
pub use manager::{CreateError, Manager};

use crate::ConfigError;
use crate::chance::Chance;
use crate::clock::Clock;

/// A circuit breaker, shared by its clones.
///
/// It may be used from any number of threads and tasks. A call that is admitted while closed takes
/// no lock and allocates nothing.
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Shared>);

struct Shared {
    machine: Machine,
    clock: Clock,
    chance: Chance,
    name: Arc<str>,
    /// Held while the breaker is told something, so that two of these do not overlap.
    config: Mutex<Config>,
    /// Made by the first subscriber.
    events: OnceLock<broadcast::Sender<Event>>,
    /// The newest, the oldest first.
    transitions: Mutex<VecDeque<Transition>>,
}

const TRANSITIONS_KEPT: usize = 5;

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
        Ok(Self(Arc::new(Shared {
            machine: Machine::new(&config)?,
            clock,
            chance: Chance::new(),
            name: name.into(),
            config: Mutex::new(config),
            events: OnceLock::new(),
            transitions: Mutex::default(),
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
        self.told().clone()
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

    /// Runs a call behind the breaker: an `Err` counts as a failure.
    ///
    /// Dropping the future while it runs is a cancelled call.
    ///
    /// # Errors
    /// [`CallError::Rejected`] if the breaker refuses the call, which is then never made;
    /// [`CallError::Inner`] with the call's own error.
    pub async fn call<F, T, E>(&self, call: impl FnOnce() -> F) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(outcome_of, call).await
    }

    /// Runs a call behind the breaker, where `classify` says how it ended.
    ///
    /// A classifier that panics counts as a failure, and the panic goes on.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub async fn call_with<F, T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> F,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let permit = self.try_acquire()?.watched()?;
        let result = call().await;
        // A panic in the classifier drops the permit, which counts it as a failure.
        let outcome = classify(&result);
        permit.record(outcome);
        result.map_err(CallError::Inner)
    }

    /// Runs a blocking call behind the breaker: an `Err` counts as a failure, so does a panic.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync<T, E>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, CallError<E>> {
        self.call_sync_with(outcome_of, call)
    }

    /// Runs a blocking call behind the breaker, where `classify` says how it ended.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync_with<T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let permit = self.try_acquire()?.watched()?;
        let result = call();
        let outcome = classify(&result);
        permit.record(outcome);
        result.map_err(CallError::Inner)
    }

    /// Asks for leave to make one call.
    ///
    /// # Errors
    /// When the breaker refuses the call.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejected> {
        Ok(Permit {
            breaker: self,
            inner: Some(self.acquire()?),
        })
    }

    /// Asks for leave to make one call, as a permit that borrows nothing.
    ///
    /// # Errors
    /// When the breaker refuses the call.
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Rejected> {
        Ok(OwnedPermit {
            inner: Some(self.acquire()?),
            breaker: self.clone(),
            paused: None,
        })
    }

    #[inline]
    fn acquire(&self) -> Result<machine::Permit, Rejected> {
        match self.admit() {
            Some(permit) => Ok(permit),
            None => self.acquire_slowly(),
        }
    }

    /// Admits a call if all calls pass, as they do while closed.
    #[inline]
    fn admit(&self) -> Option<machine::Permit> {
        let Shared { machine, clock, .. } = &*self.0;
        let permit = machine.admit()?;
        if machine.is_timed() {
            return Some(permit.started_at(clock.now()));
        }
        Some(permit)
    }

    #[cold]
    fn acquire_slowly(&self) -> Result<machine::Permit, Rejected> {
        let Shared {
            machine,
            clock,
            chance,
            ..
        } = &*self.0;
        let (result, news) = machine.try_acquire(clock.now(), chance.draw());
        for transition in news {
            self.publish(transition);
        }
        result.map_err(|rejected| self.reject(rejected))
    }

    #[cold]
    fn reject(&self, rejected: machine::Rejected) -> Rejected {
        let machine::Rejected {
            state,
            forced,
            retry_after,
            cause,
        } = rejected;
        let breaker = &*self.0.name;
        let wait = retry_after.map(tracing::field::debug);
        tracing::debug!(breaker, %state, %cause, wait, "circuit breaker refused a call");
        self.tell(EventKind::Rejected);
        Rejected {
            name: Arc::clone(&self.0.name),
            state,
            forced,
            retry_after,
            cause,
        }
    }

    #[inline]
    fn finish(&self, permit: machine::Permit, outcome: Outcome) -> Option<Duration> {
        let Shared { machine, clock, .. } = &*self.0;
        let now = machine.needs_time(&permit).then(|| clock.now());
        let ran = now.zip(permit.started()).map(|(to, from)| to.since(from));
        let verdict = machine.record(permit, outcome, now);
        self.tell(EventKind::Ended(outcome));
        if verdict != Verdict::Unchanged {
            self.carry_out(verdict);
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
        self.carry_out(verdict);
        self.acquire()
    }

    #[cold]
    fn carry_out(&self, verdict: Verdict) {
        let Shared {
            machine,
            clock,
            chance,
            ..
        } = &*self.0;
        let transition = match verdict {
            Verdict::Unchanged => None,
            Verdict::Closed(transition) => Some(transition),
            Verdict::Trip(trip) => machine.trip(trip, clock.now(), chance.draw()),
        };
        if let Some(transition) = transition {
            self.publish(transition);
        }
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
        let Shared {
            machine,
            clock,
            chance,
            ..
        } = &*self.0;
        let (verdict, news) = machine.record_manual(outcome, clock.now(), chance.draw());
        for transition in news {
            self.publish(transition);
        }
        self.tell(EventKind::Ended(outcome));
        self.carry_out(verdict);
    }

    /// Opens the breaker until [`CircuitBreaker::force_close`] or [`CircuitBreaker::reset`].
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
    }

    /// Lets all calls pass and counts nothing, until [`CircuitBreaker::enable`].
    pub fn disable(&self) {
        self.command(Machine::disable);
    }

    /// Lets all calls pass and counts them, so that a snapshot says what it would have done, until
    /// [`CircuitBreaker::enable`].
    pub fn metrics_only(&self) {
        self.command(Machine::metrics_only);
    }

    /// Ends [`CircuitBreaker::disable`] and [`CircuitBreaker::metrics_only`].
    pub fn enable(&self) {
        self.command(Machine::enable);
    }

    fn command(&self, order: impl FnOnce(&Machine, Timestamp) -> Option<Transition>) {
        // What time has brought comes first, so that the news of the order follows from it.
        self.wake();
        let told = self.told();
        let transition = order(&self.0.machine, self.0.clock.now());
        drop(told);
        if let Some(transition) = transition {
            self.publish(transition);
        }
    }

    /// Changes the settings and keeps state and counts; a new `window_size` begins with the newest
    /// outcomes, another kind of window or duration of one begins empty.
    ///
    /// # Errors
    /// When a field of the config is out of range; nothing has changed then.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        let mut told = self.told();
        self.0.machine.reconfigure(&config, self.0.clock.now())?;
        *told = config;
        Ok(())
    }

    /// Subscribes to what happens from now on.
    ///
    /// A subscriber can neither delay nor break a call: one that falls more than 1,024 events
    /// behind loses the oldest, and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let sender = self.0.events.get_or_init(|| broadcast::channel(1024).0);
        Events::new(self.clone(), sender.subscribe())
    }

    /// The five newest transitions, the oldest first, each with how long ago it took effect.
    #[must_use]
    pub fn transitions(&self) -> Vec<(Transition, Duration)> {
        let now = self.settled();
        let kept = self.kept_transitions();
        kept.iter()
            .map(|news| (*news, now.since(news.at)))
            .collect()
    }

    /// Frees the slots of all probes in flight, which decide nothing any more.
    ///
    /// For the child of a fork: the calls that hold them go on in its parent.
    pub fn abandon_probes(&self) {
        self.0.machine.abandon_probes();
    }

    fn kept_transitions(&self) -> MutexGuard<'_, VecDeque<Transition>> {
        let kept = self.0.transitions.lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Config> {
        // A panic cannot leave a config half-written: it is replaced as a whole.
        self.0.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time now, after what was due by then has been carried out.
    fn settled(&self) -> Timestamp {
        let Shared {
            machine,
            clock,
            chance,
            ..
        } = &*self.0;
        let now = clock.now();
        if let Some(transition) = machine.settle(now, chance.draw()) {
            self.publish(transition);
        }
        now
    }

    /// Carries out what time alone has brought about, so that subscribers hear of it.
    fn wake(&self) {
        let now = self.settled();
        if let Some(transition) = self.0.machine.wake(now) {
            self.publish(transition);
        }
    }

    /// How long until time alone changes the state.
    fn due_in(&self) -> Option<Duration> {
        let now = self.0.clock.now();
        let due = self.0.machine.next_due(now)?;
        Some(due.since(now))
    }

    #[cold]
    fn publish(&self, transition: Transition) {
        let Transition {
            from,
            to,
            cause,
            wait,
            ..
        } = transition;
        let breaker = &*self.0.name;
        let wait = wait.map(tracing::field::debug);
        if to == State::Open {
            tracing::warn!(breaker, %from, %to, %cause, wait, "circuit breaker changed");
        } else {
            tracing::info!(breaker, %from, %to, %cause, wait, "circuit breaker changed");
        }
        {
            let mut kept = self.kept_transitions();
            if kept.len() == TRANSITIONS_KEPT {
                kept.pop_front();
            }
            kept.push_back(transition);
        }
        self.tell(EventKind::Transition(transition));
    }

    #[inline]
    fn tell(&self, kind: EventKind) {
        if let Some(events) = self.0.events.get() {
            self.send(events, kind);
        }
    }

    #[cold]
    fn send(&self, events: &broadcast::Sender<Event>, kind: EventKind) {
        let breaker = Arc::clone(&self.0.name);
        // No receiver is left: nobody wants to know.
        let _ = events.send(Event { breaker, kind });
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

pub(crate) fn outcome_of<T, E>(result: &Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Failure,
    }
}

/// Leave to make one call, which borrows its breaker.
///
/// Dropped without a verdict it is a cancelled call, dropped by a panic a failure.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once is a cancelled call"]
pub struct Permit<'a> {
    breaker: &'a CircuitBreaker,
    inner: Option<machine::Permit>,
}

/// Leave to make one call, which keeps its breaker alive.
///
/// Dropped without a verdict it is a cancelled call, dropped by a panic a failure.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once is a cancelled call"]
pub struct OwnedPermit {
    breaker: CircuitBreaker,
    inner: Option<machine::Permit>,
    paused: Option<Timestamp>,
}

macro_rules! permit {
    ($($permit:ty),*) => {$(
        impl $permit {
            /// The call succeeded.
            pub fn success(self) {
                self.record(Outcome::Success);
            }

            /// The call failed.
            pub fn failure(self) {
                self.record(Outcome::Failure);
            }

            /// The call says nothing about the dependency.
            pub fn ignore(self) {
                self.record(Outcome::Ignored);
            }

            /// Watches the call while it runs, where `overdue_calls_enabled` says so: it counts as slow
            /// once it has run for `slow_call_threshold`, though it has not ended.
            ///
            /// For calls that end by themselves, and not for a permit that is kept.
            ///
            /// # Errors
            /// When other calls turn out to be overdue, and open the breaker.
            #[inline]
            pub fn watched(mut self) -> Result<Self, Rejected> {
                if self.breaker.0.machine.watches()
                    && let Some(permit) = self.inner.take()
                {
                    self.inner = Some(self.breaker.watch(permit)?);
                }
                Ok(self)
            }

            /// The call ended so. Answers how long it ran, where calls are timed.
            #[inline]
            pub fn record(mut self, outcome: Outcome) -> Option<Duration> {
                let permit = self.inner.take()?;
                self.breaker.finish(permit, outcome)
            }
        }

        impl Drop for $permit {
            #[inline]
            fn drop(&mut self) {
                if let Some(permit) = self.inner.take() {
                    self.breaker.finish(permit, dropped());
                }
            }
        }
    )*};
}

permit!(Permit<'_>, OwnedPermit);

impl OwnedPermit {
    /// Stops the call's clock, for work that goes on in pieces: what passes until
    /// [`OwnedPermit::resume`] makes the call neither slow nor long. A probe's lease goes on.
    pub fn pause(&mut self) {
        self.paused
            .get_or_insert_with(|| self.breaker.0.clock.now());
    }

    /// Lets the call's clock go on.
    pub fn resume(&mut self) {
        let Some(paused) = self.paused.take() else {
            return;
        };
        let rest = self.breaker.0.clock.now().since(paused);
        self.inner = self.inner.take().map(|permit| match permit.started() {
            Some(started) => permit.started_at(started + rest),
            None => permit,
        });
    }
}

#[cold]
fn dropped() -> Outcome {
    if thread::panicking() {
        Outcome::Failure
    } else {
        Outcome::Cancelled
    }
}

/// Why a breaker refused a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The breaker's name.
    pub name: Arc<str>,
    /// [`State::Open`], or [`State::HalfOpen`] when all probes are in flight.
    pub state: State,
    /// Whether it was forced open: no probes until it is told otherwise.
    pub forced: bool,
    /// How long until a probe may pass; `None` where only another event decides.
    pub retry_after: Option<Duration>,
    /// Why the breaker opened.
    pub cause: Cause,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (self.state, self.forced, self.retry_after) {
            (State::HalfOpen, ..) => {
                write!(
                    f,
                    "circuit breaker \"{name}\" is half-open: all probes are in flight"
                )
            }
            (_, true, _) => write!(f, "circuit breaker \"{name}\" is forced open"),
            (_, _, Some(wait)) => {
                let (cause, seconds) = (self.cause, wait.as_secs_f64());
                write!(
                    f,
                    "circuit breaker \"{name}\" is open ({cause}), retry in {seconds:.3} s"
                )
            }
            (_, _, None) => write!(f, "circuit breaker \"{name}\" is open ({})", self.cause),
        }
    }
}

impl Error for Rejected {}

/// What can come of a call behind a breaker, beside its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError<E> {
    /// The breaker refused the call: it was never made.
    Rejected(Rejected),
    /// The call's own error.
    Inner(E),
}

impl<E: Into<Box<dyn Error + Send + Sync>>> CallError<E> {
    /// The refusal, or the call's own error, as what it is and nothing around it.
    ///
    /// For callers that box all their errors, as stacks of tower layers do: the box downcasts to
    /// [`Rejected`], or to whatever the call's own error is.
    #[must_use]
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        match self {
            Self::Rejected(rejected) => rejected.into(),
            Self::Inner(error) => error.into(),
        }
    }
}

impl<E> From<Rejected> for CallError<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(_) => None,
            Self::Inner(error) => error.source(),
        }
    }
}
