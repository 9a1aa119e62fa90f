//! Bulkheads: partitions that keep one kind of work from starving another.
//!
//! A [`Partition`] lets a number of calls run at once and a number more wait, in order of priority.
//! The timeout of a call covers waiting and running together: over while it waits, the call is
//! turned away and never starts; over while it runs, it has timed out. Blocking work runs in the
//! partition's own threads.
//!
//! ```
//! use kailash::bulkhead::{Manager, PartitionConfig, PartitionType};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let partitions = Manager::with_defaults();
//! partitions.configure(PartitionConfig {
//!     max_concurrent_operations: 20,
//!     ..PartitionConfig::new("api", PartitionType::Api)
//! })?;
//!
//! let api = partitions.get("api")?;
//! let answer = api.run(async { 42 }).await?;
//! let sum = api.run_blocking(|| (1..=10).sum::<u32>()).await?;
//! assert_eq!((answer, sum), (42, 55));
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::TryFutureExt;
use kailash_core::bulkhead::{Occupancy, Slots};
use kailash_core::config::ConfigError;
use kailash_core::time::Timestamp;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio::time::Instant;

use crate::Name;
use crate::clock::Clock;
use crate::foreign::contained;
use crate::histogram::{self, Histogram};
use in_slot::InSlot;
use line::{Ceiling, Entered, Line, NoPlace};
use threads::Threads;
use waiting::Waiter;

pub use call::CallError;
pub use error::{Closed, Full, Reason, RunError, TimedOut, UnknownPartition};
pub use event::{Event, EventKind, Events};
pub use job::{Job, Panicked};
pub use kailash_core::bulkhead::{PartitionConfig, PartitionType, Priority, QueueOrder};
pub use manager::{CeilingSnapshot, Manager};
pub use waiting::Waiting;

mod call;
mod error;
mod event;
mod in_slot;
mod job;
mod line;
mod manager;
mod threads;
mod waiting;

/// A number of slots for one kind of work, with a queue and threads of its own.
///
/// Clones are handles to the same partition.
///
/// ```
/// use kailash::bulkhead::{Partition, PartitionConfig, PartitionType, Reason};
///
/// let config = PartitionConfig {
///     max_concurrent_operations: 1,
///     ..PartitionConfig::new("reports", PartitionType::Background)
/// };
/// let reports = Partition::new(config).unwrap();
///
/// let permit = reports.try_acquire().unwrap();
/// assert_eq!(reports.try_acquire().unwrap_err().reason, Reason::Busy);
/// drop(permit);
/// assert!(reports.try_acquire().is_ok());
/// ```
#[derive(Clone)]
pub struct Partition(Arc<Inner>);

struct Inner {
    slots: Arc<Slots>,
    line: Line,
    /// Why calls that hold a slot are timed, and told of: [`HOPELESS`] and [`SUBSCRIBED`], or nothing.
    timed_for: AtomicU8,
    name: Arc<str>,
    settings: ArcSwap<Settings>,
    threads: Threads,
    clock: Clock,
    drained: Notify,
    evicted: AtomicU64,
    expired: AtomicU64,
    timed_out: AtomicU64,
    waits: Histogram,
    runs: Histogram,
    /// Made by the first subscriber.
    events: OnceLock<broadcast::Sender<Event>>,
}

struct Settings {
    config: PartitionConfig,
    priority: Priority,
}

/// How one call asks for a slot; what is `None` is the partition's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// How urgent the call is.
    pub priority: Option<Priority>,
    /// How long the call may take, waiting and running together. `Duration::MAX` sets no end. Zero
    /// never waits: the call starts at once or is turned away, and may run as long as the partition's
    /// own timeout allows.
    pub timeout: Option<Duration>,
}

/// A slot of a partition; dropping it gives it back, to the next waiter if there is one.
#[must_use = "a permit that is dropped at once holds nothing"]
pub struct Permit<'a> {
    partition: &'a Partition,
    since: Timestamp,
}

