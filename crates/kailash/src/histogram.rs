//! How long things took, in buckets that never grow.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kailash_core::time::nanos;

/// Durations counted by length, in 256 buckets of fixed bounds: 2 KiB, whatever is recorded.
///
/// A bucket is an eighth of an octave wide, from a microsecond to 73 minutes, so that a quantile is at
/// most an eighth too long; what takes longer counts as 73 minutes. Recording takes no lock and
/// allocates nothing.
///
/// ```
/// use std::time::Duration;
/// use kailash::histogram::Histogram;
///
/// let durations = Histogram::new();
/// for ms in 1..=100 {
///     durations.record(Duration::from_millis(ms));
/// }
/// let seen = durations.snapshot();
/// assert_eq!(seen.count(), 100);
/// assert_eq!(seen.mean(), Duration::from_micros(50_500));
/// let median = seen.quantile(0.5);
/// assert!(median >= Duration::from_millis(50) && median < Duration::from_millis(57));
/// ```
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    /// Nanoseconds; it wraps after 584 years of recorded time.
    sum: AtomicU64,
}

/// Buckets per octave, as a power of two.
const STEPS: u32 = 3;
/// The first octave begins at 2^10 ns; all that is shorter falls into its first bucket.
const FIRST: u32 = 10;
const OCTAVES: u32 = 32;
const BUCKETS: usize = (OCTAVES << STEPS) as usize;

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let nanos = nanos(duration);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What has been counted so far.
    ///
    /// Each figure is true by itself; under traffic they are not of one instant.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Snapshot {
            buckets: std::array::from_fn(|index| load(&self.buckets[index])),
            sum: load(&self.sum),
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// A histogram at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Snapshot {
    /// How many durations were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All durations together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The mean; zero if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.count()).unwrap_or(0))
    }

    /// The duration that this share (0 to 1) of them does not exceed, at most an eighth too long;
    /// zero if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let count = self.count();
        let wanted = ((count as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut reached = self.cumulative();
        let found = reached.find(|&(_, so_far)| so_far >= wanted);
        found.map_or(Duration::ZERO, |(upper, _)| upper)
    }

    /// The buckets that hold anything: the upper bound of each, and how many durations do not
    /// exceed it.
    ///
    /// They are cumulative, as Prometheus wants them, whose `+Inf` is the count. It wants the same
    /// bounds at any time too, and a bucket is here once it holds something: for a metric take
    /// [`Snapshot::octaves`].
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let held = self.buckets.iter().enumerate().filter(|&(_, &n)| n > 0);
        held.scan(0, |so_far, (index, n)| {
            *so_far += n;
            Some((Duration::from_nanos(upper_bound(index)), *so_far))
        })
    }

    /// How many durations do not exceed each of 31 bounds, which double from 2.048 µs to 37 min and
    /// are always the same: the buckets of a metric, whose series must not come and go. Its last
    /// one, `+Inf`, is [`Snapshot::count`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use kailash::histogram::Histogram;
    ///
    /// let durations = Histogram::new();
    /// durations.record(Duration::from_millis(3));
    /// let seen = durations.snapshot();
    /// let mut lines = String::new();
    /// for (bound, count) in seen.octaves() {
    ///     lines += &format!("took_seconds_bucket{{le=\"{}\"}} {count}\n", bound.as_secs_f64());
    /// }
    /// lines += &format!("took_seconds_bucket{{le=\"+Inf\"}} {}\n", seen.count());
    /// assert!(lines.contains("{le=\"0.002097152\"} 0\n"));
    /// assert!(lines.contains("{le=\"0.004194304\"} 1\n"));
    /// ```
    pub fn octaves(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let octaves = self.buckets.chunks(1 << STEPS).enumerate();
        // Without a bound for the last, which holds all that is longer.
        let bounded = octaves.take(OCTAVES as usize - 1);
        bounded.scan(0, |so_far, (octave, buckets)| {
            *so_far += buckets.iter().sum::<u64>();
            let bound = 1 << (FIRST as usize + octave + 1);
            Some((Duration::from_nanos(bound), *so_far))
        })
    }

    /// What was recorded after `earlier` was taken of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let each = |index: usize| self.buckets[index].saturating_sub(earlier.buckets[index]);
        Self {
            buckets: std::array::from_fn(each),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("count", &self.count())
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .finish()
    }
}

