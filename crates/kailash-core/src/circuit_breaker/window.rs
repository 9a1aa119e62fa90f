//! The outcomes that rates are computed from: of the newest calls, or of the last seconds.
//!
//! A time window is made of buckets (see `time`); what follows is the window of the newest calls.
//!
//! A call takes a ticket, and its ticket picks its slot: one bit in a plane of failures and one in
//! a plane of slow calls. A ring is a power of two long and at least as long as the window, so the
//! window is simply the newest slots. Nothing is ever cleared: a generation remembers the ticket it
//! began with, and slots before it do not count.
//!
//! Two windows take turns by generation, so that a straggler of the generation before cannot
//! disturb the one that counts.
//!
//! What holds: counts are exact for calls that do not overlap. Of calls that overlap, one that
//! stalls between its ticket and its bit shows the slot's older bit until it goes on, and after a
//! whole round of the ring displaces one outcome. Calls that end at the same moment may each miss
//! the other in their own look at the rate; the next failure sees them all. A call that stalls
//! between its look at the window and its ticket while the breaker changes twice takes its ticket
//! in a window of another generation, where it is one outcome too many.

mod time;

use alloc::boxed::Box;
use core::array;

use super::config;
use super::state::{in_generation, precedes};
use crate::once_box::OnceBox;
use crate::sync::{AtomicU64, Ordering};
pub(super) use time::BUCKETS;
use time::Buckets;

/// The outcomes that a rate is computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) calls: u32,
    pub(super) failures: u32,
    pub(super) slow: u32,
}

/// Both windows' rings: `2^class` times 128 slots, made when a window first needs that many; and the
/// buckets of time windows, made when one is asked for.
pub(super) struct Rings {
    /// The smallest class needs no allocation of its own.
    smallest: [AtomicU64; 4 * SMALLEST / 64],
    /// Few breakers have a larger window: for the others it is one word.
    larger: OnceBox<Larger>,
    timed: OnceBox<[Buckets; 2]>,
}

type Larger = [OnceBox<Box<[AtomicU64]>>; CLASSES - 1];

const SMALLEST: usize = 128;
const CLASSES: usize = 10;
/// The class of a window that is made of buckets.
const TIMED: u32 = 15;

impl Rings {
    pub(super) fn new() -> Self {
        Self {
            smallest: array::from_fn(|_| AtomicU64::new(0)),
            larger: OnceBox::new(),
            timed: OnceBox::new(),
        }
    }

    /// The class that such a window needs; its storage exists afterwards.
    pub(super) fn class_for(&self, window: config::Window) -> u32 {
        let size = match window {
            config::Window::Calls(size) => size,
            config::Window::Span(_) => {
                self.timed
                    .get_or_init(|| array::from_fn(|_| Buckets::new()));
                return TIMED;
            }
        };
        let slots = (size as usize).next_power_of_two().max(SMALLEST);
        let class = (slots / SMALLEST).trailing_zeros();
        if let Some(larger) = (class as usize).checked_sub(1) {
            let rings = self
                .larger
                .get_or_init(|| array::from_fn(|_| OnceBox::new()));
            rings[larger].get_or_init(|| {
                let words = 4 * slots / 64;
                (0..words).map(|_| AtomicU64::new(0)).collect()
            });
        }
        class
    }

    fn buckets(&self, generation: u32) -> &Buckets {
        let both = self
            .timed
            .get()
            .expect("class_for made the buckets before a window names their class");
        &both[(generation & 1) as usize]
    }

    /// The plane of failures and the plane of slow calls of one window.
    #[inline]
    fn planes(&self, class: u32, window: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let words: &[AtomicU64] = match (class as usize).checked_sub(1) {
            None => &self.smallest,
            Some(larger) => self
                .larger
                .get()
                .and_then(|rings| rings[larger].get())
                .expect("class_for made the storage before a window names the class"),
        };
        let plane = words.len() / 4;
        let (failures, slow) = words[window * 2 * plane..][..2 * plane].split_at(plane);
        (failures, slow)
    }
}

