//! The only place that reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use kailash_core::time::Timestamp;
use tokio::sync::Notify;

/// Where a shell takes the time from.
///
/// The default is the machine's monotonic clock, which no step of the wall clock moves. Clones
/// share their origin, so their timestamps can be compared.
///
/// ```
/// use std::time::Duration;
/// use kailash::clock::{Clock, Timestamp};
///
/// let (clock, hand) = Clock::manual();
/// let before: Timestamp = clock.now();
/// hand.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().since(before), Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Monotonic { clock: quanta::Clock, origin: u64 },
    Tokio { origin: tokio::time::Instant },
    Manual(Arc<Hand>),
}

#[derive(Debug, Default)]
struct Hand {
    nanos: AtomicU64,
    moved: Notify,
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
        let hand = Arc::new(Hand::default());
        (Self(Source::Manual(Arc::clone(&hand))), ManualClock(hand))
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
            Source::Tokio { origin } => since(*origin),
            Source::Manual(hand) => Timestamp::from_nanos(hand.nanos.load(Ordering::Acquire)),
        }
    }

    /// Waits until the clock shows this time; [`Timestamp::NEVER`] never comes.
    ///
    /// On a manual clock it waits for the hand, and needs no runtime. On the others it sleeps on
    /// tokio's time; where that is paused, use [`Clock::tokio`], which is paused with it.
    ///
    /// # Panics
    /// Outside a tokio runtime with time, unless the clock is manual or the time never comes.
    pub async fn sleep_until(&self, time: Timestamp) {
        if time == Timestamp::NEVER {
            return std::future::pending().await;
        }
        if let Source::Manual(hand) = &self.0 {
            loop {
                // Made before the look at the hand, so that no move falls between the two.
                let moved = hand.moved.notified();
                if self.now() >= time {
                    return;
                }
                moved.await;
            }
        }
        // Tokio's time and this clock may differ a little: look again.
        loop {
            let now = self.now();
            if now >= time {
                return;
            }
            tokio::time::sleep(time.since(now)).await;
        }
    }
}

/// Apart, so that the machine's clock is read with no more than that takes.
#[inline(never)]
fn since(origin: tokio::time::Instant) -> Timestamp {
    Timestamp::ZERO + origin.elapsed()
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
pub struct ManualClock(Arc<Hand>);

impl ManualClock {
    /// Moves the clock forward, at most to [`Timestamp::NEVER`], and wakes what sleeps on it.
    pub fn advance(&self, by: Duration) {
        let nanos = &self.0.nanos;
        nanos.update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (Timestamp::from_nanos(now) + by).as_nanos()
        });
        self.0.moved.notify_waiters();
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

    #[tokio::test]
    async fn a_sleep_on_a_manual_clock_ends_when_its_hand_gets_there() {
        let (clock, hand) = Clock::manual();
        let due = clock.now() + Duration::from_secs(2);
        let mut sleep = Box::pin(clock.sleep_until(due));
        assert!(futures_util::poll!(&mut sleep).is_pending());
        hand.advance(Duration::from_secs(1));
        assert!(futures_util::poll!(&mut sleep).is_pending());
        hand.advance(Duration::from_secs(1));
        assert!(futures_util::poll!(&mut sleep).is_ready());
    }

    #[test]
    fn a_manual_clock_stops_at_the_latest_time_and_never_goes_back() {
        let (clock, hand) = Clock::manual();
        hand.advance(Duration::from_secs(1));
        for _ in 0..2 {
            hand.advance(Duration::MAX);
            assert_eq!(clock.now(), Timestamp::NEVER);
        }
        hand.advance(Duration::from_nanos(1));
        assert_eq!(clock.now(), Timestamp::NEVER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_on_the_tokio_clock_ends_on_time() {
        let clock = Clock::tokio();
        let due = clock.now() + Duration::from_secs(3600);
        clock.sleep_until(due).await;
        assert!(clock.now() >= due);
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokio_clock_follows_paused_time() {
        let clock = Clock::tokio();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().since(before), Duration::from_secs(3600));
    }
}
