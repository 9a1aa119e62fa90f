//! A breaker at one moment, and the counters behind it.

use core::ops::{Add, Sub};
use core::time::Duration;

use super::Machine;
use super::ramp;
use super::state::{self, Cause, Phase, State, Word};
use super::window::Tally;
use crate::once_box::OnceBox;
use crate::sync::{AtomicU64, Ordering};
use crate::time::Timestamp;

/// A breaker at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state by time: an open breaker whose wait is over is half-open.
    pub state: State,
    /// Whether it was forced open.
    pub forced: bool,
    /// Why it is open; `None` unless it is, or is half-open.
    pub cause: Option<Cause>,
    /// How long it will still refuse calls, while open and not forced.
    pub retry_after: Option<Duration>,
    /// Openings in a row without a close.
    pub openings_in_a_row: u32,
    /// Calls in the window.
    pub window_calls: u32,
    /// Failed calls in the window.
    pub window_failures: u32,
    /// Slow calls in the window.
    pub window_slow: u32,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Probes in flight.
    pub probes_in_flight: u32,
    /// Probes that succeeded since it became half-open.
    pub probe_successes: u32,
    /// The share of calls that pass while it recovers up its ramp; `None` elsewhere.
    pub ramp_share: Option<f64>,
    /// Calls whose outcome counted, since the last reset.
    pub calls: u64,
    /// Calls that counted as failures, since the last reset.
    pub failures: u64,
    /// Calls that counted as slow, since the last reset.
    pub slow_calls: u64,
    /// Calls that were refused, since the last reset.
    pub rejections: u64,
    /// Openings, forced ones too, since the last reset.
    pub openings: u64,
    /// In metrics-only: what it would have opened for.
    pub would_open: Option<Cause>,
}

/// What a breaker has counted since it was made. No reset sets it back, so that a metric may show
/// it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls whose outcome counted.
    pub calls: u64,
    /// Calls that counted as failures.
    pub failures: u64,
    /// Calls that counted as slow.
    pub slow_calls: u64,
    /// Calls that were refused.
    pub rejections: u64,
    /// Openings, forced ones too.
    pub openings: u64,
}

impl Counts {
    fn with(self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            calls: merge(self.calls, other.calls),
            failures: merge(self.failures, other.failures),
            slow_calls: merge(self.slow_calls, other.slow_calls),
            rejections: merge(self.rejections, other.rejections),
            openings: merge(self.openings, other.openings),
        }
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }
}

/// Counters that only grow, and what they were at the last reset.
#[derive(Default)]
pub(super) struct Totals {
    /// Calls that counted without a ticket of a window: probes, and overdue ones beyond a window.
    pub(super) unticketed: Counter,
    pub(super) failures: Counter,
    pub(super) slow: Counter,
    pub(super) rejections: Counter,
    pub(super) openings: Counter,
    /// Made by the first reset, which most breakers never see.
    at_reset: OnceBox<AtReset>,
}

#[derive(Default)]
struct AtReset {
    calls: AtomicU64,
    failures: AtomicU64,
    slow_calls: AtomicU64,
    rejections: AtomicU64,
    openings: AtomicU64,
}

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Machine {
    /// Everything about the breaker at this moment.
    ///
    /// Each figure is true by itself; under traffic they are not of one instant.
    #[must_use]
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let state = self.state(now);
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        let tally = self.tally(bits, now);
        let consecutive_failures = self.failures_in_a_row(word.generation);
        let counts = self.counts_since_reset();
        let mut snapshot = Snapshot {
            state,
            forced: word.phase == Phase::ForcedOpen,
            cause: None,
            retry_after: None,
            openings_in_a_row: 0,
            window_calls: tally.calls,
            window_failures: tally.failures,
            window_slow: tally.slow,
            consecutive_failures,
            probes_in_flight: 0,
            probe_successes: 0,
            ramp_share: None,
            calls: counts.calls,
            failures: counts.failures,
            slow_calls: counts.slow_calls,
            rejections: counts.rejections,
            openings: counts.openings,
            would_open: None,
        };
        match word.phase {
            Phase::Open(opening) => {
                let until = self.deadline(bits, opening, now);
                snapshot.cause = Some(opening.cause);
                snapshot.openings_in_a_row = opening.in_a_row;
                let waits = now < until && until != Timestamp::NEVER;
                snapshot.retry_after = waits.then(|| until.since(now));
            }
            Phase::HalfOpen {
                in_flight,
                successes,
            } => {
                let opening = self.left();
                snapshot.cause = Some(opening.cause);
                snapshot.openings_in_a_row = opening.in_a_row;
                snapshot.probes_in_flight = in_flight;
                snapshot.probe_successes = successes;
            }
            Phase::Ramp { stage } => {
                let opening = self.left();
                snapshot.cause = Some(opening.cause);
                snapshot.openings_in_a_row = opening.in_a_row;
                snapshot.ramp_share = Some(ramp::share(stage));
            }
            Phase::ForcedOpen => snapshot.cause = Some(Cause::Told),
            Phase::MetricsOnly => {
                let in_a_row = consecutive_failures >= self.settings.failure_threshold();
                snapshot.would_open = in_a_row
                    .then_some(Cause::ConsecutiveFailures)
                    .or_else(|| self.rate_reached(tally));
            }
            Phase::Closed | Phase::Disabled => {}
        }
        snapshot
    }

    /// Failures in a row in this generation.
    pub(super) fn failures_in_a_row(&self, generation: u32) -> u32 {
        let in_a_row = self.in_a_row.load(Ordering::Relaxed);
        if state::generation(in_a_row) == generation {
            in_a_row as u32
        } else {
            0
        }
    }

    fn tally(&self, bits: u64, now: Timestamp) -> Tally {
        let word = Word::unpack(bits);
        if !word.phase.has_window() {
            return Tally::default();
        }
        let window = self.window(word.generation);
        window.tally(word.generation, self.extent(Some(now)))
    }

    /// What it has counted since it was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            calls: self.tickets.given() + self.totals.unticketed.count(),
            failures: self.totals.failures.count(),
            slow_calls: self.totals.slow.count(),
            rejections: self.totals.rejections.count(),
            openings: self.totals.openings.count(),
        }
    }

    fn counts_since_reset(&self) -> Counts {
        let counts = self.counts();
        let Some(at_reset) = self.totals.at_reset.get() else {
            return counts;
        };
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        counts
            - Counts {
                calls: load(&at_reset.calls),
                failures: load(&at_reset.failures),
                slow_calls: load(&at_reset.slow_calls),
                rejections: load(&at_reset.rejections),
                openings: load(&at_reset.openings),
            }
    }

    /// Has snapshots count from here.
    pub(super) fn reset_counts(&self) {
        let counts = self.counts();
        let at_reset = self.totals.at_reset.get_or_init(AtReset::default);
        for (place, count) in [
            (&at_reset.calls, counts.calls),
            (&at_reset.failures, counts.failures),
            (&at_reset.slow_calls, counts.slow_calls),
            (&at_reset.rejections, counts.rejections),
            (&at_reset.openings, counts.openings),
        ] {
            place.store(count, Ordering::Relaxed);
        }
    }
}
