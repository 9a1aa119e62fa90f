//! The monitor: each check on its own schedule, one run at a time, the newest result at hand.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use kailash_core::config::ConfigError;
use kailash_core::health::{
    CheckConfig, Config, Incident, News, Status, is_due, next_start, overall,
};
use kailash_core::time::Timestamp;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::alert::{Alert, Alerts, Told};
use super::check::{Check, ErrorClass, Finished, Runner};
use super::threads::{Threads, lock};
use crate::chance::Chance;
use crate::clock::{Clock, wall_time};

/// Runs checks, remembers their newest results, and raises alerts.
///
/// A clone is a handle on the same monitor; the last one to go ends its tasks and threads. All of its
/// tasks, the checks' own among them, run on one tokio runtime, which [`Monitor::new`] takes from
/// its caller and [`Monitor::on`] is given. Every method may be called from any thread and awaited on
/// any runtime: what a caller awaits is only the news that a run is over.
///
/// Each run of a check is a task with a timeout that holds from outside. A check that hangs, panics or
/// holds a thread of its own delays no other; a check that blocks the thread it is polled on takes that
/// thread from the runtime, as any task would, which is what [`Run::on_thread`](super::Run::on_thread)
/// is for.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// A monitor on the current tokio runtime, stopped and without checks.
    ///
    /// # Errors
    /// When a value of the config is out of range.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Self::on(Handle::current(), config)
    }

    /// A monitor on this runtime, stopped and without checks.
    ///
    /// # Errors
    /// When a value of the config is out of range.
    pub fn on(runtime: Handle, config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self(Arc::new(Shared {
            runtime,
            clock: Clock::tokio(),
            config: watch::Sender::new(config),
            registry: Mutex::default(),
            alerts: Alerts::default(),
            threads: Threads::default(),
        })))
    }

    /// Adds a check under a name, in place of one that had it, whose open alert is resolved.
    ///
    /// While the monitor is running the check runs at once, then at every interval.
    ///
    /// # Errors
    /// When a value of the config is out of range; nothing is changed then.
    pub fn register(
        &self,
        name: impl Into<String>,
        config: CheckConfig,
        check: impl Check,
    ) -> Result<(), ConfigError> {
        config.validate()?;
        let name = name.into();
        let entry = Arc::new(Entry {
            name: name.clone(),
            config,
            check: Arc::new(check),
            runner: Runner::default(),
            state: Mutex::new(State::new(config)),
        });
        let mut registry = lock(&self.0.registry);
        let replaced = registry.checks.insert(name, Arc::clone(&entry));
        let replaced = replaced.map(|replaced| {
            let told = self.0.end(&replaced, "its check was replaced");
            (replaced, told)
        });
        if registry.running {
            self.0.schedule(&entry);
        }
        // Dropping a check is its owner's code, which must find no lock held.
        drop(registry);
        if let Some((_, Some(told))) = &replaced {
            told.log();
        }
        Ok(())
    }

    /// Takes a check away and resolves its open alert; false if there is none of that name.
    ///
    /// A run in flight is not waited for, and its result is not taken.
    pub fn unregister(&self, name: &str) -> bool {
        let removed = lock(&self.0.registry).checks.remove(name);
        let told = removed.as_ref();
        let told = told.and_then(|entry| self.0.end(entry, "its check was unregistered"));
        told.inspect(Told::log);
        removed.is_some()
    }

    /// Runs every check at once and then at its intervals; a started monitor goes on as it is.
    pub fn start(&self) {
        let mut registry = lock(&self.0.registry);
        if !std::mem::replace(&mut registry.running, true) {
            for entry in registry.checks.values() {
                self.0.schedule(entry);
            }
        }
    }

    /// Ends the schedules; runs in flight end by themselves, results and alerts stay.
    pub fn stop(&self) {
        let mut registry = lock(&self.0.registry);
        registry.running = false;
        for entry in registry.checks.values() {
            lock(&entry.state).unschedule();
        }
    }

    /// Whether it was started and not stopped.
    #[must_use]
    pub fn is_running(&self) -> bool {
        lock(&self.0.registry).running
    }

    /// The names of its checks, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        lock(&self.0.registry).checks.keys().cloned().collect()
    }

    /// The newest result of a check.
    ///
    /// A check is run for this only if it has no result yet, or if the monitor is stopped and the
    /// result is older than the interval; one run serves all who ask meanwhile.
    ///
    /// # Errors
    /// When there is no check of that name.
    pub async fn status(&self, name: &str) -> Result<Report, UnknownCheck> {
        let (entry, running) = self.entry(name)?;
        if let Some(flight) = self.0.needed_flight(&entry, running) {
            flight.landed().await;
        }
        Ok(self.0.report(&entry))
    }

    /// The newest result of every check by its name, under the rules of [`Monitor::status`].
    pub async fn statuses(&self) -> BTreeMap<String, Report> {
        let entries = self.settled().await;
        let reports = entries.iter();
        let reports = reports.map(|entry| (entry.name.clone(), self.0.report(entry)));
        reports.collect()
    }

    /// How all of them are together, under the rules of [`Monitor::status`]: unhealthy if a critical
    /// check is, degraded if any other is or any is degraded, unknown if nothing is registered.
    pub async fn overall(&self) -> Status {
        let entries = self.settled().await;
        overall(entries.iter().map(|entry| {
            let newest = &lock(&entry.state).newest;
            let status = newest.as_ref().map(|newest| newest.finished.outcome.status);
            (status.unwrap_or_default(), entry.config.critical)
        }))
    }

    /// Runs a check now, or joins its run in flight, and gives the result.
    ///
    /// # Errors
    /// When there is no check of that name.
    pub async fn check_now(&self, name: &str) -> Result<Report, UnknownCheck> {
        let (entry, _) = self.entry(name)?;
        self.0.fly(&entry).landed().await;
        Ok(self.0.report(&entry))
    }

    /// The alerts, oldest first: all of them, or only the resolved or the unresolved.
    ///
    /// The last 1,000 resolved alerts are remembered, and every unresolved one.
    #[must_use]
    pub fn alerts(&self, resolved: Option<bool>) -> Vec<Alert> {
        self.0.alerts.list(resolved)
    }

    /// Calls back when an alert is raised and when it is resolved, in order.
    ///
    /// Each callback has a thread of its own, which ends with the monitor: one that panics is called
    /// again with the next alert, one that hangs delays neither the checks nor the other callbacks.
    /// Up to 1,024 alerts wait for a slow one. A callback that holds a handle on the monitor keeps it
    /// from ending.
    ///
    /// # Panics
    /// When the system can start no thread.
    pub fn on_alert(&self, callback: impl Fn(&Alert) + Send + 'static) {
        self.0.alerts.call_back(callback);
    }

    /// What the runs of each check came to, by its name.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        let registry = lock(&self.0.registry);
        let totals = registry.checks.iter().map(|(name, entry)| {
            let state = lock(&entry.state);
            let mut totals = state.totals.clone();
            totals.failures_in_a_row = state.incident.failures();
            (name.clone(), totals)
        });
        totals.collect()
    }

    /// What holds for checks that do not say otherwise.
    #[must_use]
    pub fn config(&self) -> Config {
        *self.0.config.borrow()
    }

    /// Changes the config while checks, results and alerts stay; waits in progress follow the new
    /// interval at once.
    ///
    /// # Errors
    /// When a value of the config is out of range; nothing is changed then.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        config.validate()?;
        self.0.config.send_replace(config);
        Ok(())
    }

    /// Threads that checks hold on to although their runs were given up.
    #[must_use]
    pub fn leaked_threads(&self) -> usize {
        self.0.threads.leaked()
    }

    /// Every check, once each has a result that may be told.
    async fn settled(&self) -> Vec<Arc<Entry>> {
        let (entries, running) = {
            let registry = lock(&self.0.registry);
            let entries: Vec<_> = registry.checks.values().cloned().collect();
            (entries, registry.running)
        };
        // All of them are in the air before the first is waited for.
        let flights = entries.iter();
        let flights = flights.filter_map(|entry| self.0.needed_flight(entry, running));
        for flight in flights.collect::<Vec<_>>() {
            flight.landed().await;
        }
        entries
    }

    fn entry(&self, name: &str) -> Result<(Arc<Entry>, bool), UnknownCheck> {
        let registry = lock(&self.0.registry);
        match registry.checks.get(name) {
            Some(entry) => Ok((Arc::clone(entry), registry.running)),
            None => Err(UnknownCheck {
                name: name.to_owned(),
                known: registry.checks.keys().cloned().collect(),
            }),
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("config", &self.config())
            .field("checks", &self.names())
            .field("is_running", &self.is_running())
            .finish_non_exhaustive()
    }
}

