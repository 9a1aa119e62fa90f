//! How the services that a workflow needs are.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::future::{BoxFuture, join_all};
use kailash::health::checks::{Http, HttpConfig, Redis, RedisConfig, Sql, SqlConfig};
use kailash::health::{Check, Finished, overall, run_once};

use super::ConfigProblem;
use crate::duration;
use crate::error::NodeError;
use crate::node::{Node, Ports};
use crate::value::{Map, Value};

/// How long one service may take to answer unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that asks its services how they are, all at the same time.
///
/// It answers `overall_status` (unhealthy when a critical service is; degraded when any other is, or
/// any is degraded), `services` by name, `healthy_count`, `unhealthy_count`, `total_latency` (in
/// seconds) and `timestamp`. It does not fail when a service does.
///
/// ```
/// use kailash_workflow::nodes::HealthCheck;
/// use kailash_workflow::{Node, Map, Value};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let services = Value::from(json!([
///     {"name": "database", "type": "database", "connection_string": "sqlite::memory:"},
///     {"name": "cache", "type": "redis", "redis_config": {"port": 1}, "critical": false},
/// ]));
/// let health = HealthCheck::read(&services)?;
/// let outputs = health.run(Map::new()).await?;
/// assert_eq!(outputs["overall_status"], Value::from("degraded"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct HealthCheck {
    services: Vec<Service>,
}

/// One service, and how it is asked.
#[derive(Clone)]
pub struct Service {
    /// Its name, unique in its node.
    pub name: String,
    /// Whether the whole is unhealthy when it is.
    pub critical: bool,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// What asks it.
    pub check: Arc<dyn Check>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Service");
        shown
            .field("name", &self.name)
            .field("critical", &self.critical)
            .finish_non_exhaustive()
    }
}

impl HealthCheck {
    /// A node that asks these services.
    #[must_use]
    pub fn new(services: Vec<Service>) -> Self {
        Self { services }
    }

    /// A node that asks the services of this list; see [`Service::read`].
    ///
    /// # Errors
    /// When it is no list, two services have one name, or one of them is wrong.
    pub fn read(services: &Value) -> Result<Self, ConfigProblem> {
        let Value::List(list) = services else {
            let message = format!("{} is not allowed, a list of maps is", services.kind());
            return Err(ConfigProblem::new("services", message));
        };
        let mut names = HashSet::new();
        let mut read = Vec::with_capacity(list.len());
        for (index, service) in list.iter().enumerate() {
            let place = |key: &str| format!("services[{index}]{key}");
            let service = Service::read(service).map_err(|problem| {
                let key = if problem.key.is_empty() {
                    String::new()
                } else {
                    format!(".{}", problem.key)
                };
                ConfigProblem::new(place(&key), problem.message)
            })?;
            if !names.insert(service.name.clone()) {
                let message = format!("{:?} is the name of two services", service.name);
                return Err(ConfigProblem::new(place(".name"), message));
            }
            read.push(service);
        }
        Ok(Self::new(read))
    }
}

impl Service {
    /// A service from its configuration: `name`, `type` (`database`, `redis` or `http`), `critical`
    /// (true by default), `timeout` (5 s), and by its type `connection_string` and `query`,
    /// `redis_config` or `url`, or `url`, `expected_status` and `headers`.
    ///
    /// # Errors
    /// When a key is unknown or missing, or its value wrong.
    pub fn read(service: &Value) -> Result<Self, ConfigProblem> {
        let Value::Map(map) = service else {
            let message = format!("{} is not allowed, a map is", service.kind());
            return Err(ConfigProblem::new("", message));
        };
        let mut fields = Fields(map.clone());
        let name = fields
            .text("name")?
            .ok_or_else(|| ConfigProblem::new("name", "is missing"))?;
        let kind = fields
            .text("type")?
            .ok_or_else(|| ConfigProblem::new("type", "is missing"))?;
        let critical = fields.bool("critical")?.unwrap_or(true);
        let timeout = fields.duration("timeout")?.unwrap_or(DEFAULT_TIMEOUT);
        let check: Arc<dyn Check> = match kind.as_str() {
            "database" => {
                let url = fields.text("connection_string")?;
                let url =
                    url.ok_or_else(|| ConfigProblem::new("connection_string", "is missing"))?;
                let config = SqlConfig {
                    url,
                    query: fields.text("query")?,
                };
                Arc::new(Sql::new(config).map_err(problem)?)
            }
            "redis" => {
                let config = fields.redis()?;
                Arc::new(Redis::new(config).map_err(problem)?)
            }
            "http" => {
                let config = fields.http()?;
                Arc::new(Http::new(config).map_err(problem)?)
            }
            other => {
                let message = format!("{other:?} is not allowed, one of database, redis, http is");
                return Err(ConfigProblem::new("type", message));
            }
        };
        fields.end("")?;
        Ok(Self {
            name,
            critical,
            timeout,
            check,
        })
    }

    async fn ask(&self) -> Finished {
        run_once(Arc::clone(&self.check), self.timeout).await
    }
}

fn problem(error: kailash::ConfigError) -> ConfigProblem {
    let key = if error.field == "url" {
        "connection_string or url"
    } else {
        error.field
    };
    ConfigProblem::new(
        key,
        format!("{} is not allowed, {} is", error.value, error.allowed),
    )
}

/// The fields of a service, taken one by one.
struct Fields(Map);

