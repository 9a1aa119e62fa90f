//! Where the calls of a partition wait: in a queue of its own, or in one under a ceiling.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kailash_core::bulkhead::{
    Decided, Entry, HandOver, Member, Occupancy, PartitionConfig, Priority, Queue, Queues,
    Released, Slots, Ticket,
};
use kailash_core::time::Timestamp;

use super::waiting::{Verdict, Waiter};
use super::{Inner, wake};

/// The queue of one partition, and the lock around it.
pub(super) enum Line {
    Own(Mutex<Queue<Arc<Waiter>>>),
    Under(Arc<Ceiling>, Member),
}

/// The slots that all partitions of a manager share, and the queues of them all.
pub(super) struct Ceiling {
    pub(super) slots: Slots,
    queues: Mutex<Queues<Arc<Waiter>>>,
}

/// What became of a newcomer.
pub(super) enum Entered {
    Started,
    /// Its place, and those whose wait is over by it: to be woken once the place has an owner.
    Waiting(Ticket, Arc<Waiter>, Vec<Arc<Waiter>>),
}

/// Why a call may not wait.
pub(super) enum NoPlace {
    QueueFull(Occupancy),
    Hopeless(Occupancy),
}

impl Line {
    pub(super) fn own(config: &PartitionConfig) -> Self {
        Self::Own(Mutex::new(Queue::new(config)))
    }

    pub(super) fn under(
        ceiling: &Arc<Ceiling>,
        slots: &Arc<Slots>,
        config: &PartitionConfig,
    ) -> Self {
        let member = ceiling.lock().join(Arc::clone(slots), config);
        Self::Under(Arc::clone(ceiling), member)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Self::Under(ceiling, member) = self {
            ceiling.lock().remove(*member);
        }
    }
}

impl Ceiling {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            slots: Slots::new(limit),
            queues: Mutex::new(Queues::new()),
        }
    }

    pub(super) fn set_limit(&self, limit: u32, now: Timestamp) {
        self.locked(|queues, decided| queues.set_ceiling(&self.slots, limit, now, decided));
    }

    fn lock(&self) -> MutexGuard<'_, Queues<Arc<Waiter>>> {
        // No foreign code runs under the lock, so poisoned queues are whole ones.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the queues; those whose wait is over by it are woken without the lock.
    fn locked<R>(
        &self,
        work: impl FnOnce(&mut Queues<Arc<Waiter>>, &mut Vec<Decided<Arc<Waiter>>>) -> R,
    ) -> R {
        let mut decided = Vec::new();
        let (result, over) = {
            let mut queues = self.lock();
            let result = work(&mut queues, &mut decided);
            (result, decide(decided))
        };
        wake(over);
        result
    }
}

/// Ends these waits; under the lock.
fn decide(decided: Vec<Decided<Arc<Waiter>>>) -> Vec<Arc<Waiter>> {
    let end = |decided: Decided<Arc<Waiter>>| {
        let (waiter, verdict) = match decided {
            Decided::Start(waiter) => (waiter, Verdict::Start),
            Decided::Expired(waiter) => (waiter, Verdict::Expired),
            Decided::Hopeless(waiter) => (waiter, Verdict::Hopeless),
        };
        waiter.decide(verdict);
        waiter
    };
    decided.into_iter().map(end).collect()
}

impl Inner {
    /// Whether [`Inner::take_slot`] would have taken one.
    #[cfg(feature = "tower")]
    pub(super) fn has_room(&self) -> bool {
        let has_room = |slots: &Slots| {
            let occupancy = slots.occupancy();
            let is_open = !occupancy.is_closed && occupancy.queued == 0;
            is_open && occupancy.active < occupancy.limit
        };
        match &self.line {
            Line::Own(_) => has_room(&self.slots),
            Line::Under(ceiling, _) => has_room(&self.slots) && has_room(&ceiling.slots),
        }
    }

    /// Takes a free slot, and one of the ceiling if there is one.
    #[inline]
    pub(super) fn take_slot(&self) -> Result<(), Occupancy> {
        match &self.line {
            Line::Own(_) => self.slots.try_acquire(),
            Line::Under(ceiling, member) => self.take_slot_under(ceiling, *member),
        }
    }