/// The newest result of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The name of the check.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// Whether the whole is unhealthy when this is.
    pub critical: bool,
    /// What kind of error it is, if it is one.
    pub class: Option<ErrorClass>,
    /// What there is to say, without secrets; empty if nothing.
    pub message: String,
    /// More of it, by name, without secrets.
    pub details: Map<String, Value>,
    /// How long the run took.
    pub response_time: Duration,
    /// How long ago the run ended.
    pub age: Duration,
    /// When the run ended, by the wall clock; `None` if there was none.
    pub checked_at: Option<SystemTime>,
    /// Failures in a row up to this result.
    pub failures: u32,
}

/// What the runs of one check came to since it was registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All runs.
    pub runs: u64,
    /// Runs that found it healthy or degraded.
    pub successes: u64,
    /// Runs that found it unhealthy.
    pub failures: u64,
    /// Failures in a row up to now.
    pub failures_in_a_row: u32,
    /// How long all runs took together.
    pub response_time: Duration,
    /// How long the longest took.
    pub longest: Duration,
    /// When the newest success ended, by the wall clock.
    pub last_success: Option<SystemTime>,
    /// When the newest failure ended, by the wall clock.
    pub last_failure: Option<SystemTime>,
}

impl Totals {
    fn count(&mut self, finished: &Finished, at: SystemTime) {
        self.runs += 1;
        self.response_time += finished.response_time;
        self.longest = self.longest.max(finished.response_time);
        match finished.outcome.status {
            Status::Healthy | Status::Degraded => {
                self.successes += 1;
                self.last_success = Some(at);
            }
            Status::Unhealthy => {
                self.failures += 1;
                self.last_failure = Some(at);
            }
            Status::Unknown => {}
        }
    }
}

