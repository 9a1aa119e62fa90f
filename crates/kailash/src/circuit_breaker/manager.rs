//! Breakers by name.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::{CircuitBreaker, Config};
use crate::ConfigError;
use crate::clock::Clock;

/// A registry of breakers: the same name gives the same breaker. Shared by its clones.
///
/// ```
/// use kailash::circuit_breaker::{Config, Manager};
///
/// let breakers = Manager::new();
/// let config = Config { failure_threshold: 10, ..Config::default() };
/// let api = breakers.get_or_create("api", config.clone())?;
/// api.record_failure();
///
/// assert_eq!(breakers.get_or_create("api", None)?.snapshot().failures, 1);
/// assert!(breakers.get_or_create("api", config).is_ok());
///
/// let error = breakers.get_or_create("api", Config::default()).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "circuit breaker \"api\" exists with other settings: failure_threshold is 10, not 5",
/// );
/// # Ok::<(), kailash::circuit_breaker::CreateError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Manager(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    clock: Clock,
    breakers: RwLock<HashMap<Arc<str>, CircuitBreaker>>,
}

impl Manager {
    /// An empty registry on the machine's monotonic clock.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty registry whose breakers use a clock of the caller's.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self(Arc::new(Shared {
            clock,
            breakers: RwLock::default(),
        }))
    }

    /// The breaker of this name; made with these settings, or the defaults, if there is none.
    ///
    /// # Errors
    /// When a breaker of this name has other settings than those asked for, or a setting is out of
    /// range.
    pub fn get_or_create(
        &self,
        name: &str,
        config: impl Into<Option<Config>>,
    ) -> Result<CircuitBreaker, CreateError> {
        let wanted = config.into();
        if let Some(breaker) = self.get(name) {
            return same_settings(breaker, wanted.as_ref());
        }
        let mut breakers = self
            .0
            .breakers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(breaker) = breakers.get(name) {
            return same_settings(breaker.clone(), wanted.as_ref());
        }
        let config = wanted.unwrap_or_default();
        let breaker = CircuitBreaker::with_clock(name, config, self.0.clock.clone())?;
        breakers.insert(Arc::clone(breaker.name()), breaker.clone());
        Ok(breaker)
    }

    /// The breaker of this name, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CircuitBreaker> {
        let breakers = self
            .0
            .breakers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        breakers.get(name).cloned()
    }

    /// All breakers, by name.
    #[must_use]
    pub fn all(&self) -> Vec<CircuitBreaker> {
        let breakers = self
            .0
            .breakers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = breakers.values().cloned().collect();
        drop(breakers);
        all.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// Takes the breaker of this name out of the registry. Whoever holds it can go on using it.
    pub fn remove(&self, name: &str) -> Option<CircuitBreaker> {
        let mut breakers = self
            .0
            .breakers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        breakers.remove(name)
    }
}

fn same_settings(
    breaker: CircuitBreaker,
    wanted: Option<&Config>,
) -> Result<CircuitBreaker, CreateError> {
    let differences = wanted.map(|wanted| breaker.config().differences(wanted));
    match differences {
        Some(differences) if !differences.is_empty() => Err(CreateError::OtherSettings {
            name: Arc::clone(breaker.name()),
            differences,
        }),
        _ => Ok(breaker),
    }
}

/// Why a registry gives no breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// A setting is out of range.
    Config(ConfigError),
    /// A breaker of this name exists with other settings.
    OtherSettings {
        /// The breaker's name.
        name: Arc<str>,
        /// The fields that differ: name, value it has, value asked for.
        differences: Vec<(&'static str, String, String)>,
    },
}

impl From<ConfigError> for CreateError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::OtherSettings { name, differences } => {
                write!(f, "circuit breaker \"{name}\" exists with other settings: ")?;
                for (n, (field, has, wanted)) in differences.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    write!(f, "{comma}{field} is {has}, not {wanted}")?;
                }
                Ok(())
            }
        }
    }
}

impl Error for CreateError {}
