//! A local service that fails on schedule, to rehearse policies against.
//!
//! It accepts each `Idempotency-Key` once, at any path, by POST, PUT or PATCH. A phase of its
//! schedule starts with the request that follows `after_requests` others and ends when its time is
//! over; a phase whose turn comes while another lasts waits for the end of that one.

use std::collections::HashSet;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::run_file::{Fault, FaultKind, Schedule};

const KEY: &str = "idempotency-key";
const REPLAYED: &str = "idempotency-replayed";

/// A running sandbox; it ends when this is dropped.
pub(crate) struct Sandbox {
    url: String,
    service: Arc<Mutex<Service>>,
    server: JoinHandle<io::Result<()>>,
}

/// What a sandbox has seen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// Requests with a key.
    pub(crate) requests: u64,
    /// Keys accepted, each once.
    pub(crate) accepted: u64,
    /// Requests whose key had been accepted before.
    pub(crate) repeats: u64,
    /// Requests that got an error or no answer.
    pub(crate) failed: u64,
    /// Seconds from the first fault served to the first good answer after the last.
    pub(crate) outage_s: f64,
}

/// An address that a sandbox cannot listen at.
#[derive(Debug)]
pub(crate) struct ListenError {
    address: SocketAddr,
    error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, error } = self;
        write!(f, "sandbox: cannot listen at {address}: {error}")
    }
}

impl Sandbox {
    /// Listens and serves in the background.
    pub(crate) async fn start(schedule: Schedule) -> Result<Self, ListenError> {
        let address = schedule.listen;
        let failed = |error| ListenError { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let url = format!("http://{}", listener.local_addr().map_err(failed)?);
        let service = Arc::new(Mutex::new(Service::new(schedule.faults)));
        let router = Router::new()
            .route("/stats", get(stats))
            .route("/health", get(health))
            .fallback(any(receive))
            .with_state(Arc::clone(&service));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            url,
            service,
            server,
        })
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it has seen so far.
    pub(crate) fn stats(&self) -> Stats {
        lock(&self.service).stats()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Shared = State<Arc<Mutex<Service>>>;

/// A panic elsewhere leaves counters that are still right.
fn lock(service: &Mutex<Service>) -> MutexGuard<'_, Service> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn stats(State(service): Shared) -> Response {
    let stats = lock(&service).stats();
    let body = serde_json::to_string(&stats).expect("numbers have a JSON form");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// How the service is now; not counted as a request.
async fn health(State(service): Shared) -> Response {
    let fault = lock(&service).fault(Instant::now());
    match fault {
        None => StatusCode::OK.into_response(),
        Some(fault) => match fault.kind {
            FaultKind::Errors => status(&fault).into_response(),
            FaultKind::Silence => pending().await,
            FaultKind::Slowness => {
                tokio::time::sleep(fault.delay).await;
                StatusCode::OK.into_response()
            }
        },
    }
}

async fn receive(State(service): Shared, headers: HeaderMap) -> Response {
    let key = headers.get(KEY).and_then(|value| value.to_str().ok());
    let Some(key) = key else {
        let why = "the header Idempotency-Key is missing\n";
        return (StatusCode::BAD_REQUEST, why).into_response();
    };
    let verdict = lock(&service).receive(key, Instant::now());
    match verdict {
        Verdict::Answer(answer) => answer.into_response(),
        Verdict::Error(fault) => status(&fault).into_response(),
        Verdict::Silence => pending().await,
        Verdict::Slow(delay) => {
            tokio::time::sleep(delay).await;
            let answer = lock(&service).accept(key);
            answer.into_response()
        }
    }
}

fn status(fault: &Fault) -> StatusCode {
    StatusCode::from_u16(fault.status).expect("the run file was checked")
}

/// What becomes of a request.
enum Verdict {
    Answer(Answer),
    Error(Fault),
    Silence,
    Slow(Duration),
}

/// How a request with a key is answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Accepted,
    Repeated,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Accepted => StatusCode::CREATED.into_response(),
            Self::Repeated => [(REPLAYED, "true")].into_response(),
        }
    }
}

/// The state of the service.
struct Service {
    faults: Vec<Fault>,
    /// How many phases have begun, and when the newest did.
    begun: usize,
    newest: Option<Instant>,
    /// Requests in the newest phase of silence.
    unanswered: u64,
    keys: HashSet<String>,
    requests: u64,
    repeats: u64,
    failed: u64,
    first_fault: Option<Instant>,
    last_fault: Option<Instant>,
    recovered: Option<Instant>,
}

impl Service {
    fn new(faults: Vec<Fault>) -> Self {
        Self {
            faults,
            begun: 0,
            newest: None,
            unanswered: 0,
            keys: HashSet::new(),
            requests: 0,
            repeats: 0,
            failed: 0,
            first_fault: None,
            last_fault: None,
            recovered: None,
        }
    }

