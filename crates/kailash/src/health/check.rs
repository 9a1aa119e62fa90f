//! What a check is, and how one run of it is kept within bounds.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kailash_core::health::Status;
use serde_json::{Map, Value};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::threads::{MOST_THREADS, NoAnswer, Place, Threads, lock, panic_text};
use crate::redact::redact;

/// Stands for a timeout that reaches beyond what the clock can tell.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// A boxed future, as a trait that can be a trait object needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that can tell how it is.
///
/// Whoever runs a check bounds it from outside: a run that takes longer than its timeout is dropped
/// at its next await and counts as unhealthy, and so does one that panics. A check is never run twice
/// at once, so it may keep a connection for the next run. It must not block the thread it is polled
/// on; work that blocks goes through [`Run::on_thread`].
///
/// ```
/// use kailash::health::{BoxFuture, Check, Outcome, Run};
///
/// struct Backlog;
///
/// impl Check for Backlog {
///     fn check<'a>(&'a self, _: &'a Run) -> BoxFuture<'a, Outcome> {
///         Box::pin(async {
///             let waiting = 3;
///             if waiting < 100 {
///                 Outcome::healthy().detail("waiting", waiting)
///             } else {
///                 Outcome::degraded(format!("{waiting} are waiting"))
///             }
///         })
///     }
/// }
/// ```
pub trait Check: Send + Sync + 'static {
    /// Finds out how it is.
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome>;
}

impl<C: Check + ?Sized> Check for Arc<C> {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        (**self).check(run)
    }
}

impl<C: Check + ?Sized> Check for Box<C> {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        (**self).check(run)
    }
}

/// What a run of a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it is.
    pub status: Status,
    /// What kind of error it is, if it is one.
    pub class: Option<ErrorClass>,
    /// What there is to say, without secrets once it is reported; empty if nothing.
    pub message: String,
    /// More of it, by name.
    pub details: Map<String, Value>,
}

impl Outcome {
    /// It works.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(Status::Healthy, None, String::new())
    }

    /// It works, but not as it should.
    #[must_use]
    pub fn degraded(message: impl Into<String>) -> Self {
        Self::new(Status::Degraded, None, message.into())
    }

    /// It does not work, for a reason of the check's own.
    #[must_use]
    pub fn unhealthy(message: impl Into<String>) -> Self {
        Self::new(Status::Unhealthy, Some(ErrorClass::Failed), message.into())
    }

    /// It could not be found out, which counts neither as a failure nor as a success.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Status::Unknown, None, message.into())
    }

    /// It does not work, with an error of this class; the message begins with the class.
    #[must_use]
    pub fn error(class: ErrorClass, message: impl fmt::Display) -> Self {
        let status = match class {
            // Whoever holds a connection is served.
            ErrorClass::Saturated => Status::Degraded,
            _ => Status::Unhealthy,
        };
        Self::new(status, Some(class), format!("{class}: {message}"))
    }

    /// The same outcome with a message.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// The same outcome with one more detail.
    #[must_use]
    pub fn detail(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.details.insert(name.into(), value.into());
        self
    }

    fn new(status: Status, class: Option<ErrorClass>, message: String) -> Self {
        Self {
            status,
            class,
            message,
            details: Map::new(),
        }
    }

    fn redacted(mut self) -> Self {
        self.message = redact(&self.message).into_owned();
        let details = self.details.into_iter();
        self.details = details.map(redacted_entry).collect();
        self
    }
}

impl From<bool> for Outcome {
    fn from(works: bool) -> Self {
        if works {
            Self::healthy()
        } else {
            Self::unhealthy("the check says no")
        }
    }
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        let class = (status == Status::Unhealthy).then_some(ErrorClass::Failed);
        Self::new(status, class, String::new())
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Outcome {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::healthy(),
            Err(error) => Self::unhealthy(error.to_string()),
        }
    }
}

