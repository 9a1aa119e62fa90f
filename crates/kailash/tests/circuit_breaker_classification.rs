//! Runs `vectors/circuit_breaker_classification/*.json`: errors by their kind, by every way to make a call.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker, Config, Outcome, State};
use kailash::clock::Clock;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    is_a: BTreeMap<String, Option<String>>,
    fails: Vec<String>,
    excluded: Vec<String>,
    ends: BTreeMap<String, End>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum End {
    Failure,
    Ignored,
    Success,
}

/// An error of a kind.
#[derive(Clone, Debug)]
struct Raised(String);

type Answer = Result<(), Raised>;

impl Case {
    fn is_one_of(&self, kinds: &[String], Raised(kind): &Raised) -> bool {
        let mut kind = Some(kind);
        while let Some(this) = kind {
            if kinds.contains(this) {
                return true;
            }
            kind = self.is_a[this].as_ref();
        }
        false
    }

    fn outcome(&self, answer: &Answer) -> Outcome {
        match answer {
            Err(error) if self.is_one_of(&self.excluded, error) => Outcome::Ignored,
            Err(error) if self.is_one_of(&self.fails, error) => Outcome::Failure,
            _ => Outcome::Success,
        }
    }
}

/// One failure opens it and one success closes it.
fn breaker(half_open: bool) -> CircuitBreaker {
    let config = Config {
        failure_threshold: 1,
        success_threshold: 1,
        jitter_enabled: false,
        ..Config::default()
    };
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("vector", config, clock).unwrap();
    if half_open {
        breaker.record_failure();
        hand.advance(Duration::from_secs(60));
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    breaker
}

async fn make(entry: &str, breaker: &CircuitBreaker, case: &Case, raised: Raised) {
    let classify = |answer: &Answer| case.outcome(answer);
    let answer: Answer = Err(raised);
    match entry {
        "call_with" => drop(breaker.call_with(classify, || async { answer }).await),
        "call_sync_with" => drop(breaker.call_sync_with(classify, || answer)),
        "permit" => {
            let permit = breaker.try_acquire().unwrap();
            permit.record(classify(&answer));
        }
        "owned permit" => {
            let permit = breaker.try_acquire_owned().unwrap();
            permit.record(classify(&answer));
        }
        #[cfg(feature = "tower")]
        "layer" => {
            use kailash::layer::circuit_breaker::CircuitBreakerLayer;
            use tower::{Layer, ServiceExt};
            let layer = CircuitBreakerLayer::with_classifier(breaker.clone(), classify);
            let service = layer.layer(tower::service_fn(|()| async { answer.clone() }));
            assert!(service.oneshot(()).await.is_err());
        }
        other => panic!("no such entry: {other}"),
    }
}

const ENTRIES: &[&str] = &[
    "call_with",
    "call_sync_with",
    "permit",
    "owned permit",
    #[cfg(feature = "tower")]
    "layer",
];

#[tokio::test]
async fn an_excluded_error_is_neutral_whatever_else_it_is_and_one_that_nothing_names_a_success() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/circuit_breaker_classification");
    let files = fs::read_dir(folder).unwrap();
    let mut rows = 0;
    for file in files {
        let text = fs::read(file.unwrap().path()).unwrap();
        for case in serde_json::from_slice::<Vec<Case>>(&text).unwrap() {
            for (kind, &end) in &case.ends {
                rows += 1;
                for (entry, half_open) in ENTRIES.iter().flat_map(|it| [(it, false), (it, true)]) {
                    let breaker = breaker(half_open);
                    let before = breaker.snapshot();
                    make(entry, &breaker, &case, Raised(kind.clone())).await;
                    let after = breaker.snapshot();
                    let place = format!("{}: {kind} by {entry}, {}", case.name, before.state);
                    let (state, calls, failures) = match end {
                        End::Failure => (State::Open, 1, 1),
                        End::Ignored => (before.state, 0, 0),
                        End::Success => (State::Closed, 1, 0),
                    };
                    assert_eq!(after.state, state, "{place}");
                    assert_eq!(after.calls - before.calls, calls, "{place}");
                    assert_eq!(after.failures - before.failures, failures, "{place}");
                    assert_eq!(after.probes_in_flight, 0, "{place}");
                }
            }
        }
    }
    assert_eq!(rows, 27);
}
