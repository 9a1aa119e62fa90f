//! The slots of a partition: how many run, how many wait, how many may run.

use core::fmt;
// Counts decide nothing; a model checker need not see them.
use core::sync::atomic::{AtomicU32 as Peak, AtomicU64 as Count};

use super::ceiling::Denied;
use super::runs::Runs;
use crate::sync::{AtomicU64, Ordering};

/// The largest limit, and the largest queue.
pub(super) const MOST_SLOTS: u32 = 1_000_000;

const BITS: u32 = 20;
const MASK: u64 = (1 << BITS) - 1;
const QUEUED: u32 = BITS;
const LIMIT: u32 = 2 * BITS;
const ONE_ACTIVE: u64 = 1;
const ONE_QUEUED: u64 = 1 << QUEUED;
const CLOSED: u64 = 1 << (3 * BITS);
/// Above all else the word counts starts, and begins anew at 8: only every eighth touches a second word.
const ONE_START: u64 = CLOSED << 1;
const STARTS: u64 = 8;

/// The slots of one partition, in one atomic word.
///
/// Taking a free slot and giving it back is one compare-and-swap each. What changes the queue or the
/// limit goes through [`Queue`](super::Queue), whose lock the caller then holds.
///
/// ```
/// use kailash_core::bulkhead::{Released, Slots};
///
/// let slots = Slots::new(1);
/// assert!(slots.try_acquire().is_ok());
/// assert_eq!(slots.try_acquire().unwrap_err().active, 1);
/// assert_eq!(slots.release(), Released::Free);
/// ```
pub struct Slots {
    // The figures share the word's cache line, which a call has just made its own.
    word: AtomicU64,
    /// In eights.
    started: Count,
    refused: Count,
    peak: Peak,
    runs: Runs,
}

/// What the word of a partition's slots says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Calls that hold a slot.
    pub active: u32,
    /// Calls that wait for one.
    pub queued: u32,
    /// How many calls may hold one.
    pub limit: u32,
    /// Whether the partition admits nobody any more.
    pub is_closed: bool,
}

/// What became of a slot that its call is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Released {
    /// It is free.
    Free,
    /// It is free, and it was the last of a closed partition.
    Last,
    /// It is still held, since somebody waits for it: call [`Queue::hand_over`](super::Queue::hand_over)
    /// under the lock.
    Wanted,
}