/// What kind of error a check met: the same words whichever driver met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Nobody listens there.
    Refused,
    /// There is no way to the host.
    Unreachable,
    /// The connection was closed before an answer.
    Closed,
    /// No time was left, in a check that does not say how far it came.
    Timeout,
    /// The name was not looked up in time.
    TimeoutLookUp,
    /// No connection was made in time.
    TimeoutConnect,
    /// A connection was made, but no answer came in time: what a stopped process looks like.
    TimeoutAnswer,
    /// The answer began, but did not end in time.
    TimeoutBody,
    /// The name has no address.
    Dns,
    /// No trusted connection can be made.
    Tls,
    /// User or password are wrong, or missing.
    Auth,
    /// It is starting or loading, or shutting down.
    Starting,
    /// It takes no more connections; told as degraded, since those who have one are served.
    Saturated,
    /// It takes no writes.
    ReadOnly,
    /// It answers with an HTTP status that was not expected.
    Status,
    /// It answers, but not what was expected.
    Mismatch,
    /// What should be there is not: a file, a database.
    Missing,
    /// It answers with an error of its own.
    Server,
    /// The check panicked or raised.
    Panic,
    /// The check says so.
    Failed,
}

impl ErrorClass {
    /// The words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::TimeoutLookUp => "timeout: dns",
            Self::TimeoutConnect => "timeout: connect",
            Self::TimeoutAnswer => "timeout: connected, no answer",
            Self::TimeoutBody => "timeout: body",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Starting => "starting",
            Self::Saturated => "saturated",
            Self::ReadOnly => "read-only",
            Self::Status => "status",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Server => "server",
            Self::Panic => "panic",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a run has come, which tells what a timeout means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has begun.
    Begun,
    /// It looks up a name.
    LookUp,
    /// It connects.
    Connecting,
    /// It is connected and waits for an answer.
    Connected,
    /// The answer has begun.
    Body,
}

impl Phase {
    const ALL: [Self; 5] = [
        Self::Begun,
        Self::LookUp,
        Self::Connecting,
        Self::Connected,
        Self::Body,
    ];

    const fn timeout(self) -> ErrorClass {
        match self {
            Self::Begun => ErrorClass::Timeout,
            Self::LookUp => ErrorClass::TimeoutLookUp,
            Self::Connecting => ErrorClass::TimeoutConnect,
            Self::Connected => ErrorClass::TimeoutAnswer,
            Self::Body => ErrorClass::TimeoutBody,
        }
    }
}

/// One run of a check: how much time it has, how far it has come, and threads for what blocks.
#[derive(Clone)]
pub struct Run {
    deadline: Instant,
    phase: Arc<AtomicU8>,
    threads: Threads,
    place: Place,
}

impl Run {
    /// How much of the timeout is left.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Tells how far the run has come.
    pub fn reached(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Runs work that may block on a thread of its own.
    ///
    /// When the run is over before the work is, the thread goes on and is counted as leaked until it
    /// ends; a check gets no second thread before that, and a monitor no more than 256 in all.
    ///
    /// # Errors
    /// What to answer when there is no result: the work panicked, the check's thread of an earlier
    /// run goes on, or all threads are taken.
    pub async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Outcome> {
        let answer = self.threads.run(&self.place, work).await;
        answer.map_err(|no_answer| match no_answer {
            NoAnswer::StillRunning => still_running(),
            NoAnswer::NoThread { leaked } => Outcome::unknown(format!(
                "not run: all {MOST_THREADS} threads are taken, {leaked} leaked"
            )),
            NoAnswer::Panicked(text) => Outcome::error(ErrorClass::Panic, text),
        })
    }

    fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }
}

/// A run that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// What it found, without secrets.
    pub outcome: Outcome,
    /// How long it took.
    pub response_time: Duration,
}

