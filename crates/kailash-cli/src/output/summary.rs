//! What came of a run: a table for people, or one JSON document.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use kailash::bulkhead;
use kailash::circuit_breaker;
use kailash::sql::DatabaseUrl;
use kailash_workflow::Map;
use serde_json::{Value, json};

use crate::sandbox::Stats;

/// How far a run came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Lines of the input that were read, those that do not fit included.
    pub(crate) read: u64,
    /// Of those read, the ones that are stored now, by this run or an earlier one.
    pub(crate) stored: u64,
    /// Of those stored, the ones that earlier runs stored.
    pub(crate) stored_before: u64,
    /// Of those stored, the ones that were announced.
    pub(crate) announced: u64,
    /// Lines that do not fit.
    pub(crate) rejected_lines: u64,
    /// What is stored and not announced.
    pub(crate) pending: u64,
    /// What was tried and not stored.
    pub(crate) failed: u64,
    /// Whether some of the input is left for the next run.
    pub(crate) is_left: bool,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) database: DatabaseUrl,
    pub(crate) breakers: Vec<(String, circuit_breaker::Snapshot)>,
    pub(crate) partitions: Vec<bulkhead::Snapshot>,
    pub(crate) sandbox: Option<Stats>,
    pub(crate) longest_wait: Option<Duration>,
    pub(crate) rejects: Option<PathBuf>,
    /// What became of each node, where there is no input.
    pub(crate) outcome: Option<Map>,
    pub(crate) duration: Duration,
}

impl Summary {
    /// Whether nothing failed and nothing is left.
    pub(crate) fn is_complete(&self) -> bool {
        let Counts {
            rejected_lines,
            pending,
            failed,
            is_left,
            ..
        } = self.counts;
        rejected_lines == 0 && pending == 0 && failed == 0 && !is_left
    }

    /// The document of `--json`.
    pub(crate) fn json(&self) -> Value {
        let breakers = self.breakers.iter().map(|(name, it)| {
            json!({
                "name": name,
                "calls": it.calls,
                "failures": it.failures,
                "rejections": it.rejections,
                "openings": it.openings,
                "state": it.state.as_str(),
            })
        });
        let partitions = self.partitions.iter().map(|it| {
            json!({
                "name": &*it.name,
                "run": it.run,
                "refused": it.refused,
                "timed_out": it.timed_out,
                "peak_active": it.peak_active,
                "wait_p99_ms": millis(it.wait_p99),
            })
        });
        let sandbox = self
            .sandbox
            .map(|it| json!({"accepted": it.accepted, "repeats": it.repeats, "failed": it.failed}));
        let mut document = json!({
            "items": {
                "read": self.counts.read,
                "stored": self.counts.stored,
                "announced": self.counts.announced,
                "rejected_lines": self.counts.rejected_lines,
                "pending": self.counts.pending,
            },
            "breakers": breakers.collect::<Vec<_>>(),
            "partitions": partitions.collect::<Vec<_>>(),
            "sandbox": sandbox,
            "duration_s": rounded(self.duration.as_secs_f64()),
            "outage_s": rounded(self.sandbox.map_or(0.0, |it| it.outage_s)),
        });
        if let Some(outcome) = &self.outcome {
            document["results"] = kailash_workflow::Value::Map(outcome.clone()).to_json();
        }
        document
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        if let Some(outcome) = &self.outcome {
            for (id, result) in outcome {
                writeln!(f, "{id}: {result}")?;
            }
        }
        if self.outcome.is_none() {
            let mut items = table([
                "read",
                "stored",
                "announced",
                "pending",
                "failed",
                "rejected lines",
            ]);
            let row = [
                counts.read,
                counts.stored,
                counts.announced,
                counts.pending,
                counts.failed,
                counts.rejected_lines,
            ];
            items.add_row(row.map(|count| count.to_string()));
            writeln!(f, "{}", numbers(items, 0))?;
        }
        if !self.breakers.is_empty() {
            let header = [
                "breaker",
                "calls",
                "failures",
                "rejections",
                "openings",
                "state",
            ];
            let mut breakers = table(header);
            for (name, it) in &self.breakers {
                let counts = [it.calls, it.failures, it.rejections, it.openings];
                let [calls, failures, rejections, openings] = counts.map(|count| count.to_string());
                let state = it.state.to_string();
                breakers.add_row([name, &calls, &failures, &rejections, &openings, &state]);
            }
            writeln!(f, "{}", numbers(breakers, 1))?;
        }
        if !self.partitions.is_empty() {
            let header = [
                "partition",
                "run",
                "refused",
                "timed out",
                "peak",
                "wait p99",
            ];
            let mut partitions = table(header);
            for it in &self.partitions {
                partitions.add_row([
                    it.name.to_string(),
                    it.run.to_string(),
                    it.refused.to_string(),
                    it.timed_out.to_string(),
                    format!("{}/{}", it.peak_active, it.limit),
                    format!("{:.1} ms", millis(it.wait_p99)),
                ]);
            }
            writeln!(f, "{}", numbers(partitions, 1))?;
        }
        if let Some(it) = &self.sandbox {
            let mut sandbox = table(["sandbox", "accepted", "repeats", "failed", "outage"]);
            let counts = [it.accepted, it.repeats, it.failed].map(|count| count.to_string());
            let [accepted, repeats, failed] = counts;
            let outage = format!("{:.2} s", it.outage_s);
            sandbox.add_row(["", &accepted, &repeats, &failed, &outage]);
            writeln!(f, "{}", numbers(sandbox, 1))?;
        }
        if let Some(wait) = self.longest_wait.filter(|wait| !wait.is_zero()) {
            let seconds = wait.as_secs_f64();
            writeln!(f, "longest wait from stored to announced: {seconds:.2} s")?;
        }
        if counts.stored_before > 0 {
            let (before, database) = (counts.stored_before, &self.database);
            writeln!(
                f,
                "{before} of these were stored by earlier runs, in {database}"
            )?;
        }
        if let Some(rejects) = &self.rejects {
            let rejects = rejects.display();
            writeln!(f, "lines that do not fit are kept in {rejects}")?;
        }
        if counts.pending > 0 {
            let pending = counts.pending;
            writeln!(
                f,
                "{pending} stored and not announced: the next run announces them"
            )?;
        }
        if counts.is_left {
            writeln!(
                f,
                "some of the input is left: the next run goes on where this one stopped"
            )?;
        }
        write!(f, "{:.2} s", self.duration.as_secs_f64())
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

/// Numbers stand to the right.
fn numbers(mut table: Table, from: usize) -> Table {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn millis(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1000.0)
}

/// To three digits after the point.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