/// A [`Permit`] that lives as long as one likes.
#[must_use = "a permit that is dropped at once holds nothing"]
pub struct OwnedPermit {
    // `None` once another permit stands for the slot.
    partition: Option<Partition>,
    since: Timestamp,
}

/// Somebody is to know whether a wait is hopeless.
const HOPELESS: u8 = 1;
/// Somebody has subscribed.
const SUBSCRIBED: u8 = 2;

/// Since when a call runs that nobody times.
const UNTIMED: Timestamp = Timestamp::NEVER;

/// What a partition is doing and has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The partition's name.
    pub name: Arc<str>,
    /// Calls that hold a slot.
    pub active: u32,
    /// Calls that wait.
    pub queued: u32,
    /// How many calls may hold a slot.
    pub limit: u32,
    /// The partition's threads.
    pub threads: usize,
    /// Whether the partition admits nobody any more.
    pub is_closed: bool,
    /// Calls that got a slot, among them blocking work that was given up before a thread had begun it.
    pub run: u64,
    /// Calls that were refused: every [`Full`] that was returned. Blocking work that found no thread in
    /// time had its slot, and is counted in `run` too.
    pub refused: u64,
    /// Of those refused, the calls that a more urgent one pushed out of the queue.
    pub evicted: u64,
    /// Of those refused, the calls whose timeout was over while they waited.
    pub expired: u64,
    /// Of those run, the calls whose timeout was over while they ran.
    pub timed_out: u64,
    /// The most calls that held a slot at once.
    pub peak_active: u32,
    /// The wait for a slot that half of the calls that ran did not exceed, at most an eighth too long.
    pub wait_p50: Duration,
    /// The wait for a slot that 99 of 100 calls that ran did not exceed, at most an eighth too long.
    pub wait_p99: Duration,
    /// How long half of the timed calls held their slots at most, at most an eighth too long; see
    /// [`Partition::runs`].
    pub run_p50: Duration,
    /// How long 99 of 100 timed calls held their slots at most, at most an eighth too long.
    pub run_p99: Duration,
}

/// How a partition's end went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The partition's name.
    pub partition: Arc<str>,
    /// Calls that waited and were turned away.
    pub turned_away: usize,
    /// Calls that still ran at the deadline, among them blocking work whose caller has given up.
    pub left: u32,
}

tokio::task_local! {
    static CURRENT: Partition;
}

/// The partition in whose slot the calling task or thread runs.
///
/// It is set inside what [`Partition::run`] and [`Partition::run_blocking`] are given, and lost by a
/// task that is spawned there.
#[must_use]
pub fn current() -> Option<Partition> {
    CURRENT.try_with(Partition::clone).ok()
}

impl Partition {
    /// A partition on the machine's clock.
    ///
    /// # Errors
    /// When a field of `config` is out of its range.
    pub fn new(config: PartitionConfig) -> Result<Self, ConfigError> {
        Self::with_clock(config, Clock::monotonic())
    }

    /// A partition on this clock, by which it judges deadlines in the queue and measures waits.
    ///
    /// # Errors
    /// When a field of `config` is out of its range.
    pub fn with_clock(config: PartitionConfig, clock: Clock) -> Result<Self, ConfigError> {
        Self::under(None, config, clock)
    }

    fn under(
        ceiling: Option<&Arc<Ceiling>>,
        config: PartitionConfig,
        clock: Clock,
    ) -> Result<Self, ConfigError> {
        let priority = config.validate()?;
        let slots = Arc::new(Slots::new(config.max_concurrent_operations));
        let own = || Line::own(&config);
        Ok(Self(Arc::new(Inner {
            line: ceiling.map_or_else(own, |ceiling| Line::under(ceiling, &slots, &config)),
            slots,
            timed_for: AtomicU8::new(if config.reject_hopeless { HOPELESS } else { 0 }),
            name: config.name.as_str().into(),
            threads: Threads::new(config.threads()),
            settings: ArcSwap::from_pointee(Settings { config, priority }),
            clock,
            drained: Notify::new(),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            waits: Histogram::new(),
            runs: Histogram::new(),
            events: OnceLock::new(),
        })))
    }

