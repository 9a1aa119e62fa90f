//! A shell reads its clock only where a setting asks for the time.

use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Machine, WindowKind};
use kailash_core::time::Timestamp;

/// Whether calls are timed from their start, whether their end needs the time, and whether they are
/// watched.
fn needs(config: &Config) -> (bool, bool, bool) {
    let machine = Machine::new(config).expect("the config is right");
    let permit = machine.admit().expect("it is closed");
    assert!(!permit.is_timed(), "nobody has told it the time");
    let end = machine.needs_time(&permit);
    let needs = (machine.is_timed(), end, machine.watches());
    let timed = permit.started_at(Timestamp::ZERO);
    assert!(
        machine.needs_time(&timed),
        "what began at a time ends at one"
    );
    needs
}

#[test]
fn the_clock_is_read_where_slow_or_cancelled_calls_or_a_time_window_ask_for_it() {
    let nothing = Config {
        slow_call_threshold: None,
        cancelled_counts_after: None,
        ..Config::default()
    };
    let slow = Config {
        slow_call_threshold: Some(Duration::from_secs(1)),
        ..nothing.clone()
    };
    let cancelled = |after| Config {
        cancelled_counts_after: Some(after),
        ..nothing.clone()
    };
    let time_window = Config {
        window: WindowKind::Time,
        ..nothing.clone()
    };
    let overdue = |config: &Config| Config {
        overdue_calls_enabled: true,
        ..config.clone()
    };

    assert_eq!(needs(&nothing), (false, false, false));
    assert_eq!(needs(&slow), (true, true, false));
    assert_eq!(
        needs(&cancelled(Duration::from_secs(1))),
        (true, true, false)
    );
    // Each counts, however long it ran.
    assert_eq!(needs(&cancelled(Duration::ZERO)), (false, false, false));
    assert_eq!(needs(&time_window), (false, true, false));
    assert_eq!(needs(&overdue(&slow)), (true, true, true));
    // Nothing is slow, so nothing can be overdue.
    assert_eq!(needs(&overdue(&nothing)), (false, false, false));
}

#[test]
fn a_call_is_slow_from_the_threshold_on_where_slow_calls_count() {
    let slow_after = |threshold| {
        let config = Config {
            slow_call_threshold: threshold,
            ..Config::default()
        };
        let machine = Machine::new(&config).expect("the config is right");
        [999, 1000].map(|millis| machine.is_slow(Duration::from_millis(millis)))
    };
    assert_eq!(slow_after(Some(Duration::from_secs(1))), [false, true]);
    assert_eq!(slow_after(None), [false, false]);
}
