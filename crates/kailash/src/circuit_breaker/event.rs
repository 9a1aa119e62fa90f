//! What a breaker tells its subscribers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use kailash_core::time::Timestamp;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};

use super::context::contained;
use super::manager::Registry;
use super::{CircuitBreaker, Manager, Outcome, Shared, State, Transition};
use crate::clock::Clock;

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
/// While somebody waits on it, changes that time alone brings about (an open breaker that becomes
/// half-open, a probe that lapses) are told when they are due; else by the next call.
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
///     if let EventKind::Transition(transition) = events.recv().await.kind {
///         states.push(transition.to);
///     }
/// }
/// assert_eq!(states, [State::Open, State::HalfOpen]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Events {
    source: Source,
    subscription: Subscription,
}

#[derive(Debug)]
enum Source {
    Breaker(CircuitBreaker),
    Registry {
        clock: Clock,
        /// Those that were not closed when last heard of: time may change them.
        unsettled: Vec<Weak<Shared>>,
        /// When the first of them changes, if that is known and only a transition can alter it.
        due: Option<Timestamp>,
        /// Asked which they are when events were lost.
        registry: Registry,
    },
}

impl Events {
    pub(super) fn of_breaker(breaker: CircuitBreaker, subscription: Subscription) -> Self {
        Self {
            source: Source::Breaker(breaker),
            subscription,
        }
    }

    pub(super) fn of_registry(manager: &Manager, subscription: Subscription) -> Self {
        let clock = manager.clock().clone();
        Self {
            source: Source::Registry {
                clock,
                unsettled: unsettled(manager),
                due: None,
                registry: manager.downgrade(),
            },
            subscription,
        }
    }

