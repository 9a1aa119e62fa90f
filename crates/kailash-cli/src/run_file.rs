//! A run file: read, checked as a whole and turned into settings before anything is started.

mod document;
mod duration;
mod plan;
mod problem;
mod reader;
mod schema;
mod settings;
mod source;
mod word;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kailash::bulkhead::PartitionConfig;
use kailash::circuit_breaker;
use kailash::health::CheckConfig;
use kailash_workflow::Map;
use kailash_workflow::rows::Columns;

pub(crate) use plan::{build, build_send};
use reader::Reader;
pub(crate) use schema::{CheckType, Connection, FaultKind};

/// What a run does, found right.
#[derive(Clone, Debug)]
pub(crate) struct RunFile {
    pub(crate) path: PathBuf,
    pub(crate) input: Option<Input>,
    pub(crate) database: Database,
    pub(crate) breakers: Vec<(String, circuit_breaker::Config)>,
    pub(crate) partitions: Vec<PartitionConfig>,
    /// How many calls may run at once in all partitions together.
    pub(crate) ceiling: Option<u32>,
    pub(crate) checks: Vec<Check>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) outbox: Option<Outbox>,
    pub(crate) sandbox: Option<Sandbox>,
}

/// The rows that the graph runs for.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) csv: PathBuf,
    pub(crate) concurrency: usize,
    pub(crate) columns: Columns,
}

/// A node of the graph, as the builder takes it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) node_type: String,
    /// What its type takes, and its policies.
    pub(crate) config: Map,
}

/// A dependency to look at.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) check_type: CheckType,
    pub(crate) url: String,
    pub(crate) config: CheckConfig,
}

/// Where nodes store.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) setup: Vec<String>,
}

/// What one node stores is sent by another at least once.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    pub(crate) table: String,
    pub(crate) store: String,
    pub(crate) send: String,
    pub(crate) give_up_after: Duration,
}

/// The service to rehearse against.
#[derive(Clone, Debug)]
pub(crate) enum Sandbox {
    /// One that runs already, at this URL.
    At(String),
    /// One to start.
    Start(Schedule),
}

/// Where a sandbox listens and what goes wrong in it.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) listen: SocketAddr,
    pub(crate) faults: Vec<Fault>,
}

/// One phase of a sandbox's schedule.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) after_requests: u64,
    pub(crate) lasts: Duration,
    pub(crate) status: u16,
    pub(crate) delay: Duration,
}

/// A run file that cannot be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// It cannot be read.
    Unreadable(PathBuf, io::Error),
    /// It is wrong: the mistakes, ready to be shown.
    Wrong(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => {
                write!(f, "error: {}: cannot be read: {error}", path.display())
            }
            Self::Wrong(mistakes) => f.write_str(mistakes),
        }
    }
}

impl RunFile {
    /// Reads a run file, puts the overrides over it and checks all of it.
    pub(crate) fn load(path: &Path, overrides: &[String]) -> Result<Self, LoadError> {
        let unreadable = |error| LoadError::Unreadable(path.to_owned(), error);
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut reader = Reader::new(path, &text, overrides)?;
        let file = reader.run_file(path);
        reader.finish(file)
    }
}

impl Schedule {
    /// Reads the `[sandbox]` of a run file, whatever else stands in it.
    pub(crate) fn load(path: &Path, overrides: &[String]) -> Result<Self, LoadError> {
        let unreadable = |error| LoadError::Unreadable(path.to_owned(), error);
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut reader = Reader::new(path, &text, overrides)?;
        let schedule = reader.schedule();
        reader.finish(schedule)
    }
}
