//! What a breaker tells tracing: its transitions, each refusal, and spans where they are asked for.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker, Config};
use kailash::clock::{Clock, ManualClock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps each event up to a level as one line.
struct Lines {
    up_to: Level,
    kept: Arc<Mutex<Vec<String>>>,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?},").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, " {field}={value}").unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.up_to
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line(format!("span {}", span.metadata().name()));
        span.record(&mut line);
        self.kept.lock().unwrap().push(line.0);
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        assert_eq!(event.metadata().target(), "kailash::circuit_breaker");
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.kept.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn lines(up_to: Level, work: impl FnOnce(&CircuitBreaker, &ManualClock)) -> Vec<String> {
    let config = Config {
        failure_threshold: 1,
        success_threshold: 1,
        half_open_requests: 1,
        recovery_timeout: Duration::from_millis(1500),
        jitter_enabled: false,
        ..Config::default()
    };
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("db", config, clock).unwrap();
    let kept = Arc::default();
    let subscriber = Lines {
        up_to,
        kept: Arc::clone(&kept),
    };
    tracing::subscriber::with_default(subscriber, || work(&breaker, &hand));
    std::mem::take(&mut kept.lock().unwrap())
}

#[test]
fn an_opening_is_a_warning_and_all_else_information_and_each_says_what_becomes_of_calls() {
    let lines = lines(Level::INFO, |breaker, hand| {
        let _ = breaker.call_sync(|| Err::<(), _>(()));
        let _ = breaker.call_sync(|| Ok::<_, ()>(()));
        hand.advance(Duration::from_millis(1500));
        let _ = breaker.call_sync(|| Ok::<_, ()>(()));
        breaker.force_open();
        breaker.disable();
        breaker.metrics_only();
    });
    assert_eq!(
        lines,
        [
            "WARN circuit breaker opened: calls are refused until the wait is over, then probed, \
             breaker=db from=closed to=open cause=consecutive_failures wait=1.5s",
            "INFO circuit breaker half-open: a few calls pass as probes, \
             breaker=db from=open to=half_open cause=wait_over",
            "INFO circuit breaker closed: calls pass, \
             breaker=db from=half_open to=closed cause=probes_succeeded",
            "WARN circuit breaker forced open: calls are refused until it is closed or reset, \
             breaker=db from=closed to=open cause=told",
            "INFO circuit breaker disabled: calls pass, none is counted, \
             breaker=db from=open to=disabled cause=told",
            "INFO circuit breaker metrics-only: calls pass and are counted, \
             breaker=db from=disabled to=metrics_only cause=told",
        ]
    );
}

#[test]
fn each_refusal_is_for_debugging() {
    let lines = lines(Level::DEBUG, |breaker, hand| {
        breaker.record_failure();
        assert!(breaker.try_acquire().is_err());
        hand.advance(Duration::from_millis(1500));
        let probe = breaker.try_acquire().unwrap();
        assert!(breaker.try_acquire().is_err());
        probe.success();
        breaker.force_open();
        assert!(breaker.try_acquire().is_err());
    });
    let refusals: Vec<_> = lines.iter().filter(|line| line.contains("DEBUG")).collect();
    assert_eq!(
        refusals,
        [
            "DEBUG circuit breaker refused a call, \
             breaker=db state=open cause=consecutive_failures retry_after=1.5s",
            "DEBUG circuit breaker refused a call, \
             breaker=db state=half_open cause=consecutive_failures",
            "DEBUG circuit breaker refused a call, breaker=db state=open cause=told",
        ]
    );
}

#[test]
fn calls_that_pass_say_nothing() {
    let lines = lines(Level::TRACE, |breaker, _| {
        for _ in 0..10 {
            breaker.call_sync(|| Ok::<_, ()>(())).unwrap();
        }
    });
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn a_span_names_the_breaker_and_its_state_and_comes_only_where_asked_for() {
    let lines = lines(Level::INFO, |breaker, hand| {
        breaker.call_sync(|| Ok::<_, ()>(())).unwrap();
        breaker.span().in_scope(|| ());
        breaker.record_failure();
        hand.advance(Duration::from_millis(1500));
        breaker.span().in_scope(|| ());
    });
    let spans: Vec<_> = lines.iter().filter(|line| line.contains("span")).collect();
    assert_eq!(
        spans,
        [
            "span circuit_breaker breaker=db state=closed",
            "span circuit_breaker breaker=db state=half_open",
        ]
    );
}
