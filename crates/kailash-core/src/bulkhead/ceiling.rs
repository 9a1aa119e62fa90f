//! Several partitions under one ceiling: who of all their waiters starts next.
//!
//! A call that runs holds two slots: one of its partition and one of the ceiling, both [`Slots`]. It takes
//! them without a lock while both are free. Who must wait, waits in the queue of its partition; the queues
//! of all partitions under the ceiling stand behind one lock.
//!
//! # Why no wake-up is lost and nobody barges
//!
//! A partition is *held up* when somebody waits in it although it has room. The ceiling's word counts the
//! partitions that are held up as queued. Whenever the lock is free, **a partition that is held up implies
//! a full ceiling** ([`Queues::settle`] sees to it). Outside the lock, a partition in which somebody waits
//! stays as full as it is, save for what it runs beyond a lowered limit; and the ceiling's active falls only
//! while nobody is held up, or above its limit. Any other release takes the lock and has a slot of the
//! ceiling in hand, which goes to the most urgent waiter of a partition with room and is never free in
//! between.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::config::{PartitionConfig, Priority};
use super::limit::{Occupancy, Released, Slots};
use super::queue::{Entry, HandOver, Queue, TURN_OF_THE_OLDEST, Ticket};
use crate::time::Timestamp;

/// The queues of all partitions under one ceiling, each with tokens of its shell.
///
/// All methods that take the ceiling's [`Slots`] must be given the same. What they decide about waiters of
/// any partition is added to a list, for the shell to tell without the lock.
///
/// ```
/// use std::sync::Arc;
/// use kailash_core::bulkhead::*;
/// use kailash_core::time::Timestamp;
///
/// let ceiling = Slots::new(1);
/// let mut queues = Queues::new();
/// let [database, background] = ["database", "background"].map(|name| {
///     let config = PartitionConfig::new(name, PartitionType::Custom);
///     let slots = Arc::new(Slots::new(config.max_concurrent_operations));
///     (queues.join(Arc::clone(&slots), &config), slots)
/// });
/// assert!(background.1.try_acquire_under(&ceiling).is_ok());
///
/// let (now, never) = (Timestamp::ZERO, Timestamp::NEVER);
/// let mut decided = Vec::new();
/// let mut enter = |member, priority: u8, token| {
///     let priority = Priority::new(priority).unwrap();
///     queues.enter(&ceiling, member, priority, now, never, token, &mut decided)
/// };
/// assert!(matches!(enter(background.0, 8, "report"), Entry::Waiting { .. }));
/// assert!(matches!(enter(database.0, 2, "order"), Entry::Waiting { .. }));
///
/// queues.give_back(&ceiling, background.0, now, &mut decided);
/// assert_eq!(decided, [Decided::Start("order")]);
/// ```
#[derive(Debug)]
pub struct Queues<T> {
    members: BTreeMap<Member, Partition<T>>,
    joined: u64,
    started: u64,
}

/// A partition under a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(u64);

