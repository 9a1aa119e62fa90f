//! What a breaker tells its subscribers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::{CircuitBreaker, Outcome, Transition};

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
    /// It changed its state.
    Transition(Transition),
    /// It refused a call.
    Rejected,
    /// A call ended.
    Ended(Outcome),
    /// The subscriber was too slow, and this many events are lost to it.
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
/// let mut events = breaker.subscribe();
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
    breaker: CircuitBreaker,
    receiver: Receiver<Event>,
}

impl Events {
    pub(super) fn new(breaker: CircuitBreaker, receiver: Receiver<Event>) -> Self {
        Self { breaker, receiver }
    }

    /// Waits for the next event. Dropping the future loses none.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    pub async fn recv(&mut self) -> Event {
        loop {
            // A breaker on a clock of its own may not be due when the sleep ends: look again.
            let due = self.breaker.due_in().unwrap_or(Duration::MAX);
            tokio::select! {
                biased;
                received = self.receiver.recv() => match received {
                    Ok(event) => return event,
                    Err(RecvError::Lagged(lost)) => return self.lost(lost),
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = tokio::time::sleep(due) => self.breaker.wake(),
            }
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.breaker.wake();
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Lagged(lost)) => Some(self.lost(lost)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    fn lost(&self, lost: u64) -> Event {
        Event {
            breaker: Arc::clone(self.breaker.name()),
            kind: EventKind::Lost(lost),
        }
    }
}