    /// The partition's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The partition's configuration now.
    #[must_use]
    pub fn config(&self) -> PartitionConfig {
        self.0.settings.load().config.clone()
    }

    /// Changes the whole configuration live.
    ///
    /// Calls that run keep their slots, those that wait their places and deadlines. A lower limit takes
    /// effect as calls end; a higher one starts waiters at once.
    ///
    /// # Errors
    /// When a field is out of its range, or the name is another.
    pub fn reconfigure(&self, config: PartitionConfig) -> Result<(), ConfigError> {
        let priority = config.validate()?;
        if config.name != self.name() {
            let allowed = format!("the partition's name {:?}", self.name());
            return Err(ConfigError::new(
                "name",
                format_args!("{:?}", config.name),
                allowed,
            ));
        }
        let inner = &*self.0;
        let (to, mut from) = (config.max_concurrent_operations, 0);
        inner.change(&config, || {
            from = inner.settings.load().config.max_concurrent_operations;
            if config.reject_hopeless {
                inner.timed_for.fetch_or(HOPELESS, Ordering::Relaxed);
            } else {
                inner.timed_for.fetch_and(!HOPELESS, Ordering::Relaxed);
            }
            let config = config.clone();
            inner
                .settings
                .store(Arc::new(Settings { config, priority }));
        });
        // Without the lock, for threads take long to start. Whoever changed it last: the newest settings
        // count.
        let threads = inner.settings.load().config.threads();
        inner.threads.resize(self.name(), threads);
        if from != to {
            inner.tell(EventKind::LimitChanged { from, to });
        }
        Ok(())
    }

