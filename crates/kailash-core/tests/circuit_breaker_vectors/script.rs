//! What `vectors/circuit_breaker/*.json` say, and what a breaker must do to run them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Outcome, Snapshot, State, WindowKind};
use serde::Deserialize;
use serde_json::Value;

/// A breaker on a clock of the test's, which stands at zero when it is made.
pub(crate) trait Breaker {
    /// Leave to make a call.
    type Permit;

    fn new(config: Config) -> Self;

    fn pass(&mut self, time: Duration);

    /// Admits a call, or says why not.
    fn acquire(&mut self) -> Result<Self::Permit, String>;

    fn end(&mut self, permit: Self::Permit, outcome: Outcome);

    /// Records an outcome by hand.
    fn record(&mut self, outcome: Outcome);

    fn tell(&mut self, order: Order);

    /// The breaker now, after what was due by now has been carried out.
    fn snapshot(&mut self) -> Snapshot;
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    ForceOpen,
    ForceClose,
    Reset,
    Disable,
    MetricsOnly,
    Enable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    config: serde_json::Map<String, Value>,
    script: String,
}

/// Runs every case of every file.
pub(crate) fn check_all<B: Breaker>() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/circuit_breaker");
    let mut cases = 0;
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for case in serde_json::from_str::<Vec<Case>>(&text).unwrap() {
            check::<B>(&case);
            cases += 1;
        }
    }
    assert!(cases > 80, "only {cases} cases were found");
}

fn check<B: Breaker>(case: &Case) {
    let mut run = Run {
        breaker: B::new(config(&case.config)),
        in_flight: HashMap::new(),
    };
    for (place, word) in case.script.split_whitespace().enumerate() {
        if let Err(problem) = run.step(word) {
            panic!("\"{}\", word {} ({word}): {problem}", case.name, place + 1);
        }
    }
}

struct Run<B: Breaker> {
    breaker: B,
    in_flight: HashMap<String, B::Permit>,
}

impl<B: Breaker> Run<B> {
    fn step(&mut self, word: &str) -> Result<(), String> {
        if let Some(time) = word.strip_prefix('w')
            && let Ok(time) = time.parse()
        {
            self.breaker.pass(Duration::from_secs_f64(time));
        } else if let Some(later) = word.strip_prefix('~') {
            return self.sooner_or_later(later);
        } else if let Some(call) = word.strip_prefix('(') {
            let permit = self.acquire()?;
            self.in_flight.insert(call.into(), permit);
        } else if let Some((call, how)) = word.split_once(')') {
            let permit = self.in_flight.remove(call).ok_or("no such call")?;
            self.breaker.end(permit, outcome(how)?);
        } else if let Some(how) = word.strip_prefix('+') {
            self.breaker.record(outcome(how)?);
        } else if let Some(order) = word.strip_prefix('!') {
            let order = serde_json::from_value(order.into()).map_err(|_| "no such order")?;
            self.breaker.tell(order);
        } else if let Some((what, expected)) = word.split_once('=') {
            return self.expect(what, expected);
        } else if word == "O" {
            if self.breaker.acquire().is_ok() {
                return Err("was admitted".into());
            }
        } else {
            let (how, time) = word.split_once('/').unwrap_or((word, "0"));
            let permit = self.acquire()?;
            let time = time.parse().map_err(|_| "no such time")?;
            self.breaker.pass(Duration::from_secs_f64(time));
            self.breaker.end(permit, outcome(how)?);
        }
        Ok(())
    }

    /// Tries until chance does what the word asks for.
    fn sooner_or_later(&mut self, word: &str) -> Result<(), String> {
        for _ in 0..100_000 {
            match (self.breaker.acquire(), word.strip_prefix('(')) {
                (Err(_), _) if word == "O" => return Ok(()),
                (Err(_), _) => {}
                // It says nothing about the dependency, so nothing has changed.
                (Ok(permit), _) if word == "O" => self.breaker.end(permit, Outcome::Ignored),
                (Ok(permit), Some(call)) => {
                    self.in_flight.insert(call.into(), permit);
                    return Ok(());
                }
                (Ok(permit), None) => {
                    self.breaker.end(permit, outcome(word)?);
                    return Ok(());
                }
            }
        }
        Err("chance never did it".into())
    }

