//! What stands around a node: from outside fallback, retries, breaker, partition, timeout.

use std::time::Duration;

use kailash::ConfigError;
use kailash::bulkhead::Priority;
use kailash::circuit_breaker::CircuitBreaker;

use crate::duration;
use crate::nodes::ConfigProblem;
use crate::value::{Map, Value};

/// The policies of one node; none unless it says so.
///
/// ```
/// use std::time::Duration;
/// use kailash_workflow::{Policies, Retry};
///
/// let policies = Policies {
///     breaker: Some("payments".to_owned()),
///     timeout: Some(Duration::from_secs(2)),
///     retry: Retry { retries: 3, ..Retry::default() },
///     ..Policies::default()
/// };
/// assert_eq!(policies.retry.retry_delay, Duration::from_millis(100));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// The breaker it runs behind; made with default settings when the runtime has none of this name.
    pub breaker: Option<String>,
    /// The partition it runs in.
    pub partition: Option<String>,
    /// Its priority in the partition, from 1 (most urgent) to 10; the partition's own when `None`.
    pub priority: Option<u8>,
    /// How long one attempt may run.
    pub timeout: Option<Duration>,
    /// How often, and how, it is tried again.
    pub retry: Retry,
    /// What it answers when it fails in the end: a map is the outputs, another value the output
    /// `result`.
    pub fallback: Option<Value>,
}

/// How a failed node is tried again.
///
/// What failed is an error, or an answer that counts as a failure, such as an HTTP status of 500. An
/// input that does not fit is never tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// How often it is tried again after the first attempt; 0 by default, at most 1,000.
    pub retries: u32,
    /// How long the first retry waits; 100 ms by default.
    pub retry_delay: Duration,
    /// How many times longer each further one waits; 2 by default, from 1 to 100.
    pub retry_multiplier: f64,
    /// The longest wait; 30 s by default.
    pub max_retry_delay: Duration,
    /// The share of a wait that chance may take off it, from 0 to 1; 0.5 by default.
    pub retry_jitter: f64,
    /// Whether a call that a breaker or a partition refused is tried again too; not by default.
    pub retry_rejections: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries: 0,
            retry_delay: Duration::from_millis(100),
            retry_multiplier: 2.0,
            max_retry_delay: Duration::from_secs(30),
            retry_jitter: 0.5,
            retry_rejections: false,
        }
    }
}

impl Retry {
    /// How long the given retry (from 1) waits; `draw` is a chance from 0 to 1.
    #[must_use]
    pub fn delay(&self, retry: u32, draw: f64) -> Duration {
        let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
        let longest = self.max_retry_delay.as_secs_f64();
        let delay = self.retry_delay.as_secs_f64() * self.retry_multiplier.powi(exponent);
        Duration::from_secs_f64(delay.min(longest) * (1.0 - self.retry_jitter * draw))
    }
}

const KEYS: [&str; 11] = [
    "breaker",
    "partition",
    "priority",
    "timeout",
    "retries",
    "retry_delay",
    "retry_multiplier",
    "max_retry_delay",
    "retry_jitter",
    "retry_rejections",
    "fallback",
];

impl Policies {
    /// The keys of a node's configuration that are policies, whatever the node.
    pub const KEYS: [&str; 11] = KEYS;

    /// The policies in a node's configuration, taken out of it.
    ///
    /// The keys are `breaker`, `partition`, `priority`, `timeout`, `retries`, `retry_delay`,
    /// `retry_multiplier`, `max_retry_delay`, `retry_jitter`, `retry_rejections` and `fallback`;
    /// durations are seconds, or text such as `"500ms"`.
    ///
    /// # Errors
    /// When a value is of a wrong kind or out of range.
    pub fn take(config: &mut Map) -> Result<Self, ConfigProblem> {
        let mut policies = Self::default();
        for key in KEYS {
            let Some(value) = config.shift_remove(key).filter(|value| !value.is_null()) else {
                continue;
            };
            policies.set(key, value)?;
        }
        policies.validate().map_err(|error| {
            ConfigProblem::new(
                error.field,
                format!("{} is not allowed, {} is", error.value, error.allowed),
            )
        })?;
        Ok(policies)
    }

    fn set(&mut self, key: &'static str, value: Value) -> Result<(), ConfigProblem> {
        let problem = |allowed: &str| {
            let given = match &value {
                Value::Int(_) | Value::Float(_) | Value::Bool(_) => value.to_string(),
                Value::Text(text) => format!("{text:?}"),
                other => other.kind().to_owned(),
            };
            ConfigProblem::new(key, format!("{given} is not allowed, {allowed} is"))
        };
        let text = || {
            value
                .as_text()
                .map(str::to_owned)
                .ok_or_else(|| problem("text"))
        };
        let wait = || duration::read(&value).ok_or_else(|| problem(duration::ALLOWED));
        let number = || match &value {
            Value::Int(int) => Ok(*int as f64),
            Value::Float(float) => Ok(*float),
            _ => Err(problem("a number")),
        };
        match key {
            "breaker" => self.breaker = Some(text()?),
            "partition" => self.partition = Some(text()?),
            "priority" => {
                let priority = value.as_int().and_then(|int| u8::try_from(int).ok());
                self.priority = Some(priority.ok_or_else(|| problem("1 to 10"))?);
            }
            "timeout" => self.timeout = Some(wait()?),
            "retries" => {
                let retries = value.as_int().and_then(|int| u32::try_from(int).ok());
                self.retry.retries = retries.ok_or_else(|| problem("0 to 1000"))?;
            }
            "retry_delay" => self.retry.retry_delay = wait()?,
            "max_retry_delay" => self.retry.max_retry_delay = wait()?,
            "retry_multiplier" => self.retry.retry_multiplier = number()?,
            "retry_jitter" => self.retry.retry_jitter = number()?,
            "retry_rejections" => {
                let wanted = value.as_bool().ok_or_else(|| problem("true or false"))?;
                self.retry.retry_rejections = wanted;
            }
            _ => self.fallback = Some(value),
        }
        Ok(())
    }