    /// Takes a free slot; never waits.
    ///
    /// # Errors
    /// When no slot is free or somebody waits for one, or the partition is closed.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Full> {
        match self.0.take_slot() {
            Ok(()) => Ok(Permit::new(self)),
            Err(occupancy) => Err(self.0.refuse(occupancy, Reason::Busy)),
        }
    }

    /// Takes a slot if one is free and nobody waits for it; never waits, and a miss is no refusal.
    #[inline]
    pub fn take_free(&self) -> Option<Permit<'_>> {
        self.0.take_slot().ok().map(|()| Permit::new(self))
    }

    /// As [`Partition::try_acquire`], with a permit that borrows nothing.
    ///
    /// # Errors
    /// As [`Partition::try_acquire`].
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Full> {
        self.try_acquire().map(Permit::into_owned)
    }

    /// Takes a slot as soon as there is one, for a call with the partition's priority and timeout.
    ///
    /// Dropping the future leaves the queue at once.
    ///
    /// # Errors
    /// When the queue is full, the timeout passes, a more urgent call takes the place in the queue, or
    /// the partition closes.
    pub async fn acquire(&self) -> Result<Permit<'_>, Full> {
        self.acquire_with(Admission::default()).await
    }

    /// Takes a slot as soon as there is one.
    ///
    /// The timeout of `admission` bounds the waiting; nothing bounds how long the permit is held.
    ///
    /// # Errors
    /// As [`Partition::acquire`]; with a timeout of zero, whenever no slot is free.
    pub async fn acquire_with(&self, admission: Admission) -> Result<Permit<'_>, Full> {
        if let Some(permit) = self.take_free() {
            return Ok(permit);
        }
        self.acquire_by(admission, self.deadline(admission)).await
    }

    /// Takes a slot or a place in the queue, without any timer.
    ///
    /// For callers that wait in a way of their own: [`Waiting`] is a future that needs no runtime.
    ///
    /// # Errors
    /// When the queue is full or the partition is closed; with a timeout of zero, whenever no slot is
    /// free.
    pub fn enqueue(&self, admission: Admission) -> Result<Waiting, Full> {
        let inner = &self.0;
        let Err(occupancy) = inner.take_slot() else {
            return Ok(Waiting::ready(Permit::new(self).into_owned()));
        };
        if admission.timeout == Some(Duration::ZERO) {
            return Err(inner.refuse(occupancy, Reason::Busy));
        }
        let settings = inner.settings.load();
        if settings.config.queue_size == 0 {
            return Err(inner.refuse(occupancy, Reason::Busy));
        }
        let priority = admission.priority.unwrap_or(settings.priority);
        let now = inner.clock.now();
        let timeout = admission.timeout.or(settings.config.timeout);
        let deadline = timeout.map_or(Timestamp::NEVER, |timeout| now + timeout);

        match inner.enter(priority, now, deadline) {
            Ok(Entered::Started) => Ok(Waiting::ready(Permit::new(self).into_owned())),
            Ok(Entered::Waiting(ticket, waiter, over)) => {
                // Before the waking, which is foreign code: the place must have an owner by then.
                let waiting = Waiting::queued(self.clone(), ticket, waiter, now, deadline);
                inner.tell(EventKind::Queued);
                wake(over);
                Ok(waiting)
            }
            Err(NoPlace::QueueFull(occupancy)) => Err(inner.refuse(occupancy, Reason::QueueFull)),
            Err(NoPlace::Hopeless(occupancy)) => Err(inner.refuse(occupancy, Reason::Hopeless)),
        }
    }

    /// Runs a future in a slot, with the partition's priority and timeout.
    ///
    /// Whatever it ends with is the value, even an `Err`, which nothing around will take for a failure:
    /// [`Partition::call`] is for what may fail.
    ///
    /// Dropping the returned future drops the given one, then gives the slot back.
    ///
    /// # Errors
    /// When no slot could be had, the timeout passes, or the partition closes while the call waits.
    pub fn run<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, RunError>> {
        self.run_with(Admission::default(), future)
    }

    /// Runs a future in a slot.
    ///
    /// # Errors
    /// As [`Partition::run`].
    pub fn run_with<F: Future>(
        &self,
        admission: Admission,
        future: F,
    ) -> impl Future<Output = Result<F::Output, RunError>> {
        let acquired = async move {
            let deadline = self.deadline(admission);
            let permit = self.acquire_by(admission, deadline).await?.timed();
            Ok((permit, deadline))
        };
        // One after the other in the same place: written as an async function, it would hold the future
        // once for each.
        acquired.and_then(|(permit, deadline)| InSlot::new(permit, deadline, future))
    }

    /// Runs a blocking function in a slot and one of the partition's threads, with the partition's
    /// priority and timeout.
    ///
    /// [`Partition::call_blocking`] is for what may fail.
    ///
    /// The function runs in the tracing span of the caller. Once begun it cannot be stopped: when the
    /// timeout passes or the returned future is dropped, it goes on and keeps its slot until it returns.
    ///
    /// # Errors
    /// When no slot could be had, the timeout passes, or the partition closes while the call waits.
    ///
    /// # Panics
    /// With the function's own panic.
    pub async fn run_blocking<F, T>(&self, work: F) -> Result<T, RunError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.run_blocking_with(Admission::default(), work).await
    }

    /// Runs a blocking function in a slot and one of the partition's threads.
    ///
    /// # Errors
    /// As [`Partition::run_blocking`].
    ///
    /// # Panics
    /// With the function's own panic.
    pub async fn run_blocking_with<F, T>(
        &self,
        admission: Admission,
        work: F,
    ) -> Result<T, RunError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let deadline = self.deadline(admission);
        let permit = self.acquire_by(admission, deadline).await?.timed();
        let (tell, told) = oneshot::channel();
        let permit = permit.into_owned();
        let job = permit.spawn_blocking(work, |outcome| drop(tell.send(outcome)))?;
        let outcome = match deadline {
            None => told.await,
            Some((deadline, timeout)) => {
                let Ok(outcome) = tokio::time::timeout_at(deadline, told).await else {
                    return Err(if job.cancel() {
                        self.0.expire().into()
                    } else {
                        self.0.time_out(timeout).into()
                    });
                };
                outcome
            }
        };
        match outcome.expect("the job is not cancelled, so it tells its outcome") {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs a future with this as the [`current`] partition, for callers that hold its slot in a way of
    /// their own.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), future)
    }

    /// A slot for work that goes on after its call has given up, though none may be free.
    ///
    /// To be taken while the call still holds its own, which it gives back right after: what cannot be
    /// stopped is counted until it ends. `None` when more cannot be counted.
    #[must_use]
    pub fn take_over(&self) -> Option<OwnedPermit> {
        self.0.take_over().then(|| OwnedPermit {
            partition: Some(self.clone()),
            since: UNTIMED,
        })
    }

    /// Counts a call whose timeout was over before it started, and says so.
    ///
    /// For callers that time calls in a way of their own, as are [`Partition::time_out`] and
    /// [`Partition::without_thread`].
    #[must_use]
    pub fn expire(&self) -> Full {
        self.0.expire()
    }

    /// Counts a call whose timeout was over while it ran, and says so.
    #[must_use]
    pub fn time_out(&self, timeout: Duration) -> TimedOut {
        self.0.time_out(timeout)
    }

    /// Counts a call that no thread could be started for, and says so.
    #[must_use]
    pub fn without_thread(&self) -> Full {
        self.0.refuse(self.0.slots.occupancy(), Reason::NoThread)
    }

    /// What the partition is doing and has done so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = &self.0;
        let Occupancy {
            active,
            queued,
            limit,
            is_closed,
        } = inner.slots.occupancy();
        let run = inner.slots.started();
        let waits = self.waits();
        let wait = |share: f64| {
            // Whoever did not wait is in no bucket.
            let (run, waited) = (run as f64, waits.count() as f64);
            let share = 1.0 - (1.0 - share) * run / waited;
            if share > 0.0 {
                waits.quantile(share)
            } else {
                Duration::ZERO
            }
        };
        let runs = self.runs();
        Snapshot {
            name: Arc::clone(&inner.name),
            active,
            queued,
            limit,
            threads: inner.threads.count(),
            is_closed,
            run,
            refused: inner.slots.refused(),
            evicted: inner.evicted.load(Ordering::Relaxed),
            expired: inner.expired.load(Ordering::Relaxed),
            timed_out: inner.timed_out.load(Ordering::Relaxed),
            peak_active: inner.slots.peak(),
            wait_p50: wait(0.5),
            wait_p99: wait(0.99),
            run_p50: runs.quantile(0.5),
            run_p99: runs.quantile(0.99),
        }
    }

    /// How long calls that came through the queue waited for their slots.
    #[must_use]
    pub fn waits(&self) -> histogram::Snapshot {
        self.0.waits.snapshot()
    }

    /// How long timed calls held their slots.
    ///
    /// Timed are the calls of [`Partition::run`] and [`Partition::run_blocking`]; permits that are taken
    /// by themselves only while `reject_hopeless` is on or once somebody has subscribed, since reading
    /// the clock twice takes longer than taking a slot and giving it back. Blocking work that never began
    /// is not among them.
    #[must_use]
    pub fn runs(&self) -> histogram::Snapshot {
        self.0.runs.snapshot()
    }

    /// Subscribes to what happens from now on.
    ///
    /// A subscriber can neither delay nor break a call: one that falls more than 1,024 events behind
    /// loses the oldest, and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let inner = &self.0;
        let sender = inner.events.get_or_init(|| broadcast::channel(1024).0);
        let receiver = sender.subscribe();
        inner.timed_for.fetch_or(SUBSCRIBED, Ordering::Relaxed);
        Events::new(Arc::clone(&inner.name), receiver)
    }

    /// Admits nobody from now on and turns away all who wait; returns how many did.
    ///
    /// Calls that run go on.
    pub fn close(&self) -> usize {
        let Some(waiters) = self.0.close() else {
            return 0;
        };
        let turned_away = waiters.len();
        if self.0.slots.occupancy().active == 0 {
            // No slot is left that could say so when it is given back.
            self.0.drained.notify_waiters();
        }
        wake(waiters);
        self.0.tell(EventKind::Closed);
        turned_away
    }

    /// Closes the partition and waits until the last slot is given back, at most this long.
    ///
    /// Dropping the future leaves the partition closed.
    pub async fn shutdown(&self, within: Duration) -> Drained {
        let turned_away = self.close();
        // Late is late: what is left is reported below.
        let _ = tokio::time::timeout(within, self.drained()).await;
        Drained {
            partition: Arc::clone(&self.0.name),
            turned_away,
            left: self.0.slots.occupancy().active,
        }
    }

    /// Waits until the partition is closed and no call holds a slot; needs no runtime.
    pub async fn drained(&self) {
        loop {
            let mut notified = std::pin::pin!(self.0.drained.notified());
            // Before the look, so that a slot given back right after it is not missed.
            notified.as_mut().enable();
            let occupancy = self.0.slots.occupancy();
            if occupancy.is_closed && occupancy.active == 0 {
                return;
            }
            notified.await;
        }
    }

    /// The deadline of a call that begins now, and the timeout it came from.
    pub(crate) fn deadline(&self, admission: Admission) -> Option<(Instant, Duration)> {
        let own = || self.0.settings.load().config.timeout;
        let timeout = admission.timeout.filter(|timeout| !timeout.is_zero());
        let timeout = timeout.or_else(own)?;
        Some((Instant::now().checked_add(timeout)?, timeout))
    }

    async fn acquire_by(
        &self,
        admission: Admission,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<Permit<'_>, Full> {
        if let Some(permit) = self.take_free() {
            return Ok(permit);
        }
        let mut waiting = self.enqueue(admission)?;
        let permit = match deadline {
            None => waiting.await?,
            Some((deadline, _)) => match tokio::time::timeout_at(deadline, &mut waiting).await {
                Ok(result) => result?,
                Err(_) => return Err(waiting.expire()),
            },
        };
        Ok(permit.lend(self))
    }

    /// Whether a slot is free and nobody waits for one.
    #[cfg(feature = "tower")]
    pub(crate) fn has_room(&self) -> bool {
        self.0.has_room()
    }

    /// As [`Partition::try_acquire_owned`], for callers that wait where there is none.
    #[cfg(feature = "tower")]
    #[inline]
    pub(crate) fn take_free_owned(&self) -> Option<OwnedPermit> {
        self.take_free().map(Permit::into_owned)
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut partition = f.debug_struct("Partition");
        partition.field("name", &self.name());
        partition.field("slots", &self.0.slots);
        partition.finish_non_exhaustive()
    }
}

