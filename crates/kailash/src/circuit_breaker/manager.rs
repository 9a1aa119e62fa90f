//! Breakers by name.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use papaya::Guard as _;

use super::context::Context;
use super::keyed::Group;
use super::{
    CircuitBreaker, Config, Events, Keyed, KeyedConfig, Overrides, PresetError, Presets, Snapshot,
};
use crate::ConfigError;
use crate::clock::Clock;

/// A registry of breakers: the same name gives the same breaker. Shared by its clones.
///
/// Looking a breaker up without settings takes no lock and allocates nothing.
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
#[derive(Clone)]
pub struct Manager(Arc<Shared>);

struct Shared {
    context: Arc<Context>,
    breakers: papaya::HashMap<Arc<str>, CircuitBreaker>,
    groups: RwLock<BTreeMap<Arc<str>, Keyed>>,
    presets: RwLock<Presets>,
    /// The newest settings, which the next breaker often shares.
    newest: Mutex<Arc<Config>>,
}

impl Manager {
    /// An empty registry on the machine's monotonic clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::monotonic())
    }

    /// An empty registry whose breakers use a clock of the caller's.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self(Arc::new(Shared {
            context: Arc::new(Context::new(clock)),
            breakers: papaya::HashMap::new(),
            groups: RwLock::default(),
            presets: RwLock::default(),
            newest: Mutex::default(),
        }))
    }

    /// The breaker of this name; made with these settings if there is none.
    ///
    /// Without settings it takes those that were [defined](Manager::define) for its name, else the
    /// preset `default`. The presets that come with the library are bases, not settings of breakers
    /// that happen to have their names.
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
        let config = match &wanted {
            Some(config) => config.clone(),
            None => self.settings_of(name),
        };
        let context = Arc::clone(&self.0.context);
        let made = CircuitBreaker::within(context, name.into(), self.shared(config))?;
        let breakers = self.0.breakers.pin();
        let breaker = breakers.get_or_insert(Arc::clone(made.name()), made.clone());
        breaker.mind_calls_if_wanted();
        breaker.make_appointments();
        // Another thread may have been faster, with other settings.
        same_settings(breaker.clone(), wanted.as_ref())
    }

    /// The breaker of this name, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CircuitBreaker> {
        self.0.breakers.pin().get(name).cloned()
    }

    /// All breakers, by name; those of [keys](Manager::keyed) are not among them.
    #[must_use]
    pub fn all(&self) -> Vec<CircuitBreaker> {
        let mut all: Vec<_> = self.0.breakers.pin().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// Takes the breaker of this name out of the registry.
    ///
    /// Whoever holds it can go on using it, and the registry's subscribers go on hearing of it. The
    /// next to ask for the name gets a new breaker.
    pub fn remove(&self, name: &str) -> Option<CircuitBreaker> {
        let guard = self.0.breakers.guard();
        let removed = self.0.breakers.remove(name, &guard).cloned();
        // The map's own handle goes now, not with the next thirty.
        guard.flush();
        removed
    }

    /// Everything about all breakers, by name; those of keys are not among them.
    #[must_use]
    pub fn snapshots(&self) -> Vec<(Arc<str>, Snapshot)> {
        let all = self.all().into_iter();
        all.map(|breaker| (Arc::clone(breaker.name()), breaker.snapshot()))
            .collect()
    }

    /// Closes all breakers from any state and forgets their counts, those of keys too.
    pub fn reset_all(&self) {
        self.all().iter().for_each(CircuitBreaker::reset);
        for group in self.groups() {
            group.reset_all();
        }
    }

    /// The breakers of one group, such as hosts or tenants, each by its key. The group is made with
    /// these settings if there is none of this name. Without settings its breakers take those that
    /// were [defined](Manager::define) for the group's name, else the preset `default`.
    ///
    /// # Errors
    /// When the group has other settings than those asked for, or a setting is out of range.
    pub fn keyed(
        &self,
        group: &str,
        config: impl Into<Option<KeyedConfig>>,
    ) -> Result<Keyed, CreateError> {
        let wanted = config.into();
        let groups = self.0.groups.read();
        let found = groups
            .unwrap_or_else(PoisonError::into_inner)
            .get(group)
            .cloned();
        if let Some(found) = found {
            return same_group_settings(found, wanted.as_ref());
        }
        let config = match &wanted {
            Some(config) => config.clone(),
            None => KeyedConfig {
                breaker: self.settings_of(group),
                ..KeyedConfig::default()
            },
        };
        let made = Group::keyed(group, config, &self.0.context)?;
        let groups = self.0.groups.write();
        let mut groups = groups.unwrap_or_else(PoisonError::into_inner);
        let keyed = groups.entry(group.into()).or_insert(made).clone();
        drop(groups);
        same_group_settings(keyed, wanted.as_ref())
    }

    /// All groups of keys, by name.
    #[must_use]
    pub fn groups(&self) -> Vec<Keyed> {
        let groups = self.0.groups.read();
        let groups = groups.unwrap_or_else(PoisonError::into_inner);
        groups.values().cloned().collect()
    }

    /// Takes a group of keys out of the registry. Whoever holds it can go on using it.
    pub fn remove_group(&self, group: &str) -> Option<Keyed> {
        let groups = self.0.groups.write();
        groups.unwrap_or_else(PoisonError::into_inner).remove(group)
    }

    /// Defines a preset: the settings of the breaker of this name, if it is made without any, and a
    /// base for other presets. `default` is what all others build on.
    ///
    /// Breakers that exist keep their settings; [`CircuitBreaker::reconfigure`] changes them.
    ///
    /// ```
    /// use kailash::circuit_breaker::{Manager, Overrides};
    ///
    /// let breakers = Manager::new();
    /// let base = Some("api".to_owned());
    /// breakers.define("payments", Overrides { base, half_open_requests: Some(1), ..Overrides::default() })?;
    /// let config = breakers.get_or_create("payments", None)?.config();
    /// assert_eq!((config.failure_threshold, config.half_open_requests), (3, 1));
    ///
    /// let base = Some("databse".to_owned());
    /// let error = breakers.define("orders", Overrides { base, ..Overrides::default() }).unwrap_err();
    /// assert!(error.to_string().contains("did you mean \"database\"?"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a base is unknown, bases go round in a circle, or a value is out of range, here or in a
    /// preset that builds on this one; nothing has changed then.
    pub fn define(&self, name: &str, overrides: Overrides) -> Result<(), PresetError> {
        let presets = self.0.presets.write();
        let mut presets = presets.unwrap_or_else(PoisonError::into_inner);
        let mut changed = presets.clone();
        changed.insert(name, overrides);
        changed.resolve(name)?;
        for other in changed.names() {
            changed.resolve(other)?;
        }
        *presets = changed;
        Ok(())
    }

    /// The settings of a preset: one that was defined, or `default`, `database`, `api` or `cache`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn preset(&self, name: &str) -> Result<Config, PresetError> {
        let presets = self.0.presets.read();
        presets
            .unwrap_or_else(PoisonError::into_inner)
            .resolve(name)
    }

    /// Subscribes to all that happens to all breakers from now on, those of keys and those to come
    /// too. What holds of [`CircuitBreaker::subscribe`] holds here. It looks at each breaker once;
    /// hearing of an event costs the same however many there are.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let Context { hub, clock, .. } = &*self.0.context;
        let events = hub.topics.all("".into(), clock);
        fence(Ordering::SeqCst);
        self.for_each(|breaker| {
            breaker.mind_calls();
            breaker.make_appointments();
        });
        events
    }

    /// As [`Manager::subscribe`], to transitions only: calls cost nothing then.
    #[must_use]
    pub fn subscribe_transitions(&self) -> Events {
        let Context { hub, clock, .. } = &*self.0.context;
        let events = hub.topics.transitions("".into(), clock);
        fence(Ordering::SeqCst);
        self.for_each(CircuitBreaker::make_appointments);
        events
    }

    /// Records from now on how long calls take: 2 KiB for each breaker by name and for each group of
    /// keys. Every call is timed then.
    pub fn record_durations(&self) {
        self.0.context.hub.set_records_durations(true);
        fence(Ordering::SeqCst);
        self.for_each(CircuitBreaker::mind_calls);
    }

    /// Ends [`Manager::record_durations`], and keeps what was recorded.
    pub fn stop_recording_durations(&self) {
        self.0.context.hub.set_records_durations(false);
    }

    /// Shows each breaker, those of keys too.
    fn for_each(&self, mut visit: impl FnMut(&CircuitBreaker)) {
        self.all().iter().for_each(&mut visit);
        for group in self.groups() {
            group.for_each(&mut visit);
        }
    }

    fn settings_of(&self, name: &str) -> Config {
        let presets = self.0.presets.read();
        let presets = presets.unwrap_or_else(PoisonError::into_inner);
        let settings = presets.of_breaker(name);
        settings.expect("`define` has resolved every preset")
    }

    /// The settings, in the same memory as the newest if they are the same.
    fn shared(&self, config: Config) -> Arc<Config> {
        let newest = self.0.newest.lock();
        let mut newest = newest.unwrap_or_else(PoisonError::into_inner);
        if **newest != config {
            *newest = Arc::new(config);
        }
        Arc::clone(&newest)
    }
}

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("breakers", &self.all())
            .field("groups", &self.groups())
            .finish()
    }
}

