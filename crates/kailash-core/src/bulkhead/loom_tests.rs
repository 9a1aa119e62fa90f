//! Word, lock, queue and hand-over together, in every interleaving.

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Mutex, MutexGuard, Notify};
use loom::thread;
use std::vec::Vec;

use super::{
    Decided, Entry, HandOver, Member, PartitionConfig, PartitionType, Priority, Queue, Queues,
    Released, Slots, Ticket,
};
use crate::time::Timestamp;

const NOW: Timestamp = Timestamp::ZERO;
const NEVER: Timestamp = Timestamp::NEVER;

/// A shell as small as a shell can be.
struct Shell {
    slots: Slots,
    queue: Mutex<Queue<Arc<Waiter>>>,
    inside: AtomicU32,
}

struct Waiter {
    notify: Notify,
    has_started: AtomicBool,
}

impl Waiter {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            notify: Notify::new(),
            has_started: AtomicBool::new(false),
        })
    }

    fn start(&self) {
        self.has_started.store(true, Ordering::Release);
        self.notify.notify();
    }

    fn wait(&self) {
        while !self.has_started.load(Ordering::Acquire) {
            // May return without a reason.
            self.notify.wait();
        }
    }
}

impl Shell {
    fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            slots: Slots::new(limit),
            queue: Mutex::new(Queue::new(&config(limit))),
            inside: AtomicU32::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue<Arc<Waiter>>> {
        self.queue
            .lock()
            .expect("no thread panics in a sound model")
    }

    /// A slot at once, or a place in the queue.
    fn enter(&self) -> Option<(Ticket, Arc<Waiter>)> {
        if self.slots.try_acquire().is_ok() {
            return None;
        }
        let waiter = Waiter::new();
        let token = Arc::clone(&waiter);
        match self
            .lock()
            .enter(&self.slots, Priority::default(), NOW, NEVER, token)
        {
            Entry::Started => None,
            Entry::Waiting { ticket, .. } => Some((ticket, waiter)),
            Entry::Refused(occupancy) | Entry::Hopeless(occupancy) => {
                panic!("refused: {occupancy:?}")
            }
        }
    }

    /// Runs one call to its end.
    fn call(&self) {
        if let Some((_, waiter)) = self.enter() {
            waiter.wait();
        }
        self.run(1);
    }

    fn run(&self, limit: u32) {
        assert!(self.inside.fetch_add(1, Ordering::Relaxed) < limit);
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.release();
    }

    fn release(&self) {
        if self.slots.release() == Released::Wanted {
            let handed = self.lock().hand_over(&self.slots, NOW);
            start(handed);
        }
    }

    fn raise(&self, limit: u32) {
        let mut queue = self.lock();
        queue.reconfigure(&self.slots, &config(limit));
        while queue.take_for_waiter(&self.slots) {
            start(queue.hand_over(&self.slots, NOW));
        }
    }

    fn assert_whole(&self) {
        let occupancy = self.slots.occupancy();
        assert_eq!((occupancy.active, occupancy.queued), (0, 0));
    }
}

fn start(handed: HandOver<Arc<Waiter>>) {
    match handed {
        HandOver::Start(waiter) => waiter.start(),
        HandOver::Free { .. } => {}
        HandOver::Expired(_) | HandOver::Hopeless(_) => panic!("nobody has a deadline"),
    }
}

