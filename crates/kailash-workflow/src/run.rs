//! A workflow once per item of a stream, a number of items at a time.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{Stream, StreamExt as _};
use kailash::ConfigError;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use crate::runtime::{Inputs, Prepared, Run};

/// The most items that may run at a time.
const MOST: usize = 10_000;

/// Items that are being worked on, and what comes of them.
///
/// The next item is taken from the stream when a worker is free for it. Results come as they are ready,
/// not in the order of the items; while nobody takes them, the workers wait. Dropping this stops all
/// work at once; [`Control::stop`] lets what has begun come to its end.
///
/// ```
/// use futures_util::stream;
/// use kailash::{bulkhead, circuit_breaker};
/// use kailash_workflow::{Inputs, Items, LocalRuntime, Value, WorkflowBuilder};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut builder = WorkflowBuilder::new();
/// builder.add_node("SQLDatabaseNode", "double", json!({
///     "connection_string": "sqlite::memory:",
///     "query": "SELECT 2 * ? AS n",
///     "parameters": ["${row}"],
/// }))?;
/// let runtime = LocalRuntime::new(circuit_breaker::Manager::new(), bulkhead::Manager::new());
/// let workflow = runtime.prepare(&builder.build()?)?;
///
/// let rows = (0..100).map(|n| (n, Inputs::from(json!({"row": n}))));
/// let mut runs = Items::run(&workflow, stream::iter(rows), 8)?;
/// let mut sum = 0;
/// while let Some((n, run)) = runs.next().await {
///     assert!(run.is_success(), "row {n}");
///     sum += 1;
/// }
/// assert_eq!((sum, runs.control().progress().finished), (100, 100));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Items<R> {
    results: mpsc::Receiver<R>,
    workers: JoinSet<()>,
    control: Control,
}

impl<T: Send + 'static> Items<(T, Run)> {
    /// Runs a workflow once per item of the stream, `concurrency` at a time, on the current tokio
    /// runtime. The item comes back with its run.
    ///
    /// # Errors
    /// When `concurrency` is 0 or above 10,000.
    pub fn run(
        workflow: &Prepared,
        items: impl Stream<Item = (T, Inputs)> + Send + 'static,
        concurrency: usize,
    ) -> Result<Self, ConfigError> {
        let workflow = workflow.clone();
        Self::new(items, concurrency, move |(item, inputs): (T, Inputs)| {
            let workflow = workflow.clone();
            async move { (item, workflow.run(&inputs).await) }
        })
    }
}

impl<R: Send + 'static> Items<R> {
    /// Does `work` once per item of the stream, `concurrency` at a time, on the current tokio runtime.
    ///
    /// # Errors
    /// When `concurrency` is 0 or above 10,000.
    pub fn new<T, F, Fut>(
        items: impl Stream<Item = T> + Send + 'static,
        concurrency: usize,
        work: F,
    ) -> Result<Self, ConfigError>
    where
        T: Send + 'static,
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        if !(1..=MOST).contains(&concurrency) {
            return Err(ConfigError::new(
                "concurrency",
                concurrency,
                format!("1 to {MOST}"),
            ));
        }
        let control = Control {
            stop: watch::Sender::new(false),
            counts: Arc::default(),
        };
        let (sender, results) = mpsc::channel(concurrency);
        let source = Arc::new(Mutex::new(Box::pin(items.fuse()) as Source<T>));
        let work = Arc::new(work);
        let mut workers = JoinSet::new();
        for _ in 0..concurrency {
            let (control, sender) = (control.clone(), sender.clone());
            let (source, work) = (Arc::clone(&source), Arc::clone(&work));
            workers.spawn(async move {
                while let Some(item) = control.admit(&source).await {
                    let result = work(item).await;
                    control.counts.finished.fetch_add(1, Ordering::Relaxed);
                    if sender.send(result).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            results,
            workers,
            control,
        })
    }

    /// What came of the next item that is done; `None` when all are.
    ///
    /// Cancelled, no result is lost.
    ///
    /// # Panics
    /// With the panic of `work`, once the other workers are done.
    pub async fn next(&mut self) -> Option<R> {
        if let Some(result) = self.results.recv().await {
            return Some(result);
        }
        while let Some(ended) = self.workers.join_next().await {
            if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
                resume_unwind(panic);
            }
        }
        None
    }

    /// Tells how far the work is, and stops it.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }
}