#[derive(Debug)]
struct Partition<T> {
    slots: Arc<Slots>,
    queue: Queue<T>,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided<T> {
    /// The waiter has a slot of its partition and one of the ceiling.
    Start(T),
    /// Its deadline has come.
    Expired(T),
    /// It has too little time left to come to an end.
    Hopeless(T),
}

impl<T> Queues<T> {
    /// No partitions yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            members: BTreeMap::new(),
            joined: 0,
            started: 0,
        }
    }

    /// Adds a partition that nobody uses yet.
    pub fn join(&mut self, slots: Arc<Slots>, config: &PartitionConfig) -> Member {
        let member = Member(self.joined);
        self.joined += 1;
        let queue = Queue::new(config);
        self.members.insert(member, Partition { slots, queue });
        member
    }

    /// Removes a partition that nobody uses any more.
    pub fn remove(&mut self, member: Member) {
        self.members.remove(&member);
    }

    /// Whether a call of this priority may wait, as [`Queue::has_place`].
    #[must_use]
    pub fn has_place(&self, member: Member, priority: Priority) -> bool {
        let has_place = |partition: &Partition<T>| partition.queue.has_place(priority);
        self.members.get(&member).is_some_and(has_place)
    }

    /// As [`Queue::is_hopeless`].
    #[must_use]
    pub fn is_hopeless(&self, member: Member, now: Timestamp, deadline: Timestamp) -> bool {
        let is_hopeless =
            |Partition { slots, queue }: &Partition<T>| queue.is_hopeless(slots, now, deadline);
        self.members.get(&member).is_some_and(is_hopeless)
    }

    /// Takes a slot of the partition and one of the ceiling if both are free, else a place in the
    /// partition's queue, as [`Queue::enter`].
    ///
    /// # Panics
    /// When the member was removed.
    #[expect(clippy::too_many_arguments, reason = "a call is all of these")]
    pub fn enter(
        &mut self,
        ceiling: &Slots,
        member: Member,
        priority: Priority,
        now: Timestamp,
        deadline: Timestamp,
        token: T,
        decided: &mut Vec<Decided<T>>,
    ) -> Entry<T> {
        let Partition { slots, queue } = self.partition(member);
        let occupancy = match slots.try_acquire_under(ceiling) {
            Ok(()) => return Entry::Started,
            // Under the lock nobody else can have begun to wait: the partition's slot is free again.
            Err(denied) => denied.occupancy,
        };
        if occupancy.is_closed {
            return Entry::Refused(occupancy);
        }
        if queue.is_hopeless(slots, now, deadline) {
            return Entry::Hopeless(occupancy);
        }
        let instead_of = if queue.has_free_place() {
            slots.count_waiter();
            None
        } else if let Some(ticket) = queue.would_start_last(priority, now) {
            Some(ticket)
        } else {
            return Entry::Refused(occupancy);
        };
        let (ticket, evicted) = queue.insert(priority, now, deadline, token, instead_of);
        self.settle(ceiling, Hand::Empty, now, decided);
        Entry::Waiting { ticket, evicted }
    }

    /// Gives back both slots of a call that has ended, to waiters if there are any. Whether the
    /// partition's was the last of a closed one.
    ///
    /// # Panics
    /// When the member was removed.
    pub fn give_back(
        &mut self,
        ceiling: &Slots,
        member: Member,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) -> bool {
        let is_last = self.partition(member).slots.fall();
        self.settle(ceiling, Hand::Slot, now, decided);
        is_last
    }

    /// Gives back the partition's slot of a call that got none of the ceiling. Whether it was the last of
    /// a closed partition.
    ///
    /// # Panics
    /// When the member was removed.
    pub fn step_back(
        &mut self,
        ceiling: &Slots,
        member: Member,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) -> bool {
        let is_last = self.partition(member).slots.fall();
        self.settle(ceiling, Hand::Empty, now, decided);
        is_last
    }

    /// Gives back a slot of the ceiling that was [`Wanted`](Released::Wanted), whose partition has
    /// its own back.
    pub fn pass_on(&mut self, ceiling: &Slots, now: Timestamp, decided: &mut Vec<Decided<T>>) {
        self.settle(ceiling, Hand::Slot, now, decided);
    }

    /// Leaves the queue; `None` if the waiter has already left it in another way.
    pub fn leave(
        &mut self,
        ceiling: &Slots,
        member: Member,
        ticket: Ticket,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) -> Option<T> {
        let Partition { slots, queue } = self.members.get_mut(&member)?;
        let token = queue.leave(slots, ticket)?;
        self.settle(ceiling, Hand::Empty, now, decided);
        Some(token)
    }

    /// Takes over a partition's changed configuration, and starts whoever a raised limit lets start.
    ///
    /// # Panics
    /// When the member was removed.
    pub fn reconfigure(
        &mut self,
        ceiling: &Slots,
        member: Member,
        config: &PartitionConfig,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) {
        let Partition { slots, queue } = self.partition(member);
        queue.reconfigure(slots, config);
        self.settle(ceiling, Hand::Empty, now, decided);
    }

    /// Changes the ceiling, and starts whoever a raised one lets start.
    pub fn set_ceiling(
        &mut self,
        ceiling: &Slots,
        limit: u32,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) {
        ceiling.set_limit(limit);
        self.settle(ceiling, Hand::Empty, now, decided);
    }

    /// Closes a partition, as [`Queue::close`].
    ///
    /// # Panics
    /// When the member was removed.
    pub fn close(
        &mut self,
        ceiling: &Slots,
        member: Member,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) -> Vec<T> {
        let Partition { slots, queue } = self.partition(member);
        let waiters = queue.close(slots);
        self.settle(ceiling, Hand::Empty, now, decided);
        waiters
    }

    fn partition(&mut self, member: Member) -> &mut Partition<T> {
        let partition = self.members.get_mut(&member);
        partition.expect("a member stays until nobody uses it")
    }

    /// Starts whoever can, the most urgent first, then lets the ceiling know how many partitions are still
    /// held up.
    fn settle(
        &mut self,
        ceiling: &Slots,
        mut hand: Hand,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) {
        loop {
            if hand == Hand::Slot && ceiling.drop_surplus() {
                hand = Hand::Empty;
            }
            while let Some((member, turn)) = self.next() {
                if hand == Hand::Empty && !ceiling.take_room() {
                    break;
                }
                let has_started = self.start(member, turn, now, decided);
                hand = if has_started { Hand::Empty } else { Hand::Slot };
            }
            if hand == Hand::Slot {
                ceiling.fall();
                hand = Hand::Empty;
            }
            let held_up = self.held_up().count();
            // Fails when a slot of the ceiling came free since; then somebody starts in it.
            if ceiling.count_held_up(held_up) {
                return;
            }
        }
    }

    fn held_up(&self) -> impl Iterator<Item = (Member, &Partition<T>)> {
        let members = self
            .members
            .iter()
            .map(|(member, partition)| (*member, partition));
        members.filter(|(_, partition)| partition.slots.is_held_up())
    }

    /// The partition whose waiter starts next, and which waiter that is.
    fn next(&self) -> Option<(Member, Turn)> {
        if (self.started + 1).is_multiple_of(TURN_OF_THE_OLDEST) {
            let oldest = |(_, partition): &(Member, &Partition<T>)| partition.queue.oldest_since();
            let longest = self.held_up().min_by_key(oldest);
            return longest.map(|(member, _)| (member, Turn::OfTheOldest));
        }
        let urgency = |(_, partition): &(Member, &Partition<T>)| partition.queue.most_urgent();
        let most = self.held_up().min_by_key(urgency);
        most.map(|(member, _)| (member, Turn::AsQueued))
    }

    /// Starts a waiter of a partition that is held up, with a slot of the ceiling in hand. False if all
    /// came too late, and the slot is still in hand.
    fn start(
        &mut self,
        member: Member,
        turn: Turn,
        now: Timestamp,
        decided: &mut Vec<Decided<T>>,
    ) -> bool {
        let Partition { slots, queue } = self.partition(member);
        if !slots.take_for_queue() {
            return false;
        }
        loop {
            let handed = match turn {
                Turn::AsQueued => queue.hand_over(slots, now),
                Turn::OfTheOldest => queue.hand_over_to(Queue::oldest, slots, now),
            };
            match handed {
                HandOver::Start(token) => {
                    decided.push(Decided::Start(token));
                    self.started += 1;
                    return true;
                }
                HandOver::Expired(token) => decided.push(Decided::Expired(token)),
                HandOver::Hopeless(token) => decided.push(Decided::Hopeless(token)),
                HandOver::Free { .. } => return false,
            }
        }
    }
}

impl<T> Default for Queues<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a slot of the ceiling is to be given to somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hand {
    Empty,
    Slot,
}

#[derive(Clone, Copy)]
enum Turn {
    AsQueued,
    OfTheOldest,
}

/// Why a call got no slot under a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// How full its partition is; it has room if the ceiling is the reason.
    pub occupancy: Occupancy,
    /// What became of the slot of its partition that it held meanwhile. If that is
    /// [`Wanted`](Released::Wanted), call [`Queues::step_back`] under the lock.
    pub released: Released,
}
