//! What a partition tells its subscribers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::Reason;
use crate::foreign::woken_alone;

/// Something that happened to a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The partition's name.
    pub partition: Arc<str>,
    /// What happened.
    pub kind: EventKind,
}

/// What can happen to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A call got no slot.
    Rejected(Reason),
    /// A call waits for a slot.
    Queued,
    /// A call has a slot.
    Started,
    /// A call is done with its slot, which it gives back right after, whether it ran in it or was given up
    /// before.
    Ended {
        /// How long it held the slot.
        ran: Duration,
    },
    /// The timeout of a call was over while it ran. Blocking work goes on, and ends later.
    TimedOut,
    /// Another number of calls may run.
    LimitChanged {
        /// The limit before.
        from: u32,
        /// The limit from now on.
        to: u32,
    },
    /// The partition admits nobody any more.
    Closed,
    /// The subscriber was too slow, and this many events are lost to it.
    Lost(u64),
}

/// A subscription, which ends when it is dropped.
///
/// ```
/// use kailash::bulkhead::{EventKind, Partition, PartitionConfig, PartitionType};
///
/// let partition = Partition::new(PartitionConfig::new("api", PartitionType::Api)).unwrap();
/// let mut events = partition.subscribe();
/// drop(partition.try_acquire());
/// assert_eq!(events.try_recv().unwrap().kind, EventKind::Started);
/// assert!(matches!(events.try_recv().unwrap().kind, EventKind::Ended { .. }));
/// assert!(events.try_recv().is_none());
/// ```
#[derive(Debug)]
pub struct Events {
    partition: Arc<str>,
    receiver: Receiver<Event>,
}

impl Events {
    pub(super) fn new(partition: Arc<str>, receiver: Receiver<Event>) -> Self {
        Self {
            partition,
            receiver,
        }
    }

    /// Waits for the next event; `None` once the partition is gone. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<Event> {
        match woken_alone(self.receiver.recv()).await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(lost)) => Some(self.lost(lost)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Lagged(lost)) => Some(self.lost(lost)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    fn lost(&self, lost: u64) -> Event {
        Event {
            partition: Arc::clone(&self.partition),
            kind: EventKind::Lost(lost),
        }
    }
}
