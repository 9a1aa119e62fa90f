//! What a breaker holds.

use std::fs;

use kailash::circuit_breaker::Manager;
use serde_json::{Value, json};

use crate::allocations::count_during;

const MANY: usize = 1_000_000;

pub fn measure() -> Vec<Value> {
    let breakers = Manager::new();
    let make = |n: usize| {
        let made = breakers.get_or_create(&format!("dependency-{n}"), None);
        made.expect("the defaults are right");
    };
    // The registry's table has room for one more after these, so that only the breaker is counted.
    (0..100).for_each(make);
    let counted = count_during(|| make(100)).1;
    let mut rows = vec![json!({
        "case": "heap of one breaker, default config",
        "bytes": counted.bytes,
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
