//! Runs `vectors/circuit_breaker_layers/*.json`: a breaker among retries, a partition and a timeout.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::HashMap;
use std::fs;
use std::future::pending;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::FutureExt;
use kailash::bulkhead::{Partition, PartitionConfig, PartitionType, RunError};
use kailash::circuit_breaker::{CallError, CircuitBreaker, Outcome};
use kailash::clock::{Clock, ManualClock};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::{advance, sleep, timeout};

#[expect(
    dead_code,
    reason = "of what runs scripts, only the settings are needed here"
)]
#[path = "../../kailash-core/tests/circuit_breaker_vectors/script.rs"]
mod script;

/// Longer than any machine needs.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    breaker: Map<String, Value>,
    partition: Option<PartitionSettings>,
    timeout: Option<f64>,
    #[serde(default)]
    retries: Retries,
    #[serde(default)]
    counts: Counts,
    script: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionSettings {
    max_concurrent_operations: u32,
    queue_size: u32,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retries {
    attempts: usize,
    delay: f64,
    refusals: bool,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 1,
            delay: 0.0,
            refusals: false,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    full: Option<Counted>,
    timeout: Option<Counted>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Counted {
    Failure,
    Ignored,
}

impl From<Counted> for Outcome {
    fn from(counted: Counted) -> Self {
        match counted {
            Counted::Failure => Self::Failure,
            Counted::Ignored => Self::Ignored,
        }
    }
}

/// Why an attempt that the breaker admitted came to nothing.
#[derive(Debug, PartialEq)]
enum Inner {
    Failed,
    TimedOut,
    Full,
}

impl Counts {
    fn outcome(self, result: &Result<(), Inner>) -> Outcome {
        match result {
            Ok(()) => Outcome::Success,
            Err(Inner::Failed) => Outcome::Failure,
            Err(Inner::Full) => self.full.unwrap_or(Counted::Ignored).into(),
            Err(Inner::TimedOut) => self.timeout.unwrap_or(Counted::Failure).into(),
        }
    }
}

fn letter(result: &Result<(), CallError<Inner>>) -> char {
    match result {
        Ok(()) => 'S',
        Err(CallError::Inner(Inner::Failed)) => 'F',
        Err(CallError::Inner(Inner::TimedOut)) => 'T',
        Err(CallError::Inner(Inner::Full)) => 'B',
        Err(CallError::Rejected(_)) => 'O',
    }
}

fn succeeds(how: &str) -> Result<(), Inner> {
    match how {
        "S" => Ok(()),
        "F" => Err(Inner::Failed),
        _ => panic!("no such end: {how}"),
    }
}

/// The layers of one case. Clones share them.
#[derive(Clone)]
struct Layers {
    breaker: CircuitBreaker,
    partition: Option<Partition>,
    timeout: Option<Duration>,
    retries: Retries,
    counts: Counts,
}

impl Layers {
    fn new(case: &Case, clock: &Clock) -> Self {
        let settings = script::config(&case.breaker);
        let partition = case.partition.map(|settings| {
            let config = PartitionConfig {
                max_concurrent_operations: settings.max_concurrent_operations,
                queue_size: settings.queue_size,
                timeout: None,
                ..PartitionConfig::new("vector", PartitionType::Custom)
            };
            Partition::with_clock(config, clock.clone()).unwrap()
        });
        Self {
            breaker: CircuitBreaker::with_clock("vector", settings, clock.clone()).unwrap(),
            partition,
            timeout: case.timeout.map(Duration::from_secs_f64),
            retries: case.retries,
            counts: case.counts,
        }
    }

    async fn attempt(
        &self,
        work: impl Future<Output = Result<(), Inner>>,
    ) -> Result<(), CallError<Inner>> {
        let classify = |result: &_| self.counts.outcome(result);
        let timed = async {
            match self.timeout {
                Some(limit) => timeout(limit, work).await.unwrap_or(Err(Inner::TimedOut)),
                None => work.await,
            }
        };
        let call = || async {
            match &self.partition {
                None => timed.await,
                Some(partition) => match partition.run(timed).await {
                    Ok(result) => result,
                    Err(RunError::Full(_)) => Err(Inner::Full),
                    Err(error) => panic!("{error}"),
                },
            }
        };
        self.breaker.call_with(classify, call).await
    }

    /// Makes one call whose attempts' work ends as the letters say; what the attempts came to.
    async fn call(&self, letters: &str) -> String {
        let mut came_to = String::new();
        for attempt in 0..self.retries.attempts {
            if attempt > 0 {
                sleep(Duration::from_secs_f64(self.retries.delay)).await;
            }
            let expected = letters.chars().nth(attempt);
            let work = async {
                match expected {
                    Some('S') => Ok(()),
                    Some('F') => Err(Inner::Failed),
                    Some('T') => pending().await,
                    other => panic!("attempt {attempt} ran, and {other:?} was expected"),
                }
            };
            let result = self.attempt(work).await;
            came_to.push(letter(&result));
            match result {
                Err(CallError::Inner(Inner::Failed | Inner::TimedOut)) => {}
                Err(CallError::Rejected(_)) if self.retries.refusals => {}
                _ => break,
            }
        }
        came_to
    }

    fn call_blocking(&self, work: impl FnOnce() -> Result<(), Inner>) -> char {
        let call = || {
            let slot = self.partition.as_ref().map(Partition::try_acquire);
            let _slot = slot.transpose().map_err(|_| Inner::Full)?;
            work()
        };
        let classify = |result: &_| self.counts.outcome(result);
        letter(&self.breaker.call_sync_with(classify, call))
    }

    fn expect(&self, what: &str, expected: &str) {
        let status = self.breaker.snapshot();
        let found = match what {
            "" => status.state.to_string(),
            "calls" => status.calls.to_string(),
            "failures" => status.failures.to_string(),
            "rejections" => status.rejections.to_string(),
            _ => panic!("no such expectation: {what}"),
        };
        assert_eq!(found, expected);
    }
}

/// A way to make calls that go on while others are made.
trait Calls {
    /// A call whose work begins at once and goes on, or which waits for a slot.
    async fn begin(&mut self, call: &str, waits: bool);
    async fn end(&mut self, call: &str, how: &str);
    /// A whole call; what its attempts came to.
    async fn make(&mut self, letters: &str) -> String;
    async fn pass(&mut self, time: Duration);
}

struct Futures {
    layers: Layers,
    calls: HashMap<String, Pending>,
}

struct Pending {
    future: Pin<Box<dyn Future<Output = char>>>,
    runs: Arc<AtomicBool>,
    end: oneshot::Sender<Result<(), Inner>>,
}

impl Calls for Futures {
    async fn begin(&mut self, call: &str, waits: bool) {
        let runs = Arc::new(AtomicBool::new(false));
        let (end, ended) = oneshot::channel();
        let begun = Arc::clone(&runs);
        let work = async move {
            begun.store(true, Ordering::Relaxed);
            ended.await.unwrap()
        };
        let layers = self.layers.clone();
        let mut future = async move { letter(&layers.attempt(work).await) }.boxed_local();
        assert_eq!(future.as_mut().now_or_never(), None, "{call} has ended");
        assert_eq!(runs.load(Ordering::Relaxed), !waits, "whether {call} runs");
        let pending = Pending { future, runs, end };
        self.calls.insert(call.to_owned(), pending);
    }

    async fn end(&mut self, call: &str, how: &str) {
        let Pending { future, runs, end } = self.calls.remove(call).unwrap();
        if how == "C" {
            drop(future);
        } else {
            assert!(runs.load(Ordering::Relaxed), "{call} still waits");
            end.send(succeeds(how)).unwrap();
            assert_eq!(future.await.to_string(), how);
        }
        for Pending { future, .. } in self.calls.values_mut() {
            assert_eq!(future.as_mut().now_or_never(), None, "a call has ended");
        }
    }

    async fn make(&mut self, letters: &str) -> String {
        self.layers.call(letters).await
    }

    async fn pass(&mut self, time: Duration) {
        advance(time).await;
    }
}

struct Threads {
    layers: Layers,
    hand: ManualClock,
    calls: HashMap<String, Blocked>,
}

struct Blocked {
    thread: JoinHandle<char>,
    end: mpsc::Sender<Result<(), Inner>>,
}

impl Calls for Threads {
    async fn begin(&mut self, call: &str, _: bool) {
        let (begun, begins) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let layers = self.layers.clone();
        let thread = thread::spawn(move || {
            layers.call_blocking(|| {
                begun.send(()).unwrap();
                ended.recv_timeout(LIMIT).unwrap()
            })
        });
        begins.recv_timeout(LIMIT).unwrap();
        self.calls.insert(call.to_owned(), Blocked { thread, end });
    }

    async fn end(&mut self, call: &str, how: &str) {
        let Blocked { thread, end } = self.calls.remove(call).unwrap();
        end.send(succeeds(how)).unwrap();
        assert_eq!(thread.join().unwrap().to_string(), how);
    }

    async fn make(&mut self, letters: &str) -> String {
        let work = || succeeds(letters);
        self.layers.call_blocking(work).to_string()
    }

    async fn pass(&mut self, time: Duration) {
        self.hand.advance(time);
    }
}

#[expect(clippy::print_stdout, reason = "says which word a failed test was at")]
async fn check(name: &str, script: &str, layers: &Layers, mut calls: impl Calls) {
    for (place, word) in script.split_whitespace().enumerate() {
        println!("\"{name}\", word {} ({word})", place + 1);
        if let Some(time) = word.strip_prefix('w') {
            calls
                .pass(Duration::from_secs_f64(time.parse().unwrap()))
                .await;
        } else if let Some(call) = word.strip_prefix('(') {
            calls.begin(call, false).await;
        } else if let Some(call) = word.strip_prefix('?') {
            calls.begin(call, true).await;
        } else if let Some((call, how)) = word.split_once(')') {
            calls.end(call, how).await;
        } else if word == "+F" {
            layers.breaker.record_failure();
        } else if let Some((what, expected)) = word.split_once('=') {
            layers.expect(what, expected);
        } else {
            assert_eq!(calls.make(word).await, word);
        }
    }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/circuit_breaker_layers");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let texts = files.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    let read = |path| serde_json::from_slice::<Vec<Case>>(&fs::read(path).unwrap()).unwrap();
    texts.flat_map(read).collect()
}

#[tokio::test(start_paused = true)]
async fn every_vector_holds_for_futures() {
    let cases = cases();
    assert!(cases.len() >= 19, "only {} cases were found", cases.len());
    for case in cases {
        let layers = Layers::new(&case, &Clock::tokio());
        let calls = Futures {
            layers: layers.clone(),
            calls: HashMap::new(),
        };
        check(&case.name, &case.script, &layers, calls).await;
    }
}

#[tokio::test]
async fn every_vector_without_waiting_holds_for_blocking_calls() {
    let waits = |case: &Case| {
        let queues = case
            .partition
            .is_some_and(|settings| settings.queue_size > 0);
        queues || case.timeout.is_some() || case.retries.attempts > 1
    };
    let mut cases = cases();
    cases.retain(|case| !waits(case));
    assert!(cases.len() >= 3, "only {} cases were found", cases.len());
    for case in cases {
        let (clock, hand) = Clock::manual();
        let layers = Layers::new(&case, &clock);
        let calls = Threads {
            layers: layers.clone(),
            hand,
            calls: HashMap::new(),
        };
        check(&case.name, &case.script, &layers, calls).await;
    }
}
