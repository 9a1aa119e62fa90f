//! A time of our own, so that a real, a simulated and a fleet's clock are the same thing to a machine.

use core::ops::Add;
use core::time::Duration;

/// A point in time: nanoseconds since an origin that its clock chose.
///
/// Only timestamps of one clock can be compared. All arithmetic saturates: the latest timestamp
/// lies 584 years after the origin, and a duration that reaches beyond it means "never".
///
/// ```
/// use core::time::Duration;
/// use kailash_core::time::Timestamp;
///
/// let opened = Timestamp::from_nanos(5);
/// let due = opened + Duration::from_secs(60);
/// assert_eq!(due.since(opened), Duration::from_secs(60));
/// assert_eq!(opened.since(due), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// The latest timestamp, which stands for "never".
    pub const NEVER: Self = Self(u64::MAX);

    /// The timestamp this many nanoseconds after the origin.
    #[inline]
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    #[inline]
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// How many nanoseconds after `earlier` this is; zero if it is not after it.
    #[inline]
    #[must_use]
    pub const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

/// The duration in nanoseconds, at most `u64::MAX`.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::ZERO + Duration::MAX, Timestamp::NEVER);
        assert_eq!(Timestamp::NEVER + Duration::from_nanos(1), Timestamp::NEVER);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