/// There is no check of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCheck {
    /// The name that was asked for.
    pub name: String,
    /// The names there are.
    pub known: Vec<String>,
}

impl fmt::Display for UnknownCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, known } = self;
        if known.is_empty() {
            return write!(f, "check {name:?}: unknown, none is registered");
        }
        write!(
            f,
            "check {name:?}: unknown, registered are {}",
            known.join(", ")
        )
    }
}

impl Error for UnknownCheck {}

struct Shared {
    runtime: Handle,
    clock: Clock,
    config: watch::Sender<Config>,
    /// Locked before the state of an entry, and that before the alerts.
    registry: Mutex<Registry>,
    alerts: Alerts,
    threads: Threads,
}

#[derive(Default)]
struct Registry {
    checks: BTreeMap<String, Arc<Entry>>,
    running: bool,
}

struct Entry {
    name: String,
    config: CheckConfig,
    check: Arc<dyn Check>,
    runner: Runner,
    state: Mutex<State>,
}

struct State {
    incident: Incident,
    newest: Option<Newest>,
    totals: Totals,
    flight: Option<Flight>,
    schedule: Option<AbortHandle>,
    is_registered: bool,
}

struct Newest {
    finished: Finished,
    at: Timestamp,
    wall: SystemTime,
}

/// A run that others may wait for: it has landed once its sender is gone.
#[derive(Clone)]
struct Flight(watch::Receiver<()>);

impl Flight {
    async fn landed(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Lands the flight even if its task is dropped with the runtime.
struct Landing {
    entry: Arc<Entry>,
    _landed: watch::Sender<()>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.entry.state).flight = None;
    }
}

impl Entry {
    fn check_interval(&self, config: &Config) -> Duration {
        self.config.check_interval.unwrap_or(config.check_interval)
    }
}

impl State {
    fn new(config: CheckConfig) -> Self {
        Self {
            incident: Incident::new(config.critical),
            newest: None,
            totals: Totals::default(),
            flight: None,
            schedule: None,
            is_registered: true,
        }
    }

    fn unschedule(&mut self) {
        if let Some(schedule) = self.schedule.take() {
            schedule.abort();
        }
    }
}

impl Shared {
    fn schedule(self: &Arc<Self>, entry: &Arc<Entry>) {
        let task = keep_checking(
            Arc::downgrade(self),
            Arc::clone(entry),
            self.config.subscribe(),
        );
        let schedule = self.runtime.spawn(task).abort_handle();
        let mut state = lock(&entry.state);
        state.unschedule();
        state.schedule = Some(schedule);
    }

    /// Ends what a check has going, when its name is given up.
    fn end(&self, entry: &Entry, reason: &str) -> Option<Told> {
        let mut state = lock(&entry.state);
        state.is_registered = false;
        state.unschedule();
        state.incident.close()?;
        let message = format!("check {:?}: {reason}", entry.name);
        self.alerts.resolve(&entry.name, message)
    }