    /// Waits for the next event. Dropping the future loses none.
    ///
    /// # Panics
    /// Outside a tokio runtime with time, where the clock is not a manual one.
    pub async fn recv(&mut self) -> Event {
        loop {
            let (clock, due) = match &mut self.source {
                Source::Breaker(breaker) => (breaker.clock(), breaker.next_due()),
                Source::Registry {
                    clock,
                    unsettled,
                    due,
                    ..
                } => {
                    let first = due.unwrap_or_else(|| {
                        let (first, is_certain) = next_due(unsettled);
                        *due = is_certain.then_some(first);
                        first
                    });
                    (&*clock, first)
                }
            };
            tokio::select! {
                biased;
                received = self.subscription.receiver.recv() => match received {
                    Ok(told) => return self.hear(told),
                    Err(RecvError::Lagged(lost)) => return self.lost(lost),
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = clock.sleep_until(due) => self.wake(),
            }
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.wake();
        match self.subscription.receiver.try_recv() {
            Ok(told) => Some(self.hear(told)),
            Err(TryRecvError::Lagged(lost)) => Some(self.lost(lost)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    /// How many events were lost to it so far, because it fell too far behind.
    #[must_use]
    pub fn lost_so_far(&self) -> u64 {
        self.subscription.lost
    }

    fn hear(&mut self, told: Told) -> Event {
        if let (Source::Registry { unsettled, due, .. }, Some(breaker)) =
            (&mut self.source, told.changed)
        {
            *due = None;
            let others =
                |other: &Weak<Shared>| other.strong_count() > 0 && !Weak::ptr_eq(other, &breaker);
            unsettled.retain(others);
            let to = match told.event.kind {
                EventKind::Transition(transition) => transition.to,
                _ => State::Closed,
            };
            if is_unsettled(to) {
                unsettled.push(breaker);
            }
        }
        told.event
    }

    fn wake(&mut self) {
        match &mut self.source {
            Source::Breaker(breaker) => breaker.wake(),
            Source::Registry { unsettled, due, .. } => {
                *due = None;
                for breaker in unsettled.iter().filter_map(Weak::upgrade) {
                    CircuitBreaker(breaker).wake();
                }
            }
        }
    }

    fn lost(&mut self, lost: u64) -> Event {
        self.subscription.lost += lost;
        let breaker = match &mut self.source {
            Source::Breaker(breaker) => Arc::clone(breaker.name()),
            Source::Registry {
                registry,
                unsettled: known,
                due,
                ..
            } => {
                // Changes may be among what is lost.
                if let Some(manager) = registry.upgrade() {
                    *known = unsettled(&manager);
                    *due = None;
                }
                Arc::from("")
            }
        };
        Event {
            breaker,
            kind: EventKind::Lost(lost),
        }
    }
}

/// The breakers that time alone will change.
fn unsettled(manager: &Manager) -> Vec<Weak<Shared>> {
    let mut found = Vec::new();
    manager.for_each(|breaker| {
        if is_unsettled(breaker.state()) {
            found.push(Arc::downgrade(&breaker.0));
        }
    });
    found
}

fn is_unsettled(state: State) -> bool {
    matches!(state, State::Open | State::HalfOpen)
}

/// When the first of these changes, and whether that is certain: a half-open breaker's next probe
/// brings a deadline that nobody is told of.
fn next_due(unsettled: &[Weak<Shared>]) -> (Timestamp, bool) {
    let mut first = (Timestamp::NEVER, true);
    for breaker in unsettled
        .iter()
        .filter_map(Weak::upgrade)
        .map(CircuitBreaker)
    {
        let is_open = breaker.0.machine.state(breaker.clock().now()) == State::Open;
        first = (first.0.min(breaker.next_due()), first.1 && is_open);
    }
    first
}

/// Who is told: those who want to hear of everything, and those who want transitions only.
#[derive(Debug, Default)]
pub(super) struct Topics {
    all: OnceLock<Arc<Topic>>,
    transitions: OnceLock<Arc<Topic>>,
}

/// Made by its first subscriber.
#[derive(Debug)]
struct Topic {
    sender: Sender<Told>,
    /// The sender would take a lock to say it.
    subscribers: AtomicUsize,
}

const CAPACITY: usize = 1024;

#[derive(Clone, Debug)]
struct Told {
    event: Event,
    /// The breaker that has changed its state.
    changed: Option<Weak<Shared>>,
}

impl Topics {
    pub(super) fn all(&self) -> Subscription {
        Subscription::to(&self.all)
    }

    pub(super) fn transitions(&self) -> Subscription {
        Subscription::to(&self.transitions)
    }

    /// Whether anybody wants to hear of calls.
    pub(super) fn wants_calls(&self) -> bool {
        is_wanted(&self.all)
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
fn is_wanted(topic: &OnceLock<Arc<Topic>>) -> bool {
    let topic = topic.get();
    topic.is_some_and(|topic| topic.subscribers.load(Ordering::SeqCst) > 0)
}

#[cold]
fn send(topic: &OnceLock<Arc<Topic>>, breaker: &CircuitBreaker, kind: EventKind) {
    let Some(topic) = topic.get() else { return };
    let is_change = matches!(kind, EventKind::Transition(_));
    let told = Told {
        event: Event {
            breaker: Arc::clone(breaker.name()),
            kind,
        },
        changed: is_change.then(|| Arc::downgrade(&breaker.0)),
    };
    contained(|| {
        // No receiver is left: nobody wants to know.
        let _ = topic.sender.send(told);
    });
}

#[derive(Debug)]
pub(super) struct Subscription {
    receiver: Receiver<Told>,
    topic: Arc<Topic>,
    lost: u64,
}

impl Subscription {
    fn to(topic: &OnceLock<Arc<Topic>>) -> Self {
        let topic = topic.get_or_init(|| {
            Arc::new(Topic {
                sender: broadcast::channel(CAPACITY).0,
                subscribers: AtomicUsize::new(0),
            })
        });
        let receiver = topic.sender.subscribe();
        topic.subscribers.fetch_add(1, Ordering::SeqCst);
        Self {
            receiver,
            topic: Arc::clone(topic),
            lost: 0,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.topic.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}