impl<'a> Permit<'a> {
    /// A permit for a slot that has just been taken.
    #[inline]
    fn new(partition: &'a Partition) -> Self {
        let since = partition.0.begin();
        Self { partition, since }
    }

    /// The same permit, of a call that is timed in any case.
    fn timed(mut self) -> Self {
        if self.since == UNTIMED {
            self.since = self.partition.0.clock.now();
        }
        self
    }

    /// The same slot, held by a permit that borrows nothing.
    pub fn into_owned(self) -> OwnedPermit {
        let owned = OwnedPermit {
            partition: Some(self.partition.clone()),
            since: self.since,
        };
        // The slot stays taken: the owned permit stands for it now.
        mem::forget(self);
        owned
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.partition.0.end(self.since);
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.partition.name();
        f.debug_tuple("Permit").field(&name).finish()
    }
}

impl OwnedPermit {
    /// The same permit, of a call that is timed in any case: see [`Partition::runs`].
    pub fn timed(mut self) -> Self {
        if self.since == UNTIMED {
            self.since = self.partition().0.clock.now();
        }
        self
    }

    /// How long the slot has been held; `None` if the call is not timed.
    #[must_use]
    pub fn ran(&self) -> Option<Duration> {
        let now = || self.partition().0.clock.now();
        (self.since != UNTIMED).then(|| now().since(self.since))
    }

