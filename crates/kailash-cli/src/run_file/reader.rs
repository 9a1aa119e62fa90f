//! Turns the sections of a run file into settings, and collects what is wrong on the way.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use kailash::ConfigError;
use kailash::bulkhead::{self, PartitionConfig, PartitionType};
use kailash::circuit_breaker::{self, Overrides, PresetError, Presets, ROOT};
use kailash::health::CheckConfig;
use kailash::sql::DatabaseUrl;
use kailash_workflow::rows::Columns;
use kailash_workflow::{PlanError, Registry, Value};

use super::document::Document;
use super::plan::{self, Wrong};
use super::schema::{self, CheckType, Connection};
use super::settings::{breaker, column_type, count, partition};
use super::{
    Check, Database, Fault, Input, LoadError, Node, Outbox, RunFile, Sandbox, Schedule, problem,
};

/// Turns the sections into settings and collects what is wrong on the way.
pub(super) struct Reader<'t> {
    document: Document<'t>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(
        path: &Path,
        text: &'t str,
        overrides: &'t [String],
    ) -> Result<Self, LoadError> {
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

    pub(super) fn finish<T>(self, value: T) -> Result<T, LoadError> {
        let Document {
            source, problems, ..
        } = self.document;
        if problems.is_empty() {
            return Ok(value);
        }
        Err(LoadError::Wrong(problem::render(problems, &source)))
    }

    pub(super) fn run_file(&mut self, path: &Path) -> RunFile {
        self.document.only(&schema::SECTIONS);
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = RunFile {
            path: path.to_owned(),
            input: self.input(folder),
            database: self.database(path),
            breakers: self.breakers(),
            partitions: self.partitions(),
            ceiling: self.ceiling(),
            checks: self.checks(),
            nodes: self.nodes(),
            connections: self.connections(),
            outbox: self.outbox(),
            sandbox: self.sandbox(),
        };
        if !self.document.has(&["nodes"]) {
            let why = "there are no [[nodes]], so there is nothing to run";
            self.document.complain(&[], why);
        }
        self.check_plan(&file);
        file
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
        // In the order of the file, which the table by name has lost.
        let order = self.document.names(&["input", "columns"]);
        let types = order.into_iter().filter_map(|name| {
            let column = column_type(*read.columns.get(&name)?);
            Some((name, column))
        });
        let path = ["input", "concurrency"];
        Some(Input {
            csv: folder.join(&read.csv),
            concurrency: self.whole(&path, read.concurrency, 64, 1..=10_000),
            columns: Columns {
                types: types.collect(),
                key: read.key,
            },
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
        let mut presets = Presets::new();
        // One that could not be read is known all the same.
        for name in self.document.names(&["breakers"]) {
            presets.insert(name, Overrides::default());
        }
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        for (name, settings) in named {
            presets.insert(name, breaker(settings));
        }
        let mut breakers = Vec::new();
        let mut in_circles: Vec<String> = Vec::new();
        for name in names {
            match presets.resolve(&name) {
                Ok(_) if name == ROOT => {}
                Ok(config) => breakers.push((name, config)),
                // What is wrong with a base is said where the base is.
                Err(PresetError::Config { error, .. }) => {
                    if self.document.has(&["breakers", &name, error.field]) {
                        self.out_of_range("breakers", &name, error);
                    }
                }
                Err(PresetError::Unknown {
                    name: base,
                    of,
                    known,
                    ..
                }) => {
                    if of.as_ref() == Some(&name) {
                        let path = ["breakers", &name, "base"];
                        self.document.unknown(&path, "preset", &base, &known);
                    }
                }
                Err(PresetError::Circle { names }) => {
                    if names.contains(&name) && !in_circles.contains(&name) {
                        let way = names.join(" -> ");
                        let why = format!("bases go round in a circle: {way}");
                        self.document.complain(&["breakers", &name, "base"], &why);
                        in_circles.extend(names);
                    }
                }
            }
        }
        breakers
    }

    fn out_of_range(&mut self, section: &str, name: &str, error: ConfigError) {
        let ConfigError { field, allowed, .. } = error;
        self.document.reject(&[section, name, field], allowed);
    }

    fn partitions(&mut self) -> Vec<PartitionConfig> {
        let defaults = bulkhead::Manager::with_defaults();
        let named: Vec<(String, schema::Partition)> = self.named("partitions");
        let mut partitions = Vec::new();
        for (name, settings) in named {
            let known = defaults.get(&name).map(|partition| partition.config());
            let base = match (settings.partition_type, known) {
                (None, Ok(known)) => known,
                (None, Err(_)) => PartitionConfig::new(&name, PartitionType::Custom),
                (Some(chosen), _) => PartitionConfig::new(&name, chosen.0),
            };
            let config = partition(settings, base);
            match config.validate() {
                Ok(_) => partitions.push(config),
                Err(error) => self.out_of_range("partitions", &name, error),
            }
        }
        partitions
    }

    fn ceiling(&mut self) -> Option<u32> {
        let path = ["ceiling"];
        let given: i64 = self.document.read(&path)?;
        Some(self.whole(&path, Some(given), 1, 1..=1_000_000))
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
        let mut breakers = self.document.names(&["breakers"]);
        breakers.retain(|name| name != ROOT);
        let mut partitions = self.document.names(&["partitions"]);
        for partition in bulkhead::Manager::with_defaults().partitions() {
            if !partitions.iter().any(|name| name == partition.name()) {
                partitions.push(partition.name().to_owned());
            }
        }
        let types = Registry::new().types();
        let read: Vec<(String, serde_json::Value)> = self.elements("nodes");
        let mut nodes: Vec<Node> = Vec::new();
        for (index, json) in read {
            let Value::Map(mut config) = Value::from(json) else {
                self.document.reject(&["nodes", &index], "a table");
                continue;
            };
            for (key, what, known) in [
                ("breaker", "breaker", &breakers),
                ("partition", "partition", &partitions),
            ] {
                let name = config.get(key).and_then(Value::as_text);
                if let Some(name) = name.filter(|name| !known.iter().any(|known| known == name)) {
                    self.document
                        .unknown(&["nodes", &index, key], what, name, known);
                }
            }
            let mut text = |key| match config.shift_remove(key) {
                Some(Value::Text(text)) => text,
                Some(_) => {
                    let path = ["nodes", &index, key];
                    self.document.reject(&path, "a text in quotes");
                    String::new()
                }
                None => {
                    let why = format!("the key `{key}` is missing");
                    self.document.complain(&["nodes", &index], &why);
                    String::new()
                }
            };
            let (id, node_type) = (text("id"), text("type"));
            if nodes.iter().any(|node| node.id == id) {
                let why = format!("another node is called `{id}`");
                self.document.complain(&["nodes", &index, "id"], &why);
            }
            if !node_type.is_empty() && !types.contains(&node_type) {
                let path = ["nodes", &index, "type"];
                self.document
                    .unknown(&path, "node type", &node_type, &types);
            }
            nodes.push(Node {
                id,
                node_type,
                config,
            });
        }
        nodes
    }

    fn connections(&mut self) -> Vec<Connection> {
        let nodes: Vec<(String, serde_json::Value)> = self.elements("nodes");
        let ids = nodes.iter().filter_map(|(_, node)| node["id"].as_str());
        let ids: Vec<String> = ids.map(str::to_owned).collect();
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

    /// Builds the graph once, to find what is wrong with it.
    fn check_plan(&mut self, file: &RunFile) {
        if !self.document.problems.is_empty() {
            // The graph of what could be read is not the graph of the file.
            return;
        }
        let mut roots = vec!["database".to_owned()];
        roots.extend(file.input.is_some().then(|| "row".to_owned()));
        roots.extend(file.sandbox.is_some().then(|| "sandbox".to_owned()));
        for (index, node) in file.nodes.iter().enumerate() {
            let index = index.to_string();
            for (key, value) in &node.config {
                let path = ["nodes", &index, key];
                for (root, field) in plan::places(value) {
                    let columns = file.input.as_ref().map(|input| &input.columns.types);
                    let names = match (&*root, columns) {
                        ("row", Some(columns)) => {
                            columns.iter().map(|(name, _)| name.clone()).collect()
                        }
                        ("sandbox" | "database", _) => vec!["url".to_owned()],
                        _ => continue,
                    };
                    if !roots.contains(&root) {
                        let why = format!("`{root}` needs a section [{root}]");
                        self.document.complain(&path, &why);
                    } else if !names.contains(&field) {
                        let what = format!("field of `{root}`");
                        self.document.unknown(&path, &what, &field, &names);
                    }
                }
            }
        }
        self.check_send(file);
        let workflow = match plan::build(file, None) {
            Ok(workflow) => workflow,
            Err(wrong) => return self.wrong_plan(wrong),
        };
        for (index, node) in file.nodes.iter().enumerate() {
            let Some(planned) = workflow.node(&node.id) else {
                continue;
            };
            let mut known = roots.clone();
            let is_sent_again = file.outbox.as_ref().is_some_and(|it| it.send == node.id);
            if !is_sent_again {
                // What is sent again has its row only.
                let connections = file.connections.iter().filter(|it| it.to == node.id);
                known.extend(connections.map(|it| it.input.clone().unwrap_or("input".to_owned())));
            }
            for name in planned
                .names()
                .filter(|name| !known.iter().any(|it| it == name))
            {
                let path = ["nodes", &index.to_string()];
                self.document
                    .unknown(&path, "name in an expression", name, &known);
            }
        }
    }

    /// What is sent again goes through the sending node alone, so nothing else may hang on it.
    fn check_send(&mut self, file: &RunFile) {
        let Some(Outbox { store, send, .. }) = &file.outbox else {
            return;
        };
        for (index, connection) in file.connections.iter().enumerate() {
            let index = index.to_string();
            let Connection { from, to, .. } = connection;
            if to == send && from != store {
                let why =
                    format!("`{send}` is sent again by itself, so it can follow `{store}` only");
                self.document
                    .complain(&["connections", &index, "from"], &why);
            }
            if from == send {
                let why = format!("`{send}` is sent again by itself, so nothing can follow it");
                self.document
                    .complain(&["connections", &index, "from"], &why);
            }
        }
    }

    fn wrong_plan(&mut self, wrong: Wrong) {
        let (section, index, error) = match wrong {
            Wrong::Node(index, error) => ("nodes", index.to_string(), error),
            Wrong::Connection(index, error) => ("connections", index.to_string(), error),
            Wrong::Whole(error) => ("connections", String::new(), error),
        };
        let document = &mut self.document;
        match error {
            PlanError::UnknownPort {
                node,
                port,
                direction,
                known,
                ..
            } => {
                let what = format!("{direction} of `{node}`");
                document.unknown(&[section, &index, direction], &what, &port, &known);
            }
            PlanError::Config { problem, .. } => {
                let key = problem.key.split('.').next().unwrap_or_default();
                let path = [section, &index, key];
                match problem.message.strip_prefix("unknown key, known are ") {
                    Some(known) => {
                        let known = known.split(", ").map(str::to_owned);
                        let known: Vec<String> =
                            known.chain(plan::POLICIES.map(str::to_owned)).collect();
                        document.unknown(&path, "key", key, &known);
                    }
                    None => document.complain(&path, &problem.message),
                }
            }
            error => document.complain(&[section], &error.to_string()),
        }
    }

    fn checks(&mut self) -> Vec<Check> {
        let read: Vec<(String, schema::Check)> = self.elements("checks");
        let mut names = HashSet::new();
        let mut checks = Vec::new();
        for (index, check) in read {
            if !names.insert(check.name.clone()) {
                let why = format!("another check is called `{}`", check.name);
                self.document.complain(&["checks", &index, "name"], &why);
            }
            if check.r#type != CheckType::Memory && check.url.is_none() {
                let why = "the key `url` is missing";
                self.document.complain(&["checks", &index], why);
            }
            let default = CheckConfig::default();
            let config = CheckConfig {
                timeout: check.timeout.map_or(default.timeout, |span| span.0),
                critical: check.critical.unwrap_or(default.critical),
                check_interval: check.check_interval.map(|span| span.0),
                alert_threshold: check.alert_threshold.map(|given| count(Some(given), 0)),
            };
            if let Err(error) = config.validate() {
                self.out_of_range("checks", &index, error);
            }
            checks.push(Check {
                name: check.name,
                check_type: check.r#type,
                url: check.url.unwrap_or_default(),
                config,
            });
        }
        checks
    }

    fn outbox(&mut self) -> Option<Outbox> {
        let read: schema::Outbox = self.document.read(&["outbox"])?;
        let starts = read.table.starts_with(|c: char| c.is_ascii_alphabetic());
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !starts || !read.table.chars().all(word) || read.table.len() > 63 {
            let allowed = "a letter, then letters, digits and underscores, at most 63";
            self.document.reject(&["outbox", "table"], allowed);
        }
        if !self.document.has(&["input"]) {
            let why = "an outbox needs the rows of an [input]";
            self.document.complain(&["outbox"], why);
        }
        let nodes: Vec<(String, serde_json::Value)> = self.elements("nodes");
        let types = Registry::new().types();
        for (key, id, needed) in [
            ("store", &read.store, "SQLDatabaseNode"),
            ("send", &read.send, "HTTPRequestNode"),
        ] {
            let fitting = nodes.iter().filter(|(_, node)| {
                // A type that nobody knows is a mistake of its own.
                let given = node["type"].as_str().unwrap_or_default();
                given == needed || !types.iter().any(|known| known == given)
            });
            let ids = fitting.filter_map(|(_, node)| node["id"].as_str());
            let fitting: Vec<String> = ids.map(str::to_owned).collect();
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
            give_up_after: give_up_after.unwrap_or(Duration::from_secs(300)),
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

    pub(super) fn schedule(&mut self) -> Schedule {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_breaker_does_not_say_is_its_bases() {
        let text = r#"
            [breakers.payments]
            base = "calls"
            recovery_timeout = "7s"
            [breakers.calls]
            base = "api"
            slow_call_threshold = "off"
            [breakers.default]
            half_open_requests = 9
        "#;
        let mut reader = Reader::new(Path::new("shop.toml"), text, &[]).unwrap();
        let breakers = reader.breakers();
        assert!(reader.document.problems.is_empty());
        let names: Vec<&str> = breakers.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["payments", "calls"], "the default is no breaker");
        let expected = circuit_breaker::Config {
            failure_threshold: 3,
            recovery_timeout: Duration::from_secs(7),
            half_open_requests: 9,
            slow_call_threshold: None,
            ..circuit_breaker::Config::default()
        };
        assert_eq!(breakers[0].1, expected);
    }
}