impl Slots {
    /// Free slots, as many as `limit`, which is at most 1,000,000.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            word: AtomicU64::new(u64::from(limit.min(MOST_SLOTS)) << LIMIT),
            started: Count::new(0),
            refused: Count::new(0),
            peak: Peak::new(0),
            runs: Runs::new(),
        }
    }

    /// Takes a free slot, which [`Slots::release`] gives back.
    ///
    /// # Errors
    /// When there is none, somebody waits, or the partition is closed.
    #[inline]
    pub fn try_acquire(&self) -> Result<(), Occupancy> {
        self.update(is_free, |word| with_start(word + ONE_ACTIVE))
            .map(|word| self.count_start(word))
            .map_err(occupancy)
    }

    /// Takes a free slot of this partition and one of the ceiling over it, which both are to be given back.
    ///
    /// # Errors
    /// When either has none, or somebody waits for one; then neither is held, unless the error says so.
    #[inline]
    pub fn try_acquire_under(&self, ceiling: &Self) -> Result<(), Denied> {
        let taken = self.update(is_free, |word| word + ONE_ACTIVE);
        let word = taken.map_err(|word| Denied {
            occupancy: occupancy(word),
            released: Released::Free,
        })?;
        if ceiling.try_acquire().is_ok() {
            let word = self.always(with_start);
            self.count_start(word);
            return Ok(());
        }
        Err(Denied {
            occupancy: occupancy(word - ONE_ACTIVE),
            released: self.release(),
        })
    }

    /// Takes a slot though none may be free, for work that goes on after its call has given up.
    ///
    /// The call's own slot is to be given back right after, so that the limit is true again. False, and
    /// nothing taken, when more cannot be counted.
    ///
    /// ```
    /// use kailash_core::bulkhead::{Released, Slots};
    ///
    /// let slots = Slots::new(1);
    /// slots.try_acquire().unwrap();
    /// assert!(slots.take_over());
    /// assert_eq!(slots.release(), Released::Free);
    /// assert!(slots.try_acquire().is_err(), "the work still runs");
    /// ```
    #[must_use]
    pub fn take_over(&self) -> bool {
        self.update(|word| word & MASK < MASK, |word| word + ONE_ACTIVE)
            .is_ok()
    }

    /// Gives a slot back, unless somebody waits for it.
    #[inline]
    pub fn release(&self) -> Released {
        match self.update(may_fall, |word| word - ONE_ACTIVE) {
            Ok(word) if word & CLOSED != 0 && word & MASK == 0 => Released::Last,
            Ok(_) => Released::Free,
            Err(_) => Released::Wanted,
        }
    }

    /// How full the partition is.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        occupancy(self.word.load(Ordering::Acquire))
    }

    /// Counts a call that was turned away.
    #[inline]
    pub fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls have got a slot so far. While one gets its, it may be 8 short.
    #[must_use]
    pub fn started(&self) -> u64 {
        let since_the_eighth = self.word.load(Ordering::Relaxed) / ONE_START;
        self.started.load(Ordering::Relaxed) + since_the_eighth
    }

    /// How many calls were turned away so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The most calls that held a slot at once so far.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    /// How long the newest calls ran, as far as their shell says so.
    #[must_use]
    pub const fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Counts a waiter in, unless a slot is free or the partition is closed; under the lock.
    pub(super) fn join_queue(&self) -> Result<(), Occupancy> {
        let is_full = |word| !is_free(word) && word & CLOSED == 0;
        self.update(is_full, |word| word + ONE_QUEUED)
            .map(drop)
            .map_err(occupancy)
    }

    /// Counts a waiter out; under the lock.
    pub(super) fn leave_queue(&self) {
        self.always(|word| word - ONE_QUEUED);
    }

    /// Passes a slot on to a waiter, which leaves the queue with it; under the lock.
    pub(super) fn pass_on(&self) {
        let word = self.always(|word| with_start(word - ONE_QUEUED));
        self.count_start(word);
    }

    /// Takes a slot for the queue where a raised limit has one; under the lock.
    pub(super) fn take_for_queue(&self) -> bool {
        let has_room = |word| queued(word) > 0 && active(word) < limit(word);
        self.update(has_room, |word| word + ONE_ACTIVE).is_ok()
    }

    /// Counts a waiter in, though a slot may be free: [`Queues`](super::Queues) then settles; under the lock.
    pub(super) fn count_waiter(&self) {
        self.always(|word| word + ONE_QUEUED);
    }

    /// Whether somebody waits though there is room; under the lock.
    pub(super) fn is_held_up(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        queued(word) > 0 && active(word) < limit(word)
    }

    /// Frees a slot though somebody may wait; whether it was the last of a closed partition; under the lock.
    pub(super) fn fall(&self) -> bool {
        let word = self.always(|word| word - ONE_ACTIVE);
        word & CLOSED != 0 && word & MASK == 0
    }

    /// Of a ceiling: frees a slot that is one too many; under the lock.
    pub(super) fn drop_surplus(&self) -> bool {
        let has_surplus = |word| active(word) > limit(word);
        self.update(has_surplus, |word| word - ONE_ACTIVE).is_ok()
    }

    /// Of a ceiling: takes a slot for a waiter of some partition; under the lock.
    pub(super) fn take_room(&self) -> bool {
        let has_room = |word| active(word) < limit(word);
        let taken = self.update(has_room, |word| with_start(word + ONE_ACTIVE));
        taken.map(|word| self.count_start(word)).is_ok()
    }

    /// Of a ceiling: notes how many partitions it holds up, unless it has room for one; under the lock.
    pub(super) fn count_held_up(&self, partitions: usize) -> bool {
        let partitions = u64::try_from(partitions).map_or(MASK, |count| count.min(MASK));
        let is_true = |word| partitions == 0 || active(word) >= limit(word);
        self.update(is_true, |word| {
            word & !(MASK << QUEUED) | partitions << QUEUED
        })
        .is_ok()
    }

    /// Changes the limit; under the lock.
    pub(super) fn set_limit(&self, limit: u32) {
        let limit = u64::from(limit.min(MOST_SLOTS)) << LIMIT;
        self.always(|word| word & !(MASK << LIMIT) | limit);
    }

    /// Admits nobody from now on, and forgets the waiters; under the lock.
    pub(super) fn close(&self) {
        self.always(|word| word & !(MASK << QUEUED) | CLOSED);
    }

    #[inline]
    fn count_start(&self, word: u64) {
        if word < ONE_START {
            self.started.fetch_add(STARTS, Ordering::Relaxed);
        }
        let active = active(word);
        if self.peak.load(Ordering::Relaxed) < active {
            self.peak.fetch_max(active, Ordering::Relaxed);
        }
    }

    /// Replaces a word that `allowed` accepts, and returns the new one; the error is a word it refused.
    #[inline]
    fn update(
        &self,
        allowed: impl Fn(u64) -> bool,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, u64> {
        let mut word = self.word.load(Ordering::Relaxed);
        while allowed(word) {
            let next = change(word);
            let (won, seen) = (Ordering::AcqRel, Ordering::Relaxed);
            match self.word.compare_exchange_weak(word, next, won, seen) {
                Ok(_) => return Ok(next),
                Err(now) => word = now,
            }
        }
        Err(word)
    }

    fn always(&self, change: impl Fn(u64) -> u64) -> u64 {
        self.update(|_| true, change)
            .expect("every word is accepted")
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.occupancy().fmt(f)
    }
}

