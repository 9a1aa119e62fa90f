//! Sends what an outbox still holds, as fast as the receiver's breaker lets it.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kailash::bulkhead::{Admission, Partition, Priority, RunError};
use kailash::circuit_breaker::{CircuitBreaker, State};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Outbox, Unsent};
use crate::error::NodeError;

/// The most rows that are read or marked at once.
const PAGE: usize = 256;
/// How long it rests after a failure that no breaker answers for; doubles up to the last.
const FIRST_REST: Duration = Duration::from_millis(50);
const LAST_REST: Duration = Duration::from_secs(5);
/// How often it looks at a breaker that does not say when it will let calls through.
const LOOK: Duration = Duration::from_millis(20);

/// How a relay works.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Rows that are sent at once, at least 1; default 16.
    pub concurrency: usize,
    /// How long it goes on without one row sent once no more come: default 5 min. One that is
    /// shorter than an opening of the breaker leaves it no second try.
    pub give_up_after: Duration,
    /// The breaker that the sending goes through: nothing is sent while it is open, and no more than
    /// its probes while it is half-open.
    pub breaker: Option<CircuitBreaker>,
    /// The partition that reading and marking go through.
    pub partition: Option<Partition>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            concurrency: 16,
            give_up_after: Duration::from_secs(300),
            breaker: None,
            partition: None,
        }
    }
}

/// What came of sending one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken; the row is marked.
    Sent,
    /// It was not, and will not be: the row is left for another run.
    Refused,
    /// It may have been, or not: it is sent again.
    Failed,
}

/// Sends the unsent rows of an outbox; clones share it.
///
/// Rows that somebody else is sending are held back by [`hold`](Self::hold), so that no row is sent
/// twice at once.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    outbox: Outbox,
    config: RelayConfig,
    in_flight: Mutex<InFlight>,
    refused: Mutex<HashSet<String>>,
    /// Rows that failed since the newest rest: each is tried once between two.
    failed: Mutex<HashSet<String>>,
    /// Rows that were sent and wait to be marked together.
    to_mark: Mutex<Vec<(String, oneshot::Sender<bool>)>>,
    marking: tokio::sync::Mutex<()>,
    wake: Notify,
    is_finished: AtomicBool,
    is_stopped: AtomicBool,
    sent: AtomicU64,
    longest_wait: AtomicU64,
}

/// The rows that somebody sends.
#[derive(Default)]
struct InFlight {
    keys: HashSet<String>,
    /// Those let go since a page is being read: the page may hold what they were before.
    let_go: Option<HashSet<String>>,
}

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All that can be sent was sent.
    Done,
    /// It was told to stop.
    Stopped,
    /// Nothing was sent for too long.
    GaveUp,
}

/// What a relay has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelaySnapshot {
    /// Rows that were marked as sent, those of [`Held::sent`] included.
    pub sent: u64,
    /// Rows that were refused.
    pub refused: u64,
    /// The longest time from storing a row to marking it.
    pub longest_wait: Duration,
}

/// A row that its holder sends; dropping it gives the row to the relay.
#[must_use = "a row that is let go at once is sent by the relay too"]
pub struct Held {
    relay: Relay,
    key: String,
    is_sent: bool,
}

impl Held {
    /// Marks the row as sent, together with those that others mark at the same time; whether it is.
    ///
    /// A row that could not be marked is sent again. Cancelled, it may be marked or not.
    pub async fn sent(mut self, stored_at: SystemTime) -> bool {
        self.is_sent = self.relay.mark(&self.key, stored_at).await;
        self.is_sent
    }

    /// Leaves the row to another run.
    pub fn refused(self) {
        lock(&self.relay.0.refused).insert(self.key.clone());
    }
}