/// Runs a check once, within a timeout that holds whatever the check does.
///
/// It runs as a task of its own on the current tokio runtime; dropping the future ends it.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use kailash::health::{Status, checks::Custom, run_once};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let check = Arc::new(Custom::new(|| std::future::pending::<bool>()));
/// let finished = run_once(check, Duration::from_millis(10)).await;
/// assert_eq!(finished.outcome.status, Status::Unhealthy);
/// # }
/// ```
pub async fn run_once(check: Arc<dyn Check>, timeout: Duration) -> Finished {
    let runner = Runner::default();
    runner.run(check, timeout, &Threads::default()).await
}

/// What one check leaves from run to run: a task or a thread that did not end.
#[derive(Default)]
pub(super) struct Runner {
    given_up: Mutex<Option<JoinHandle<Outcome>>>,
    place: Place,
}

impl Runner {
    pub(super) async fn run(
        &self,
        check: Arc<dyn Check>,
        timeout: Duration,
        threads: &Threads,
    ) -> Finished {
        let begun = Instant::now();
        let deadline = begun.checked_add(timeout).unwrap_or(begun + NEVER);
        let outcome = self.outcome(check, deadline, threads).await;
        Finished {
            outcome: outcome
                .unwrap_or_else(|class| {
                    Outcome::error(class, format_args!("nothing within {timeout:?}"))
                })
                .redacted(),
            response_time: begun.elapsed(),
        }
    }

    /// The outcome, or the class of the timeout.
    async fn outcome(
        &self,
        check: Arc<dyn Check>,
        deadline: Instant,
        threads: &Threads,
    ) -> Result<Outcome, ErrorClass> {
        if !self.is_free(deadline).await {
            return Ok(still_running());
        }
        let run = Run {
            deadline,
            phase: Arc::default(),
            threads: threads.clone(),
            place: self.place.clone(),
        };
        let observed = run.clone();
        let task = tokio::spawn(async move { check.check(&run).await });
        let mut task = Task(Some(task));
        let running = task.0.as_mut().expect("taken only below");
        match timeout_at(deadline, running).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => Ok(match error.try_into_panic() {
                Ok(panic) => Outcome::error(ErrorClass::Panic, panic_text(&*panic)),
                Err(_) => Outcome::unknown("not run: the runtime is shutting down"),
            }),
            Err(_) => {
                let given_up = task.0.take().expect("taken only here");
                given_up.abort();
                *lock(&self.given_up) = Some(given_up);
                Err(observed.phase().timeout())
            }
        }
    }

    /// Whether the task that the last run gave up has ended, waiting for it until the deadline.
    async fn is_free(&self, deadline: Instant) -> bool {
        let given_up = lock(&self.given_up).take();
        let Some(mut given_up) = given_up else {
            return true;
        };
        let ended = timeout_at(deadline, &mut given_up).await.is_ok();
        if !ended {
            // It does not even end when told to: it blocks a thread of the runtime.
            *lock(&self.given_up) = Some(given_up);
        }
        ended
    }
}

/// Ends its task when dropped.
struct Task(Option<JoinHandle<Outcome>>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn still_running() -> Outcome {
    Outcome::error(ErrorClass::Timeout, "an earlier run has not ended")
}

fn redacted_entry((name, value): (String, Value)) -> (String, Value) {
    // The name belongs to the text: it may be what makes the value a secret.
    if let Value::String(text) = &value {
        let pair = format!("{name}={text}");
        let masked = redact(&pair);
        let text = masked.strip_prefix(&format!("{name}="));
        let text = text.unwrap_or(crate::redact::MASK).to_owned();
        return (name, Value::String(text));
    }
    let value = redacted_value(value);
    (name, value)
}

fn redacted_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact(&text).into_owned()),
        Value::Array(values) => values.into_iter().map(redacted_value).collect(),
        Value::Object(entries) => Value::Object(entries.into_iter().map(redacted_entry).collect()),
        other => other,
    }
}