impl Fields {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.shift_remove(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, value: &Value, allowed: &str) -> ConfigProblem {
        ConfigProblem::new(
            key,
            format!("{} is not allowed, {allowed} is", value.kind()),
        )
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ConfigProblem> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(Self::wrong(key, &other, "text")),
        }
    }

    fn bool(&mut self, key: &str) -> Result<Option<bool>, ConfigProblem> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(bool)) => Ok(Some(bool)),
            Some(other) => Err(Self::wrong(key, &other, "true or false")),
        }
    }

    fn duration(&mut self, key: &str) -> Result<Option<Duration>, ConfigProblem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let duration = duration::read(&value).filter(|duration| !duration.is_zero());
        duration
            .map(Some)
            .ok_or_else(|| Self::wrong(key, &value, duration::ALLOWED))
    }

    fn number<N: TryFrom<i64>>(&mut self, key: &str) -> Result<Option<N>, ConfigProblem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = value.as_int().and_then(|int| N::try_from(int).ok());
        number
            .map(Some)
            .ok_or_else(|| Self::wrong(key, &value, "a whole number in range"))
    }

    fn map(&mut self, key: &str) -> Result<Self, ConfigProblem> {
        match self.take(key) {
            None => Ok(Self(Map::new())),
            Some(Value::Map(map)) => Ok(Self(map)),
            Some(other) => Err(Self::wrong(key, &other, "a map")),
        }
    }

    fn redis(&mut self) -> Result<RedisConfig, ConfigProblem> {
        let url = self.text("url")?;
        let mut own = self.map("redis_config")?;
        let default = RedisConfig::default();
        let config = RedisConfig {
            url: own.text("url")?.or(url),
            host: own.text("host")?.unwrap_or(default.host),
            port: own.number("port")?.unwrap_or(default.port),
            db: own.number("db")?.unwrap_or(default.db),
            username: own.text("username")?,
            password: own.text("password")?,
        };
        own.end("redis_config.")?;
        Ok(config)
    }

    fn http(&mut self) -> Result<HttpConfig, ConfigProblem> {
        let url = self
            .text("url")?
            .ok_or_else(|| ConfigProblem::new("url", "is missing"))?;
        let mut config = HttpConfig {
            url,
            ..HttpConfig::default()
        };
        let expected = match self.take("expected_status") {
            None => None,
            Some(Value::List(list)) => Some(list),
            Some(one) => Some(vec![one]),
        };
        if let Some(expected) = expected {
            let status = |value: &Value| {
                let status = value.as_int().and_then(|int| u16::try_from(int).ok());
                let wrong = || Self::wrong("expected_status", value, "a status or a list of them");
                status.map(|status| status..=status).ok_or_else(wrong)
            };
            config.expected_status = expected.iter().map(status).collect::<Result<_, _>>()?;
        }
        let headers = self.map("headers")?.0.into_iter();
        config.headers = headers
            .map(|(name, value)| (name, value.to_string()))
            .collect();
        Ok(config)
    }

    fn end(&self, prefix: &str) -> Result<(), ConfigProblem> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(ConfigProblem::new(format!("{prefix}{key}"), "unknown key")),
        }
    }
}

impl Node for HealthCheck {
    fn inputs(&self) -> Ports {
        Ports::named(["services"])
    }

    fn outputs(&self) -> Ports {
        Ports::named([
            "overall_status",
            "services",
            "healthy_count",
            "unhealthy_count",
            "total_latency",
            "timestamp",
        ])
    }

    fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            let given;
            let services = match inputs.get("services") {
                None => &self.services,
                Some(services) => {
                    let read = Self::read(services);
                    given = read.map_err(|problem| NodeError::Input(problem.to_string()))?;
                    &given.services
                }
            };
            let started = Instant::now();
            let results = join_all(services.iter().map(Service::ask)).await;
            let statuses = services.iter().zip(&results);
            let status =
                overall(statuses.map(|(s, finished)| (finished.outcome.status, s.critical)));
            let healthy = results
                .iter()
                .filter(|finished| finished.outcome.status.is_healthy())
                .count();
            let unhealthy = results.len() - healthy;
            let services = services.iter().zip(results);
            let services = services
                .map(|(service, finished)| (service.name.clone(), report(service, finished)));
            Ok(Map::from_iter([
                ("overall_status".to_owned(), Value::from(status.as_str())),
                ("services".to_owned(), Value::Map(services.collect())),
                ("healthy_count".to_owned(), Value::from(healthy as u64)),
                ("unhealthy_count".to_owned(), Value::from(unhealthy as u64)),
                (
                    "total_latency".to_owned(),
                    Value::Float(started.elapsed().as_secs_f64()),
                ),
                (
                    "timestamp".to_owned(),
                    Value::OffsetDateTime(Utc::now().fixed_offset()),
                ),
            ]))
        })
    }
}

fn report(service: &Service, finished: Finished) -> Value {
    let outcome = finished.outcome;
    let message = (!outcome.message.is_empty()).then_some(outcome.message);
    let mut fields = Map::from_iter([
        ("status".to_owned(), Value::from(outcome.status.as_str())),
        (
            "latency".to_owned(),
            Value::Float(finished.response_time.as_secs_f64()),
        ),
        ("critical".to_owned(), Value::Bool(service.critical)),
        (
            "details".to_owned(),
            serde_json::Value::Object(outcome.details).into(),
        ),
    ]);
    let name = if outcome.status.is_healthy() {
        "message"
    } else {
        "error"
    };
    fields.insert(name.to_owned(), message.into());
    Value::Map(fields)
}