type Source<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// Tells how far the work is, and stops it, from anywhere; clones control the same work.
#[derive(Clone, Debug)]
pub struct Control {
    stop: watch::Sender<bool>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    admitted: AtomicU64,
    finished: AtomicU64,
}

impl Control {
    /// Takes no further item. What has begun comes to its end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// How far the work is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        // In this order, since what is finished was admitted before.
        let finished = self.counts.finished.load(Ordering::Acquire);
        let admitted = self.counts.admitted.load(Ordering::Acquire);
        Progress {
            admitted,
            finished,
            is_stopped: *self.stop.borrow(),
        }
    }

    /// The next item, `None` when there is none or the work was stopped.
    async fn admit<T>(&self, source: &Mutex<Source<T>>) -> Option<T> {
        let mut stop = self.stop.subscribe();
        let next = async {
            let mut source = source.lock().await;
            let item = source.next().await?;
            self.counts.admitted.fetch_add(1, Ordering::Release);
            Some(item)
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            item = next => item,
        }
    }
}

/// How far the work on a stream of items is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The items that were taken from the stream.
    pub admitted: u64,
    /// Those that are done.
    pub finished: u64,
    /// Whether no further item is taken.
    pub is_stopped: bool,
}

impl Progress {
    /// The items that are being worked on.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.admitted - self.finished
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures_util::stream;
    use tokio::time::{Instant, sleep};

    use super::*;

    async fn all<R: Send + 'static>(mut items: Items<R>) -> Vec<R> {
        let mut results = Vec::new();
        while let Some(result) = items.next().await {
            results.push(result);
        }
        results
    }

    #[tokio::test(start_paused = true)]
    async fn every_item_is_worked_on_once_and_never_more_at_a_time_than_asked() {
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most = Arc::clone(&peak);
        let started = Instant::now();
        let items = Items::new(stream::iter(0..100_u64), 10, move |item| {
            let (running, peak) = (Arc::clone(&running), Arc::clone(&peak));
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                item
            }
        });
        let mut results = all(items.unwrap()).await;
        results.sort_unstable();
        assert_eq!(results, (0..100).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 10);
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_stop_what_has_begun_ends_and_nothing_begins() {
        let forever = stream::iter(0..).then(|item| async move {
            sleep(Duration::from_millis(1)).await;
            item
        });
        let mut items = Items::new(forever, 4, |item: u64| async move {
            sleep(Duration::from_secs(1)).await;
            item
        })
        .unwrap();
        let first = items.next().await.unwrap();
        items.control().stop();
        let admitted = items.control().progress().admitted;
        let mut results = all(items).await;
        results.push(first);
        assert_eq!(results.len() as u64, admitted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_for_a_stream_that_has_nothing() {
        let items = Items::new(stream::pending::<u64>(), 4, |item| async move { item }).unwrap();
        let control = items.control().clone();
        assert_eq!(control.progress(), Progress::default());
        control.stop();
        assert!(all(items).await.is_empty());
        assert!(control.progress().is_stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_it_stops_the_work_at_once() {
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        let mut items = Items::new(stream::iter(0..10), 5, move |item: u64| {
            let inside = Arc::clone(&inside);
            async move {
                if item > 0 {
                    std::future::pending::<()>().await;
                }
                drop(inside);
            }
        })
        .unwrap();
        items.next().await.unwrap();
        drop(items);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    #[should_panic(expected = "at item 3")]
    async fn a_panic_of_the_work_is_not_swallowed() {
        let items = Items::new(stream::iter(0..10), 2, |item: u64| async move {
            assert!(item != 3, "at item {item}");
        });
        all(items.unwrap()).await;
    }

    #[tokio::test]
    async fn a_concurrency_out_of_range_is_refused() {
        for concurrency in [0, MOST + 1] {
            let items = Items::new(
                stream::iter(0..10),
                concurrency,
                |item: u64| async move { item },
            );
            assert_eq!(items.unwrap_err().field, "concurrency");
        }
    }
}