    fn take_slot_under(&self, ceiling: &Ceiling, member: Member) -> Result<(), Occupancy> {
        let Err(denied) = self.slots.try_acquire_under(&ceiling.slots) else {
            return Ok(());
        };
        self.step_back(ceiling, member, denied.released);
        Err(denied.occupancy)
    }

    /// Ends the release of a slot of the partition beside which none of the ceiling was to be had.
    fn step_back(&self, ceiling: &Ceiling, member: Member, released: Released) {
        let is_last = match released {
            Released::Free => false,
            Released::Last => true,
            Released::Wanted => {
                let now = self.clock.now();
                ceiling.locked(|queues, decided| {
                    queues.step_back(&ceiling.slots, member, now, decided)
                })
            }
        };
        self.tell_drained(is_last);
    }

    /// Gives back what [`Inner::take_slot`] or a waiter's start took.
    #[inline]
    pub(super) fn give_back(&self) {
        match &self.line {
            Line::Own(queue) => match self.slots.release() {
                Released::Free => {}
                Released::Last => self.tell_drained(true),
                Released::Wanted => self.pass_on(queue),
            },
            Line::Under(ceiling, member) => self.give_back_under(ceiling, *member),
        }
    }

    #[cold]
    fn pass_on(&self, queue: &Mutex<Queue<Arc<Waiter>>>) {
        let now = self.clock.now();
        let mut over = Vec::new();
        let is_last = hand_over(&mut lock(queue), &self.slots, now, &mut over);
        wake(over);
        self.tell_drained(is_last);
    }

    fn give_back_under(&self, ceiling: &Ceiling, member: Member) {
        let now = || self.clock.now();
        let released = self.slots.release();
        if released == Released::Wanted {
            let now = now();
            let is_last = ceiling
                .locked(|queues, decided| queues.give_back(&ceiling.slots, member, now, decided));
            return self.tell_drained(is_last);
        }
        if ceiling.slots.release() == Released::Wanted {
            let now = now();
            ceiling.locked(|queues, decided| queues.pass_on(&ceiling.slots, now, decided));
        }
        self.tell_drained(released == Released::Last);
    }

    fn tell_drained(&self, is_last: bool) {
        if is_last {
            self.drained.notify_waiters();
        }
    }

    /// Takes a slot though none may be free, as [`Slots::take_over`].
    pub(super) fn take_over(&self) -> bool {
        if !self.slots.take_over() {
            return false;
        }
        match &self.line {
            Line::Under(ceiling, member) if !ceiling.slots.take_over() => {
                self.step_back(ceiling, *member, self.slots.release());
                false
            }
            _ => true,
        }
    }

    /// Takes a slot, or a place in the queue.
    pub(super) fn enter(
        &self,
        priority: Priority,
        now: Timestamp,
        deadline: Timestamp,
    ) -> Result<Entered, NoPlace> {
        let slots = &*self.slots;
        match &self.line {
            Line::Own(queue) => {
                let mut queue = lock(queue);
                if queue.is_hopeless(slots, now, deadline) {
                    return Err(NoPlace::Hopeless(slots.occupancy()));
                }
                if !queue.has_place(priority) {
                    return Err(NoPlace::QueueFull(slots.occupancy()));
                }
                let waiter = Arc::new(Waiter::default());
                let token = Arc::clone(&waiter);
                let entry = queue.enter(slots, priority, now, deadline, token);
                entered(entry, waiter, Vec::new())
            }
            Line::Under(ceiling, member) => {
                let mut queues = ceiling.lock();
                if queues.is_hopeless(*member, now, deadline) {
                    return Err(NoPlace::Hopeless(slots.occupancy()));
                }
                if !queues.has_place(*member, priority) {
                    return Err(NoPlace::QueueFull(slots.occupancy()));
                }
                let waiter = Arc::new(Waiter::default());
                let token = Arc::clone(&waiter);
                let mut decided = Vec::new();
                let (ceiling, member) = (&ceiling.slots, *member);
                let entry = queues.enter(
                    ceiling,
                    member,
                    priority,
                    now,
                    deadline,
                    token,
                    &mut decided,
                );
                entered(entry, waiter, decided)
            }
        }
    }

