//! Settings by name, where one may build on another.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Config, State, WindowKind};
use crate::ConfigError;
use crate::near_miss::near_miss;

/// What a preset says itself: a field that is `None` is its base's.
///
/// In a field that is an option itself, `Some(None)` switches off what the base has on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The preset that this builds on, `default` if not said.
    pub base: Option<String>,
    /// See [`Config::failure_threshold`].
    pub failure_threshold: Option<u32>,
    /// See [`Config::success_threshold`].
    pub success_threshold: Option<u32>,
    /// See [`Config::recovery_timeout`].
    pub recovery_timeout: Option<Duration>,
    /// See [`Config::max_recovery_timeout`].
    pub max_recovery_timeout: Option<Duration>,
    /// See [`Config::half_open_requests`].
    pub half_open_requests: Option<u32>,
    /// See [`Config::error_rate_threshold`].
    pub error_rate_threshold: Option<Option<f64>>,
    /// See [`Config::window`].
    pub window: Option<WindowKind>,
    /// See [`Config::window_size`].
    pub window_size: Option<u32>,
    /// See [`Config::window_duration`].
    pub window_duration: Option<Duration>,
    /// See [`Config::min_calls_before_evaluation`].
    pub min_calls_before_evaluation: Option<u32>,
    /// See [`Config::slow_call_threshold`].
    pub slow_call_threshold: Option<Option<Duration>>,
    /// See [`Config::slow_call_rate_threshold`].
    pub slow_call_rate_threshold: Option<Option<f64>>,
    /// See [`Config::overdue_calls_enabled`].
    pub overdue_calls_enabled: Option<bool>,
    /// See [`Config::max_wait_duration_in_half_open`].
    pub max_wait_duration_in_half_open: Option<Duration>,
    /// See [`Config::exponential_backoff_multiplier`].
    pub exponential_backoff_multiplier: Option<f64>,
    /// See [`Config::jitter_enabled`].
    pub jitter_enabled: Option<bool>,
    /// See [`Config::max_jitter_percentage`].
    pub max_jitter_percentage: Option<f64>,
    /// See [`Config::cancelled_counts_after`].
    pub cancelled_counts_after: Option<Option<Duration>>,
    /// See [`Config::ramp_enabled`].
    pub ramp_enabled: Option<bool>,
    /// See [`Config::initial_state`].
    pub initial_state: Option<State>,
}

impl Overrides {
    /// `base` with what is said here laid over it.
    #[must_use]
    pub fn over(&self, base: &Config) -> Config {
        // Both are written out, so that a new field can be forgotten in neither.
        let Self {
            base: _,
            failure_threshold,
            success_threshold,
            recovery_timeout,
            max_recovery_timeout,
            half_open_requests,
            error_rate_threshold,
            window,
            window_size,
            window_duration,
            min_calls_before_evaluation,
            slow_call_threshold,
            slow_call_rate_threshold,
            overdue_calls_enabled,
            max_wait_duration_in_half_open,
            exponential_backoff_multiplier,
            jitter_enabled,
            max_jitter_percentage,
            cancelled_counts_after,
            ramp_enabled,
            initial_state,
        } = *self;
        Config {
            failure_threshold: failure_threshold.unwrap_or(base.failure_threshold),
            success_threshold: success_threshold.unwrap_or(base.success_threshold),
            recovery_timeout: recovery_timeout.unwrap_or(base.recovery_timeout),
            max_recovery_timeout: max_recovery_timeout.unwrap_or(base.max_recovery_timeout),
            half_open_requests: half_open_requests.unwrap_or(base.half_open_requests),
            error_rate_threshold: error_rate_threshold.unwrap_or(base.error_rate_threshold),
            window: window.unwrap_or(base.window),
            window_size: window_size.unwrap_or(base.window_size),
            window_duration: window_duration.unwrap_or(base.window_duration),
            min_calls_before_evaluation: min_calls_before_evaluation
                .unwrap_or(base.min_calls_before_evaluation),
            slow_call_threshold: slow_call_threshold.unwrap_or(base.slow_call_threshold),
            slow_call_rate_threshold: slow_call_rate_threshold
                .unwrap_or(base.slow_call_rate_threshold),
            overdue_calls_enabled: overdue_calls_enabled.unwrap_or(base.overdue_calls_enabled),
            max_wait_duration_in_half_open: max_wait_duration_in_half_open
                .unwrap_or(base.max_wait_duration_in_half_open),
            exponential_backoff_multiplier: exponential_backoff_multiplier
                .unwrap_or(base.exponential_backoff_multiplier),
            jitter_enabled: jitter_enabled.unwrap_or(base.jitter_enabled),
            max_jitter_percentage: max_jitter_percentage.unwrap_or(base.max_jitter_percentage),
            cancelled_counts_after: cancelled_counts_after.unwrap_or(base.cancelled_counts_after),
            ramp_enabled: ramp_enabled.unwrap_or(base.ramp_enabled),
            initial_state: initial_state.unwrap_or(base.initial_state),
        }
    }
}