    /// A flight to wait for, if the newest result may not be told as it is.
    fn needed_flight(self: &Arc<Self>, entry: &Arc<Entry>, running: bool) -> Option<Flight> {
        let interval = entry.check_interval(&self.config.borrow());
        let now = self.clock.now();
        let needed = match &lock(&entry.state).newest {
            None => true,
            Some(newest) => !running && is_due(newest.at, interval, now),
        };
        needed.then(|| self.fly(entry))
    }

    /// The run of this check in flight, or a new one.
    fn fly(self: &Arc<Self>, entry: &Arc<Entry>) -> Flight {
        let mut state = lock(&entry.state);
        if let Some(flight) = &state.flight {
            return flight.clone();
        }
        let (landed, flight) = watch::channel(());
        let flight = Flight(flight);
        state.flight = Some(flight.clone());
        // A runtime that has shut down drops the task at once, and with it the landing.
        drop(state);
        let landing = Landing {
            entry: Arc::clone(entry),
            _landed: landed,
        };
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let entry = &landing.entry;
            let check = Arc::clone(&entry.check);
            let timeout = entry.config.timeout;
            let finished = entry.runner.run(check, timeout, &shared.threads).await;
            shared.land(entry, finished);
            drop(landing);
        });
        flight
    }

    fn land(&self, entry: &Entry, finished: Finished) {
        let threshold = entry.config.alert_threshold;
        let threshold = threshold.unwrap_or(self.config.borrow().alert_threshold);
        let mut state = lock(&entry.state);
        if !state.is_registered {
            return;
        }
        let outcome = &finished.outcome;
        // Told under the lock, which makes the order of the news that of the results; telling
        // only puts them in a queue.
        let told = match state.incident.record(outcome.status, threshold) {
            None => None,
            Some(News::Resolved) => {
                let message = format!("check {:?}: {} again", entry.name, outcome.status);
                self.alerts.resolve(&entry.name, message)
            }
            Some(News::Raised(level)) => {
                let failures = state.incident.failures();
                let times = if failures == 1 {
                    "time"
                } else {
                    "times in a row"
                };
                let name = &entry.name;
                let status = outcome.status;
                let mut message = format!("check {name:?}: {status} {failures} {times}");
                if !outcome.message.is_empty() {
                    message = format!("{message}: {}", outcome.message);
                }
                Some(self.alerts.raise(Alert {
                    id: Uuid::new_v4(),
                    check: entry.name.clone(),
                    level,
                    message,
                    details: outcome.details.clone(),
                    failures,
                    raised_at: wall_time(),
                    resolved_at: None,
                }))
            }
        };
        let wall = wall_time();
        state.totals.count(&finished, wall);
        state.newest = Some(Newest {
            finished,
            at: self.clock.now(),
            wall,
        });
        drop(state);
        told.inspect(Told::log);
    }

    fn report(&self, entry: &Entry) -> Report {
        let state = lock(&entry.state);
        let mut report = Report {
            name: entry.name.clone(),
            status: Status::Unknown,
            critical: entry.config.critical,
            class: None,
            message: "no result: the monitor's runtime is gone, or the check".to_owned(),
            details: Map::new(),
            response_time: Duration::ZERO,
            age: Duration::ZERO,
            checked_at: None,
            failures: state.incident.failures(),
        };
        if let Some(newest) = &state.newest {
            let outcome = newest.finished.outcome.clone();
            report.status = outcome.status;
            report.class = outcome.class;
            report.message = outcome.message;
            report.details = outcome.details;
            report.response_time = newest.finished.response_time;
            report.age = self.clock.now().since(newest.at);
            report.checked_at = Some(newest.wall);
        }
        report
    }
}

/// Runs a check at once and at every interval, until its schedule or its monitor ends.
async fn keep_checking(
    monitor: Weak<Shared>,
    entry: Arc<Entry>,
    mut config: watch::Receiver<Config>,
) {
    let chance = Chance::new();
    loop {
        let Some(shared) = monitor.upgrade() else {
            return;
        };
        let clock = shared.clock.clone();
        let started = clock.now();
        let flight = shared.fly(&entry);
        // A monitor that nobody holds must not live on in its own tasks.
        drop(shared);
        flight.landed().await;
        let draw = chance.draw();
        loop {
            let interval = entry.check_interval(&config.borrow_and_update());
            let wait = next_start(started, interval, draw).since(clock.now());
            tokio::select! {
                () = tokio::time::sleep(wait) => break,
                changed = config.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }
}
