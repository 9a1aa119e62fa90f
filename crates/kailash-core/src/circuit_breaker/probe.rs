//! The leases of probes in flight: one deadline each, in a slot of its own.

use alloc::boxed::Box;
use core::array;

use crate::once_box::OnceBox;
use crate::sync::{AtomicU64, Ordering};
use crate::time::Timestamp;

/// Half-open breakers rarely probe with more than a few calls: these need no allocation.
const FEW: usize = 4;
pub(super) const MOST: usize = 1024;
pub(super) const NO_SLOT: u32 = MOST as u32;

/// One slot per probe that may be in flight.
///
/// A slot holds the low bits of its generation and a deadline, and counts only while its generation
/// is the current one. It is freed by its own generation alone, so that a probe of an earlier one
/// which ends late frees nobody else's.
pub(super) struct Leases {
    few: [AtomicU64; FEW],
    more: OnceBox<Box<[AtomicU64]>>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            few: array::from_fn(|_| AtomicU64::new(0)),
            more: OnceBox::new(),
        }
    }

    /// Makes room for this many probes at once.
    pub(super) fn make_room(&self, probes: u32) {
        if probes as usize > FEW {
            let slots = MOST - FEW;
            self.more
                .get_or_init(|| (0..slots).map(|_| AtomicU64::new(0)).collect());
        }
    }

    fn slots(&self) -> impl Iterator<Item = &AtomicU64> {
        let more = self.more.get().map_or(&[][..], |more| more);
        self.few.iter().chain(more)
    }

    /// Takes a slot until `deadline`. The caller has been counted as in flight, so there is one.
    ///
    /// `is_current` says whether the breaker is still in this generation. Asked after a slot was
    /// looked at, it tells a lease that an earlier generation left there from a later one's, which
    /// a caller that has stalled must not take: then it gets no slot, and needs none.
    pub(super) fn take(
        &self,
        generation: u32,
        deadline: Timestamp,
        is_current: impl Fn() -> bool,
    ) -> u32 {
        let value = Stamp::new(generation, deadline).pack();
        loop {
            for (slot, lease) in self.slots().enumerate() {
                let seen = lease.load(Ordering::Acquire);
                if seen != 0 && Stamp::unpack(seen).is_of(generation) {
                    continue;
                }
                if !is_current() {
                    return NO_SLOT;
                }
                let taken =
                    lease.compare_exchange(seen, value, Ordering::AcqRel, Ordering::Relaxed);
                if taken.is_ok() {
                    return slot as u32;
                }
            }
            crate::sync::relax();
        }
    }

    /// Gives back the slot that a probe of this generation took, unless it is another's by now.
    ///
    /// Within its generation a slot stays its taker's. A later one's stamp is told apart by its tag,
    /// up to 4,096 generations on: a caller asks before that the generation is still the current one.
    pub(super) fn give_back(&self, slot: u32, generation: u32) {
        let Some(slot) = self.slots().nth(slot as usize) else {
            return;
        };
        let seen = slot.load(Ordering::Relaxed);
        if seen != 0 && Stamp::unpack(seen).is_of(generation) {
            let _ = slot.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The earliest deadline of this generation's probes in flight.
    pub(super) fn earliest(&self, generation: u32) -> Option<Timestamp> {
        let live = |bits: u64| bits != 0 && Stamp::unpack(bits).is_of(generation);
        self.slots()
            .map(|slot| slot.load(Ordering::Acquire))
            .filter(|&bits| live(bits))
            .map(|bits| Stamp::unpack(bits).time())
            .min()
    }

    /// Frees the slots that probes of earlier generations left behind; `is_current` as in
    /// [`Leases::take`].
    pub(super) fn sweep(&self, generation: u32, is_current: impl Fn() -> bool) {
        for slot in self.slots() {
            let seen = slot.load(Ordering::Acquire);
            if seen != 0 && !Stamp::unpack(seen).is_of(generation) {
                if !is_current() {
                    return;
                }
                let _ = slot.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

/// A tag of 12 bits and a time of 52 bits in microseconds, rounded up: 142 years.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    pub(super) tag: u32,
    micros: u64,
}

const MICROS_BITS: u32 = 52;
/// The latest time, which stands for "never".
const NEVER: u64 = (1 << MICROS_BITS) - 1;
const TAG_MASK: u32 = (1 << super::state::TAG_BITS) - 1;

impl Stamp {
    pub(super) fn new(tag: u32, time: Timestamp) -> Self {
        Self {
            tag: tag & TAG_MASK,
            micros: time.as_nanos().div_ceil(1000).min(NEVER),
        }
    }

    pub(super) fn pack(self) -> u64 {
        (u64::from(self.tag) << MICROS_BITS) | self.micros
    }

    #[inline]
    pub(super) fn unpack(bits: u64) -> Self {
        Self {
            tag: (bits >> MICROS_BITS) as u32,
            micros: bits & NEVER,
        }
    }

    pub(super) fn is_of(self, tag: u32) -> bool {
        self.tag == tag & TAG_MASK
    }

    pub(super) fn time(self) -> Timestamp {
        if self.micros == NEVER {
            return Timestamp::NEVER;
        }
        Timestamp::from_nanos(self.micros.saturating_mul(1000))
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use super::*;

    const fn at(secs: u64) -> Timestamp {
        Timestamp::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn a_late_probe_cannot_free_anothers_slot() {
        let leases = Leases::new();
        let old = leases.take(2, at(10), || true);
        leases.sweep(5, || true);
        let new = leases.take(5, at(20), || true);
        assert_eq!(old, new);
        leases.give_back(old, 2);
        assert_eq!(leases.earliest(5), Some(at(20)));
        leases.give_back(new, 5);
        assert_eq!(leases.earliest(5), None);
    }

    #[test]
    fn every_probe_that_is_allowed_gets_a_slot() {
        let leases = Leases::new();
        leases.make_room(MOST as u32);
        for probe in 0..MOST as u64 {
            leases.take(1, at(100 + probe), || true);
        }
        assert_eq!(leases.earliest(1), Some(at(100)));
        leases.sweep(2, || true);
        assert_eq!(leases.earliest(1), None);
        assert_eq!(leases.slots().count(), MOST);
    }

    #[test]
    fn a_few_probes_need_no_allocation() {
        let leases = Leases::new();
        leases.make_room(FEW as u32);
        assert_eq!(leases.slots().count(), FEW);
    }

    #[test]
    fn a_sweep_leaves_the_leases_of_its_own_generation() {
        let leases = Leases::new();
        leases.take(5, at(10), || true);
        leases.sweep(5, || true);
        assert_eq!(leases.earliest(5), Some(at(10)));
    }

    #[test]
    fn times_are_kept_to_the_microsecond_and_never_early() {
        let kept = |nanos| {
            Stamp::new(0, Timestamp::from_nanos(nanos))
                .time()
                .as_nanos()
        };
        assert_eq!(kept(60_000_000_000), 60_000_000_000);
        assert_eq!(kept(1), 1000);
        assert_eq!(Stamp::new(0, Timestamp::NEVER).time(), Timestamp::NEVER);
    }
}