    fn acquire(&mut self) -> Result<B::Permit, String> {
        let result = self.breaker.acquire();
        result.map_err(|error| format!("was refused: {error}"))
    }

    fn expect(&mut self, what: &str, expected: &str) -> Result<(), String> {
        let status = self.breaker.snapshot();
        let cause = |cause: Option<_>| cause.map_or("none".into(), |cause| format!("{cause}"));
        let is_forced = status.forced && status.state == State::Open;
        let found = match what {
            "" if expected == "forced" && is_forced => "forced".into(),
            "" => status.state.to_string(),
            "retry" => {
                let expected: f64 = expected.parse().map_err(|_| "no such time")?;
                let found = status.retry_after.map(|wait| wait.as_secs_f64());
                let is_near = found.is_some_and(|found| (found - expected).abs() < 1e-6);
                let problem = format!("found {found:?}");
                return is_near.then_some(()).ok_or(problem);
            }
            "cause" => cause(status.cause),
            "would" => cause(status.would_open),
            "share" => status
                .ramp_share
                .map_or("none".into(), |share| share.to_string()),
            "calls" => status.calls.to_string(),
            "failures" => status.failures.to_string(),
            "slow" => status.slow_calls.to_string(),
            "rejections" => status.rejections.to_string(),
            "openings" => status.openings.to_string(),
            _ => return Err("no such expectation".into()),
        };
        let problem = format!("found {found}");
        (found == expected).then_some(()).ok_or(problem)
    }
}

fn outcome(word: &str) -> Result<Outcome, String> {
    if let Some(time) = word.strip_prefix('R') {
        let time = time.parse().map_err(|_| "no such time")?;
        return Ok(Outcome::RetryAfter(Duration::from_secs_f64(time)));
    }
    match word {
        "S" => Ok(Outcome::Success),
        "F" => Ok(Outcome::Failure),
        "I" => Ok(Outcome::Ignored),
        "C" => Ok(Outcome::Cancelled),
        _ => Err(format!("no such outcome: {word}")),
    }
}

/// The settings of a case: jitter is off, what is left out has its default.
pub(crate) fn config(fields: &serde_json::Map<String, Value>) -> Config {
    let mut config = Config {
        jitter_enabled: false,
        ..Config::default()
    };
    for (field, value) in fields {
        let count = || u32::try_from(value.as_u64().unwrap()).unwrap();
        let seconds = |value: &Value| Duration::from_secs_f64(value.as_f64().unwrap());
        let maybe_seconds = || (!value.is_null()).then(|| seconds(value));
        match field.as_str() {
            "failure_threshold" => config.failure_threshold = count(),
            "success_threshold" => config.success_threshold = count(),
            "half_open_requests" => config.half_open_requests = count(),
            "window_size" => config.window_size = count(),
            "min_calls_before_evaluation" => config.min_calls_before_evaluation = count(),
            "error_rate_threshold" => config.error_rate_threshold = value.as_f64(),
            "slow_call_rate_threshold" => config.slow_call_rate_threshold = value.as_f64(),
            "recovery_timeout" => config.recovery_timeout = seconds(value),
            "max_recovery_timeout" => config.max_recovery_timeout = seconds(value),
            "max_wait_duration_in_half_open" => {
                config.max_wait_duration_in_half_open = seconds(value);
            }
            "slow_call_threshold" => config.slow_call_threshold = maybe_seconds(),
            "cancelled_counts_after" => config.cancelled_counts_after = maybe_seconds(),
            "window" => {
                let mut known = WindowKind::ALL.into_iter();
                config.window = known
                    .find(|kind| Some(kind.as_str()) == value.as_str())
                    .unwrap();
            }
            "window_duration" => config.window_duration = seconds(value),
            "overdue_calls_enabled" => config.overdue_calls_enabled = value.as_bool().unwrap(),
            "ramp_enabled" => config.ramp_enabled = value.as_bool().unwrap(),
            "initial_state" => {
                let mut known = State::ALL.into_iter();
                config.initial_state = known
                    .find(|state| Some(state.as_str()) == value.as_str())
                    .unwrap();
            }
            _ => panic!("the runner does not know {field}"),
        }
    }
    config
}