/// Settings by name. All build on `default`, in the end.
///
/// | preset | failure_threshold | recovery_timeout |
/// |---|---|---|
/// | default, database | 5 | 60 s |
/// | api | 3 | 30 s |
/// | cache | 2 | 15 s |
///
/// These may be defined anew. A preset that has the name of one of them and names that as its base
/// builds on the one that came before it.
///
/// ```
/// use kailash::circuit_breaker::{Overrides, Presets};
///
/// let mut presets = Presets::new();
/// let base = Some("api".to_owned());
/// presets.insert("payments", Overrides { base, success_threshold: Some(1), ..Overrides::default() });
/// let config = presets.resolve("payments")?;
/// assert_eq!((config.failure_threshold, config.success_threshold), (3, 1));
/// # Ok::<(), kailash::circuit_breaker::PresetError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Presets(BTreeMap<Arc<str>, Overrides>);

/// The preset that all others build on.
pub const ROOT: &str = "default";
const BUILT_IN: [&str; 4] = [ROOT, "database", "api", "cache"];

fn built_in(name: &str) -> Option<Overrides> {
    let (failure_threshold, seconds) = match name {
        ROOT => return Some(Overrides::default()),
        "database" => (5, 60),
        "api" => (3, 30),
        "cache" => (2, 15),
        _ => return None,
    };
    Some(Overrides {
        failure_threshold: Some(failure_threshold),
        recovery_timeout: Some(Duration::from_secs(seconds)),
        ..Overrides::default()
    })
}

impl Presets {
    /// The presets that exist from the start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Defines a preset, in place of an older one of its name. Nothing is checked before
    /// [`Presets::resolve`], so that the order does not matter.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, overrides: Overrides) {
        self.0.insert(name.into(), overrides);
    }

    /// The settings of this name, its base's filled in.
    ///
    /// # Errors
    /// When the name or a base is unknown, bases go round in a circle, or a value is out of range.
    pub fn resolve(&self, name: &str) -> Result<Config, PresetError> {
        let chain = self.chain(name)?;
        let root = Config::default();
        let config = chain.iter().rfold(root, |base, step| step.over(&base));
        config.validate().map_err(|error| PresetError::Config {
            name: name.to_owned(),
            error,
        })?;
        Ok(config)
    }

    /// The settings of a breaker of this name that is made without any: those defined under it,
    /// else the root's.
    pub(super) fn of_breaker(&self, name: &str) -> Result<Config, PresetError> {
        let is_defined = self.0.contains_key(name);
        self.resolve(if is_defined { name } else { ROOT })
    }

    /// The names of all presets, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(|name| &**name).collect();
        names.extend(BUILT_IN);
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What the preset says, then its base, and so on down to the root.
    fn chain(&self, name: &str) -> Result<Vec<Overrides>, PresetError> {
        let mut chain: Vec<Overrides> = Vec::new();
        let mut path: Vec<String> = Vec::new();
        let mut next = Some(name.to_owned());
        while let Some(step) = next {
            let of = path.last();
            let overrides = match (self.0.get(&*step), built_in(&step)) {
                (Some(own), _) if !path.contains(&step) => own.clone(),
                (Some(_), Some(built_in)) if of == Some(&step) => built_in,
                (None, Some(built_in)) => built_in,
                (Some(_), _) => {
                    let start = path.iter().position(|name| *name == step).unwrap_or(0);
                    let names = path.drain(start..).chain([step]).collect();
                    return Err(PresetError::Circle { names });
                }
                (None, None) => return Err(self.unknown(&step, of)),
            };
            let root = (step != ROOT).then(|| ROOT.to_owned());
            next = overrides.base.clone().or(root);
            path.push(step);
            chain.push(overrides);
        }
        Ok(chain)
    }

    fn unknown(&self, name: &str, of: Option<&String>) -> PresetError {
        let names = self.names();
        PresetError::Unknown {
            name: name.to_owned(),
            of: of.cloned(),
            nearest: near_miss(name, names.iter().copied()).map(str::to_owned),
            known: names.into_iter().map(str::to_owned).collect(),
        }
    }
}

/// Why a name gives no settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresetError {
    /// No preset has this name.
    Unknown {
        /// The name.
        name: String,
        /// The preset that builds on it, if one does.
        of: Option<String>,
        /// The name that was probably meant.
        nearest: Option<String>,
        /// The names that there are.
        known: Vec<String>,
    },
    /// Bases go round in a circle: each name's base is the next one, and the last is the first.
    Circle {
        /// The names on the way.
        names: Vec<String>,
    },
    /// A value is out of range.
    Config {
        /// The preset's name.
        name: String,
        /// The value and what is allowed.
        error: ConfigError,
    },
}

impl fmt::Display for PresetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown {
                name,
                of,
                nearest,
                known,
            } => {
                match of {
                    Some(of) => write!(f, "preset \"{of}\": unknown base \"{name}\"")?,
                    None => write!(f, "unknown preset \"{name}\"")?,
                }
                if let Some(nearest) = nearest {
                    write!(f, ", did you mean \"{nearest}\"?")?;
                }
                write!(f, " (there are {})", known.join(", "))
            }
            Self::Circle { names } => {
                write!(f, "bases go round in a circle: {}", names.join(" -> "))
            }
            Self::Config { name, error } => write!(f, "preset \"{name}\": {error}"),
        }
    }
}

impl Error for PresetError {}
