//! Why a partition did not run a call, or not to its end.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Name;
use crate::refusal::NeverMade;

/// A call got no slot, and never started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// The partition's name.
    pub partition: Name,
    /// Calls that held a slot at that moment.
    pub active: u32,
    /// Calls that waited at that moment.
    pub queued: u32,
    /// Why the call was turned away.
    pub reason: Reason,
}

/// Why a call got no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No slot was free, and the call would not wait.
    Busy,
    /// The partition had a slot, and the ceiling over all partitions had none; the call would not wait.
    Ceiling,
    /// No slot was free, and no place in the queue.
    QueueFull,
    /// Its timeout was over before it started.
    Waited,
    /// A more urgent call took its place in the queue.
    Evicted,
    /// It had less time left than half of the newest calls took, and the partition rejects such.
    Hopeless,
    /// The system let the partition start no thread for it.
    NoThread,
    /// The partition admits nobody any more.
    Closed,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Busy,
        Self::Ceiling,
        Self::QueueFull,
        Self::Waited,
        Self::Evicted,
        Self::Hopeless,
        Self::NoThread,
        Self::Closed,
    ];

    /// The reason's word in JSON and Python.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Ceiling => "ceiling",
            Self::QueueFull => "queue_full",
            Self::Waited => "waited",
            Self::Evicted => "evicted",
            Self::Hopeless => "hopeless",
            Self::NoThread => "no_thread",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            partition,
            active,
            queued,
            reason,
        } = self;
        write!(f, "partition {partition:?}: ")?;
        match reason {
            Reason::Busy if *queued > 0 => {
                write!(f, "no slot is free ({active} running, {queued} waiting)")
            }
            Reason::Busy => write!(f, "no slot is free ({active} running)"),
            Reason::Ceiling => write!(f, "the ceiling over all partitions is reached"),
            Reason::QueueFull => write!(f, "queue is full ({queued} waiting)"),
            Reason::Waited => write!(f, "timeout was over before the call could start"),
            Reason::Evicted => write!(f, "a more urgent call took the place in the queue"),
            Reason::Hopeless => {
                write!(f, "too little time was left for the call to come to an end")
            }
            Reason::NoThread => write!(f, "no thread could be started"),
            Reason::Closed => write!(f, "closed"),
        }
    }
}

impl Error for Full {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&NeverMade)
    }
}

/// A call ran longer than its timeout left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedOut {
    /// The partition's name.
    pub partition: Name,
    /// The timeout, which covers waiting and running.
    pub timeout: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, timeout } = self;
        write!(f, "partition {partition:?}: timed out after {timeout:?}")
    }
}

impl Error for TimedOut {}

/// A partition that admits nobody any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The partition's name.
    pub partition: Name,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {:?}: closed", self.partition)
    }
}

impl Error for Closed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&NeverMade)
    }
}

/// Why a partition did not run a call to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The call got no slot, and never started.
    Full(Full),
    /// The call started, and its timeout was over before it ended.
    TimedOut(TimedOut),
    /// The partition was closed before the call could start.
    Closed(Closed),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(full) => full.fmt(f),
            Self::TimedOut(timed_out) => timed_out.fmt(f),
            Self::Closed(closed) => closed.fmt(f),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Full(full) => full.source(),
            Self::TimedOut(timed_out) => timed_out.source(),
            Self::Closed(closed) => closed.source(),
        }
    }
}

impl From<Full> for RunError {
    fn from(full: Full) -> Self {
        if full.reason == Reason::Closed {
            let partition = full.partition;
            return Self::Closed(Closed { partition });
        }
        Self::Full(full)
    }
}

impl From<TimedOut> for RunError {
    fn from(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }
}

/// A name that no partition has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPartition {
    /// The name that was asked for.
    pub name: String,
    /// The names that there are, sorted.
    pub known: Vec<Arc<str>>,
}

impl fmt::Display for UnknownPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {:?}: unknown, there ", self.name)?;
        match self.known.as_slice() {
            [] => write!(f, "are none"),
            known => write!(f, "are {}", known.join(", ")),
        }
    }
}

impl Error for UnknownPartition {}
