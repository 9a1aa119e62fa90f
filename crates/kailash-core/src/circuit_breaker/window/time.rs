//! The outcomes of the last seconds: a time window is a ring of buckets.
//!
//! A bucket remembers the ticket that its time began with, so that a good call costs one ticket and
//! two looks, and the calls of a window are a difference of two tickets, however many they are. What
//! failed or was slow is counted in the bucket. A bucket is made new by whoever comes first in its
//! time, in one exchange per word: its tag says whose it is, and a bucket of another tag counts for
//! nothing, so idle gaps need no clearing.
//!
//! What holds: counts are exact for calls that do not overlap. A thread that stalls between reading
//! the clock and its ticket may count in the bucket after its own; one that stalls for a whole window
//! counts nowhere; one that stalls there for two transitions may make one bucket new too early. A
//! bucket tells about a million failed and as many slow calls, and counts no more of them. A bucket
//! that nobody used for exactly 65,536 rounds of the ring looks like one of now.

use core::array;

use super::{Call, Tally};
use crate::sync::{AtomicU64, Ordering};

/// Buckets of a time window.
pub(in super::super) const BUCKETS: usize = 16;

/// The buckets of one of a breaker's two windows.
pub(super) struct Buckets {
    /// Tag 24 bits, the bucket's first ticket 40.
    starts: [AtomicU64; BUCKETS],
    /// Tag 24 bits, failed calls 20, slow calls 20.
    bad: [AtomicU64; BUCKETS],
}

const TAG_SHIFT: u32 = 40;
const TICKET_MASK: u64 = (1 << TAG_SHIFT) - 1;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Whose a bucket is: the low bits of its generation and of the round of the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tag {
    generation: u8,
    round: u16,
}

impl Tag {
    fn new(generation: u32, tick: u64) -> Self {
        Self {
            // The lowest bit already picked the window.
            generation: (generation >> 1) as u8,
            round: (tick / BUCKETS as u64) as u16,
        }
    }

    fn pack(self) -> u64 {
        let bits = (u64::from(self.generation) << 16) | u64::from(self.round);
        bits << TAG_SHIFT
    }

    fn unpack(bits: u64) -> Self {
        let tag = bits >> TAG_SHIFT;
        Self {
            generation: (tag >> 16) as u8,
            round: tag as u16,
        }
    }

    /// Whether a bucket of this tag has gone to the round after `other`'s, which came too late. Any
    /// other difference is an older bucket's: one that nobody used for many rounds or generations.
    fn is_after(self, other: Self) -> bool {
        self.generation == other.generation && self.round == other.round.wrapping_add(1)
    }
}

impl Buckets {
    pub(super) fn new() -> Self {
        // No call of the first generations has this tag, so every bucket is somebody else's.
        let nobody = Tag {
            generation: u8::MAX,
            round: u16::MAX,
        };
        Self {
            starts: array::from_fn(|_| AtomicU64::new(nobody.pack())),
            bad: array::from_fn(|_| AtomicU64::new(nobody.pack())),
        }
    }

    /// Counts a call that ended in this tick, and takes its ticket. Answers how many calls its bucket
    /// holds; `None` if the bucket has gone to a later time.
    pub(super) fn record(&self, call: Call, tick: u64, tickets: &AtomicU64) -> Option<u64> {
        let slot = tick as usize % BUCKETS;
        let tag = Tag::new(call.generation, tick);
        let first = own(&self.starts[slot], tag, || {
            tickets.load(Ordering::Relaxed) & TICKET_MASK
        })?;
        let ticket = tickets.fetch_add(1, Ordering::AcqRel);
        if call.failed || call.slow {
            count(&self.bad[slot], tag, call.failed, call.slow);
        }
        Some((ticket + 1).wrapping_sub(first) & TICKET_MASK)
    }

