//! A call's leave, its end, and what comes of it.

use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;

use super::state::{Cause, State};
use crate::time::Timestamp;

/// Leave to make one call.
///
/// It must be given back with [`Machine::record`](super::Machine::record); shells wrap it in a guard that does.
///
/// Two registers wide, and so is an `Option` of it: the closed path moves nothing through memory.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe that is not given back keeps its slot until its lease lapses"]
pub struct Permit {
    /// Generation 32 bits, role 32. One number, so that a permit is passed in registers.
    key: NonZeroU64,
    /// Nanoseconds; the latest timestamp stands for a call that is not timed.
    started: Timestamp,
}

/// What the breaker keeps of a call while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing.
    Plain,
    /// The lease of a probe, in this slot.
    Probe(u32),
    /// A place among the calls that may become overdue: which quarter of the threshold it began in,
    /// in its low bits.
    Watched(u32),
}

const WATCHED: u32 = 1 << 31;

impl Role {
    #[inline]
    fn pack(self) -> NonZeroU32 {
        match self {
            Self::Plain => NonZeroU32::MAX,
            Self::Probe(slot) => NonZeroU32::MIN.saturating_add(slot),
            // Never the largest number: that is a plain call's.
            Self::Watched(quarter) => NonZeroU32::MIN | WATCHED | ((quarter & 0x00ff_ffff) << 1),
        }
    }
}

impl Permit {
    #[inline]
    pub(super) fn new(generation: u32, role: Role, started: Option<Timestamp>) -> Self {
        Self {
            key: key(generation, role),
            started: started.unwrap_or(Timestamp::NEVER),
        }
    }

    #[inline]
    pub(super) fn generation(&self) -> u32 {
        (self.key.get() >> 32) as u32
    }

    #[inline]
    pub(super) fn role(&self) -> Role {
        match self.key.get() as u32 {
            u32::MAX => Role::Plain,
            watched if watched & WATCHED != 0 => Role::Watched((watched & !WATCHED) >> 1),
            slot => Role::Probe(slot.wrapping_sub(1)),
        }
    }

    #[inline]
    pub(super) fn with_role(mut self, role: Role) -> Self {
        self.key = key(self.generation(), role);
        self
    }

    /// Remembers when the call began. Needed where [`Machine::is_timed`](super::Machine::is_timed) says so.
    #[inline]
    pub fn started_at(mut self, now: Timestamp) -> Self {
        self.started = now;
        self
    }

    /// Whether the call's start is known.
    #[inline]
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.started != Timestamp::NEVER
    }

    /// When the call began, if that was asked for.
    #[inline]
    #[must_use]
    pub fn started(&self) -> Option<Timestamp> {
        self.is_timed().then_some(self.started)
    }

    /// How many nanoseconds the call has run by `now`, if that is known.
    #[inline]
    pub(super) fn ran(&self, now: Option<Timestamp>) -> Option<u64> {
        let (from, to) = self.started().zip(now)?;
        Some(to.nanos_since(from))
    }

    /// Whether the call is a probe of a half-open breaker.
    #[inline]
    #[must_use]
    pub fn is_probe(&self) -> bool {
        matches!(self.role(), Role::Probe(_))
    }
}

#[inline]
fn key(generation: u32, role: Role) -> NonZeroU64 {
    NonZeroU64::from(role.pack()) | (u64::from(generation) << 32)
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The dependency did its work.
    Success,
    /// The dependency failed.
    Failure,
    /// The dependency failed and said how long to leave it alone, as HTTP's `Retry-After` does: a
    /// failure, and where it opens the breaker this is how long, up to `max_recovery_timeout`.
    RetryAfter(Duration),
    /// The call says nothing about the dependency, as a caller's own mistake does.
    Ignored,
    /// The caller gave up: neutral, or a failure after `cancelled_counts_after`.
    Cancelled,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// [`State::Open`]; or [`State::HalfOpen`] when all probes are in flight, or chance decided so on
    /// the ramp.
    pub state: State,
    /// Whether it was forced open: no probes until it is told otherwise.
    pub forced: bool,
    /// How long until a probe may pass; `None` where only another event decides.
    pub retry_after: Option<Duration>,
    /// Why the breaker opened.
    pub cause: Cause,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// When it took effect, which a lapse does at its deadline.
    pub at: Timestamp,
    /// Whether `to` is [`State::Open`] until told otherwise.
    pub forced: bool,
    /// How long an opening will last.
    pub wait: Option<Duration>,
}

/// The changes that time had brought before a call was looked at: at most two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News([Option<Transition>; 2]);

impl News {
    pub(super) fn add(&mut self, transition: Option<Transition>) {
        let free = self.0.iter_mut().find(|news| news.is_none());
        if let (Some(place), Some(_)) = (free, transition) {
            *place = transition;
        }
    }
}

impl IntoIterator for News {
    type Item = Transition;
    type IntoIter = core::iter::Flatten<core::array::IntoIter<Option<Transition>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}

/// What a recorded outcome leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a trip that is not carried out leaves the breaker closed"]
pub enum Verdict {
    /// The state stays.
    Unchanged,
    /// The breaker must open: pass this to [`Machine::trip`](super::Machine::trip) with the time and a draw.
    Trip(Trip),
    /// The breaker has closed.
    Closed(Transition),
}

/// A decision to open, which time and chance have still to shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    pub(super) generation: u32,
    pub(super) cause: Cause,
    /// Earlier than now for a lapse that nobody had looked at.
    pub(super) at: Option<Timestamp>,
    /// How long the dependency asked to be left alone.
    pub(super) wait: Option<Duration>,
}

impl Outcome {
    /// How long the dependency asked to be left alone; zero asks for nothing.
    pub(super) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::RetryAfter(wait) => Some(wait).filter(|wait| !wait.is_zero()),
            _ => None,
        }
    }
}
