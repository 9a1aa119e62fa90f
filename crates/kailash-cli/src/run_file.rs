//! A run file: read, checked as a whole and turned into settings before anything is started.

mod document;
mod duration;
mod problem;
mod schema;
mod source;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kailash::ConfigError;
use kailash::circuit_breaker;
use kailash::sql::DatabaseUrl;

use document::Document;
use duration::{ShareOrOff, Span, SpanOrOff};
pub(crate) use schema::{Check, ColumnType, Connection, FaultKind, Node, Partition};

/// The node types a run file can name.
const NODE_TYPES: [&str; 4] = [
    "SQLDatabaseNode",
    "HTTPRequestNode",
    "HealthCheckNode",
    "SwitchNode",
];
/// The partitions that exist without being named.
const PARTITIONS: [&str; 5] = ["critical", "database", "api", "compute", "background"];

/// What a run does, found right.
#[derive(Clone, Debug)]
pub(crate) struct RunFile {
    pub(crate) path: PathBuf,
    pub(crate) input: Option<Input>,
    pub(crate) database: Database,
    pub(crate) breakers: Vec<(String, circuit_breaker::Config)>,
    pub(crate) partitions: Vec<(String, Partition)>,
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
    pub(crate) key: String,
    pub(crate) concurrency: usize,
    pub(crate) columns: BTreeMap<String, ColumnType>,
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

/// Turns the sections into settings and collects what is wrong on the way.
struct Reader<'t> {
    document: Document<'t>,
}

impl<'t> Reader<'t> {
    fn new(path: &Path, text: &'t str, overrides: &'t [String]) -> Result<Self, LoadError> {
        let mut document = Document::parse(path.display().to_string(), text);
        if !document.problems.is_empty() {
            let Document {
                source, problems, ..
            } = document;
            return Err(LoadError::Wrong(problem::render(problems, &source)));
        }
        for assignment in overrides {
            document.set(assignment);
        }
        Ok(Self { document })
    }

    fn finish<T>(self, value: T) -> Result<T, LoadError> {
        let Document {
            source, problems, ..
        } = self.document;
        if problems.is_empty() {
            return Ok(value);
        }
        Err(LoadError::Wrong(problem::render(problems, &source)))
    }

    fn run_file(&mut self, path: &Path) -> RunFile {
        self.document.only(&schema::SECTIONS);
        let folder = path.parent().unwrap_or(Path::new(""));
        let breakers = self.breakers();
        let partitions = self.named("partitions");
        let nodes = self.nodes();
        let input = self.input(folder);
        if !self.document.has(&["nodes"]) {
            let why = "there are no [[nodes]], so there is nothing to run";
            self.document.complain(&[], why);
        }
        RunFile {
            path: path.to_owned(),
            database: self.database(path),
            checks: self.checks(),
            connections: self.connections(&nodes),
            outbox: self.outbox(&nodes, input.is_some()),
            sandbox: self.sandbox(),
            input,
            breakers,
            partitions,
            nodes,
        }
    }

    fn input(&mut self, folder: &Path) -> Option<Input> {
        let read: schema::Input = self.document.read(&["input"])?;
        let columns: Vec<String> = read.columns.keys().cloned().collect();
        if columns.is_empty() {
            let why = "a column and its type are needed, as in id = \"int\"";
            self.document.complain(&["input", "columns"], why);
        } else if !read.columns.contains_key(&read.key) {
            let path = ["input", "key"];
            self.document.unknown(&path, "column", &read.key, &columns);
        }
        let path = ["input", "concurrency"];
        Some(Input {
            csv: folder.join(&read.csv),
            key: read.key,
            concurrency: self.whole(&path, read.concurrency, 64, 1..=10_000),
            columns: read.columns,
        })
    }