    /// Counts a failure in this tick of a call that has its ticket already. `None` if the bucket has
    /// gone to a later time.
    pub(super) fn fail(&self, generation: u32, tick: u64, tickets: &AtomicU64) -> Option<()> {
        let slot = tick as usize % BUCKETS;
        let tag = Tag::new(generation, tick);
        own(&self.starts[slot], tag, || {
            tickets.load(Ordering::Relaxed) & TICKET_MASK
        })?;
        count(&self.bad[slot], tag, true, false);
        Some(())
    }

    /// Makes every bucket nobody's before `generation` uses them. `is_unused` says whether it does
    /// not do so yet: asked after a bucket was looked at, it tells an old count of a tag that looks
    /// like its own from a new one.
    pub(super) fn clear(&self, generation: u32, is_unused: impl Fn() -> bool) {
        let nobody = Tag {
            generation: !((generation >> 1) as u8),
            round: 0,
        };
        for word in self.starts.iter().chain(&self.bad) {
            let seen = word.load(Ordering::Acquire);
            if !is_unused() {
                return;
            }
            let _ = word.compare_exchange(seen, nobody.pack(), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The calls of this generation in the `count` buckets up to `tick`.
    pub(super) fn tally(&self, generation: u32, tick: u64, count: u64, tickets: u64) -> Tally {
        let mut tally = Tally::default();
        let mut calls = 0;
        for back in 0..count.min(BUCKETS as u64) {
            let Some(tick) = tick.checked_sub(back) else {
                break;
            };
            let slot = tick as usize % BUCKETS;
            let tag = Tag::new(generation, tick);
            let start = self.starts[slot].load(Ordering::Acquire);
            if Tag::unpack(start) != tag {
                continue;
            }
            // A late call may have made an earlier bucket after a later one: the longest reach counts.
            calls = calls.max(tickets.wrapping_sub(start) & TICKET_MASK);
            let bad = self.bad[slot].load(Ordering::Acquire);
            if Tag::unpack(bad) == tag {
                tally.failures += (bad >> COUNT_BITS & COUNT_MASK) as u32;
                tally.slow += (bad & COUNT_MASK) as u32;
            }
        }
        tally.calls = u32::try_from(calls).unwrap_or(u32::MAX);
        tally.failures = tally.failures.min(tally.calls);
        tally.slow = tally.slow.min(tally.calls);
        tally
    }
}

/// Counts what was bad about a call, unless the word belongs to a later tag.
fn count(word: &AtomicU64, tag: Tag, failed: bool, slow: bool) {
    let Some(counted) = own(word, tag, || 0) else {
        return;
    };
    // Threads that race past this look are far fewer than what is left above it.
    let has_room = |counted| counted < COUNT_MASK - 0xffff;
    let failed = failed && has_room(counted >> COUNT_BITS);
    let slow = slow && has_room(counted & COUNT_MASK);
    let more = (u64::from(failed) << COUNT_BITS) | u64::from(slow);
    word.fetch_add(more, Ordering::AcqRel);
}

/// What the word counts under this tag; one of an earlier tag is made new first. `None` if it
/// belongs to a later one.
fn own(word: &AtomicU64, tag: Tag, fresh: impl Fn() -> u64) -> Option<u64> {
    let mut seen = word.load(Ordering::Acquire);
    loop {
        let found = Tag::unpack(seen);
        if found == tag {
            return Some(seen & TICKET_MASK);
        }
        if found.is_after(tag) {
            return None;
        }
        let new = fresh();
        match word.compare_exchange(seen, tag.pack() | new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(new),
            Err(other) => seen = other,
        }
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use super::*;

    const fn call(generation: u32, failed: bool) -> Call {
        Call {
            generation,
            failed,
            slow: false,
        }
    }

    struct Ring {
        buckets: Buckets,
        tickets: AtomicU64,
    }

    impl Ring {
        fn new() -> Self {
            Self {
                buckets: Buckets::new(),
                tickets: AtomicU64::new(0),
            }
        }

        fn record(&self, call: Call, tick: u64) -> Option<u64> {
            self.buckets.record(call, tick, &self.tickets)
        }

        fn tally(&self, generation: u32, tick: u64) -> (u32, u32) {
            let tickets = self.tickets.load(Ordering::Relaxed);
            let tally = self.buckets.tally(generation, tick, 16, tickets);
            (tally.calls, tally.failures)
        }
    }

    #[test]
    fn calls_leave_the_window_with_their_bucket() {
        let ring = Ring::new();
        for tick in 0..40 {
            ring.record(call(0, tick % 2 == 0), tick);
            let held = (tick + 1).min(16) as u32;
            let failed = held.div_ceil(2) - u32::from(tick % 2 == 1 && held % 2 == 1);
            assert_eq!(ring.tally(0, tick), (held, failed), "tick {tick}");
        }
        assert_eq!(ring.tally(0, 54), (1, 0), "only the newest bucket is left");
        assert_eq!(ring.tally(0, 55), (0, 0));
    }

    #[test]
    fn an_idle_gap_of_any_length_leaves_nothing_behind() {
        let ring = Ring::new();
        ring.record(call(0, true), 3);
        for gap in [16, 17, 16 * 255, 16 * 256, 16 * 257 + 5, 16 * 65_535] {
            assert_eq!(ring.tally(0, 3 + gap), (0, 0), "after {gap} ticks");
        }
    }

    #[test]
    fn another_generation_in_the_same_bucket_starts_from_nothing() {
        let ring = Ring::new();
        ring.record(call(0, true), 5);
        assert_eq!(ring.tally(2, 5), (0, 0));
        assert_eq!(ring.record(call(2, false), 5), Some(1));
        assert_eq!(ring.tally(2, 5), (1, 0));
    }

    #[test]
    fn a_bucket_is_used_again_after_any_number_of_generations_and_rounds() {
        for later in [1, 100, 127, 128, 129, 255] {
            let ring = Ring::new();
            ring.record(call(0, true), 5);
            assert_eq!(ring.record(call(2 * later, true), 5), Some(1), "{later}");
        }
        for rounds in [2, 100, 32_767, 32_768, 40_000, 65_534] {
            let ring = Ring::new();
            ring.record(call(0, true), 5);
            assert_eq!(
                ring.record(call(0, true), 5 + 16 * rounds),
                Some(1),
                "{rounds}"
            );
        }
    }

    #[test]
    fn what_is_cleared_for_a_generation_is_not_its_own() {
        for generation in 0..1024 {
            let buckets = Buckets::new();
            buckets.clear(generation, || true);
            for (slot, word) in buckets.starts.iter().chain(&buckets.bad).enumerate() {
                let own = Tag::new(generation, slot as u64 % BUCKETS as u64);
                let tag = Tag::unpack(word.load(Ordering::Relaxed));
                assert!(tag != own && !tag.is_after(own), "generation {generation}");
            }
        }
    }

    #[test]
    fn what_is_in_use_is_not_cleared() {
        let ring = Ring::new();
        ring.record(call(0, true), 5);
        ring.buckets.clear(512, || false);
        assert_eq!(ring.tally(0, 5), (1, 1));
        ring.buckets.clear(512, || true);
        assert_eq!(ring.tally(0, 5), (0, 0));
    }

    #[test]
    fn a_call_that_comes_a_whole_window_late_counts_nowhere() {
        let ring = Ring::new();
        ring.record(call(0, false), 20);
        assert_eq!(ring.record(call(0, true), 4), None);
        assert_eq!(ring.tally(0, 20), (1, 0));
    }

    #[test]
    fn counts_of_a_bucket_never_run_into_each_other() {
        let ring = Ring::new();
        let both = Call {
            slow: true,
            ..call(0, true)
        };
        for _ in 0..1_100_000 {
            ring.record(both, 0);
        }
        let tickets = ring.tickets.load(Ordering::Relaxed);
        let tally = ring.buckets.tally(0, 0, 16, tickets);
        assert_eq!(tally.calls, 1_100_000);
        assert_eq!(tally.failures, tally.slow);
        assert!((900_000..=1_048_575).contains(&tally.failures));
    }
}
