//! Calls in flight that have run for too long: they count as slow before they end.
//!
//! A dependency that hangs ends no call, so nothing would be recorded until its callers give up. Here
//! every watched call is counted by the quarter of the threshold that it began in. When a quarter is
//! so old that all its calls are overdue, whoever is admitted next takes its count away, and with it
//! the right of those calls to count at their end. So each counts once, between one and one and a
//! quarter thresholds after its start, or later if nobody calls. One that fails at last makes its slow
//! outcome a failed one.
//!
//! What holds: of calls that do not overlap with a change of quarters each counts once. A thread that
//! stalls for two thresholds while it begins or ends a call may leave one call uncounted, or count
//! one twice.

use core::array;

use crate::sync::{AtomicU64, Ordering};

/// Quarters of a threshold that are told apart: two thresholds.
const QUARTERS: usize = 8;
/// A quarter is over, and all calls that began in it are overdue, this many quarters later.
const OVERDUE: u32 = 5;

/// The calls in flight, by when they began.
pub(super) struct Overdue {
    /// The quarter that was last looked at.
    looked: AtomicU64,
    /// Generation 16 bits, round of the ring 16, calls 32.
    quarters: [AtomicU64; QUARTERS],
}

/// A quarter by its low bits: round 16, place 3.
const PLACE_BITS: u32 = QUARTERS.trailing_zeros();
const QUARTER_MASK: u32 = (1 << (16 + PLACE_BITS)) - 1;
const COUNT_MASK: u64 = u32::MAX as u64;

impl Overdue {
    pub(super) fn new() -> Self {
        Self {
            looked: AtomicU64::new(0),
            quarters: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Takes away the calls of this generation that are overdue in `quarter`, and says how many.
    pub(super) fn take(&self, generation: u32, quarter: u64) -> u32 {
        let seen = self.looked.load(Ordering::Relaxed);
        // Not by which is later: a longer threshold numbers its quarters anew, from a smaller one.
        if seen == quarter {
            return 0;
        }
        let looks =
            self.looked
                .compare_exchange(seen, quarter, Ordering::AcqRel, Ordering::Relaxed);
        if looks.is_err() {
            return 0;
        }
        let now = quarter as u32 & QUARTER_MASK;
        let taken = self.quarters.iter().zip(0..).map(|(word, place)| {
            let seen = word.load(Ordering::Acquire);
            let began = ((seen >> 32) as u32 & 0xffff) << PLACE_BITS | place;
            let age = now.wrapping_sub(began) & QUARTER_MASK;
            let is_due = (OVERDUE..=QUARTER_MASK / 2).contains(&age);
            if is_due { empty(word, generation) } else { 0 }
        });
        taken.fold(0, u32::saturating_add)
    }

    /// Counts a call that begins in this quarter. The calls that it finds in the way are overdue: it
    /// answers how many they are.
    pub(super) fn begin(&self, generation: u32, quarter: u64) -> u32 {
        let (word, tag) = self.place(generation, quarter as u32);
        let mut seen = word.load(Ordering::Acquire);
        loop {
            let is_own = seen & !COUNT_MASK == tag;
            let new = if is_own { seen + 1 } else { tag | 1 };
            match word.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if is_own => return 0,
                Ok(_) => return count_of(seen, generation),
                Err(other) => seen = other,
            }
        }
    }

    /// Ends a call that began in this quarter. Answers whether it has still to be counted.
    pub(super) fn end(&self, generation: u32, quarter: u32) -> bool {
        let (word, tag) = self.place(generation, quarter);
        let mut seen = word.load(Ordering::Acquire);
        loop {
            if seen & !COUNT_MASK != tag || seen & COUNT_MASK == 0 {
                return false;
            }
            match word.compare_exchange_weak(seen, seen - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
    }

    fn place(&self, generation: u32, quarter: u32) -> (&AtomicU64, u64) {
        let round = quarter >> PLACE_BITS & 0xffff;
        let tag = u64::from(generation & 0xffff) << 48 | u64::from(round) << 32;
        (&self.quarters[quarter as usize % QUARTERS], tag)
    }
}

/// The part of a quarter's number that a permit remembers.
pub(super) fn low_bits(quarter: u64) -> u32 {
    quarter as u32 & QUARTER_MASK
}

fn count_of(word: u64, generation: u32) -> u32 {
    if (word >> 48) as u32 == generation & 0xffff {
        word as u32
    } else {
        0
    }
}

/// Takes a quarter's calls away, and keeps its tag so that they are known for taken.
fn empty(word: &AtomicU64, generation: u32) -> u32 {
    let mut seen = word.load(Ordering::Acquire);
    loop {
        let count = count_of(seen, generation);
        if count == 0 {
            return 0;
        }
        match word.compare_exchange_weak(
            seen,
            seen & !COUNT_MASK,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => return count,
            Err(other) => seen = other,
        }
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_overdue_once() {
        let calls = Overdue::new();
        assert_eq!(calls.begin(1, 3), 0);
        assert_eq!(calls.begin(1, 3), 0);
        assert!(calls.end(1, 3), "it ended in time");
        for early in 4..8 {
            assert_eq!(calls.take(1, early), 0, "quarter {early}");
        }
        assert_eq!(calls.take(1, 8), 1);
        assert_eq!(calls.take(1, 9), 0);
        assert!(!calls.end(1, 3), "it has been counted");
    }

    #[test]
    fn a_call_that_began_after_the_moment_of_a_look_is_young() {
        let calls = Overdue::new();
        calls.begin(1, 100);
        assert_eq!(calls.take(1, 90), 0);
        assert!(calls.end(1, 100));
    }

    #[test]
    fn calls_of_another_generation_are_nobodys() {
        let calls = Overdue::new();
        calls.begin(1, 3);
        assert_eq!(calls.take(2, 9), 0);
        assert!(!calls.end(2, 3));
    }

    #[test]
    fn calls_that_are_in_the_way_of_a_later_quarter_are_overdue() {
        let calls = Overdue::new();
        calls.begin(1, 3);
        calls.begin(1, 3);
        assert_eq!(calls.begin(1, 11), 2);
        assert!(!calls.end(1, 3));
        assert!(calls.end(1, 11));
    }

    #[test]
    fn it_works_on_beyond_the_low_bits() {
        let calls = Overdue::new();
        let late = u64::from(QUARTER_MASK);
        calls.begin(1, late);
        assert_eq!(calls.take(1, late + 4), 0);
        assert_eq!(calls.take(1, late + 5), 1);
        assert!(!calls.end(1, low_bits(late)));
    }

    #[test]
    fn a_call_that_hung_through_a_long_silence_is_overdue() {
        for silence in [5, 100, 5_000, 200_000] {
            let calls = Overdue::new();
            calls.begin(1, 3);
            assert_eq!(calls.take(1, 3 + silence), 1, "{silence} quarters");
        }
    }
}