fn same_settings(
    breaker: CircuitBreaker,
    wanted: Option<&Config>,
) -> Result<CircuitBreaker, CreateError> {
    let Some(wanted) = wanted else {
        return Ok(breaker);
    };
    let config = Arc::clone(&breaker.journal().config);
    // Asked first, since the differences are texts.
    if *config == *wanted {
        return Ok(breaker);
    }
    other_settings(breaker.name(), config.differences(wanted))?;
    Ok(breaker)
}

fn same_group_settings(keyed: Keyed, wanted: Option<&KeyedConfig>) -> Result<Keyed, CreateError> {
    let Some(wanted) = wanted else {
        return Ok(keyed);
    };
    let config = keyed.config();
    if config == *wanted {
        return Ok(keyed);
    }
    other_settings(keyed.name(), config.differences(wanted))?;
    Ok(keyed)
}

fn other_settings(
    name: &Arc<str>,
    differences: Vec<(&'static str, String, String)>,
) -> Result<(), CreateError> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(CreateError::OtherSettings {
        name: Arc::clone(name),
        differences,
    })
}

/// Why a registry gives no breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// A setting is out of range.
    Config(ConfigError),
    /// A breaker of this name exists with other settings, or a group of keys does.
    OtherSettings {
        /// The breaker's name, or the group's.
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
