//! The machine keeps what `vectors/circuit_breaker` promises.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Machine, Outcome, Permit, State, Verdict};
use kailash_core::time::Timestamp;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: serde_json::Map<String, Value>,
    script: String,
}

struct Run {
    machine: Machine,
    now: Timestamp,
    in_flight: HashMap<String, Permit>,
}

#[test]
fn every_vector_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/circuit_breaker");
    let mut cases = 0;
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for case in serde_json::from_str::<Vec<Case>>(&text).unwrap() {
            let mut run = Run {
                machine: Machine::new(&config(&case.config)).unwrap(),
                now: Timestamp::ZERO,
                in_flight: HashMap::new(),
            };
            for (place, word) in case.script.split_whitespace().enumerate() {
                if let Err(problem) = run.step(word) {
                    panic!("\"{}\", word {} ({word}): {problem}", case.name, place + 1);
                }
            }
            cases += 1;
        }
    }
    assert!(cases > 40, "only {cases} cases were found");
}

impl Run {
    fn step(&mut self, word: &str) -> Result<(), String> {
        if let Some(seconds) = word.strip_prefix('w')
            && let Ok(seconds) = seconds.parse()
        {
            self.now = self.now + Duration::from_secs_f64(seconds);
            return Ok(());
        }
        if let Some(call) = word.strip_prefix('(') {
            let permit = self
                .acquire()
                .map_err(|error| format!("was refused: {error}"))?;
            self.in_flight.insert(call.into(), permit);
            return Ok(());
        }
        if let Some((call, how)) = word.split_once(')') {
            let permit = self.in_flight.remove(call).ok_or("no such call")?;
            self.end(permit, how);
            return Ok(());
        }
        if let Some(how) = word.strip_prefix('+') {
            let (verdict, _) = self.machine.record_manual(outcome(how), self.now, 0.5);
            self.carry_out(verdict);
            return Ok(());
        }
        if let Some(order) = word.strip_prefix('!') {
            let machine = &self.machine;
            let _ = match order {
                "force_open" => machine.force_open(self.now),
                "force_close" => machine.force_close(self.now),
                "reset" => machine.reset(self.now),
                "disable" => machine.disable(self.now),
                "metrics_only" => machine.metrics_only(self.now),
                "enable" => machine.enable(self.now),
                _ => return Err("no such order".into()),
            };
            return Ok(());
        }
        if let Some((what, expected)) = word.split_once('=') {
            return self.expect(what, expected);
        }
        if word == "O" {
            return match self.acquire() {
                Ok(_) => Err("was admitted".into()),
                Err(_) => Ok(()),
            };
        }
        let (how, seconds) = word.split_once('/').unwrap_or((word, "0"));
        let permit = self
            .acquire()
            .map_err(|error| format!("was refused: {error}"))?;
        self.now = self.now + Duration::from_secs_f64(seconds.parse().unwrap());
        self.end(permit, how);
        Ok(())
    }

    fn acquire(&self) -> Result<Permit, String> {
        let (result, _) = self.machine.try_acquire(self.now, 0.5);
        result.map_err(|rejected| format!("{rejected:?}"))
    }

    fn end(&self, permit: Permit, how: &str) {
        let verdict = self.machine.record(permit, outcome(how), Some(self.now));
        self.carry_out(verdict);
    }

    fn carry_out(&self, verdict: Verdict) {
        if let Verdict::Trip(trip) = verdict {
            self.machine.trip(trip, self.now, 0.5);
        }
    }

    fn expect(&self, what: &str, expected: &str) -> Result<(), String> {
        self.machine.settle(self.now, 0.5);
        let status = self.machine.snapshot(self.now);
        let cause = |cause: Option<_>| cause.map_or("none".into(), |cause| format!("{cause}"));
        let found = match what {
            "" if expected == "forced" => {
                let forced = status.forced && status.state == State::Open;
                if forced {
                    "forced".into()
                } else {
                    status.state.to_string()
                }
            }
            "" => self.machine.state(self.now).to_string(),
            "retry" => {
                let expected: f64 = expected.parse().unwrap();
                let found = status.retry_after.map(|wait| wait.as_secs_f64());
                let near = found.is_some_and(|found| (found - expected).abs() < 1e-6);
                return if near {
                    Ok(())
                } else {
                    Err(format!("found {found:?}"))
                };
            }
            "cause" => cause(status.cause),
            "would" => cause(status.would_open),
            "calls" => status.calls.to_string(),
            "failures" => status.failures.to_string(),
            "slow" => status.slow_calls.to_string(),
            "rejections" => status.rejections.to_string(),
            "openings" => status.openings.to_string(),
            _ => return Err("no such expectation".into()),
        };
        if found == expected {
            Ok(())
        } else {
            Err(format!("found {found}"))
        }
    }
}

fn outcome(word: &str) -> Outcome {
    match word {
        "S" => Outcome::Success,
        "F" => Outcome::Failure,
        "I" => Outcome::Ignored,
        "C" => Outcome::Cancelled,
        _ => panic!("no such outcome: {word}"),
    }
}

fn config(fields: &serde_json::Map<String, Value>) -> Config {
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
            _ => panic!("the runner does not know {field}"),
        }
    }
    config
}