/// What both windows began with. Apart from the tickets, so that calls which only look at it do not
/// wait for those which take one.
pub(super) struct Starts([AtomicU64; 2]);

/// The tickets that both windows have given out, ever.
pub(super) struct Tickets([AtomicU64; 2]);

impl Starts {
    /// Both windows empty, one of them for generation 0. A time window begins with tick 0.
    pub(super) fn new(class: u32) -> Self {
        let start = Start {
            generation: 0,
            class,
            full: false,
            base: 0,
        };
        Self(array::from_fn(|_| AtomicU64::new(start.pack())))
    }
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(super) fn given(&self) -> u64 {
        let given = self.0.iter().map(|tickets| tickets.load(Ordering::Relaxed));
        given.sum()
    }
}

/// One of the two windows.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    start: &'a AtomicU64,
    tickets: &'a AtomicU64,
    rings: &'a Rings,
}

/// Which generation a window counts, and from where: generation 32 bits, class 4, full 1, base 27.
///
/// `base` is the low bits of the generation's first ticket, or of its first tick in a time window.
/// Once the whole ring holds outcomes of the generation, `full` says so and `base` no longer matters.
#[derive(Clone, Copy)]
struct Start {
    generation: u32,
    class: u32,
    full: bool,
    base: u32,
}

const BASE_BITS: u32 = 27;
const BASE_MASK: u32 = (1 << BASE_BITS) - 1;
const FULL: u32 = 1 << BASE_BITS;
const CLASS_SHIFT: u32 = BASE_BITS + 1;

impl Start {
    fn pack(self) -> u64 {
        let full = if self.full { FULL } else { 0 };
        let class_and_full = (self.class << CLASS_SHIFT) | full;
        in_generation(self.generation, class_and_full | (self.base & BASE_MASK))
    }

    #[inline]
    fn unpack(bits: u64) -> Self {
        Self {
            generation: (bits >> 32) as u32,
            class: ((bits >> CLASS_SHIFT) & 15) as u32,
            full: bits as u32 & FULL != 0,
            base: bits as u32 & BASE_MASK,
        }
    }

    /// How many buckets, up to this tick's, belong to the generation.
    fn buckets(self, tick: u64) -> u64 {
        if self.full {
            return BUCKETS as u64;
        }
        let age = (tick as u32).wrapping_sub(self.base) & BASE_MASK;
        u64::from(age).saturating_add(1).min(BUCKETS as u64)
    }

    /// How many outcomes of the generation the ring holds once `newest` is one of them.
    fn held(self, newest: u64) -> u32 {
        let slots = (SMALLEST as u32) << self.class;
        if self.full {
            return slots;
        }
        let held = (newest as u32).wrapping_add(1).wrapping_sub(self.base) & BASE_MASK;
        // A ticket from before the base wraps around to a huge number.
        if held > BASE_MASK / 2 {
            0
        } else {
            held.min(slots)
        }
    }
}

impl<'a> Window<'a> {
    /// The one that counts this generation.
    #[inline]
    pub(super) fn of(
        generation: u32,
        starts: &'a Starts,
        tickets: &'a Tickets,
        rings: &'a Rings,
    ) -> Self {
        let parity = (generation & 1) as usize;
        Self {
            start: &starts.0[parity],
            tickets: &tickets.0[parity],
            rings,
        }
    }

