//! How long calls waited for a slot.

use alloc::boxed::Box;
use core::time::Duration;

use crate::time::nanos;

/// Waiting times, counted in buckets that are at most an eighth wide.
#[derive(Clone, Debug)]
pub struct Waits {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

/// Eighths of each power of two.
const STEPS: u32 = 3;
const BUCKETS: usize = ((u64::BITS - STEPS + 1) << STEPS) as usize;

impl Waits {
    /// No waits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
        }
    }

    /// Counts one wait.
    pub fn record(&mut self, wait: Duration) {
        self.counts[bucket(nanos(wait))] += 1;
        self.total += 1;
    }

    /// The wait that a share of `calls` did not exceed, at most an eighth too long.
    ///
    /// Calls beyond those recorded did not wait at all. `per_mille` is the share in thousandths: 990
    /// for the 99th percentile.
    ///
    /// ```
    /// use core::time::Duration;
    /// use kailash_core::bulkhead::Waits;
    ///
    /// let mut waits = Waits::new();
    /// waits.record(Duration::from_millis(80));
    /// assert_eq!(waits.percentile(990, 1_000), Duration::ZERO);
    /// let slowest = waits.percentile(1_000, 1_000);
    /// assert!(slowest >= Duration::from_millis(80) && slowest <= Duration::from_millis(90));
    /// ```
    #[must_use]
    pub fn percentile(&self, per_mille: u64, calls: u64) -> Duration {
        let calls = u128::from(calls.max(self.total));
        let rank = (calls * u128::from(per_mille)).div_ceil(1_000);
        let mut seen = calls - u128::from(self.total);
        for (bucket, &count) in self.counts.iter().enumerate() {
            if seen >= rank {
                return if bucket == 0 {
                    Duration::ZERO
                } else {
                    upper_bound(bucket - 1)
                };
            }
            seen += u128::from(count);
        }
        upper_bound(BUCKETS - 1)
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(STEPS + 1);
    ((shift as usize) << STEPS) + (nanos >> shift) as usize
}

fn upper_bound(bucket: usize) -> Duration {
    let eighths = 1 << STEPS;
    let shift = (bucket >> STEPS).saturating_sub(1);
    let first = (bucket - (shift << STEPS)) as u64;
    debug_assert!(first < 2 * eighths);
    let last = ((u128::from(first) + 1) << shift) - 1;
    Duration::from_nanos(u64::try_from(last).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_an_eighth_wide() {
        for power in 0..64 {
            for near in [-1_i64, 0, 1, 3] {
                let wait = (1_u64 << power).saturating_add_signed(near);
                let bound = nanos(upper_bound(bucket(wait)));
                assert!(bound >= wait && bound - wait <= wait / 8, "{wait}: {bound}");
            }
        }
        assert_eq!(nanos(upper_bound(bucket(u64::MAX))), u64::MAX);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_count_the_calls_that_did_not_wait() {
        let mut waits = Waits::new();
        assert_eq!(waits.percentile(990, 0), Duration::ZERO);
        for _ in 0..2 {
            waits.record(Duration::from_nanos(5));
        }
        assert_eq!(waits.percentile(500, 4), Duration::ZERO);
        assert_eq!(waits.percentile(990, 4), Duration::from_nanos(5));
        assert_eq!(waits.percentile(500, 2), Duration::from_nanos(5));
    }
}
