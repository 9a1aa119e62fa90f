//! The only place that reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kailash_core::time::{Timestamp, nanos};

/// Where a shell takes the time from.
///
/// The default is the machine's monotonic clock, which no step of the wall clock moves. Clones
/// share their origin, so their timestamps can be compared.
///
/// ```
/// use std::time::Duration;
/// use kailash::clock::Clock;
///
/// let (clock, hand) = Clock::manual();
/// let before = clock.now();
/// hand.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().since(before), Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Monotonic { clock: quanta::Clock, origin: u64 },
    Tokio { origin: tokio::time::Instant },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's monotonic clock.
    #[must_use]
    pub fn monotonic() -> Self {
        let clock = quanta::Clock::new();
        let origin = clock.raw();
        Self(Source::Monotonic { clock, origin })
    }

    /// The clock of the tokio runtime, which `tokio::time::pause` stops.
    #[must_use]
    pub fn tokio() -> Self {
        let origin = tokio::time::Instant::now();
        Self(Source::Tokio { origin })
    }

    /// A clock that stands still until its hand is moved.
    #[must_use]
    pub fn manual() -> (Self, ManualClock) {
        let nanos = Arc::new(AtomicU64::new(0));
        (Self(Source::Manual(Arc::clone(&nanos))), ManualClock(nanos))
    }

    /// The time now.
    // A call costs less than three kinds of clocks inlined into every path that asks one.
    #[inline(never)]
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Monotonic { clock, origin } => {
                Timestamp::from_nanos(clock.delta_as_nanos(*origin, clock.raw()))
            }
            Source::Tokio { origin } => Timestamp::ZERO + origin.elapsed(),
            Source::Manual(nanos) => Timestamp::from_nanos(nanos.load(Ordering::Acquire)),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::monotonic()
    }
}

/// The wall clock's time, to show and to store, never to measure with.
#[must_use]
pub fn wall_time() -> SystemTime {
    SystemTime::now()
}

/// The hand of a manual clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos(by), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_moves_forward_only() {
        let clock = Clock::monotonic();
        let mut before = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= before);
            before = now;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokio_clock_follows_paused_time() {
        let clock = Clock::tokio();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().since(before), Duration::from_secs(3600));
    }
}
