//! What a breaker tells its subscribers.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kailash_core::time::Timestamp;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};

use super::agenda::Agenda;
use super::{CircuitBreaker, Outcome, Transition};
use crate::clock::Clock;
use crate::foreign::{contained, woken_alone};

/// Something that happened to a breaker.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The breaker's name.
    pub breaker: Arc<str>,
    /// What happened.
    pub kind: EventKind,
}

/// What can happen to a breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// It changed its state. Each change is told once, and all in their order.
    Transition(Transition),
    /// It refused a call.
    Rejected,
    /// A call ended.
    Ended {
        /// How.
        outcome: Outcome,
        /// How long it ran, where calls are timed.
        ran: Option<Duration>,
        /// Whether that is as long as `slow_call_threshold`.
        is_slow: bool,
    },
    /// The subscriber was too slow, and this many events are lost to it. The name is empty where
    /// they may have been any breaker's.
    Lost(u64),
}

/// A subscription, which ends when it is dropped.
///
/// It keeps no breaker alive: when there is none left to hear of, it tells what it still holds, and
/// then `None`. Behind a tower layer a breaker lives on a little: each thread keeps the one whose
/// call ended last on it, until a call of another ends there or the thread does. While somebody waits
/// on it, changes that time alone brings about (an open breaker that becomes half-open, a probe that
/// lapses) are told when they are due, to one that is 512 events behind once it has caught up; else by
/// the next call.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// use kailash::circuit_breaker::{CircuitBreaker, Config, EventKind, State};
/// use kailash::clock::Clock;
///
/// let breaker = CircuitBreaker::with_clock("api", Config::default(), Clock::tokio())?;
/// let mut events = breaker.subscribe_transitions();
/// for _ in 0..5 {
///     breaker.record_failure();
/// }
/// let mut states = Vec::new();
/// while states.last() != Some(&State::HalfOpen) {
///     let event = events.recv().await.ok_or("the breaker is gone")?;
///     if let EventKind::Transition(transition) = event.kind {
///         states.push(transition.to);
///     }
/// }
/// assert_eq!(states, [State::Open, State::HalfOpen]);
///
/// drop(breaker);
/// assert!(events.recv().await.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Events {
    receiver: Receiver<Event>,
    /// Those of the topic, this one among them.
    subscribers: Arc<AtomicUsize>,
    agenda: Arc<Agenda>,
    clock: Clock,
    /// The breaker's; empty where they are a registry's.
    name: Arc<str>,
    lost: u64,
}

impl Events {
    /// Waits for the next event; `None` once the breaker is gone, or the registry and all its
    /// breakers are. Dropping the future loses none.
    ///
    /// # Panics
    /// Outside a tokio runtime with time, where the clock is not a manual one.
    pub async fn recv(&mut self) -> Option<Event> {
        woken_alone(self.next()).await
    }

    async fn next(&mut self) -> Option<Event> {
        let mut has_changed_one = false;
        loop {
            // Made before the look, so that none gets earlier between the two.
            let sooner = self.agenda.sooner();
            let due = self.agenda.first();
            tokio::select! {
                biased;
                received = self.receiver.recv() => return match received {
                    Ok(event) => {
                        if !has_changed_one && due != Timestamp::NEVER {
                            self.change_what_is_due();
                        }
                        Some(event)
                    }
                    Err(RecvError::Lagged(lost)) => Some(self.lost(lost)),
                    Err(RecvError::Closed) => None,
                },
                () = sooner => {}
                () = self.clock.sleep_until(due) => {
                    // One for each event that is taken: so however many are due at once, they are no
                    // more than a subscriber takes.
                    self.agenda.carry_out_first(self.clock.now());
                    has_changed_one = true;
                }
            }
        }
    }