    /// Gives the slot back; how long it was held, if the call is timed.
    pub fn end(mut self) -> Option<Duration> {
        let partition = self.partition.take();
        partition.and_then(|partition| partition.0.end(self.since))
    }

    /// Runs a blocking function on one of the partition's threads, in this slot.
    ///
    /// Needs no runtime. The slot is given back when the function returns, then `done` is called on the
    /// same thread with what it returned or panicked with. The function runs in the tracing span of the
    /// caller. It begins when a thread is free, which is at once unless the partition has fewer threads
    /// than slots.
    ///
    /// # Errors
    /// When the system lets the partition start no thread. The slot is then free, and `done` is not
    /// called.
    pub fn spawn_blocking<F, T, D>(self, work: F, done: D) -> Result<Job, Full>
    where
        F: FnOnce() -> T + Send + 'static,
        T: 'static,
        D: FnOnce(Result<T, Panicked>) + Send + 'static,
    {
        Job::spawn(self, work, done)
    }

    pub(crate) fn partition(&self) -> &Partition {
        let partition = self.partition.as_ref();
        partition.expect("only a permit that is gone holds no slot")
    }

    /// Gives back a slot that nothing ran in: how long it was held says nothing about the work.
    fn end_unused(mut self) {
        let Some(partition) = self.partition.take() else {
            return;
        };
        let inner = &*partition.0;
        if self.since != UNTIMED {
            let ran = inner.clock.now().since(self.since);
            inner.tell(EventKind::Ended { ran });
        }
        inner.give_back();
    }