    /// Leaves the queue; false if the wait had ended already.
    pub(super) fn leave(&self, ticket: Ticket) -> bool {
        match &self.line {
            Line::Own(queue) => lock(queue).leave(&self.slots, ticket).is_some(),
            Line::Under(ceiling, member) => {
                let now = self.clock.now();
                ceiling.locked(|queues, decided| {
                    let left = queues.leave(&ceiling.slots, *member, ticket, now, decided);
                    left.is_some()
                })
            }
        }
    }

    /// Takes over a changed configuration, and does the rest of the change under the same lock.
    pub(super) fn change(&self, config: &PartitionConfig, and: impl FnOnce()) {
        let now = self.clock.now();
        match &self.line {
            Line::Own(queue) => {
                let mut over = Vec::new();
                {
                    let mut queue = lock(queue);
                    queue.reconfigure(&self.slots, config);
                    and();
                    while queue.take_for_waiter(&self.slots) {
                        // Never the last of a closed partition: that has no waiters.
                        hand_over(&mut queue, &self.slots, now, &mut over);
                    }
                }
                wake(over);
            }
            Line::Under(ceiling, member) => ceiling.locked(|queues, decided| {
                and();
                queues.reconfigure(&ceiling.slots, *member, config, now, decided);
            }),
        }
    }

    /// Admits nobody from now on; those who waited, whose wait is over, are to be woken. `None` if the
    /// partition was closed before.
    pub(super) fn close(&self) -> Option<Vec<Arc<Waiter>>> {
        let is_closed = || self.slots.occupancy().is_closed;
        let end = |waiters: Vec<Arc<Waiter>>| {
            for waiter in &waiters {
                waiter.decide(Verdict::Closed);
            }
            Some(waiters)
        };
        match &self.line {
            Line::Own(queue) => {
                let mut queue = lock(queue);
                if is_closed() {
                    return None;
                }
                end(queue.close(&self.slots))
            }
            Line::Under(ceiling, member) => {
                let now = self.clock.now();
                ceiling.locked(|queues, decided| {
                    if is_closed() {
                        return None;
                    }
                    end(queues.close(&ceiling.slots, *member, now, decided))
                })
            }
        }
    }
}

fn lock<'a>(queue: &'a Mutex<Queue<Arc<Waiter>>>) -> MutexGuard<'a, Queue<Arc<Waiter>>> {
    // No foreign code runs under the lock, so a poisoned queue is a whole one.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of a newcomer, whose wait and others' may be over by it; under the lock.
fn entered(
    entry: Entry<Arc<Waiter>>,
    waiter: Arc<Waiter>,
    decided: Vec<Decided<Arc<Waiter>>>,
) -> Result<Entered, NoPlace> {
    match entry {
        Entry::Started => Ok(Entered::Started),
        Entry::Refused(occupancy) => Err(NoPlace::QueueFull(occupancy)),
        Entry::Hopeless(occupancy) => Err(NoPlace::Hopeless(occupancy)),
        Entry::Waiting { ticket, evicted } => {
            let mut over = decide(decided);
            if let Some(evicted) = evicted {
                evicted.decide(Verdict::Evicted);
                over.push(evicted);
            }
            Ok(Entered::Waiting(ticket, waiter, over))
        }
    }
}

/// Passes a held slot on; those whose wait is over with it are to be woken without the lock.
/// Returns whether the slot is free and was the last of a closed partition.
fn hand_over(
    queue: &mut Queue<Arc<Waiter>>,
    slots: &Slots,
    now: Timestamp,
    over: &mut Vec<Arc<Waiter>>,
) -> bool {
    loop {
        let (waiter, verdict) = match queue.hand_over(slots, now) {
            HandOver::Free { last } => return last,
            HandOver::Start(waiter) => (waiter, Verdict::Start),
            HandOver::Expired(waiter) => (waiter, Verdict::Expired),
            HandOver::Hopeless(waiter) => (waiter, Verdict::Hopeless),
        };
        waiter.decide(verdict);
        over.push(waiter);
        if matches!(verdict, Verdict::Start) {
            return false;
        }
    }
}