    /// Checks every value.
    ///
    /// # Errors
    /// When one is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(priority) = self.priority {
            Priority::new(priority)?;
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(ConfigError::new("timeout", "0s", "a duration above zero"));
        }
        for (field, name) in [("breaker", &self.breaker), ("partition", &self.partition)] {
            if name.as_deref() == Some("") {
                return Err(ConfigError::new(field, "\"\"", "a name"));
            }
        }
        let Retry {
            retries,
            retry_multiplier,
            retry_jitter,
            ..
        } = self.retry;
        if retries > 1000 {
            return Err(ConfigError::new("retries", retries, "0 to 1000"));
        }
        if !(1.0..=100.0).contains(&retry_multiplier) {
            return Err(ConfigError::new(
                "retry_multiplier",
                retry_multiplier,
                "1 to 100",
            ));
        }
        if !(0.0..=1.0).contains(&retry_jitter) {
            return Err(ConfigError::new("retry_jitter", retry_jitter, "0 to 1"));
        }
        Ok(())
    }

    /// Whether a breaker of this name can be made.
    pub(crate) fn breaker_problem(name: &str) -> Option<ConfigError> {
        let config = kailash::circuit_breaker::Config::default();
        CircuitBreaker::new(name, config).err()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(config: serde_json::Value) -> Result<Policies, ConfigProblem> {
        let Value::Map(mut config) = Value::from(config) else {
            panic!("no map")
        };
        let policies = Policies::take(&mut config)?;
        assert!(config.keys().all(|key| key == "url"), "{config:?}");
        Ok(policies)
    }

    #[test]
    fn policies_are_taken_out_of_a_configuration() {
        let config = json!({
            "url": "x", "breaker": "b", "partition": "p", "priority": 2, "timeout": "500ms",
            "retries": 3, "retry_delay": 0.5, "fallback": {"a": 1}, "retry_rejections": true,
        });
        let expected = Policies {
            breaker: Some("b".to_owned()),
            partition: Some("p".to_owned()),
            priority: Some(2),
            timeout: Some(Duration::from_millis(500)),
            retry: Retry {
                retries: 3,
                retry_delay: Duration::from_millis(500),
                retry_rejections: true,
                ..Retry::default()
            },
            fallback: Some(Value::from(json!({"a": 1}))),
        };
        assert_eq!(take(config).unwrap(), expected);
        assert_eq!(take(json!({"url": "x"})).unwrap(), Policies::default());
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        for (config, error) in [
            (
                json!({"priority": 11}),
                "priority: 11 is not allowed, 1 to 10 is",
            ),
            (
                json!({"priority": 300}),
                "priority: 300 is not allowed, 1 to 10 is",
            ),
            (
                json!({"timeout": 0}),
                "timeout: 0s is not allowed, a duration above zero is",
            ),
            (
                json!({"timeout": "soon"}),
                "timeout: \"soon\" is not allowed, seconds as a number",
            ),
            (
                json!({"retries": -1}),
                "retries: -1 is not allowed, 0 to 1000 is",
            ),
            (
                json!({"retries": 1001}),
                "retries: 1001 is not allowed, 0 to 1000 is",
            ),
            (
                json!({"retry_multiplier": 0.5}),
                "retry_multiplier: 0.5 is not allowed, 1 to 100 is",
            ),
            (
                json!({"retry_jitter": 2}),
                "retry_jitter: 2 is not allowed, 0 to 1 is",
            ),
            (json!({"breaker": 1}), "breaker: 1 is not allowed, text is"),
            (
                json!({"partition": ""}),
                "partition: \"\" is not allowed, a name is",
            ),
        ] {
            let found = take(config).unwrap_err().to_string();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn waits_grow_up_to_the_longest_and_chance_shortens_them() {
        let retry = Retry {
            max_retry_delay: Duration::from_millis(500),
            ..Retry::default()
        };
        let millis = |n, draw| retry.delay(n, draw).as_millis();
        assert_eq!(
            [millis(1, 0.0), millis(2, 0.0), millis(3, 0.0)],
            [100, 200, 400]
        );
        assert_eq!(
            [millis(4, 0.0), millis(1000, 0.0), millis(u32::MAX, 1.0)],
            [500, 500, 250]
        );
    }
}