/// A duration of exactly a bucket's upper bound belongs to it, as Prometheus counts.
#[inline]
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.saturating_sub(1);
    let octave = (nanos | 1).ilog2();
    if octave < FIRST {
        return 0;
    }
    let step = (nanos >> (octave - STEPS)) & ((1 << STEPS) - 1);
    let index = (((octave - FIRST) << STEPS) | step as u32) as usize;
    index.min(BUCKETS - 1)
}

fn upper_bound(index: usize) -> u64 {
    let (octave, step) = (index >> STEPS, index & ((1 << STEPS) - 1));
    let eighths = (1 << STEPS) + step as u64 + 1;
    eighths << (FIRST - STEPS + octave as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    proptest! {
        #[test]
        fn a_quantile_is_never_too_short_and_at_most_an_eighth_too_long(
            nanos in 1024_u64..(1 << 41)
        ) {
            let histogram = Histogram::new();
            histogram.record(Duration::from_nanos(nanos));
            let found = histogram.snapshot().quantile(1.0).as_nanos() as u64;
            prop_assert!(found >= nanos && found <= nanos + nanos / 8 + 1, "{nanos} -> {found}");
        }
    }

    #[test]
    fn bounds_rise_and_each_belongs_to_its_own_bucket() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(upper_bound(index)), index);
            let next = bucket(upper_bound(index) + 1);
            assert_eq!(next, (index + 1).min(BUCKETS - 1));
        }
    }

    #[test]
    fn the_shortest_and_the_longest_durations_are_counted() {
        let histogram = Histogram::new();
        histogram.record(Duration::ZERO);
        histogram.record(Duration::from_nanos(1));
        histogram.record(Duration::MAX);
        let seen = histogram.snapshot();
        let ends: Vec<u64> = seen.cumulative().map(|(_, so_far)| so_far).collect();
        assert_eq!((seen.count(), &ends[..]), (3, &[2, 3][..]));
    }

    #[test]
    fn octaves_have_the_same_bounds_whatever_was_recorded_and_count_what_does_not_exceed_them() {
        let histogram = Histogram::new();
        let empty = histogram.snapshot();
        let recorded = [
            1,
            2048,
            2049,
            4096,
            1 << 30,
            (1 << 30) + 1,
            1 << 41,
            u64::MAX,
        ];
        for nanos in recorded {
            histogram.record(Duration::from_nanos(nanos));
        }
        let seen = histogram.snapshot();
        assert!(empty.octaves().all(|(_, count)| count == 0));
        assert!(
            seen.octaves()
                .map(|(bound, _)| bound)
                .eq(empty.octaves().map(|(bound, _)| bound))
        );
        assert_eq!(seen.octaves().count(), 31);
        for (bound, count) in seen.octaves() {
            let within = recorded
                .iter()
                .filter(|&&it| Duration::from_nanos(it) <= bound);
            assert_eq!(count, within.count() as u64, "{bound:?}");
        }
    }

    #[test]
    fn quantiles_of_nothing_are_zero() {
        let seen = Histogram::new().snapshot();
        assert_eq!((seen.quantile(0.99), seen.mean()), (MS(0), MS(0)));
    }

    #[test]
    fn the_difference_of_two_snapshots_is_what_came_between() {
        let histogram = Histogram::new();
        histogram.record(MS(5));
        let before = histogram.snapshot();
        histogram.record(MS(80));
        let since = histogram.snapshot().since(&before);
        assert_eq!((since.count(), since.sum()), (1, MS(80)));
        assert!(since.quantile(0.5) >= MS(80));
    }
}
