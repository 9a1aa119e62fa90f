//! Cases, and how they are timed.

use std::fmt;
use std::future::Future;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::allocations::count_during;

/// Whose code a case runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Nobody's: what the machine asks for the least that would do.
    Floor,
    Ours,
    Peer,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floor => "floor",
            Self::Ours => "ours",
            Self::Peer => "peer",
        })
    }
}

/// A loop of so many calls.
type Loop = Box<dyn Fn(u64) + Sync>;

struct Case {
    table: &'static str,
    name: &'static str,
    whose: Whose,
    threads: usize,
    run: Loop,
}

/// The cases, in the order in which they take turns.
#[derive(Default)]
pub struct Suite {
    cases: Vec<Case>,
}

/// The cases of one table.
pub struct Table<'a> {
    suite: &'a mut Suite,
    name: &'static str,
    threads: usize,
}

/// How long one measurement of one case takes, about. Threads need more: their beginnings and ends
/// do not overlap.
const BATCH: Duration = Duration::from_millis(5);
const BATCH_OF_THREADS: Duration = Duration::from_millis(20);

impl Suite {
    /// A table whose loops run in one thread.
    pub fn table(&mut self, name: &'static str) -> Table<'_> {
        Table {
            suite: self,
            name,
            threads: 1,
        }
    }

    /// A table whose loops run in two threads at once, on the same object.
    pub fn table_of_two(&mut self, name: &'static str) -> Table<'_> {
        Table {
            suite: self,
            name,
            threads: 2,
        }
    }

    /// Drops the cases whose table does not begin so.
    pub fn keep(&mut self, table: &str) {
        self.cases.retain(|case| case.table.starts_with(table));
    }

    pub fn measure(&self, repeats: usize) -> Vec<Value> {
        let calls: Vec<u64> = self.cases.iter().map(calls_per_batch).collect();
        let mut nanos = vec![Vec::with_capacity(repeats); self.cases.len()];
        for _ in 0..repeats {
            for ((case, &calls), nanos) in self.cases.iter().zip(&calls).zip(&mut nanos) {
                nanos.push(case.time(calls).as_nanos() as f64 / calls as f64);
            }
        }
        let rows = self.cases.iter().zip(nanos);
        rows.map(|(case, nanos)| {
            json!({
                "table": case.table,
                "case": case.name,
                "whose": case.whose.to_string(),
                "nanos": nanos,
                "allocations": case.allocations(),
            })
        })
        .collect()
    }
}

impl Table<'_> {
    pub fn case(&mut self, whose: Whose, name: &'static str, run: impl Fn(u64) + Sync + 'static) {
        self.suite.cases.push(Case {
            table: self.name,
            name,
            whose,
            threads: self.threads,
            run: Box::new(run),
        });
    }
}

impl Case {
    /// How long so many calls take in each of the threads.
    fn time(&self, calls: u64) -> Duration {
        if self.threads == 1 {
            let began = Instant::now();
            (self.run)(calls);
            return began.elapsed();
        }
        // Spinning, so that no thread is still being woken while the other one has begun.
        let missing = AtomicUsize::new(self.threads);
        let timed = || {
            missing.fetch_sub(1, Ordering::AcqRel);
            while missing.load(Ordering::Acquire) > 0 {
                spin_loop();
            }
            let began = Instant::now();
            (self.run)(calls);
            began.elapsed()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(timed)).collect();
            let took: Duration = threads
                .into_iter()
                .map(|thread| thread.join().expect("no case panics"))
                .sum();
            took / self.threads as u32
        })
    }

    /// Allocations per call, once it has made what it makes only once.
    fn allocations(&self) -> f64 {
        let count = |calls| count_during(|| (self.run)(calls)).1.allocations;
        let calls = 1000;
        // A runtime is made per loop and is no part of a call.
        let one = count(1);
        count(1 + calls).saturating_sub(one) as f64 / calls as f64
    }
}

/// Warms a case up and finds how many calls fill a batch.
fn calls_per_batch(case: &Case) -> u64 {
    let batch = if case.threads == 1 {
        BATCH
    } else {
        BATCH_OF_THREADS
    };
    let mut calls = 16;
    loop {
        let took = case.time(calls);
        if took >= batch / 4 {
            let per_call = took.as_nanos() as f64 / calls as f64;
            return (batch.as_nanos() as f64 / per_call).max(1.0) as u64;
        }
        calls *= 4;
    }
}

/// Runs a future on a runtime of the calling thread, without the yields of tokio's budget.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime needs no more than memory");
    runtime.block_on(tokio::task::unconstrained(future))
}