fn config(limit: u32) -> PartitionConfig {
    PartitionConfig {
        max_concurrent_operations: limit,
        queue_size: 3,
        ..PartitionConfig::new("p", PartitionType::Custom)
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(test);
}

/// A lost wake-up is a deadlock, which the checker reports.
#[test]
fn loom_every_call_runs_and_never_two_in_one_slot() {
    model(|| {
        let shell = Shell::new(1);
        let others = [(); 2].map(|()| {
            let shell = Arc::clone(&shell);
            thread::spawn(move || shell.call())
        });
        shell.call();
        for other in others {
            other.join().unwrap();
        }
        shell.assert_whole();
    });
}

#[test]
fn loom_a_waiter_that_leaves_during_a_hand_over_loses_no_slot() {
    model(|| {
        let shell = Shell::new(1);
        assert!(shell.enter().is_none());
        let (ticket, _waiter) = shell.enter().expect("the slot is taken");
        let others = [
            {
                let shell = Arc::clone(&shell);
                thread::spawn(move || shell.release())
            },
            {
                let shell = Arc::clone(&shell);
                thread::spawn(move || shell.call())
            },
        ];
        let left = shell.lock().leave(&shell.slots, ticket);
        if left.is_none() {
            shell.release();
        }
        for other in others {
            other.join().unwrap();
        }
        shell.assert_whole();
    });
}

#[test]
fn loom_a_newcomer_passes_no_waiter() {
    model(|| {
        let shell = Shell::new(1);
        assert!(shell.enter().is_none());
        let (_, waiter) = shell.enter().expect("the slot is taken");
        let newcomer = {
            let (shell, waiter) = (Arc::clone(&shell), Arc::clone(&waiter));
            thread::spawn(move || {
                if shell.slots.try_acquire().is_ok() {
                    assert!(waiter.has_started.load(Ordering::Acquire));
                    shell.run(1);
                }
            })
        };
        let releaser = {
            let shell = Arc::clone(&shell);
            thread::spawn(move || shell.release())
        };
        waiter.wait();
        shell.run(1);
        newcomer.join().unwrap();
        releaser.join().unwrap();
        shell.assert_whole();
    });
}

#[test]
fn loom_a_raised_limit_starts_waiters_whatever_else_goes_on() {
    model(|| {
        let shell = Shell::new(1);
        assert!(shell.enter().is_none());
        let others = [
            {
                let shell = Arc::clone(&shell);
                thread::spawn(move || shell.release())
            },
            {
                let shell = Arc::clone(&shell);
                thread::spawn(move || {
                    if let Some((_, waiter)) = shell.enter() {
                        waiter.wait();
                    }
                    shell.run(2);
                })
            },
        ];
        shell.raise(2);
        for other in others {
            other.join().unwrap();
        }
        shell.assert_whole();
    });
}

#[test]
fn loom_a_newcomer_takes_no_raised_limit_from_a_waiter() {
    model(|| {
        let shell = Shell::new(1);
        assert!(shell.enter().is_none());
        let (_, waiter) = shell.enter().expect("the slot is taken");
        let newcomer = {
            let (shell, waiter) = (Arc::clone(&shell), Arc::clone(&waiter));
            thread::spawn(move || {
                if shell.slots.try_acquire().is_ok() {
                    assert!(waiter.has_started.load(Ordering::Acquire));
                    shell.run(2);
                }
            })
        };
        shell.raise(2);
        waiter.wait();
        shell.run(2);
        shell.release();
        newcomer.join().unwrap();
        shell.assert_whole();
    });
}

#[test]
fn loom_whoever_gives_the_last_slot_of_a_closed_partition_back_learns_it() {
    model(|| {
        let shell = Shell::new(2);
        assert!(shell.enter().is_none() && shell.enter().is_none());
        let others = [(); 2].map(|()| {
            let shell = Arc::clone(&shell);
            thread::spawn(move || shell.slots.release() == Released::Last)
        });
        assert!(shell.lock().close(&shell.slots).is_empty());
        let drained = shell.slots.occupancy().active == 0;
        let told = others.map(|other| other.join().unwrap());
        assert!(drained || told.contains(&true));
        shell.assert_whole();
    });
}

/// A shell of two partitions under one ceiling.
struct House {
    ceiling: Slots,
    rooms: [(Member, std::sync::Arc<Slots>); 2],
    queues: Mutex<Queues<Arc<Waiter>>>,
    inside: AtomicU32,
}

const A: usize = 0;
const B: usize = 1;

impl House {
    fn new(ceiling: u32, limits: [u32; 2]) -> Arc<Self> {
        let mut queues = Queues::new();
        let rooms = limits.map(|limit| {
            let slots = std::sync::Arc::new(Slots::new(limit));
            (queues.join(slots.clone(), &config(limit)), slots)
        });
        Arc::new(Self {
            ceiling: Slots::new(ceiling),
            rooms,
            queues: Mutex::new(queues),
            inside: AtomicU32::new(0),
        })
    }

    /// Does something under the lock, and starts whom it lets start.
    fn locked<R>(
        &self,
        work: impl FnOnce(&mut Queues<Arc<Waiter>>, &mut Vec<Decided<Arc<Waiter>>>) -> R,
    ) -> R {
        let mut decided = Vec::new();
        let mut queues = self
            .queues
            .lock()
            .expect("no thread panics in a sound model");
        let result = work(&mut queues, &mut decided);
        for decided in decided {
            let Decided::Start(waiter) = decided else {
                panic!("nobody has a deadline");
            };
            waiter.start();
        }
        result
    }

    fn try_acquire(&self, room: usize) -> bool {
        let (member, slots) = &self.rooms[room];
        let Err(denied) = slots.try_acquire_under(&self.ceiling) else {
            return true;
        };
        if denied.released == Released::Wanted {
            self.locked(|queues, decided| queues.step_back(&self.ceiling, *member, NOW, decided));
        }
        false
    }

    fn enter(&self, room: usize) -> Option<(Ticket, Arc<Waiter>)> {
        if self.try_acquire(room) {
            return None;
        }
        let waiter = Waiter::new();
        let token = Arc::clone(&waiter);
        let (member, _) = self.rooms[room];
        let entry = self.locked(|queues, decided| {
            let priority = Priority::default();
            queues.enter(&self.ceiling, member, priority, NOW, NEVER, token, decided)
        });
        match entry {
            Entry::Started => None,
            Entry::Waiting { ticket, .. } => Some((ticket, waiter)),
            Entry::Refused(occupancy) | Entry::Hopeless(occupancy) => {
                panic!("refused: {occupancy:?}")
            }
        }
    }

    fn call(&self, room: usize, ceiling: u32) {
        if let Some((_, waiter)) = self.enter(room) {
            waiter.wait();
        }
        self.run(room, ceiling);
    }

    fn run(&self, room: usize, ceiling: u32) {
        assert!(self.inside.fetch_add(1, Ordering::Relaxed) < ceiling);
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.release(room);
    }

    fn release(&self, room: usize) {
        let (member, slots) = &self.rooms[room];
        if slots.release() == Released::Wanted {
            self.locked(|queues, decided| queues.give_back(&self.ceiling, *member, NOW, decided));
        } else if self.ceiling.release() == Released::Wanted {
            self.locked(|queues, decided| queues.pass_on(&self.ceiling, NOW, decided));
        }
    }

    fn assert_whole(&self) {
        let rooms = self.rooms.each_ref().map(|(_, slots)| slots.occupancy());
        for occupancy in [self.ceiling.occupancy(), rooms[A], rooms[B]] {
            assert_eq!((occupancy.active, occupancy.queued), (0, 0));
        }
    }
}

#[test]
fn loom_under_a_ceiling_every_call_runs_and_never_too_many() {
    // A partition that is full itself, or one that only the ceiling holds up.
    for limits in [[1, 1], [2, 1]] {
        model(move || {
            let house = House::new(1, limits);
            assert!(house.enter(A).is_none());
            let others = [A, B].map(|room| {
                let house = Arc::clone(&house);
                thread::spawn(move || house.call(room, 1))
            });
            house.run(A, 1);
            for other in others {
                other.join().unwrap();
            }
            house.assert_whole();
        });
    }
}

#[test]
fn loom_a_call_that_steps_back_strands_nobody() {
    model(|| {
        let house = House::new(1, [1, 1]);
        assert!(house.enter(B).is_none());
        let others = [
            {
                // Holds A's slot for a moment, though the ceiling is reached.
                let house = Arc::clone(&house);
                thread::spawn(move || {
                    if house.try_acquire(A) {
                        house.run(A, 1);
                    }
                })
            },
            {
                let house = Arc::clone(&house);
                thread::spawn(move || house.call(A, 1))
            },
        ];
        house.run(B, 1);
        for other in others {
            other.join().unwrap();
        }
        house.assert_whole();
    });
}

#[test]
fn loom_a_waiter_that_leaves_a_ceiling_loses_no_slot() {
    model(|| {
        let house = House::new(1, [1, 1]);
        assert!(house.enter(A).is_none());
        let (ticket, _waiter) = house.enter(B).expect("the ceiling is reached");
        let others = [
            {
                let house = Arc::clone(&house);
                thread::spawn(move || house.release(A))
            },
            {
                let house = Arc::clone(&house);
                thread::spawn(move || house.call(A, 1))
            },
        ];
        let (member, _) = house.rooms[B];
        let left = house
            .locked(|queues, decided| queues.leave(&house.ceiling, member, ticket, NOW, decided));
        if left.is_none() {
            house.release(B);
        }
        for other in others {
            other.join().unwrap();
        }
        house.assert_whole();
    });
}

#[test]
fn loom_a_newcomer_passes_no_waiter_under_a_ceiling() {
    for (waits, comes) in [(A, A), (A, B)] {
        model(move || {
            let house = House::new(1, [2, 2]);
            assert!(house.enter(B).is_none());
            let (_, waiter) = house.enter(waits).expect("the ceiling is reached");
            let newcomer = {
                let (house, waiter) = (Arc::clone(&house), Arc::clone(&waiter));
                thread::spawn(move || {
                    if house.try_acquire(comes) {
                        assert!(waiter.has_started.load(Ordering::Acquire));
                        house.run(comes, 1);
                    }
                })
            };
            let releaser = {
                let house = Arc::clone(&house);
                thread::spawn(move || house.release(B))
            };
            waiter.wait();
            house.run(waits, 1);
            newcomer.join().unwrap();
            releaser.join().unwrap();
            house.assert_whole();
        });
    }
}

#[test]
fn loom_a_changed_ceiling_starts_waiters_whatever_else_goes_on() {
    // Raised from 1 to 2, and lowered to 1 while two run.
    for (before, after) in [(1, 2), (2, 1)] {
        model(move || {
            let house = House::new(before, [2, 2]);
            for _ in 0..before {
                assert!(house.enter(A).is_none());
            }
            let others = [
                {
                    let house = Arc::clone(&house);
                    thread::spawn(move || (0..before).for_each(|_| house.release(A)))
                },
                {
                    let house = Arc::clone(&house);
                    thread::spawn(move || house.call(B, 2))
                },
            ];
            house.locked(|queues, decided| {
                queues.set_ceiling(&house.ceiling, after, NOW, decided);
            });
            for other in others {
                other.join().unwrap();
            }
            house.assert_whole();
        });
    }
}