impl Relay {
    /// A relay for the rows of this outbox.
    #[must_use]
    pub fn new(outbox: Outbox, config: RelayConfig) -> Self {
        Self(Arc::new(Shared {
            outbox,
            config,
            in_flight: Mutex::default(),
            refused: Mutex::default(),
            failed: Mutex::default(),
            to_mark: Mutex::default(),
            marking: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            is_finished: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
        }))
    }

    /// Holds a row back: its holder sends it.
    pub fn hold(&self, key: &str) -> Held {
        lock(&self.0.in_flight).keys.insert(key.to_owned());
        Held {
            relay: self.clone(),
            key: key.to_owned(),
            is_sent: false,
        }
    }

    async fn mark(&self, key: &str, stored_at: SystemTime) -> bool {
        let shared = &*self.0;
        let (done, mut is_marked) = oneshot::channel();
        lock(&shared.to_mark).push((key.to_owned(), done));
        let marking = shared.marking.lock().await;
        // Whoever marked while this one waited may have taken it along.
        let is_marked = match is_marked.try_recv() {
            Ok(is_marked) => is_marked,
            Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => {
                while self.mark_some().await {}
                is_marked.try_recv().unwrap_or(false)
            }
        };
        drop(marking);
        if is_marked {
            let waited = stored_at.elapsed().unwrap_or_default();
            let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
            shared.longest_wait.fetch_max(waited, Ordering::Relaxed);
            shared.sent.fetch_add(1, Ordering::Relaxed);
        }
        is_marked
    }