    fn database(&mut self, path: &Path) -> Database {
        let read: schema::Database = self.document.read(&["database"]).unwrap_or_default();
        let url = read.url.unwrap_or_else(|| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let file = std::env::temp_dir().join(format!("kailash-{stem}.db"));
            format!("sqlite://{}", file.display())
        });
        if let Err(error) = DatabaseUrl::parse(&url) {
            let why = error.to_string();
            let why = why.strip_prefix("database url: ").unwrap_or(&why);
            self.document.complain(&["database", "url"], why);
        }
        Database {
            url,
            setup: read.setup,
        }
    }

    fn breakers(&mut self) -> Vec<(String, circuit_breaker::Config)> {
        let named: Vec<(String, schema::Breaker)> = self.named("breakers");
        let mut breakers = Vec::new();
        for (name, settings) in named {
            let config = breaker(settings);
            match config.validate() {
                Ok(()) => breakers.push((name, config)),
                Err(error) => self.out_of_range("breakers", &name, error),
            }
        }
        breakers
    }

    fn out_of_range(&mut self, section: &str, name: &str, error: ConfigError) {
        let ConfigError { field, allowed, .. } = error;
        self.document.reject(&[section, name, field], allowed);
    }

    /// The tables of `[section.NAME]`.
    fn named<T: serde::de::DeserializeOwned>(&mut self, section: &str) -> Vec<(String, T)> {
        let mut named = Vec::new();
        for name in self.document.names(&[section]) {
            let read = self.document.read(&[section, &name]);
            named.extend(read.map(|settings| (name, settings)));
        }
        named
    }

    /// The elements of `[[section]]`, each with its index.
    fn elements<T: serde::de::DeserializeOwned>(&mut self, section: &str) -> Vec<(String, T)> {
        let mut elements = Vec::new();
        for index in 0..self.document.len(&[section]) {
            let index = index.to_string();
            let read = self.document.read(&[section, &index]);
            elements.extend(read.map(|element| (index, element)));
        }
        elements
    }

    fn nodes(&mut self) -> Vec<Node> {
        let breakers = self.document.names(&["breakers"]);
        let mut partitions = self.document.names(&["partitions"]);
        for name in PARTITIONS.map(str::to_owned) {
            if !partitions.contains(&name) {
                partitions.push(name);
            }
        }
        let types = NODE_TYPES.map(str::to_owned);
        let mut ids = HashSet::new();
        let nodes: Vec<(String, Node)> = self.elements("nodes");
        for (index, node) in &nodes {
            let at = |key| ["nodes", index, key];
            if !ids.insert(node.id.as_str()) {
                let why = format!("two nodes are called `{}`", node.id);
                self.document.complain(&at("id"), &why);
            }
            if !types.contains(&node.r#type) {
                self.document
                    .unknown(&at("type"), "node type", &node.r#type, &types);
            }
            if let Some(name) = node
                .breaker
                .as_ref()
                .filter(|name| !breakers.contains(name))
            {
                let path = at("breaker");
                self.document.unknown(&path, "breaker", name, &breakers);
            }
            let partition = node.partition.as_ref();
            if let Some(name) = partition.filter(|name| !partitions.contains(name)) {
                let path = at("partition");
                self.document.unknown(&path, "partition", name, &partitions);
            }
            if node.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                self.document
                    .reject(&at("timeout"), "a duration above zero");
            }
        }
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    fn connections(&mut self, nodes: &[Node]) -> Vec<Connection> {
        let ids: Vec<String> = nodes.iter().map(|node| node.id.clone()).collect();
        let connections: Vec<(String, Connection)> = self.elements("connections");
        for (index, connection) in &connections {
            for (key, id) in [("from", &connection.from), ("to", &connection.to)] {
                if !ids.contains(id) {
                    let path = ["connections", index, key];
                    self.document.unknown(&path, "node", id, &ids);
                }
            }
        }
        connections.into_iter().map(|(_, read)| read).collect()
    }

    fn checks(&mut self) -> Vec<Check> {
        let checks: Vec<(String, Check)> = self.elements("checks");
        let mut names = HashSet::new();
        for (index, check) in &checks {
            if !names.insert(check.name.as_str()) {
                let why = format!("two checks are called `{}`", check.name);
                self.document.complain(&["checks", index, "name"], &why);
            }
            if check.r#type != schema::CheckType::Memory && check.url.is_none() {
                let why = "the key `url` is missing";
                self.document.complain(&["checks", index], why);
            }
        }
        checks.into_iter().map(|(_, check)| check).collect()
    }

    fn outbox(&mut self, nodes: &[Node], has_input: bool) -> Option<Outbox> {
        let read: schema::Outbox = self.document.read(&["outbox"])?;
        let starts = read.table.starts_with(|c: char| c.is_ascii_alphabetic());
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !starts || !read.table.chars().all(word) || read.table.len() > 63 {
            let allowed = "a letter, then letters, digits and underscores, at most 63";
            self.document.reject(&["outbox", "table"], allowed);
        }
        if !has_input && !self.document.has(&["input"]) {
            let why = "an outbox needs the rows of an [input]";
            self.document.complain(&["outbox"], why);
        }
        for (key, id, needed) in [
            ("store", &read.store, "SQLDatabaseNode"),
            ("send", &read.send, "HTTPRequestNode"),
        ] {
            let fitting = nodes.iter().filter(|node| node.r#type == needed);
            let fitting: Vec<String> = fitting.map(|node| node.id.clone()).collect();
            if !fitting.contains(id) {
                let what = format!("node of type {needed}");
                self.document.unknown(&["outbox", key], &what, id, &fitting);
            }
        }
        let give_up_after = read.give_up_after.map(|span| span.0);
        Some(Outbox {
            table: read.table,
            store: read.store,
            send: read.send,
            give_up_after: give_up_after.unwrap_or(Duration::from_secs(60)),
        })
    }

    fn sandbox(&mut self) -> Option<Sandbox> {
        let schedule = self.schedule();
        let read: schema::Sandbox = self.document.read_quietly(&["sandbox"])?;
        match read.url {
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
                Some(Sandbox::At(url.trim_end_matches('/').to_owned()))
            }
            Some(_) => {
                let allowed = "a URL that starts with http:// or https://";
                self.document.reject(&["sandbox", "url"], allowed);
                None
            }
            None => Some(Sandbox::Start(schedule)),
        }
    }

    fn schedule(&mut self) -> Schedule {
        let mut schedule = Schedule {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            faults: Vec::new(),
        };
        let read: Option<schema::Sandbox> = self.document.read(&["sandbox"]);
        let Some(read) = read else { return schedule };
        match read.listen.map(|listen| listen.parse()) {
            None => {}
            Some(Ok(listen)) => schedule.listen = listen,
            Some(Err(_)) => {
                let allowed =
                    "an address and a port, such as 127.0.0.1:8080; port 0 takes a free one";
                self.document.reject(&["sandbox", "listen"], allowed);
            }
        }
        let mut before = 0;
        for (index, fault) in read.faults.iter().enumerate() {
            let index = index.to_string();
            let at = |key| ["sandbox", "faults", &index, key];
            let after = Some(fault.after_requests);
            let after = self.whole(&at("after_requests"), after, 0, before..=i64::MAX);
            before = fault.after_requests.max(before);
            schedule.faults.push(Fault {
                kind: fault.kind,
                after_requests: after,
                lasts: fault.lasts.0,
                status: self.whole(&at("status"), fault.status, 503, 400..=599),
                delay: fault.delay.map_or(Duration::from_secs(1), |span| span.0),
            });
        }
        schedule
    }

    /// A whole number within a range, `default` where there is none.
    fn whole<T: TryFrom<i64> + Default>(
        &mut self,
        path: &[&str],
        given: Option<i64>,
        default: i64,
        range: std::ops::RangeInclusive<i64>,
    ) -> T {
        let value = given.unwrap_or(default);
        let fits = range.contains(&value).then(|| T::try_from(value).ok());
        fits.flatten().unwrap_or_else(|| {
            let (least, most) = range.into_inner();
            let allowed = match most {
                i64::MAX => format!("{least} or more"),
                most => format!("{least} to {most}"),
            };
            self.document.reject(path, allowed);
            T::default()
        })
    }
}