    fn stats(&self) -> Stats {
        let end = self.recovered.or(self.last_fault);
        let outage = self.first_fault.zip(end).map(|(first, end)| end - first);
        Stats {
            requests: self.requests,
            accepted: self.keys.len() as u64,
            repeats: self.repeats,
            failed: self.failed,
            outage_s: outage.unwrap_or_default().as_secs_f64(),
        }
    }

    /// The phase that lasts at `now`.
    fn fault(&self, now: Instant) -> Option<Fault> {
        let fault = self.faults.get(self.begun.checked_sub(1)?)?;
        let lasts = now.saturating_duration_since(self.newest?) < fault.lasts;
        lasts.then(|| fault.clone())
    }

    fn receive(&mut self, key: &str, now: Instant) -> Verdict {
        if self.fault(now).is_none() {
            let next = self.faults.get(self.begun);
            if next.is_some_and(|next| next.after_requests <= self.requests) {
                self.begun += 1;
                self.newest = Some(now);
                self.unanswered = 0;
            }
        }
        self.requests += 1;
        let Some(fault) = self.fault(now) else {
            if self.first_fault.is_some() {
                self.recovered.get_or_insert(now);
            }
            return Verdict::Answer(self.accept(key));
        };
        self.first_fault.get_or_insert(now);
        self.last_fault = Some(now);
        self.recovered = None;
        match fault.kind {
            FaultKind::Errors => {
                self.failed += 1;
                Verdict::Error(fault)
            }
            FaultKind::Silence => {
                self.failed += 1;
                // Who asked cannot tell which of the two it was.
                if self.unanswered.is_multiple_of(2) {
                    self.accept(key);
                }
                self.unanswered += 1;
                Verdict::Silence
            }
            FaultKind::Slowness => Verdict::Slow(fault.delay),
        }
    }

    fn accept(&mut self, key: &str) -> Answer {
        if self.keys.insert(key.to_owned()) {
            return Answer::Accepted;
        }
        self.repeats += 1;
        Answer::Repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind, after_requests: u64, seconds: u64) -> Fault {
        Fault {
            kind,
            after_requests,
            lasts: Duration::from_secs(seconds),
            status: 503,
            delay: Duration::from_millis(700),
        }
    }

    fn answer(verdict: Verdict) -> Answer {
        match verdict {
            Verdict::Answer(answer) => answer,
            _ => panic!("a fault was served"),
        }
    }

    #[test]
    fn a_key_is_accepted_once() {
        let mut service = Service::new(Vec::new());
        let now = Instant::now();
        assert_eq!(answer(service.receive("1", now)), Answer::Accepted);
        assert_eq!(answer(service.receive("1", now)), Answer::Repeated);
        assert_eq!(answer(service.receive("2", now)), Answer::Accepted);
        let stats = service.stats();
        assert_eq!((stats.requests, stats.accepted, stats.repeats), (3, 2, 1));
        assert_eq!(stats.outage_s, 0.0);
    }

    #[test]
    fn a_phase_starts_after_its_requests_and_lasts_its_time() {
        let faults = vec![fault(FaultKind::Errors, 1, 3)];
        let mut service = Service::new(faults);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(answer(service.receive("1", at(0))), Answer::Accepted);
        assert!(matches!(service.receive("2", at(1)), Verdict::Error(_)));
        assert!(matches!(service.receive("2", at(3)), Verdict::Error(_)));
        assert_eq!(answer(service.receive("2", at(4))), Answer::Accepted);
        assert_eq!(answer(service.receive("3", at(5))), Answer::Accepted);
        let stats = service.stats();
        assert_eq!((stats.accepted, stats.failed), (3, 2));
        assert_eq!(stats.outage_s, 3.0);
    }

    #[test]
    fn silence_accepts_the_first_and_every_second_and_answers_none() {
        let faults = vec![fault(FaultKind::Silence, 0, 3)];
        let mut service = Service::new(faults);
        let now = Instant::now();
        for key in ["1", "2", "3", "4", "5"] {
            assert!(matches!(service.receive(key, now), Verdict::Silence));
        }
        let mut keys: Vec<_> = service.keys.iter().cloned().collect();
        keys.sort();
        assert_eq!(keys, ["1", "3", "5"]);
        assert_eq!(service.stats().failed, 5);
    }

    #[test]
    fn a_phase_waits_for_the_one_before() {
        let faults = vec![
            fault(FaultKind::Errors, 0, 3),
            fault(FaultKind::Slowness, 1, 2),
        ];
        let mut service = Service::new(faults);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(matches!(service.receive("1", at(0)), Verdict::Error(_)));
        assert!(matches!(service.receive("1", at(2)), Verdict::Error(_)));
        assert!(matches!(service.receive("1", at(9)), Verdict::Slow(_)));
        assert!(matches!(service.receive("1", at(10)), Verdict::Slow(_)));
        assert_eq!(answer(service.receive("1", at(11))), Answer::Accepted);
        assert_eq!(service.stats().outage_s, 11.0);
    }
}
