//! Who waits for a slot, and who starts next.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::config::{PartitionConfig, Priority, QueueOrder};
use super::limit::{Occupancy, Released, Slots};
use crate::time::Timestamp;

/// The calls that wait for a slot of one partition, each with a token of its shell.
///
/// The most urgent priority starts first, and the first come first within one, or the last come first
/// as [`QueueOrder`] says; every 20th start goes to whoever has waited longest, so that nobody starves.
/// A waiter whose deadline has come never starts, nor does one that is hopeless, where the partition
/// rejects such. All methods that take [`Slots`] must be given the slots of the same partition.
///
/// ```
/// use kailash_core::bulkhead::*;
/// use kailash_core::time::Timestamp;
///
/// let config = PartitionConfig::new("db", PartitionType::Custom);
/// let (slots, mut queue) = (Slots::new(1), Queue::new(&config));
/// slots.try_acquire().unwrap();
///
/// let (now, never) = (Timestamp::ZERO, Timestamp::NEVER);
/// queue.enter(&slots, Priority::default(), now, never, "later");
/// queue.enter(&slots, Priority::MOST_URGENT, now, never, "sooner");
///
/// assert_eq!(slots.release(), Released::Wanted);
/// assert_eq!(queue.hand_over(&slots, now), HandOver::Start("sooner"));
/// ```
#[derive(Debug)]
pub struct Queue<T> {
    waiters: BTreeMap<Ticket, Waiter<T>>,
    /// Those with a deadline, where the hopeless are rejected.
    deadlines: BTreeSet<(Timestamp, Ticket)>,
    size: usize,
    evict_lower_priority: bool,
    order: QueueOrder,
    reject_hopeless: bool,
    /// Since when it has never been empty, where it is not empty now.
    busy_since: Timestamp,
    entered: u64,
    started: u64,
}

/// A place in a queue, ordered by priority, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    priority: Priority,
    number: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    since: Timestamp,
    deadline: Timestamp,
    token: T,
}

/// What became of a call that asked for a slot or a place in the queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Entry<T> {
    /// It has a slot.
    Started,
    /// It waits.
    Waiting {
        /// Its place.
        ticket: Ticket,
        /// The token of a waiter that was pushed out for it.
        evicted: Option<T>,
    },
    /// It was turned away.
    Refused(Occupancy),
    /// It was turned away since too little of its time is left for it to come to an end.
    Hopeless(Occupancy),
}

/// What became of a slot that was wanted.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum HandOver<T> {
    /// The slot is this waiter's now.
    Start(T),
    /// This waiter's deadline has come, and it has left; the slot is still to be handed over.
    Expired(T),
    /// This waiter has too little time left to come to an end, and has left, whether it was its turn or
    /// not; the slot is still to be handed over.
    Hopeless(T),
    /// Nobody waits for it any more: the slot is free.
    Free {
        /// Whether it was the last of a closed partition.
        last: bool,
    },
}

/// Every how many starts the longest waiting goes first.
pub(super) const TURN_OF_THE_OLDEST: u64 = 20;
/// How long a queue must not have been empty for the last come to be first.
const SUSTAINED: Duration = Duration::from_millis(100);

impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(config: &PartitionConfig) -> Self {
        Self {
            waiters: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            size: config.queue_size as usize,
            evict_lower_priority: config.evict_lower_priority,
            order: config.queue_order,
            reject_hopeless: config.reject_hopeless,
            busy_since: Timestamp::ZERO,
            entered: 0,
            started: 0,
        }
    }

    /// Whether a call of this priority may wait, in a free place or in another's.
    #[must_use]
    pub fn has_place(&self, priority: Priority) -> bool {
        self.has_free_place() || self.less_urgent(priority).is_some()
    }

    pub(super) fn has_free_place(&self) -> bool {
        self.waiters.len() < self.size
    }

    /// Whether a call with this deadline is not worth waiting: the partition rejects the hopeless, and
    /// half of its newest calls took longer than the call has left.
    #[must_use]
    pub fn is_hopeless(&self, slots: &Slots, now: Timestamp, deadline: Timestamp) -> bool {
        self.reject_hopeless
            && deadline != Timestamp::NEVER
            && slots
                .runs()
                .p50(now)
                .is_some_and(|p50| deadline.since(now) < p50)
    }

    /// Takes a slot if one is free, else a place in the queue, if there is one and hope.
    ///
    /// A full queue makes place by pushing out whichever of its least urgent waiters would start last,
    /// if the newcomer is more urgent and the partition's `evict_lower_priority` is on.
    pub fn enter(
        &mut self,
        slots: &Slots,
        priority: Priority,
        now: Timestamp,
        deadline: Timestamp,
        token: T,
    ) -> Entry<T> {
        let evicted = loop {
            let Err(occupancy) = slots.try_acquire() else {
                return Entry::Started;
            };
            if occupancy.is_closed {
                return Entry::Refused(occupancy);
            }
            if self.is_hopeless(slots, now, deadline) {
                return Entry::Hopeless(occupancy);
            }
            if self.has_free_place() {
                // Fails when a slot came free since; then that one is taken.
                if slots.join_queue().is_ok() {
                    break None;
                }
            } else if let Some(ticket) = self.would_start_last(priority, now) {
                // The newcomer takes over the other's place in the word too. If the word said for a
                // moment that nobody waits, a slot could come free and somebody pass them both.
                break Some(ticket);
            } else {
                return Entry::Refused(occupancy);
            }
        };
        let (ticket, evicted) = self.insert(priority, now, deadline, token, evicted);
        Entry::Waiting { ticket, evicted }
    }

    /// Gives a place to a waiter that the word counts already, perhaps another's.
    pub(super) fn insert(
        &mut self,
        priority: Priority,
        now: Timestamp,
        deadline: Timestamp,
        token: T,
        instead_of: Option<Ticket>,
    ) -> (Ticket, Option<T>) {
        if self.waiters.is_empty() {
            self.busy_since = now;
        }
        let evicted = instead_of.and_then(|ticket| self.remove(ticket));
        let ticket = Ticket {
            priority,
            number: self.entered,
        };
        self.entered += 1;
        let waiter = Waiter {
            since: now,
            deadline,
            token,
        };
        self.waiters.insert(ticket, waiter);
        self.watch(ticket, deadline);
        (ticket, evicted.map(|waiter| waiter.token))
    }

    /// Passes on a slot that was [`Wanted`](Released::Wanted).
    ///
    /// # Panics
    /// When `slots` are not this queue's.
    pub fn hand_over(&mut self, slots: &Slots, now: Timestamp) -> HandOver<T> {
        self.hand_over_to(Self::next, slots, now)
    }

    /// Passes on a slot that was wanted, to the waiter that `next` chooses.
    pub(super) fn hand_over_to(
        &mut self,
        next: fn(&Self, Timestamp) -> Option<Ticket>,
        slots: &Slots,
        now: Timestamp,
    ) -> HandOver<T> {
        match slots.release() {
            Released::Free => return HandOver::Free { last: false },
            Released::Last => return HandOver::Free { last: true },
            Released::Wanted => {}
        }
        // The waiters are counted under the lock that the caller holds.
        let without_hope = self.first_without_hope(slots, now);
        let ticket = without_hope.or_else(|| next(self, now));
        let ticket = ticket.expect("a wanted slot has a waiter");
        let waiter = self.remove(ticket).expect("the next one waits");
        if waiter.deadline <= now {
            slots.leave_queue();
            return HandOver::Expired(waiter.token);
        }
        if without_hope.is_some() {
            slots.leave_queue();
            return HandOver::Hopeless(waiter.token);
        }
        self.started += 1;
        slots.pass_on();
        HandOver::Start(waiter.token)
    }

    /// Takes a slot for the queue, where a raised limit has one and somebody waits; hand it over.
    #[must_use]
    pub fn take_for_waiter(&mut self, slots: &Slots) -> bool {
        slots.take_for_queue()
    }

    /// Leaves the queue; `None` if the waiter has already left it in another way.
    pub fn leave(&mut self, slots: &Slots, ticket: Ticket) -> Option<T> {
        let waiter = self.remove(ticket)?;
        slots.leave_queue();
        Some(waiter.token)
    }

    /// Takes over a changed configuration.
    ///
    /// Calls that run keep their slots and those that wait their places. While
    /// [`Queue::take_for_waiter`] then says so, a slot is to be handed over.
    pub fn reconfigure(&mut self, slots: &Slots, config: &PartitionConfig) {
        self.size = config.queue_size as usize;
        self.evict_lower_priority = config.evict_lower_priority;
        self.order = config.queue_order;
        if self.reject_hopeless != config.reject_hopeless {
            self.reject_hopeless = config.reject_hopeless;
            self.deadlines.clear();
            let all = self.waiters.iter();
            let all: Vec<_> = all
                .map(|(ticket, waiter)| (*ticket, waiter.deadline))
                .collect();
            for (ticket, deadline) in all {
                self.watch(ticket, deadline);
            }
        }
        slots.set_limit(config.max_concurrent_operations);
    }

    /// Admits nobody from now on, and returns the tokens of all who waited, the most urgent
    /// first.
    pub fn close(&mut self, slots: &Slots) -> Vec<T> {
        slots.close();
        self.deadlines.clear();
        let waiters = mem::take(&mut self.waiters).into_values();
        waiters.map(|waiter| waiter.token).collect()
    }

    /// The priority of the most urgent waiter, and since when the first of that priority has waited.
    pub(super) fn most_urgent(&self) -> Option<(Priority, Timestamp)> {
        let (ticket, waiter) = self.waiters.first_key_value()?;
        Some((ticket.priority, waiter.since))
    }

    /// Since when the longest waiting has waited.
    pub(super) fn oldest_since(&self) -> Option<Timestamp> {
        let ticket = self.oldest(Timestamp::ZERO)?;
        self.waiters.get(&ticket).map(|waiter| waiter.since)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<T>> {
        let waiter = self.waiters.remove(&ticket)?;
        self.deadlines.remove(&(waiter.deadline, ticket));
        Some(waiter)
    }

    fn watch(&mut self, ticket: Ticket, deadline: Timestamp) {
        if self.reject_hopeless && deadline != Timestamp::NEVER {
            self.deadlines.insert((deadline, ticket));
        }
    }

    /// The waiter with the least time left, if that is too little.
    fn first_without_hope(&self, slots: &Slots, now: Timestamp) -> Option<Ticket> {
        let (deadline, ticket) = self.deadlines.first()?;
        self.is_hopeless(slots, now, *deadline).then_some(*ticket)
    }

    fn next(&self, now: Timestamp) -> Option<Ticket> {
        if (self.started + 1).is_multiple_of(TURN_OF_THE_OLDEST) {
            return self.oldest(now);
        }
        let first = self.waiters.keys().next()?;
        if self.is_last_come_first(now) {
            let of_its_priority = self.waiters.range(..=first.priority.last());
            return of_its_priority.map(|(ticket, _)| *ticket).next_back();
        }
        Some(*first)
    }

    fn is_last_come_first(&self, now: Timestamp) -> bool {
        self.order == QueueOrder::AdaptiveLifo && now.since(self.busy_since) >= SUSTAINED
    }

    /// The longest waiting of all.
    pub(super) fn oldest(&self, _: Timestamp) -> Option<Ticket> {
        let range = Priority::MOST_URGENT.get()..=Priority::LEAST_URGENT.get();
        let first_of = |priority| {
            let priority = Priority::new(priority).ok()?;
            let all = priority.first()..=priority.last();
            self.waiters.range(all).next()
        };
        let firsts = range.filter_map(first_of).map(|(ticket, _)| *ticket);
        firsts.min_by_key(|ticket| ticket.number)
    }

    /// One of the least urgent waiters, if a newcomer of this priority may push it out.
    fn less_urgent(&self, priority: Priority) -> Option<Ticket> {
        let last = self.waiters.keys().next_back().copied();
        last.filter(|ticket| self.evict_lower_priority && ticket.priority > priority)
    }

    /// Whoever would start last of all, if a newcomer of this priority may push it out.
    pub(super) fn would_start_last(&self, priority: Priority, now: Timestamp) -> Option<Ticket> {
        let newest = self.less_urgent(priority)?;
        if self.is_last_come_first(now) {
            let of_its_priority = self.waiters.range(newest.priority.first()..);
            return of_its_priority.map(|(ticket, _)| *ticket).next();
        }
        Some(newest)
    }
}

impl Priority {
    /// The lowest ticket of this priority that there can be.
    const fn first(self) -> Ticket {
        let number = 0;
        Ticket {
            priority: self,
            number,
        }
    }

    /// The highest ticket of this priority that there can be.
    const fn last(self) -> Ticket {
        let number = u64::MAX;
        Ticket {
            priority: self,
            number,
        }
    }
}
