//! Word, lock, queue and hand-over together, in every interleaving.

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Mutex, MutexGuard, Notify};
use loom::thread;

use super::{Entry, HandOver, PartitionConfig, PartitionType, Priority, Queue, Released, Slots};
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
    fn enter(&self) -> Option<(super::Ticket, Arc<Waiter>)> {
        if self.slots.try_acquire().is_ok() {
            return None;
        }
        let waiter = Arc::new(Waiter {
            notify: Notify::new(),
            has_started: AtomicBool::new(false),
        });
        let token = Arc::clone(&waiter);
        match self
            .lock()
            .enter(&self.slots, Priority::default(), NOW, NEVER, token)
        {
            Entry::Started => None,
            Entry::Waiting { ticket, .. } => Some((ticket, waiter)),
            Entry::Refused(occupancy) => panic!("refused: {occupancy:?}"),
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
        HandOver::Start(waiter) => {
            waiter.has_started.store(true, Ordering::Release);
            waiter.notify.notify();
        }
        HandOver::Free { .. } => {}
        HandOver::Expired(_) => panic!("nobody has a deadline"),
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
