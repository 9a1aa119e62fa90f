//! What a run needs, set up before its first row; what cannot be had is an error that names it.

use std::fmt;

use kailash::bulkhead;
use kailash::circuit_breaker;
use kailash::health::checks::{
    Http, HttpConfig, Memory, MemoryConfig, Redis, RedisConfig, Sql, SqlConfig,
};
use kailash::health::{self, Monitor};
use kailash_workflow::nodes::{HttpRequest, SqlDatabase};
use kailash_workflow::outbox::{Outbox, Relay, RelayConfig};
use kailash_workflow::rows::Rows;
use kailash_workflow::{LocalRuntime, Map, Value};

use crate::output::Log;
use crate::run_file::{self, Check, CheckType, RunFile};
use crate::sandbox::{self, Stats};

use super::job::Job;
use super::mail::Mail;

/// Why nothing was run, without secrets.
#[derive(Debug)]
pub(crate) struct StartError(String);

impl StartError {
    pub(crate) fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a run needs.
pub(super) struct Started {
    pub(super) job: Job,
    pub(super) rows: Option<Rows>,
    pub(super) monitor: Option<Monitor>,
    pub(super) sandbox: Option<Sandbox>,
}

/// The service of the rehearsal: our own, or one that runs already.
pub(super) enum Sandbox {
    Own(sandbox::Sandbox),
    Other(String),
}

impl Sandbox {
    fn url(&self) -> &str {
        match self {
            Self::Own(sandbox) => sandbox.url(),
            Self::Other(url) => url,
        }
    }