    /// The same slot, held by a permit that borrows its partition.
    fn lend(mut self, partition: &Partition) -> Permit<'_> {
        self.partition = None;
        let since = self.since;
        Permit { partition, since }
    }
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        if let Some(partition) = &self.partition {
            partition.0.end(self.since);
        }
    }
}

impl fmt::Debug for OwnedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.partition().name();
        f.debug_tuple("OwnedPermit").field(&name).finish()
    }
}

impl Inner {
    /// A call has its slot; since when it runs.
    #[inline]
    fn begin(&self) -> Timestamp {
        if self.timed_for.load(Ordering::Relaxed) != 0 {
            self.tell(EventKind::Started);
            return self.clock.now();
        }
        UNTIMED
    }

    /// A call is done with its slot; how long it had it.
    #[inline]
    fn end(&self, since: Timestamp) -> Option<Duration> {
        let ran = (since != UNTIMED).then(|| self.time(since));
        self.give_back();
        ran
    }

    fn time(&self, since: Timestamp) -> Duration {
        let now = self.clock.now();
        let ran = now.since(since);
        self.slots.runs().record(ran, now);
        self.runs.record(ran);
        self.tell(EventKind::Ended { ran });
        ran
    }

    #[inline]
    fn tell(&self, kind: EventKind) {
        if let Some(events) = self.events.get() {
            self.send(events, kind);
        }
    }

    /// Apart from `tell`, so that calls which nobody listens to do not carry it along.
    #[cold]
    fn send(&self, events: &broadcast::Sender<Event>, kind: EventKind) {
        let partition = Arc::clone(&self.name);
        // The call's slot may be neither guarded yet nor given back.
        contained(|| {
            // No receiver is left: nobody wants to know.
            let _ = events.send(Event { partition, kind });
        });
    }

    fn refuse(&self, occupancy: Occupancy, reason: Reason) -> Full {
        self.slots.count_refusal();
        let reason = match reason {
            Reason::Busy | Reason::QueueFull | Reason::Hopeless if occupancy.is_closed => {
                Reason::Closed
            }
            Reason::Busy if occupancy.queued == 0 && occupancy.active < occupancy.limit => {
                Reason::Ceiling
            }
            reason => reason,
        };
        self.tell(EventKind::Rejected(reason));
        Full {
            partition: Name::of(&self.name),
            active: occupancy.active,
            queued: occupancy.queued,
            reason,
        }
    }

    fn expire(&self) -> Full {
        self.expired.fetch_add(1, Ordering::Relaxed);
        self.refuse(self.slots.occupancy(), Reason::Waited)
    }

    fn time_out(&self, timeout: Duration) -> TimedOut {
        self.timed_out.fetch_add(1, Ordering::Relaxed);
        self.tell(EventKind::TimedOut);
        let partition = Name::of(&self.name);
        TimedOut { partition, timeout }
    }
}

fn wake(waiters: impl IntoIterator<Item = Arc<Waiter>>) {
    for waiter in waiters {
        waiter.wake();
    }
}
