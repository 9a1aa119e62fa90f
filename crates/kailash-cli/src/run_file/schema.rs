//! The sections of a run file, as they are written.

use std::collections::BTreeMap;

use kailash::bulkhead::{PartitionType, QueueOrder};
use kailash::circuit_breaker::{State, WindowKind};
use serde::Deserialize;

use super::duration::{ShareOrOff, Span, SpanOrOff};
use super::word::Word;

/// The sections a run file may have, and `ceiling`, which is a number.
pub(crate) const SECTIONS: [&str; 10] = [
    "ceiling",
    "input",
    "database",
    "breakers",
    "partitions",
    "checks",
    "nodes",
    "connections",
    "outbox",
    "sandbox",
];

/// `[input]`: the rows that the graph runs for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    /// The CSV file, relative to the run file.
    pub(crate) csv: String,
    /// The column that tells one row from another.
    pub(crate) key: String,
    /// Rows in flight at once, 64 if not said.
    pub(crate) concurrency: Option<i64>,
    /// The type of each column.
    pub(crate) columns: BTreeMap<String, ColumnType>,
}

/// What the text of a column stands for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ColumnType {
    Text,
    Int,
    Float,
    Decimal,
    Bool,
    Date,
    Time,
    DateTime,
    Uuid,
}

/// `[database]`: where nodes store, unless they say otherwise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Database {
    /// A SQLite file under the system's temporary folder if not said.
    pub(crate) url: Option<String>,
    /// Statements that run before the first row, each of which must be harmless to repeat.
    #[serde(default)]
    pub(crate) setup: Vec<String>,
}

/// `[breakers.NAME]`: what is not said is the base's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Breaker {
    /// Another breaker of the file, or a preset: database, api, cache; `default` if not said.
    pub(crate) base: Option<String>,
    pub(crate) failure_threshold: Option<i64>,
    pub(crate) success_threshold: Option<i64>,
    pub(crate) recovery_timeout: Option<Span>,
    pub(crate) max_recovery_timeout: Option<Span>,
    pub(crate) half_open_requests: Option<i64>,
    pub(crate) error_rate_threshold: Option<ShareOrOff>,
    pub(crate) window: Option<Word<WindowKind>>,
    pub(crate) window_size: Option<i64>,
    pub(crate) window_duration: Option<Span>,
    pub(crate) min_calls_before_evaluation: Option<i64>,
    pub(crate) slow_call_threshold: Option<SpanOrOff>,
    pub(crate) slow_call_rate_threshold: Option<ShareOrOff>,
    pub(crate) overdue_calls_enabled: Option<bool>,
    pub(crate) max_wait_duration_in_half_open: Option<Span>,
    pub(crate) exponential_backoff_multiplier: Option<f64>,
    pub(crate) jitter_enabled: Option<bool>,
    pub(crate) max_jitter_percentage: Option<f64>,
    pub(crate) cancelled_counts_after: Option<SpanOrOff>,
    pub(crate) ramp_enabled: Option<bool>,
    pub(crate) initial_state: Option<Word<State>>,
}

/// `[partitions.NAME]`: what is not said keeps the default of the type.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Partition {
    pub(crate) partition_type: Option<Word<PartitionType>>,
    pub(crate) max_concurrent_operations: Option<i64>,
    pub(crate) max_threads: Option<i64>,
    pub(crate) max_connections: Option<i64>,
    pub(crate) timeout: Option<SpanOrOff>,
    pub(crate) priority: Option<i64>,
    pub(crate) queue_size: Option<i64>,
    pub(crate) evict_lower_priority: Option<bool>,
    pub(crate) queue_order: Option<Word<QueueOrder>>,
    pub(crate) reject_hopeless: Option<bool>,
}

/// `[[checks]]`: a dependency that is looked at while the run lasts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) r#type: CheckType,
    /// What to look at; `${database.url}` and `${sandbox.url}` may stand in it.
    pub(crate) url: Option<String>,
    pub(crate) check_interval: Option<Span>,
    pub(crate) timeout: Option<Span>,
    pub(crate) critical: Option<bool>,
    pub(crate) alert_threshold: Option<i64>,
}

/// What kind of dependency a check looks at.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckType {
    Sql,
    Redis,
    Http,
    Memory,
}

/// `[[connections]]`: from a port of one node to a port of another.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connection {
    pub(crate) from: String,
    /// The port of `from`, `result` if only `input` is said.
    pub(crate) output: Option<String>,
    pub(crate) to: String,
    /// The port of `to`, `input` if only `output` is said; with neither, `to` just runs after `from`.
    pub(crate) input: Option<String>,
}

/// `[outbox]`: what one node stores is sent by another at least once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outbox {
    /// The table of what is still to be sent, made where it is missing.
    pub(crate) table: String,
    /// The SQL node whose statement is one transaction with the row of the outbox.
    pub(crate) store: String,
    /// The HTTP node whose 2xx marks the row as sent.
    pub(crate) send: String,
    /// How long the run goes on without one row stored or sent before it leaves the rest to the next
    /// run: 5 min if not said.
    pub(crate) give_up_after: Option<Span>,
}

/// `[sandbox]`: a local service to rehearse against.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sandbox {
    /// The address to listen at, `127.0.0.1:0` (any free port) if not said.
    pub(crate) listen: Option<String>,
    /// A sandbox that runs already; none is started then.
    pub(crate) url: Option<String>,
    #[serde(default)]
    pub(crate) faults: Vec<Fault>,
}

/// One phase of the sandbox's schedule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// The phase starts with the request that follows this many.
    pub(crate) after_requests: i64,
    pub(crate) lasts: Span,
    /// What `errors` answers, 503 if not said.
    pub(crate) status: Option<i64>,
    /// How long `slowness` waits before its answer, 1 s if not said.
    pub(crate) delay: Option<Span>,
}

/// What goes wrong in a phase.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FaultKind {
    Errors,
    Silence,
    Slowness,
}
