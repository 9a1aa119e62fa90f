//! What breakers have in common, and who wants to know of one.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::event::Topics;
use super::{CircuitBreaker, EventKind, Outcome};
use crate::chance::Chance;
use crate::clock::Clock;
use crate::foreign::contained;
use crate::histogram::{self, Histogram};

/// What the breakers of one registry, or of one group of keys, have in common.
pub(super) struct Context {
    pub(super) clock: Clock,
    pub(super) chance: Chance,
    pub(super) hub: Arc<Hub>,
    /// A group's breakers record durations here, for each its own would be too many.
    pub(super) shared_durations: Option<Durations>,
    /// How much of a breaker's name comes before its key: zero without keys.
    pub(super) prefix: usize,
}

impl Context {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            chance: Chance::new(),
            hub: Arc::default(),
            shared_durations: None,
            prefix: 0,
        }
    }

    /// That of a group of keys.
    pub(super) fn of_group(&self, prefix: usize) -> Self {
        Self {
            clock: self.clock.clone(),
            chance: Chance::new(),
            hub: Arc::clone(&self.hub),
            shared_durations: Some(Durations::default()),
            prefix,
        }
    }
}

/// What is told of all breakers of a registry.
#[derive(Default)]
pub(super) struct Hub {
    pub(super) topics: Topics,
    records_durations: AtomicBool,
}

impl Hub {
    fn records_durations(&self) -> bool {
        self.records_durations.load(Ordering::SeqCst)
    }

    fn wants_calls(&self) -> bool {
        self.topics.wants_calls() || self.records_durations()
    }

    pub(super) fn set_records_durations(&self, on: bool) {
        self.records_durations.store(on, Ordering::SeqCst);
    }
}

/// What a breaker has when somebody wants to know.
#[derive(Default)]
pub(super) struct Audience {
    pub(super) topics: Topics,
    /// Told when a call may be admitted that was not before.
    pub(super) waiters: Notify,
    pub(super) durations: OnceLock<Box<Durations>>,
}

/// Durations, and what they were at the last reset.
#[derive(Default)]
pub(super) struct Durations {
    pub(super) histogram: Histogram,
    at_reset: Mutex<Option<Box<histogram::Snapshot>>>,
}

impl Durations {
    pub(super) fn since_reset(&self) -> histogram::Snapshot {
        let at_reset = self.at_reset.lock();
        let at_reset = at_reset.unwrap_or_else(PoisonError::into_inner);
        let all = self.histogram.snapshot();
        at_reset
            .as_deref()
            .map_or(all.clone(), |then| all.since(then))
    }

    pub(super) fn reset(&self) {
        let at_reset = self.at_reset.lock();
        let mut at_reset = at_reset.unwrap_or_else(PoisonError::into_inner);
        *at_reset = Some(Box::new(self.histogram.snapshot()));
    }
}

impl CircuitBreaker {
    pub(super) fn audience(&self) -> &Audience {
        self.0.audience.get_or_init(Box::default)
    }

    /// Has calls look for those who want to hear of them.
    pub(super) fn mind_calls(&self) {
        self.0.listeners_came.fetch_add(1, Ordering::SeqCst);
    }

    /// As [`CircuitBreaker::mind_calls`], if anybody wants to hear of the registry's calls.
    ///
    /// Who makes a breaker known to its registry does this then; who begins to want says so before
    /// he goes through the breakers that are known: so one of the two sees the other.
    pub(super) fn mind_calls_if_wanted(&self) {
        fence(Ordering::SeqCst);
        if self.0.context.hub.wants_calls() {
            self.mind_calls();
        }
    }

    fn wants_calls(&self) -> bool {
        let own = self.0.audience.get();
        self.0.context.hub.wants_calls() || own.is_some_and(|it| it.topics.wants_calls())
    }

    /// A call ended so, after this long.
    #[cold]
    pub(super) fn tell_end(&self, outcome: Outcome, ran: Option<Duration>) {
        let came = self.0.listeners_came.load(Ordering::SeqCst);
        if !self.wants_calls() {
            // Not if somebody has come in between.
            let _ = self.0.listeners_came.compare_exchange(
                came,
                0,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            return;
        }
        let context = &self.0.context;
        if let (Some(ran), true) = (ran, context.hub.records_durations()) {
            let durations = context
                .shared_durations
                .as_ref()
                .unwrap_or_else(|| self.audience().durations.get_or_init(Box::default));
            durations.histogram.record(ran);
        }
        let is_slow = ran.is_some_and(|ran| self.0.machine.is_slow(ran));
        self.tell(EventKind::Ended {
            outcome,
            ran,
            is_slow,
        });
    }

    /// Tells the breaker's own subscribers, and its registry's.
    #[inline]
    pub(super) fn tell(&self, kind: EventKind) {
        self.0.context.hub.topics.tell(self, kind);
        if let Some(audience) = self.0.audience.get() {
            audience.topics.tell(self, kind);
        }
    }

    /// Has those who wait for the breaker look at it again.
    pub(super) fn wake_waiters(&self) {
        if let Some(audience) = self.0.audience.get() {
            contained(|| audience.waiters.notify_waiters());
        }
    }
}
