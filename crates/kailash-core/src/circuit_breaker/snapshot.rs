//! A breaker at one moment, and the counters behind it.

use core::time::Duration;

use super::Machine;
use super::ramp;
use super::state::{self, Cause, Phase, State, Word};
use super::window::Tally;
use crate::sync::{AtomicU64, Ordering};
use crate::time::Timestamp;

/// A breaker at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// Counters that only grow, and what they were at the last reset.
#[derive(Default)]
pub(super) struct Totals {
    /// Calls that counted without a ticket of a window: probes, and overdue ones beyond a window.
    pub(super) unticketed: Counter,
    pub(super) failures: Counter,
    pub(super) slow: Counter,
    pub(super) rejections: Counter,
    pub(super) openings: Counter,
    pub(super) tickets_at_reset: AtomicU64,
}

#[derive(Default)]
pub(super) struct Counter {
    count: AtomicU64,
    at_reset: AtomicU64,
}

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.count.fetch_add(more, Ordering::Relaxed);
    }

    fn since_reset(&self) -> u64 {
        let at_reset = self.at_reset.load(Ordering::Relaxed);
        self.count.load(Ordering::Relaxed).saturating_sub(at_reset)
    }

    pub(super) fn reset(&self) {
        let count = self.count.load(Ordering::Relaxed);
        self.at_reset.store(count, Ordering::Relaxed);
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
        let in_a_row = self.in_a_row.load(Ordering::Relaxed);
        let consecutive_failures = if state::generation(in_a_row) == word.generation {
            in_a_row as u32
        } else {
            0
        };
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
            calls: self.calls(),
            failures: self.totals.failures.since_reset(),
            slow_calls: self.totals.slow.since_reset(),
            rejections: self.totals.rejections.since_reset(),
            openings: self.totals.openings.since_reset(),
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
                let (_, opening) = self.left();
                snapshot.cause = Some(opening.cause);
                snapshot.openings_in_a_row = opening.in_a_row;
                snapshot.probes_in_flight = in_flight;
                snapshot.probe_successes = successes;
            }
            Phase::Ramp { stage } => {
                let (_, opening) = self.left();
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

    fn tally(&self, bits: u64, now: Timestamp) -> Tally {
        let word = Word::unpack(bits);
        match word.phase {
            Phase::Closed | Phase::MetricsOnly | Phase::Ramp { .. } => {
                let window = self.windows.of(word.generation);
                window.tally(&self.rings, word.generation, self.extent(Some(now)))
            }
            _ => Tally::default(),
        }
    }

    fn calls(&self) -> u64 {
        let at_reset = self.totals.tickets_at_reset.load(Ordering::Relaxed);
        self.tickets().saturating_sub(at_reset) + self.totals.unticketed.since_reset()
    }

    pub(super) fn tickets(&self) -> u64 {
        self.windows.tickets()
    }
}
