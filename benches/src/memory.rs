//! What a breaker holds.

use std::fs;

use kailash::circuit_breaker::{CircuitBreaker, Config, Manager};
use kailash::clock::Clock;
use serde_json::{Value, json};

use crate::allocations::count_during;

const MANY: usize = 1_000_000;

pub fn measure() -> Vec<Value> {
    // As a registry does: its breakers share their clock and have a name each.
    let clock = Clock::monotonic();
    let (kept, counted) = count_during(|| {
        let breaker = CircuitBreaker::with_clock("dependency", Config::default(), clock.clone());
        breaker.expect("the defaults are right")
    });
    drop(kept);
    let mut rows = vec![json!({
        "case": "heap of one breaker, default config",
        "bytes": counted.bytes,
        "allocations": counted.allocations,
    })];

    if let Some(before) = resident() {
        let breakers = Manager::new();
        for n in 0..MANY {
            let made = breakers.get_or_create(&format!("dependency-{n}"), None);
            made.expect("the defaults are right");
        }
        let after = resident().expect("it was there a moment ago");
        rows.push(json!({
            "case": "resident memory of a million breakers in a registry",
            "bytes": after.saturating_sub(before),
        }));
        drop(breakers);
    }
    rows
}

/// The process's resident memory in bytes, where Linux tells it.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