    /// Marks what waits, a page at most; whether there was any.
    async fn mark_some(&self) -> bool {
        let shared = &*self.0;
        let batch: Vec<_> = {
            let mut waiting = lock(&shared.to_mark);
            let count = waiting.len().min(PAGE);
            waiting.drain(..count).collect()
        };
        if batch.is_empty() {
            return false;
        }
        let (keys, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let marked = self
            .in_partition(|| shared.outbox.mark_sent(&keys).boxed())
            .await;
        let is_marked = marked.is_ok();
        for done in waiting {
            // Whoever gave up waiting needs no answer.
            let _ = done.send(is_marked);
        }
        true
    }

    /// Says that no more rows will come: [`run`](Self::run) ends once it has sent what is left.
    pub fn finish(&self) {
        self.0.is_finished.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// Stops sending: [`run`](Self::run) ends once what is in flight has ended.
    pub fn stop(&self) {
        self.0.is_stopped.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// What it has done so far.
    #[must_use]
    pub fn snapshot(&self) -> RelaySnapshot {
        RelaySnapshot {
            sent: self.0.sent.load(Ordering::Relaxed),
            refused: lock(&self.0.refused).len() as u64,
            longest_wait: Duration::from_micros(self.0.longest_wait.load(Ordering::Relaxed)),
        }
    }

    /// Sends every row that is unsent and not held, again and again until it is taken.
    ///
    /// Cancelled, rows may have been sent and not marked.
    pub async fn run<F, D>(&self, send: F) -> Ended
    where
        F: Fn(Unsent) -> D,
        D: Future<Output = Delivery> + Send + 'static,
    {
        let mut rest = FIRST_REST;
        let mut newest = Instant::now();
        let mut was_finished = false;
        loop {
            if self.0.is_stopped.load(Ordering::Acquire) {
                return Ended::Stopped;
            }
            let is_finished = self.0.is_finished.load(Ordering::Acquire);
            if is_finished && !was_finished {
                was_finished = true;
                newest = Instant::now();
            }
            let give_up = newest + self.0.config.give_up_after;
            if is_finished && Instant::now() >= give_up {
                return Ended::GaveUp;
            }
            let give_up = is_finished.then_some(give_up);
            lock(&self.0.failed).clear();
            let Ok(rows) = self.page().await else {
                self.wait(rest, give_up).await;
                rest = (rest * 2).min(LAST_REST);
                continue;
            };
            if rows.is_empty() {
                if is_finished && lock(&self.0.in_flight).keys.is_empty() {
                    return Ended::Done;
                }
                self.0.wake.notified().await;
                continue;
            }
            if self.room() == 0 {
                let wait = self.retry_after().unwrap_or(LOOK);
                self.wait(wait, give_up).await;
                continue;
            }
            let (sent, failed) = self.send_all(rows, &send).await;
            if sent > 0 {
                newest = Instant::now();
                rest = FIRST_REST;
            } else if failed > 0 && self.room() > 0 {
                self.wait(rest, give_up).await;
                rest = (rest * 2).min(LAST_REST);
            }
        }
    }

    /// Sends these rows and those that come meanwhile, each once, as long as there is room; how many
    /// were sent, and how many failed.
    async fn send_all<F, D>(&self, rows: Vec<Unsent>, send: &F) -> (u64, u64)
    where
        F: Fn(Unsent) -> D,
        D: Future<Output = Delivery> + Send + 'static,
    {
        let (mut sent, mut failed) = (0, 0);
        let mut sending = JoinSet::new();
        let mut rows = rows.into_iter();
        let mut are_all_read = false;
        loop {
            let is_stopped = self.0.is_stopped.load(Ordering::Acquire);
            while !is_stopped && sending.len() < self.room() {
                let Some(row) = rows.next() else {
                    if are_all_read {
                        break;
                    }
                    rows = self.page().await.unwrap_or_default().into_iter();
                    are_all_read = rows.len() == 0;
                    continue;
                };
                let held = self.hold(&row.key);
                let relay = self.clone();
                let (key, stored_at) = (row.key.clone(), row.stored_at);
                let delivery = send(row);
                sending.spawn(async move {
                    match delivery.await {
                        Delivery::Sent if held.sent(stored_at).await => Delivery::Sent,
                        Delivery::Refused => {
                            lock(&relay.0.refused).insert(key);
                            Delivery::Refused
                        }
                        Delivery::Sent | Delivery::Failed => {
                            lock(&relay.0.failed).insert(key);
                            Delivery::Failed
                        }
                    }
                });
            }
            match sending.join_next().await {
                Some(Ok(Delivery::Sent)) => sent += 1,
                Some(Ok(Delivery::Refused)) => {}
                // One that panicked failed.
                Some(Ok(Delivery::Failed) | Err(_)) => failed += 1,
                None => return (sent, failed),
            }
        }
    }

    /// Rows that wait to be sent.
    async fn page(&self) -> Result<Vec<Unsent>, NodeError> {
        let shared = &*self.0;
        let held = {
            let mut in_flight = lock(&shared.in_flight);
            in_flight.let_go = Some(HashSet::new());
            let left_out = lock(&shared.refused).len() + lock(&shared.failed).len();
            in_flight.keys.len() + left_out
        };
        let rows = self
            .in_partition(|| shared.outbox.unsent(PAGE + held).boxed())
            .await;
        let mut in_flight = lock(&shared.in_flight);
        let let_go = in_flight.let_go.take().unwrap_or_default();
        let (refused, failed) = (lock(&shared.refused), lock(&shared.failed));
        let is_free = |key: &str| {
            let is_sent = in_flight.keys.contains(key) || let_go.contains(key);
            !is_sent && !refused.contains(key) && !failed.contains(key)
        };
        let mut rows = rows?;
        let found = rows.len();
        rows.retain(|row| is_free(&row.key));
        if rows.len() < found && !let_go.is_empty() {
            // What was let go may be free by now.
            shared.wake.notify_one();
        }
        Ok(rows)
    }

    /// Reads or marks in the partition, before what waits there: a mark that comes too late is a row
    /// that is sent twice.
    async fn in_partition<'w, T>(
        &self,
        work: impl Fn() -> BoxFuture<'w, Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        let Some(partition) = &self.0.config.partition else {
            return work().await;
        };
        let first = Admission {
            priority: Some(Priority::MOST_URGENT),
            timeout: None,
        };
        loop {
            match partition.run_with(first, work()).await {
                Ok(result) => return result,
                Err(RunError::Full(_)) => sleep(LOOK).await,
                Err(RunError::TimedOut(error)) => {
                    return Err(NodeError::execution(error.to_string()));
                }
                Err(RunError::Closed(closed)) => return Err(NodeError::Closed(closed)),
            }
        }
    }

    /// How many rows may be in flight now.
    fn room(&self) -> usize {
        let most = self.0.config.concurrency.max(1);
        let Some(breaker) = &self.0.config.breaker else {
            return most;
        };
        match breaker.state() {
            State::Open => 0,
            State::HalfOpen => most.min(breaker.config().half_open_requests as usize),
            _ => most,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.0.config.breaker.as_ref()?.snapshot().retry_after
    }

    /// Waits, but no longer than until it is woken or gives up.
    async fn wait(&self, time: Duration, give_up: Option<Instant>) {
        let end = Instant::now() + time;
        let end = give_up.map_or(end, |give_up| end.min(give_up));
        loop {
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.0.wake.notified() => {
                    if self.0.is_stopped.load(Ordering::Acquire) {
                        return;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let shared = &*self.relay.0;
        {
            let mut in_flight = lock(&shared.in_flight);
            in_flight.keys.remove(&self.key);
            if let Some(let_go) = &mut in_flight.let_go {
                let_go.insert(std::mem::take(&mut self.key));
            }
        }
        if !self.is_sent || shared.is_finished.load(Ordering::Acquire) {
            shared.wake.notify_one();
        }
    }
}

/// A panic elsewhere leaves sets and counters that are still right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kailash::bulkhead::{PartitionConfig, PartitionType};
    use kailash::circuit_breaker::Config;
    use kailash::clock::Clock;

    use super::*;
    use crate::nodes::SqlDatabase;

    async fn outbox(keys: &[&str]) -> Outbox {
        let database = SqlDatabase::new("sqlite::memory:").unwrap();
        let outbox = Outbox::open(database, "outbox").await.unwrap();
        for key in keys {
            outbox.store(key, key, Vec::new()).await.unwrap();
        }
        outbox
    }

    /// Takes each key at its n-th sending.
    #[derive(Clone)]
    struct Receiver {
        taken_at: usize,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Receiver {
        fn new(taken_at: usize) -> Self {
            let seen = Arc::default();
            Self { taken_at, seen }
        }

        fn receive(&self, key: &str) -> Delivery {
            let mut seen = lock(&self.seen);
            seen.push(key.to_owned());
            match seen.iter().filter(|seen| *seen == key).count() >= self.taken_at {
                true => Delivery::Sent,
                false => Delivery::Failed,
            }
        }

        fn sender(&self) -> impl Fn(Unsent) -> std::future::Ready<Delivery> + Send + 'static {
            let receiver = self.clone();
            move |row| std::future::ready(receiver.receive(&row.key))
        }

        fn seen(&self) -> usize {
            lock(&self.seen).len()
        }
    }

    #[tokio::test]
    async fn rows_are_sent_until_they_are_taken() {
        let outbox = outbox(&["a", "b", "c"]).await;
        let relay = Relay::new(outbox.clone(), RelayConfig::default());
        relay.finish();
        let receiver = Receiver::new(3);
        let ended = relay.run(receiver.sender()).await;
        assert_eq!(ended, Ended::Done);
        assert_eq!(receiver.seen(), 9);
        assert_eq!(outbox.count_unsent().await.unwrap(), 0);
        assert_eq!(relay.snapshot().sent, 3);
    }

    #[tokio::test]
    async fn a_held_row_is_not_sent_until_it_is_let_go() {
        let relay = Relay::new(outbox(&["a", "b"]).await, RelayConfig::default());
        let (a, b) = (relay.hold("a"), relay.hold("b"));
        let receiver = Receiver::new(1);
        let run = relay.run(receiver.sender());
        let holder = async {
            assert!(a.sent(SystemTime::now()).await);
            drop(b);
            relay.finish();
        };
        let (ended, ()) = tokio::join!(run, holder);
        assert_eq!(ended, Ended::Done);
        assert_eq!(*lock(&receiver.seen), ["b"]);
    }

    #[tokio::test]
    async fn a_refused_row_is_left_and_the_others_go_on() {
        let outbox = outbox(&["a", "b"]).await;
        let relay = Relay::new(outbox.clone(), RelayConfig::default());
        relay.finish();
        let send = |row: Unsent| async move {
            match &*row.key {
                "a" => Delivery::Refused,
                _ => Delivery::Sent,
            }
        };
        assert_eq!(relay.run(send).await, Ended::Done);
        assert_eq!(outbox.unsent(9).await.unwrap()[0].key, "a");
        assert_eq!(relay.snapshot().refused, 1);
    }

    #[tokio::test]
    async fn nothing_is_sent_while_the_breaker_is_open() {
        let (clock, hand) = Clock::manual();
        let config = Config {
            half_open_requests: 1,
            success_threshold: 1,
            jitter_enabled: false,
            ..Config::default()
        };
        let breaker = CircuitBreaker::with_clock("receiver", config, clock).unwrap();
        breaker.force_open();
        let config = RelayConfig {
            breaker: Some(breaker.clone()),
            ..RelayConfig::default()
        };
        let relay = Relay::new(outbox(&["a", "b"]).await, config);
        relay.finish();
        let receiver = Receiver::new(1);
        let send = {
            let (breaker, receive) = (breaker.clone(), receiver.sender());
            move |row: Unsent| {
                let (breaker, receive) = (breaker.clone(), receive(row));
                async move {
                    let call = breaker.call(async || Ok::<_, ()>(receive.await));
                    call.await.unwrap()
                }
            }
        };
        let opener = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(receiver.seen(), 0);
            breaker.force_close();
            hand.advance(Duration::from_secs(1));
        };
        let (ended, ()) = tokio::join!(relay.run(send), opener);
        assert_eq!((ended, receiver.seen()), (Ended::Done, 2));
    }

    #[tokio::test]
    async fn it_gives_up_when_nothing_is_sent_for_too_long() {
        let outbox = outbox(&["a"]).await;
        let config = RelayConfig {
            give_up_after: Duration::from_millis(1),
            ..RelayConfig::default()
        };
        let relay = Relay::new(outbox.clone(), config);
        relay.finish();
        let ended = relay.run(|_| async { Delivery::Failed }).await;
        assert_eq!(ended, Ended::GaveUp);
        assert_eq!(outbox.count_unsent().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_full_partition_delays_a_mark_and_does_not_lose_it() {
        let config = PartitionConfig {
            max_concurrent_operations: 1,
            queue_size: 0,
            ..PartitionConfig::new("database", PartitionType::Database)
        };
        let partition = Partition::new(config).unwrap();
        let config = RelayConfig {
            partition: Some(partition.clone()),
            ..RelayConfig::default()
        };
        let outbox = outbox(&["a"]).await;
        let relay = Relay::new(outbox.clone(), config);
        let permit = partition.try_acquire().unwrap();
        let mark = relay.hold("a").sent(SystemTime::now());
        let holder = async {
            while partition.snapshot().refused == 0 {
                tokio::task::yield_now().await;
            }
            drop(permit);
        };
        let (is_marked, ()) = tokio::join!(mark, holder);
        assert!(is_marked);
        assert_eq!(outbox.count_unsent().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn it_stops_when_told() {
        let relay = Relay::new(outbox(&[]).await, RelayConfig::default());
        let run = relay.run(|_| async { Delivery::Sent });
        let (ended, ()) = tokio::join!(run, async { relay.stop() });
        assert_eq!(ended, Ended::Stopped);
    }
}