const fn active(word: u64) -> u32 {
    (word & MASK) as u32
}

const fn queued(word: u64) -> u32 {
    (word >> QUEUED & MASK) as u32
}

const fn limit(word: u64) -> u32 {
    (word >> LIMIT & MASK) as u32
}

/// The word after one more start.
const fn with_start(word: u64) -> u64 {
    word.wrapping_add(ONE_START)
}

const fn is_free(word: u64) -> bool {
    word & CLOSED == 0 && queued(word) == 0 && active(word) < limit(word)
}

/// Whether a slot may become free: nobody waits for it, or it is one too many.
const fn may_fall(word: u64) -> bool {
    queued(word) == 0 || active(word) > limit(word)
}

const fn occupancy(word: u64) -> Occupancy {
    Occupancy {
        active: active(word),
        queued: queued(word),
        limit: limit(word),
        is_closed: word & CLOSED != 0,
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn only_the_last_slot_of_a_closed_partition_falls_as_the_last() {
        let slots = Slots::new(2);
        for _ in 0..2 {
            slots.try_acquire().unwrap();
        }
        assert!(!slots.fall(), "it is open");
        assert!(!slots.fall(), "it is open, and empty");
        for _ in 0..2 {
            slots.try_acquire().unwrap();
        }
        slots.close();
        assert!(!slots.fall(), "another is held");
        assert!(slots.fall());
    }

    #[test]
    fn nobody_waits_where_a_slot_is_free_or_the_partition_is_closed() {
        let slots = Slots::new(1);
        assert!(slots.join_queue().is_err(), "a slot is free");
        slots.try_acquire().unwrap();
        assert!(slots.join_queue().is_ok());
        assert_eq!(slots.occupancy().queued, 1);
        slots.close();
        assert!(slots.join_queue().is_err(), "it is closed");
        assert_eq!(slots.occupancy().queued, 0);
    }

    #[test]
    fn a_ceiling_drops_only_what_it_has_beyond_its_limit() {
        let ceiling = Slots::new(2);
        for _ in 0..2 {
            ceiling.try_acquire().unwrap();
        }
        assert!(!ceiling.drop_surplus());
        ceiling.set_limit(1);
        assert!(ceiling.drop_surplus());
        assert!(!ceiling.drop_surplus());
        assert_eq!(ceiling.occupancy().active, 1);
    }

    #[test]
    fn slots_show_how_full_they_are() {
        let slots = Slots::new(2);
        slots.try_acquire().unwrap();
        assert_eq!(
            std::format!("{slots:?}"),
            std::format!("{:?}", slots.occupancy())
        );
        assert!(std::format!("{slots:?}").contains("active: 1"));
    }

    #[test]
    fn what_is_closed_stays_closed() {
        let slots = Slots::new(1);
        for _ in 0..2 {
            slots.close();
            assert!(slots.try_acquire().unwrap_err().is_closed);
        }
    }

    #[test]
    fn a_thousand_racers_never_exceed_the_limit() {
        let slots = Slots::new(10);
        let (inside, taken) = (Peak::new(0), Count::new(0));
        let start = Barrier::new(1_000);
        let race = || {
            start.wait();
            for _ in 0..100 {
                if slots.try_acquire().is_ok() {
                    taken.fetch_add(1, Ordering::SeqCst);
                    let others = inside.fetch_add(1, Ordering::SeqCst);
                    assert!(others < 10, "{others} others at once");
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(slots.release(), Released::Free);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..1_000 {
                let racer = thread::Builder::new().stack_size(64 * 1024);
                racer.spawn_scoped(scope, race).unwrap();
            }
        });
        assert_eq!(slots.occupancy().active, 0);
        assert!((1..=10).contains(&slots.peak()));
        assert_eq!(slots.started(), taken.into_inner());
    }

    #[test]
    fn the_largest_limit_fits_the_word() {
        let slots = Slots::new(u32::MAX);
        assert_eq!(slots.occupancy().limit, MOST_SLOTS);
        assert!(u64::from(MOST_SLOTS) <= MASK);
        assert_eq!(u64::MAX / ONE_START + 1, STARTS);
    }
}
