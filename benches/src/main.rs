//! What a call costs here and with the peers, on standard output as JSON; `cargo xtask bench` reads it.
//!
//! Each case is a loop over one object, which one thread or two threads run at once. All cases are
//! measured in turn, and that as often as there are repeats, so that a machine which slows down
//! for a while slows all of them down.

mod allocations;
mod bulkhead;
mod circuit_breaker;
mod floors;
mod measure;
mod memory;
mod registry;

use std::env;

use measure::Suite;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// The repeats of which the median is told, unless the command line says how many.
const REPEATS: usize = 15;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let value = |name| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1)
    };
    let repeats = value("--repeats").map_or(REPEATS, |repeats| {
        repeats.parse().expect("--repeats wants a number")
    });
    let mut suite = Suite::default();
    floors::add(&mut suite);
    circuit_breaker::add(&mut suite);
    bulkhead::add(&mut suite);
    registry::add(&mut suite);
    let only = value("--only").map_or("", String::as_str);
    suite.keep(only);
    let calls = suite.measure(repeats);
    let memory = if "memory".starts_with(only) {
        memory::measure()
    } else {
        Vec::new()
    };
    println!(
        "{:#}",
        json!({"repeats": repeats, "calls": calls, "memory": memory})
    );
}