fn breaker(settings: schema::Breaker) -> circuit_breaker::Config {
    let default = circuit_breaker::Config::default();
    let duration = |given: Option<Span>, default| given.map_or(default, |span| span.0);
    let or_off = |given: Option<SpanOrOff>, default| given.map_or(default, |span| span.0);
    let share = |given: Option<ShareOrOff>, default| given.map_or(default, |share| share.0);
    circuit_breaker::Config {
        failure_threshold: count(settings.failure_threshold, default.failure_threshold),
        success_threshold: count(settings.success_threshold, default.success_threshold),
        recovery_timeout: duration(settings.recovery_timeout, default.recovery_timeout),
        max_recovery_timeout: duration(settings.max_recovery_timeout, default.max_recovery_timeout),
        half_open_requests: count(settings.half_open_requests, default.half_open_requests),
        error_rate_threshold: share(settings.error_rate_threshold, default.error_rate_threshold),
        window_size: count(settings.window_size, default.window_size),
        min_calls_before_evaluation: count(
            settings.min_calls_before_evaluation,
            default.min_calls_before_evaluation,
        ),
        slow_call_threshold: or_off(settings.slow_call_threshold, default.slow_call_threshold),
        slow_call_rate_threshold: share(
            settings.slow_call_rate_threshold,
            default.slow_call_rate_threshold,
        ),
        max_wait_duration_in_half_open: duration(
            settings.max_wait_duration_in_half_open,
            default.max_wait_duration_in_half_open,
        ),
        exponential_backoff_multiplier: settings
            .exponential_backoff_multiplier
            .unwrap_or(default.exponential_backoff_multiplier),
        jitter_enabled: settings.jitter_enabled.unwrap_or(default.jitter_enabled),
        max_jitter_percentage: settings
            .max_jitter_percentage
            .unwrap_or(default.max_jitter_percentage),
        cancelled_counts_after: or_off(
            settings.cancelled_counts_after,
            default.cancelled_counts_after,
        ),
    }
}

/// A count; one that no `u32` holds becomes one that no range allows.
fn count(given: Option<i64>, default: u32) -> u32 {
    let Some(given) = given else { return default };
    u32::try_from(given).unwrap_or(if given < 0 { 0 } else { u32::MAX })
}