    /// Has one change told that is due, though there are others to hear of: who always finds one would
    /// never come to wait for it. Not who is far behind, whom it might cost another.
    #[cold]
    fn change_what_is_due(&self) {
        if self.receiver.len() < CAPACITY / 2 {
            self.agenda.carry_out_first(self.clock.now());
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(TryRecvError::Lagged(lost)) => return Some(self.lost(lost)),
                Err(TryRecvError::Closed) => return None,
                Err(TryRecvError::Empty) => {
                    if !self.agenda.carry_out_first(self.clock.now()) {
                        return None;
                    }
                }
            }
        }
    }

    /// How many events were lost to it so far, because it fell too far behind.
    #[must_use]
    pub fn lost_so_far(&self) -> u64 {
        self.lost
    }

    fn lost(&mut self, lost: u64) -> Event {
        self.lost += lost;
        Event {
            breaker: Arc::clone(&self.name),
            kind: EventKind::Lost(lost),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("name", &self.name)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// Who is told: those who want to hear of everything, and those who want transitions only.
#[derive(Default)]
pub(super) struct Topics {
    all: OnceLock<Topic>,
    transitions: OnceLock<Topic>,
    /// Of both, made by the first subscriber.
    agenda: OnceLock<Arc<Agenda>>,
}

/// Made by its first subscriber.
struct Topic {
    /// Gone within the drop only.
    sender: Option<Sender<Event>>,
    /// The sender would take a lock to say it.
    subscribers: Arc<AtomicUsize>,
}

const CAPACITY: usize = 1024;

impl Topics {
    /// Subscribes to everything that happens to the breaker of this name, or to all where it is
    /// empty.
    pub(super) fn all(&self, name: Arc<str>, clock: &Clock) -> Events {
        self.subscribe(&self.all, name, clock)
    }

    /// As [`Topics::all`], to transitions.
    pub(super) fn transitions(&self, name: Arc<str>, clock: &Clock) -> Events {
        self.subscribe(&self.transitions, name, clock)
    }

    fn subscribe(&self, topic: &OnceLock<Topic>, name: Arc<str>, clock: &Clock) -> Events {
        let agenda = Arc::clone(self.agenda.get_or_init(Arc::default));
        let topic = topic.get_or_init(Topic::new);
        let receiver = topic.sender().subscribe();
        topic.subscribers.fetch_add(1, Ordering::SeqCst);
        Events {
            receiver,
            subscribers: Arc::clone(&topic.subscribers),
            agenda,
            clock: clock.clone(),
            name,
            lost: 0,
        }
    }

    /// Whether anybody wants to hear of calls.
    pub(super) fn wants_calls(&self) -> bool {
        is_wanted(&self.all)
    }

    /// The subscribers' agenda, while there are any.
    #[inline]
    pub(super) fn agenda(&self) -> Option<&Arc<Agenda>> {
        let agenda = self.agenda.get()?;
        (is_wanted(&self.all) || is_wanted(&self.transitions)).then_some(agenda)
    }

    #[inline]
    pub(super) fn tell(&self, breaker: &CircuitBreaker, kind: EventKind) {
        if is_wanted(&self.all) {
            send(&self.all, breaker, kind);
        }
        if matches!(kind, EventKind::Transition(_)) && is_wanted(&self.transitions) {
            send(&self.transitions, breaker, kind);
        }
    }
}

#[inline]
fn is_wanted(topic: &OnceLock<Topic>) -> bool {
    let topic = topic.get();
    topic.is_some_and(|topic| topic.subscribers.load(Ordering::SeqCst) > 0)
}

#[cold]
fn send(topic: &OnceLock<Topic>, breaker: &CircuitBreaker, kind: EventKind) {
    let Some(topic) = topic.get() else { return };
    let breaker = Arc::clone(breaker.name());
    contained(|| {
        // No receiver is left: nobody wants to know.
        let _ = topic.sender().send(Event { breaker, kind });
    });
}

impl Topic {
    fn new() -> Self {
        Self {
            sender: Some(broadcast::channel(CAPACITY).0),
            subscribers: Arc::default(),
        }
    }

    fn sender(&self) -> &Sender<Event> {
        self.sender.as_ref().expect("only the drop takes it")
    }
}

impl Drop for Topic {
    /// Its end wakes those who wait.
    fn drop(&mut self) {
        let sender = self.sender.take();
        contained(|| drop(sender));
    }
}