    /// What it has seen.
    pub(super) async fn stats(&self) -> Result<Stats, StartError> {
        match self {
            Self::Own(sandbox) => Ok(sandbox.stats()),
            Self::Other(url) => {
                let failed = |error| StartError(format!("sandbox: {error}"));
                let url = Value::from(format!("{url}/stats"));
                let inputs = Map::from_iter([
                    ("url".to_owned(), url.clone()),
                    ("timeout".to_owned(), Value::from("5s")),
                ]);
                let outputs = HttpRequest::new().execute(inputs).await;
                let outputs = outputs.map_err(|error| failed(error.to_string()))?;
                let content = outputs.get("response").and_then(|it| it.field("content"));
                let json = content.map(Value::to_json).unwrap_or_default();
                let stats = serde_json::from_value(json);
                stats.map_err(|_| failed(format!("{url} is not a sandbox")))
            }
        }
    }
}

/// Sets up everything, and starts nothing of the run itself.
pub(super) async fn start(file: RunFile) -> Result<Started, StartError> {
    let rows = match &file.input {
        None => None,
        Some(input) => {
            let opened = Rows::open(&input.csv, input.columns.clone());
            Some(opened.map_err(|error| StartError(format!("input.csv: {error}")))?)
        }
    };
    let breakers = circuit_breaker::Manager::new();
    for (name, config) in &file.breakers {
        let made = breakers.get_or_create(name, config.clone());
        made.map_err(StartError::new)?;
    }
    let partitions = bulkhead::Manager::with_defaults();
    for config in &file.partitions {
        partitions
            .configure(config.clone())
            .map_err(StartError::new)?;
    }
    let partitions = match file.ceiling {
        None => partitions,
        Some(limit) => partitions.under_ceiling(limit).map_err(StartError::new)?,
    };
    let sandbox = match &file.sandbox {
        None => None,
        Some(run_file::Sandbox::At(url)) => {
            let sandbox = Sandbox::Other(url.clone());
            sandbox.stats().await?;
            Some(sandbox)
        }
        Some(run_file::Sandbox::Start(schedule)) => {
            let started = sandbox::Sandbox::start(schedule.clone()).await;
            Some(Sandbox::Own(started.map_err(StartError::new)?))
        }
    };
    let outbox = database(&file).await?;
    let workflow = run_file::build(&file, outbox.as_ref()).map_err(StartError::new)?;
    let runtime = LocalRuntime::new(breakers, partitions);
    let workflow = runtime.prepare(&workflow).map_err(StartError::new)?;
    let mail = match outbox {
        None => None,
        Some(outbox) => Some(mail(&file, outbox, &runtime).await?),
    };
    let mut values = Map::new();
    let mut place = |name: &str, url: &str| {
        let url = Map::from_iter([("url".to_owned(), Value::from(url))]);
        values.insert(name.to_owned(), Value::Map(url));
    };
    place("database", &file.database.url);
    if let Some(sandbox) = &sandbox {
        place("sandbox", sandbox.url());
    }
    let monitor = monitor(&file, sandbox.as_ref())?;
    let log = Log::new();
    Ok(Started {
        job: Job::new(file, runtime, workflow, mail, values, log),
        rows,
        monitor,
        sandbox,
    })
}

/// Prepares the database, and opens the outbox if there is one.
async fn database(file: &RunFile) -> Result<Option<Outbox>, StartError> {
    let url = &file.database.url;
    let failed = |error| StartError(format!("database: {error}"));
    let database = SqlDatabase::new(url).map_err(|error| failed(error.to_string()))?;
    for statement in &file.database.setup {
        let done = database.execute(statement, ()).await;
        done.map_err(|error| failed(error.to_string()))?;
    }
    let Some(settings) = &file.outbox else {
        return Ok(None);
    };
    let store = file.nodes.iter().find(|node| node.id == settings.store);
    let own = store.and_then(|node| node.config.get("connection_string")?.as_text());
    let database = match own.filter(|own| own != url) {
        Some(own) => SqlDatabase::new(own).map_err(|error| failed(error.to_string()))?,
        None => database,
    };
    let outbox = Outbox::open(database, &settings.table).await;
    outbox.map(Some).map_err(|error| failed(error.to_string()))
}

async fn mail(file: &RunFile, outbox: Outbox, runtime: &LocalRuntime) -> Result<Mail, StartError> {
    let settings = file.outbox.as_ref();
    let settings = settings.ok_or_else(|| StartError::new("there is no [outbox]"))?;
    let policy = |id: &str, key: &str| {
        let node = file.nodes.iter().find(|node| node.id == *id)?;
        node.config.get(key)?.as_text()
    };
    let partition = policy(&settings.store, "partition");
    let send = run_file::build_send(file, &settings.send).map_err(StartError::new)?;
    let send_partition = policy(&settings.send, "partition");
    let slots = send_partition.and_then(|name| runtime.partitions().get(name).ok());
    let slots = slots.map_or(16, |partition| partition.config().max_concurrent_operations);
    let config = RelayConfig {
        concurrency: usize::try_from(slots).unwrap_or(16).min(256),
        give_up_after: settings.give_up_after,
        breaker: policy(&settings.send, "breaker").and_then(|name| runtime.breakers().get(name)),
        partition: partition.and_then(|name| runtime.partitions().get(name).ok()),
    };
    let unsent = outbox.count_unsent().await;
    let unsent = unsent.map_err(|error| StartError(format!("database: {error}")))?;
    let is_new = outbox.is_empty().await;
    let is_new = is_new.map_err(|error| StartError(format!("database: {error}")))?;
    Ok(Mail {
        relay: Relay::new(outbox.clone(), config),
        store: settings.store.clone(),
        send: settings.send.clone(),
        sending: runtime.prepare(&send).map_err(StartError::new)?,
        give_up_after: settings.give_up_after,
        unsent_before: unsent,
        is_new,
        outbox,
    })
}

fn monitor(file: &RunFile, sandbox: Option<&Sandbox>) -> Result<Option<Monitor>, StartError> {
    if file.checks.is_empty() {
        return Ok(None);
    }
    let monitor = Monitor::new(health::Config::default()).map_err(StartError::new)?;
    for check in &file.checks {
        let sandbox = sandbox.map_or("", Sandbox::url);
        let url = check.url.replace("${database.url}", &file.database.url);
        let url = url.replace("${sandbox.url}", sandbox);
        let registered = register(&monitor, check, url);
        registered.map_err(|error| StartError(format!("checks.{}: {error}", check.name)))?;
    }
    Ok(Some(monitor))
}

fn register(monitor: &Monitor, check: &Check, url: String) -> Result<(), kailash::ConfigError> {
    let (name, config) = (&check.name, check.config);
    match check.check_type {
        CheckType::Sql => {
            let sql = SqlConfig {
                url,
                ..SqlConfig::default()
            };
            monitor.register(name, config, Sql::new(sql)?)
        }
        CheckType::Redis => {
            let redis = RedisConfig {
                url: Some(url),
                ..RedisConfig::default()
            };
            monitor.register(name, config, Redis::new(redis)?)
        }
        CheckType::Http => {
            let http = HttpConfig {
                url,
                ..HttpConfig::default()
            };
            monitor.register(name, config, Http::new(http)?)
        }
        CheckType::Memory => monitor.register(name, config, Memory::new(MemoryConfig::default())?),
    }
}
