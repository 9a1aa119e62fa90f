//! How long the newest calls ran.

use core::array;
// Each entry stands by itself; a model checker need not see them.
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use crate::time::Timestamp;

const KEPT: usize = 32;
/// Fewer calls say nothing about the next.
const ENOUGH: usize = 8;
const RECENT_SECS: u64 = 60;

/// Microseconds, which reach for 12 days; the seconds of the end stand above them, and begin anew after
/// half a year.
const RAN_BITS: u32 = 40;
const MOST_MICROS: u64 = (1 << RAN_BITS) - 1;
const SECS: u64 = u64::MAX >> RAN_BITS;

/// How long each of the newest calls held its slot.
///
/// A call that ends writes one word; nothing is locked. The estimate follows a dependency that has become
/// slow or fast within 16 calls, and forgets in a minute of silence.
///
/// ```
/// use core::time::Duration;
/// use kailash_core::bulkhead::Runs;
/// use kailash_core::time::Timestamp;
///
/// let runs = Runs::new();
/// let now = Timestamp::ZERO + Duration::from_secs(1);
/// assert_eq!(runs.p50(now), None);
/// for ms in 1..=9 {
///     runs.record(Duration::from_millis(ms), now);
/// }
/// assert_eq!(runs.p50(now), Some(Duration::from_millis(5)));
/// assert_eq!(runs.p50(now + Duration::from_secs(61)), None);
/// ```
#[derive(Debug)]
pub struct Runs {
    entries: [AtomicU64; KEPT],
    recorded: AtomicUsize,
}

impl Runs {
    /// No calls yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: array::from_fn(|_| AtomicU64::new(0)),
            recorded: AtomicUsize::new(0),
        }
    }

    /// Takes down a call that has ended now.
    pub fn record(&self, ran: Duration, now: Timestamp) {
        // Never zero, which stands for an entry that nobody has written.
        let micros = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
        let entry = secs(now) << RAN_BITS | micros.clamp(1, MOST_MICROS);
        let number = self.recorded.fetch_add(1, Ordering::Relaxed);
        self.entries[number % KEPT].store(entry, Ordering::Relaxed);
    }

    /// The time that half of the newest calls did not exceed; `None` if there are fewer than 8 of the last
    /// minute.
    #[must_use]
    pub fn p50(&self, now: Timestamp) -> Option<Duration> {
        let mut ran = [0; KEPT];
        let mut count = 0;
        for entry in &self.entries {
            let entry = entry.load(Ordering::Relaxed);
            let age = secs(now).wrapping_sub(entry >> RAN_BITS) & SECS;
            // A call that ended on another thread after `now` was read is a second ahead at most.
            if entry != 0 && (age <= RECENT_SECS || age == SECS) {
                ran[count] = entry & MOST_MICROS;
                count += 1;
            }
        }
        if count < ENOUGH {
            return None;
        }
        let (_, median, _) = ran[..count].select_nth_unstable((count - 1) / 2);
        Some(Duration::from_micros(*median))
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self::new()
    }
}

fn secs(at: Timestamp) -> u64 {
    at.since(Timestamp::ZERO).as_secs() & SECS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn the_largest_figures_hold() {
        let runs = Runs::new();
        for _ in 0..ENOUGH {
            runs.record(Duration::MAX, Timestamp::NEVER);
        }
        let longest = Duration::from_micros(MOST_MICROS);
        assert_eq!(runs.p50(Timestamp::NEVER), Some(longest));
    }

    proptest! {
        #[test]
        fn it_is_the_median_of_the_newest_in_a_list(
            calls in prop::collection::vec((0..20_u64, 1..1_000_000_u64), 0..100),
        ) {
            let runs = Runs::new();
            let mut list = Vec::new();
            let mut second = 0;
            for (pause, micros) in calls {
                second += pause;
                let now = Timestamp::ZERO + Duration::from_secs(second);
                runs.record(Duration::from_micros(micros), now);
                list.push((second, micros));
                let newest = list.iter().rev().take(32);
                let recent = newest.filter(|(ended, _)| ended + 60 >= second);
                let mut ran: Vec<_> = recent.map(|(_, micros)| *micros).collect();
                ran.sort_unstable();
                let median = (ran.len() >= 8).then(|| ran[(ran.len() - 1) / 2]);
                prop_assert_eq!(runs.p50(now), median.map(Duration::from_micros));
            }
        }
    }
}