    fn tickets(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    /// Makes an empty window for `generation`, unless it is one already or serves a later one. A time
    /// window begins with `tick`.
    pub(super) fn prepare(&self, generation: u32, class: u32, tick: u64) {
        loop {
            let seen = self.start.load(Ordering::Acquire);
            if !precedes((seen >> 32) as u32, generation) {
                return;
            }
            if class == TIMED {
                let is_unused = || self.start.load(Ordering::Acquire) == seen;
                self.rings.buckets(generation).clear(generation, is_unused);
            }
            let fresh = Start {
                generation,
                class,
                full: false,
                base: if class == TIMED {
                    tick as u32
                } else {
                    self.tickets() as u32
                },
            };
            if self.replace_start(seen, fresh) {
                return;
            }
        }
    }

    fn replace_start(&self, seen: u64, new: Start) -> bool {
        self.start
            .compare_exchange(seen, new.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Counts one call that was neither failed nor slow, where that needs no look at a rate and no
    /// larger ring: in a full window of the smallest class. Answers whether it did.
    #[inline]
    pub(super) fn record_good(&self, generation: u32) -> bool {
        let start = self.start.load(Ordering::Acquire);
        if (start >> 32) as u32 != generation || start as u32 >> BASE_BITS != 1 {
            return false;
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let slot = ticket as usize & (SMALLEST - 1);
        let failures = (generation & 1) as usize * 4 + slot / 64;
        let [failed, slow] = [failures, failures + 2].map(|word| &self.rings.smallest[word]);
        let both = failed.load(Ordering::Relaxed) | slow.load(Ordering::Relaxed);
        if both & (1 << (slot % 64)) != 0 {
            let (failures, slow) = self.rings.planes(0, (generation & 1) as usize);
            write(failures, ticket, false);
            write(slow, ticket, false);
        }
        true
    }

    /// Writes one outcome, and tallies the newest ones if a rate may have risen: after a failure,
    /// after a slow call, and by the call that completes the `required` ones.
    ///
    /// `None` if the outcome is too late: the window serves another generation by now, or its bucket
    /// a later time.
    pub(super) fn record(&self, call: Call, extent: Extent) -> Option<Option<Tally>> {
        let Extent {
            window_size,
            required,
            ..
        } = extent;
        let seen = self.start.load(Ordering::Acquire);
        let start = Start::unpack(seen);
        if start.generation != call.generation {
            return None;
        }
        if start.class == TIMED {
            return self.record_timed(self.rings.buckets(call.generation), call, seen, extent);
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (failures, slow) = self
            .rings
            .planes(start.class, (call.generation & 1) as usize);
        write(failures, ticket, call.failed);
        write(slow, ticket, call.slow);
        if start.full && !call.failed && !call.slow {
            return Some(None);
        }
        let held = start.held(ticket);
        if !start.full && held == (SMALLEST as u32) << start.class {
            // Losing this race is fine: the next call tries again.
            self.replace_start(
                seen,
                Start {
                    full: true,
                    ..start
                },
            );
        }
        let look = call.failed || call.slow || held == required;
        Some(look.then(|| tally(failures, slow, ticket, held.min(window_size))))
    }

    fn record_timed(
        &self,
        buckets: &Buckets,
        call: Call,
        seen: u64,
        extent: Extent,
    ) -> Option<Option<Tally>> {
        let Extent { tick, required, .. } = extent;
        let start = Start::unpack(seen);
        let in_bucket = buckets.record(call, tick, self.tickets)?;
        if !start.full && start.buckets(tick) == BUCKETS as u64 {
            // Losing this race is fine: the next call tries again.
            self.replace_start(
                seen,
                Start {
                    full: true,
                    ..start
                },
            );
        }
        let bad = call.failed || call.slow;
        if !bad && in_bucket > u64::from(required) {
            return Some(None);
        }
        let count = start.buckets(tick);
        let tally = buckets.tally(call.generation, tick, count, self.tickets());
        Some((bad || tally.calls == required).then_some(tally))
    }

    /// Makes a failure of a call that counts already, as a slow one, and tallies: the newest slow
    /// outcome that is not failed becomes so; in a time window that holds slow ones, the bucket of now
    /// has a failure more. Where none is left in the window, the failure is an outcome of its own.
    ///
    /// `None` if the window serves another generation by now, or its bucket a later time.
    pub(super) fn fail_slow(&self, generation: u32, extent: Extent) -> Option<Tally> {
        let start = Start::unpack(self.start.load(Ordering::Acquire));
        if start.generation != generation {
            return None;
        }
        let has_place = if start.class == TIMED {
            let has_slow = self.tally(generation, extent).slow > 0;
            if has_slow {
                let buckets = self.rings.buckets(generation);
                buckets.fail(generation, extent.tick, self.tickets)?;
            }
            has_slow
        } else {
            let (failures, slow) = self.rings.planes(start.class, (generation & 1) as usize);
            let newest = self.tickets().wrapping_sub(1);
            let calls = start.held(newest).min(extent.window_size);
            fail_newest(failures, slow, newest, calls)
        };
        if has_place {
            return Some(self.tally(generation, extent));
        }
        let call = Call {
            generation,
            failed: true,
            slow: false,
        };
        self.record(call, extent).flatten()
    }

    /// The tally of the newest outcomes of `generation`.
    pub(super) fn tally(&self, generation: u32, extent: Extent) -> Tally {
        let Extent {
            window_size, tick, ..
        } = extent;
        let start = Start::unpack(self.start.load(Ordering::Acquire));
        if start.class == TIMED && start.generation == generation {
            let (buckets, count) = (self.rings.buckets(generation), start.buckets(tick));
            return buckets.tally(generation, tick, count, self.tickets());
        }
        if start.generation != generation {
            return Tally::default();
        }
        let newest = self.tickets().wrapping_sub(1);
        let (failures, slow) = self.rings.planes(start.class, (generation & 1) as usize);
        tally(failures, slow, newest, start.held(newest).min(window_size))
    }

    /// Whether this is a time window whose whole time, up to `tick`, lies in `generation`.
    pub(super) fn spans_its_time(&self, generation: u32, tick: u64) -> bool {
        let start = Start::unpack(self.start.load(Ordering::Acquire));
        let is_timed = start.generation == generation && start.class == TIMED;
        is_timed && start.buckets(tick) == BUCKETS as u64
    }

    /// Whether a window of this class fits the ring in use, of whose kind it must be.
    pub(super) fn fits(&self, class: u32) -> bool {
        let used = Start::unpack(self.start.load(Ordering::Acquire)).class;
        class <= used && (class == TIMED) == (used == TIMED)
    }

    /// Makes this the window of the generation after `generation`, with the newest outcomes of the
    /// other one, where both look at the newest calls. No two calls of this may overlap, nor a
    /// `prepare` for the same generation.
    ///
    /// What it copies lies before its next ticket: a copy is no call, and takes none.
    pub(super) fn take_over(&self, other: &Self, generation: u32, (class, tick): (u32, u64)) {
        let from = Start::unpack(other.start.load(Ordering::Acquire));
        let next = generation.wrapping_add(1);
        if from.class == TIMED || class == TIMED {
            self.prepare(next, class, tick);
            return;
        }
        let (tickets, base) = (other.tickets(), self.tickets());
        let held = if from.generation == generation {
            // A smaller ring has place for the newest.
            let slots = (SMALLEST as u32) << class;
            from.held(tickets.wrapping_sub(1)).min(slots)
        } else {
            0
        };
        let (old_failures, old_slow) = self.rings.planes(from.class, (generation & 1) as usize);
        let (failures, slow) = self.rings.planes(class, (next & 1) as usize);
        for back in 1..=u64::from(held) {
            let (old, new) = (tickets.wrapping_sub(back), base.wrapping_sub(back));
            write(failures, new, read(old_failures, old));
            write(slow, new, read(old_slow, old));
        }
        let start = Start {
            generation: next,
            class,
            full: false,
            base: (base as u32).wrapping_sub(held),
        };
        self.start.store(start.pack(), Ordering::Release);
    }
}

/// How far a window reaches, at the moment it is looked at.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Calls, of a count window.
    pub(super) window_size: u32,
    /// The bucket of now, of a time window.
    pub(super) tick: u64,
    /// Calls before a rate is looked at.
    pub(super) required: u32,
}

/// One call's outcome, as a window sees it.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) generation: u32,
    pub(super) failed: bool,
    pub(super) slow: bool,
}

#[inline]
fn place(plane: &[AtomicU64], ticket: u64) -> (&AtomicU64, u64) {
    let slot = ticket as usize & (plane.len() * 64 - 1);
    (&plane[slot / 64], 1 << (slot % 64))
}

/// A slot that already holds the right bit costs no write.
#[inline]
fn write(plane: &[AtomicU64], ticket: u64, value: bool) {
    let (word, bit) = place(plane, ticket);
    if (word.load(Ordering::Relaxed) & bit != 0) == value {
        return;
    }
    if value {
        word.fetch_or(bit, Ordering::AcqRel);
    } else {
        word.fetch_and(!bit, Ordering::AcqRel);
    }
}

fn read(plane: &[AtomicU64], ticket: u64) -> bool {
    let (word, bit) = place(plane, ticket);
    word.load(Ordering::Acquire) & bit != 0
}

/// What the `calls` newest slots hold.
fn tally(failures: &[AtomicU64], slow: &[AtomicU64], newest: u64, calls: u32) -> Tally {
    let slots = failures.len() * 64;
    let mut slot = (newest.wrapping_add(1).wrapping_sub(u64::from(calls))) as usize & (slots - 1);
    let mut left = calls as usize;
    let mut tally = Tally {
        calls,
        ..Tally::default()
    };
    while left > 0 {
        let (word, bit) = (slot / 64, slot % 64);
        let take = left.min(64 - bit);
        let wanted = (u64::MAX >> (64 - take)) << bit;
        tally.failures += ones(&failures[word], wanted);
        tally.slow += ones(&slow[word], wanted);
        slot = (slot + take) & (slots - 1);
        left -= take;
    }
    tally
}

#[inline]
fn ones(word: &AtomicU64, wanted: u64) -> u32 {
    let bits = word.load(Ordering::Acquire) & wanted;
    // Mostly there is nothing to count, and not every machine counts in one step.
    if bits == 0 { 0 } else { bits.count_ones() }
}

/// Sets the failure bit of the newest among the `count` newest slots that is slow and not failed.
/// Answers whether there was one.
fn fail_newest(failures: &[AtomicU64], slow: &[AtomicU64], newest: u64, count: u32) -> bool {
    let slots = failures.len() * 64;
    let mut slot = newest as usize & (slots - 1);
    let mut left = count as usize;
    while left > 0 {
        let (word, bit) = (slot / 64, slot % 64);
        let take = left.min(bit + 1);
        let wanted = (u64::MAX >> (64 - take)) << (bit + 1 - take);
        let is_slow = slow[word].load(Ordering::Acquire) & wanted;
        let mut open = is_slow & !failures[word].load(Ordering::Acquire);
        while let Some(highest) = open.checked_ilog2() {
            let newest = 1 << highest;
            if failures[word].fetch_or(newest, Ordering::AcqRel) & newest == 0 {
                return true;
            }
            // Another call that ended at the same moment was faster.
            open &= !newest;
        }
        slot = slot.wrapping_sub(take) & (slots - 1);
        left -= take;
    }
    false
}

#[cfg(all(test, not(any(kailash_loom, kailash_shuttle))))]
mod tests {
    use super::*;
    use core::time::Duration;

    const EXTENT: Extent = Extent {
        window_size: 100,
        tick: 0,
        required: 10,
    };

    #[test]
    fn a_ring_of_each_class_is_as_long_as_its_windows_need() {
        let rings = Rings::new();
        for (size, class, slots) in [(1, 0, 128), (129, 1, 256), (1000, 3, 1024)] {
            assert_eq!(rings.class_for(config::Window::Calls(size)), class);
            let (failures, slow) = rings.planes(class, 1);
            assert_eq!((failures.len() * 64, slow.len() * 64), (slots, slots));
        }
        let last = rings.class_for(config::Window::Calls(65_536));
        assert_eq!(last as usize, CLASSES - 1);
        assert_eq!(rings.larger.get().map(|larger| larger.len()), Some(9));
    }

    #[test]
    fn the_two_windows_of_a_class_share_no_slot() {
        let rings = Rings::new();
        for size in [1, 200, 5000] {
            let class = rings.class_for(config::Window::Calls(size));
            let planes = [0, 1].map(|window| rings.planes(class, window));
            let planes = [planes[0].0, planes[0].1, planes[1].0, planes[1].1];
            for (at, plane) in planes.into_iter().enumerate() {
                for word in plane {
                    assert_eq!(word.swap(1, Ordering::Relaxed), 0, "plane {at} of {size}");
                }
            }
        }
    }

    #[test]
    fn outcomes_before_the_first_ticket_are_none_of_the_window() {
        let start = Start {
            generation: 3,
            class: 1,
            full: false,
            base: 100,
        };
        let held = |newest: u64| start.held(newest);
        assert_eq!((held(50), held(98), held(99)), (0, 0, 0));
        assert_eq!(
            (held(100), held(101), held(354), held(900)),
            (1, 2, 255, 256)
        );
        // The furthest that a ticket can be told to come after.
        assert_eq!(held(99 + u64::from(BASE_MASK / 2)), 256);
        assert_eq!(held(100 + u64::from(BASE_MASK / 2)), 0);
        let full = Start {
            full: true,
            ..start
        };
        assert_eq!(full.held(50), 256);
        assert_eq!(Start::unpack(full.pack()).held(50), 256);
    }

    struct Parts {
        starts: Starts,
        tickets: Tickets,
        rings: Rings,
    }

    impl Parts {
        fn of(window: config::Window) -> Self {
            let rings = Rings::new();
            let class = rings.class_for(window);
            Self {
                starts: Starts::new(class),
                tickets: Tickets::new(),
                rings,
            }
        }

        fn window(&self) -> Window<'_> {
            Window::of(0, &self.starts, &self.tickets, &self.rings)
        }

        fn is_full(&self) -> bool {
            Start::unpack(self.starts.0[0].load(Ordering::Relaxed)).full
        }
    }

    fn call(failed: bool) -> Call {
        Call {
            generation: 0,
            failed,
            slow: false,
        }
    }

    #[test]
    fn a_window_knows_when_all_of_it_is_its_generations() {
        let parts = Parts::of(config::Window::Calls(100));
        for calls in 1..=130 {
            assert!(parts.window().record(call(false), EXTENT).is_some());
            assert_eq!(parts.is_full(), calls >= 128, "{calls}");
        }
        let parts = Parts::of(config::Window::Span(Duration::from_secs(16)));
        for tick in 0..20 {
            let extent = Extent { tick, ..EXTENT };
            assert!(parts.window().record(call(false), extent).is_some());
            assert_eq!(parts.is_full(), tick >= 15, "{tick}");
        }
    }

    #[test]
    fn each_failure_is_looked_at_in_a_full_window_too() {
        let parts = Parts::of(config::Window::Calls(100));
        for _ in 0..200 {
            let _ = parts.window().record(call(false), EXTENT);
        }
        for failures in 1..=100 {
            let seen = parts.window().record(call(true), EXTENT).flatten();
            let seen = seen.map(|tally| (tally.calls, tally.failures));
            assert_eq!(seen, Some((100, failures)));
        }
    }

    #[test]
    fn whoever_completes_the_required_calls_looks_though_its_bucket_holds_few() {
        let parts = Parts::of(config::Window::Span(Duration::from_secs(16)));
        let record = |failed, tick| {
            let extent = Extent { tick, ..EXTENT };
            let tally = parts.window().record(call(failed), extent).flatten();
            tally.map(|tally| (tally.calls, tally.failures))
        };
        for failures in 1..=5 {
            assert_eq!(record(true, 0), Some((failures, failures)));
        }
        for _ in 6..10 {
            assert_eq!(record(false, 1), None);
        }
        assert_eq!(record(false, 1), Some((10, 5)));
        assert_eq!(record(false, 1), None);
    }

    #[test]
    fn a_good_call_clears_a_slot_that_was_failed_and_slow() {
        let parts = Parts::of(config::Window::Calls(100));
        for _ in 0..200 {
            let bad = Call {
                slow: true,
                ..call(true)
            };
            let _ = parts.window().record(bad, EXTENT);
        }
        for _ in 0..128 {
            assert!(parts.window().record_good(0));
        }
        let seen = parts.window().tally(0, EXTENT);
        assert_eq!((seen.calls, seen.failures, seen.slow), (100, 0, 0));
    }

    #[test]
    fn the_newest_slow_outcome_that_is_not_failed_becomes_so() {
        let parts = Parts::of(config::Window::Calls(100));
        let record = |failed, slow| {
            let call = Call {
                slow,
                ..call(failed)
            };
            let _ = parts.window().record(call, EXTENT);
        };
        record(false, true);
        for _ in 0..70 {
            record(false, false);
        }
        record(false, true);
        record(true, true);
        record(true, false);
        // The last one finds none, and is an outcome of its own.
        for (calls, failures, newest) in [(74, 3, 71), (74, 4, 0), (75, 5, 74)] {
            let seen = parts.window().fail_slow(0, EXTENT);
            let seen = seen.map(|tally| (tally.calls, tally.failures, tally.slow));
            assert_eq!(seen, Some((calls, failures, 3)));
            let (plane, _) = parts.rings.planes(0, 0);
            assert!(read(plane, newest));
        }
        assert!(parts.window().fail_slow(2, EXTENT).is_none(), "another's");
    }

    #[test]
    fn every_slow_outcome_of_a_window_becomes_failed_before_one_is_added() {
        for (size, first) in [(100, 0), (100, 77), (128, 500), (300, 1000), (1000, 3)] {
            let parts = Parts::of(config::Window::Calls(size));
            let extent = Extent {
                window_size: size,
                ..EXTENT
            };
            for _ in 0..first + size {
                let slow = Call {
                    slow: true,
                    ..call(false)
                };
                let _ = parts.window().record(slow, extent);
            }
            for failures in 1..=size {
                let seen = parts.window().fail_slow(0, extent).expect("it is its own");
                assert_eq!(
                    (seen.calls, seen.failures, seen.slow),
                    (size, failures, size)
                );
            }
            let given = parts.tickets.given();
            let _ = parts.window().fail_slow(0, extent);
            assert_eq!(parts.tickets.given(), given + 1, "{size}");
        }
    }

    #[test]
    fn in_a_time_window_a_failure_is_an_outcome_of_its_own_once_no_slow_one_is_left() {
        let parts = Parts::of(config::Window::Span(Duration::from_secs(16)));
        let at = |tick| Extent { tick, ..EXTENT };
        let slow = Call {
            slow: true,
            ..call(false)
        };
        let _ = parts.window().record(slow, at(0));
        for (tick, seen) in [(1, (1, 1, 1)), (2, (1, 1, 1)), (16, (1, 2, 0))] {
            let tally = parts
                .window()
                .fail_slow(0, at(tick))
                .expect("it is its own");
            let (calls, failures, slow) = seen;
            assert_eq!((tally.calls, tally.slow), (calls, slow), "{tick}");
            assert_eq!(tally.failures, failures.min(calls), "{tick}");
        }
    }
}
