//! Circuit breakers for Python: they admit a call before it starts and judge how it ended.

mod config;
mod event;
mod guarded;
mod judge;
mod keyed;
mod preset;
mod ready;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use kailash::circuit_breaker::{
    Cause, CircuitBreaker as Breaker, CreateError, Manager, Outcome, OwnedPermit, Permit, Rejected,
    State,
};
use kailash_core::time::nanos;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::config::{raise, seconds};
use crate::histogram::HistogramSnapshot;
use crate::runtime::{self, ManualClock};
use config::{config_to_dict, read_config};
use judge::Judge;
use keyed::{counts, read_keyed_config};
use preset::{raise_preset, read_overrides};
use ready::Until;

pub(crate) use config::check_circuit_breaker_config;
pub(crate) use event::CircuitBreakerSubscription;
pub(crate) use guarded::{add_types, guard};
pub(crate) use keyed::{KeyedCircuitBreakers, check_keyed_config};
pub(crate) use ready::CircuitBreakerWaiting;

/// Circuit breakers by name.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreakerManager(Manager);

impl CircuitBreakerManager {
    pub(crate) fn manager(&self) -> Manager {
        self.0.clone()
    }
}

#[pymethods]
impl CircuitBreakerManager {
    #[new]
    #[pyo3(signature = (clock=None))]
    fn new(clock: Option<&ManualClock>) -> Self {
        Self(Manager::with_clock(runtime::clock(clock)))
    }

    /// The breaker of this name, made with these settings if there is none.
    fn get_or_create(&self, name: &str, settings: &Bound<'_, PyAny>) -> PyResult<CircuitBreaker> {
        let made = self.0.get_or_create(name, read_config(settings)?);
        let made = made.map_err(|error| raise_uncreated(settings.py(), &error))?;
        CircuitBreaker::over(settings.py(), made)
    }

    /// The group of keys of this name, made with these settings if there is none.
    fn keyed(&self, group: &str, settings: &Bound<'_, PyAny>) -> PyResult<KeyedCircuitBreakers> {
        let made = self.0.keyed(group, read_keyed_config(settings)?);
        let made = made.map_err(|error| raise_uncreated(settings.py(), &error))?;
        KeyedCircuitBreakers::over(settings.py(), made)
    }

    /// Takes a group of keys out of the registry; whether there was one.
    fn remove_group(&self, group: &str) -> bool {
        self.0.remove_group(group).is_some()
    }

    /// Defines a preset by the fields of `settings` that are `said`.
    fn define(
        &self,
        name: &str,
        base: Option<String>,
        settings: &Bound<'_, PyAny>,
        said: Vec<String>,
    ) -> PyResult<()> {
        let overrides = read_overrides(base, settings, &said)?;
        let defined = self.0.define(name, overrides);
        defined.map_err(|error| raise_preset(settings.py(), &error))
    }

    /// The settings of a preset that Rust knows, by field.
    fn preset<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let config = self.0.preset(name);
        config_to_dict(py, &config.map_err(|error| raise_preset(py, &error))?)
    }

    /// As `CircuitBreaker.subscribe`, to all breakers, those of keys too.
    fn subscribe(&self, callback: Py<PyAny>) -> PyResult<CircuitBreakerSubscription> {
        event::subscribe(self.0.subscribe(), callback)
    }

    /// As `subscribe`, to transitions only.
    fn subscribe_transitions(&self, callback: Py<PyAny>) -> PyResult<CircuitBreakerSubscription> {
        event::subscribe(self.0.subscribe_transitions(), callback)
    }

    fn record_durations(&self) {
        self.0.record_durations();
    }

    fn stop_recording_durations(&self) {
        self.0.stop_recording_durations();
    }

    /// The breaker of this name, if there is one.
    fn get(&self, py: Python<'_>, name: &str) -> PyResult<Option<CircuitBreaker>> {
        let found = self.0.get(name);
        found
            .map(|breaker| CircuitBreaker::over(py, breaker))
            .transpose()
    }

    /// The names of all breakers, sorted.
    fn names(&self) -> Vec<String> {
        self.0
            .all()
            .iter()
            .map(|breaker| breaker.name().to_string())
            .collect()
    }

    /// In a forked child: frees the slots of probes whose callers are the parent's, also of breakers
    /// that Python has not seen.
    fn forget_calls_in_flight(&self) {
        for breaker in self.0.all() {
            breaker.abandon_probes();
        }
    }
}

fn raise_uncreated(py: Python<'_>, error: &CreateError) -> PyErr {
    match error {
        CreateError::Config(error) => raise(py, error, None),
        CreateError::OtherSettings { .. } => PyValueError::new_err(error.to_string()),
    }
}

/// How long the calls of one breaker took, or those of a group's breakers together.
#[derive(Default)]
struct Durations {
    calls: AtomicU64,
    nanos: AtomicU64,
}

/// One circuit breaker.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreaker {
    breaker: Breaker,
    durations: Arc<Durations>,
    /// Whether durations and judge are those of a group of keys.
    is_of_group: bool,
    judge: Py<Judge>,
}

impl Durations {
    #[inline]
    fn add(&self, ran: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos(ran), Ordering::Relaxed);
    }

    fn reset(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.nanos.store(0, Ordering::Relaxed);
    }
}

impl CircuitBreaker {
    fn over(py: Python<'_>, breaker: Breaker) -> PyResult<Self> {
        Ok(Self {
            breaker,
            durations: Arc::default(),
            is_of_group: false,
            judge: Py::new(py, Judge::default())?,
        })
    }

    #[inline]
    fn judge(&self) -> &Judge {
        self.judge.get()
    }

    /// Records how an admitted call ended, `generation` being that of the process that took the
    /// permit: one taken before a fork belongs to the parent.
    #[inline]
    fn record(&self, permit: Permit<'_>, generation: u64, outcome: Outcome) {
        if generation != runtime::generation() {
            std::mem::forget(permit);
        } else if let Some(ran) = permit.record(outcome) {
            self.durations.add(ran);
        }
    }
}

#[pymethods]
impl CircuitBreaker {
    #[new]
    #[pyo3(signature = (name, settings, clock=None))]
    fn new(name: &str, settings: &Bound<'_, PyAny>, clock: Option<&ManualClock>) -> PyResult<Self> {
        let clock = runtime::clock(clock);
        let breaker = Breaker::with_clock(name, read_config(settings)?, clock);
        let breaker = breaker.map_err(|error| raise(settings.py(), &error, None))?;
        Self::over(settings.py(), breaker)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.judge)
    }

    /// Exceptions of these classes are neutral; `is_failure` is asked about all others and results,
    /// `retry_after` about failures.
    fn judge_by(
        &self,
        neutral: &Bound<'_, PyTuple>,
        is_failure: Option<Py<PyAny>>,
        retry_after: Option<Py<PyAny>>,
    ) {
        self.judge().judge_by(neutral, is_failure, retry_after);
    }

    #[getter]
    fn name(&self) -> &str {
        self.breaker.name()
    }

    /// The state's word.
    fn state(&self) -> &'static str {
        self.breaker.state().as_str()
    }

    /// The settings that Rust knows, by field.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        config_to_dict(py, &self.breaker.config())
    }

    /// Leave to make one call, which ends by itself; raises CircuitBreakerError if there is none.
    fn acquire(slf: &Bound<'_, Self>) -> PyResult<CircuitBreakerPermit> {
        let permit = slf.get().breaker.try_acquire_owned();
        CircuitBreakerPermit::over(slf, permit.and_then(OwnedPermit::watched))
    }

    /// The same for a call that others may keep open: it is never overdue.
    fn acquire_unwatched(slf: &Bound<'_, Self>) -> PyResult<CircuitBreakerPermit> {
        CircuitBreakerPermit::over(slf, slf.get().breaker.try_acquire_owned())
    }

    /// What the breaker has counted, by name.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seen = self.breaker.snapshot();
        let share = |part: u32| f64::from(part) / f64::from(seen.window_calls.max(1));
        let timed = self.durations.calls.load(Ordering::Relaxed);
        let spent = Duration::from_nanos(self.durations.nanos.load(Ordering::Relaxed));
        let dict = PyDict::new(py);
        dict.set_item("state", seen.state.as_str())?;
        dict.set_item("forced", seen.forced)?;
        dict.set_item("cause", seen.cause.map(|cause| cause.as_str()))?;
        dict.set_item(
            "retry_after",
            seen.retry_after.map(|wait| wait.as_secs_f64()),
        )?;
        dict.set_item("total_calls", seen.calls)?;
        dict.set_item("successful_calls", seen.calls.saturating_sub(seen.failures))?;
        dict.set_item("failed_calls", seen.failures)?;
        dict.set_item("rejected_calls", seen.rejections)?;
        dict.set_item("slow_calls", seen.slow_calls)?;
        dict.set_item("openings", seen.openings)?;
        dict.set_item("error_rate", share(seen.window_failures))?;
        dict.set_item("slow_call_rate", share(seen.window_slow))?;
        dict.set_item(
            "avg_call_duration",
            spent.as_secs_f64() / timed.max(1) as f64,
        )?;
        dict.set_item("consecutive_failures", seen.consecutive_failures)?;
        dict.set_item("consecutive_successes", seen.probe_successes)?;
        dict.set_item("ramp_share", seen.ramp_share)?;
        dict.set_item("would_open", seen.would_open.map(|cause| cause.as_str()))?;
        let transitions = PyList::empty(py);
        let now = Utc::now();
        for (transition, ago) in self.breaker.transitions() {
            let at = chrono::Duration::from_std(ago)
                .ok()
                .and_then(|ago| now.checked_sub_signed(ago));
            let item = PyDict::new(py);
            item.set_item("from", transition.from.as_str())?;
            item.set_item("to", transition.to.as_str())?;
            item.set_item("timestamp", at.map(|at| at.to_rfc3339()))?;
            item.set_item("reason", transition.cause.as_str())?;
            transitions.append(item)?;
        }
        dict.set_item("state_transitions", transitions)?;
        Ok(dict)
    }

    /// What it has counted since it was made, by name.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, &self.breaker.counts())
    }

    /// How long calls took since the last reset; None unless its manager records them.
    fn durations(&self) -> Option<HistogramSnapshot> {
        self.breaker.durations().map(HistogramSnapshot)
    }

    /// As `durations`, but no reset sets it back.
    fn all_durations(&self) -> Option<HistogramSnapshot> {
        self.breaker.all_durations().map(HistogramSnapshot)
    }

    fn record_success(&self) {
        self.breaker.record_success();
    }

    fn record_failure(&self) {
        self.breaker.record_failure();
    }

    fn force_open(&self) {
        self.breaker.force_open();
    }

    fn force_close(&self) {
        self.breaker.force_close();
    }

    fn reset(&self) {
        self.breaker.reset();
        if !self.is_of_group {
            self.durations.reset();
        }
    }

    fn disable(&self) {
        self.breaker.disable();
    }

    fn metrics_only(&self) {
        self.breaker.metrics_only();
    }

    fn enable(&self) {
        self.breaker.enable();
    }

    fn reconfigure(&self, settings: &Bound<'_, PyAny>) -> PyResult<()> {
        let changed = self.breaker.reconfigure(read_config(settings)?);
        changed.map_err(|error| raise(settings.py(), &error, None))
    }

    /// Has `callback(from, to)` called on the courier's thread at each transition, as long as what
    /// this answers is kept; it must be quick.
    fn listen(&self, callback: Py<PyAny>) -> PyResult<CircuitBreakerSubscription> {
        event::listen(self.breaker.subscribe_transitions(), callback)
    }

    /// Has `callback(events, done)` called on the courier's thread with all that happens, as long as
    /// what this answers is kept. There is more once `done` was called.
    fn subscribe(&self, callback: Py<PyAny>) -> PyResult<CircuitBreakerSubscription> {
        event::subscribe(self.breaker.subscribe(), callback)
    }

    /// As `subscribe`, to transitions only.
    fn subscribe_transitions(&self, callback: Py<PyAny>) -> PyResult<CircuitBreakerSubscription> {
        event::subscribe(self.breaker.subscribe_transitions(), callback)
    }

    /// A wait on this loop until the breaker may admit a call, for so many seconds at most; None
    /// where it need not wait.
    fn ready(
        &self,
        timeout: Option<&Bound<'_, PyAny>>,
        event_loop: &Bound<'_, PyAny>,
    ) -> PyResult<Option<CircuitBreakerWaiting>> {
        ready::begin(&self.breaker, Until::Ready, timeout, event_loop)
    }

    /// The same until it is closed.
    fn closed(
        &self,
        timeout: Option<&Bound<'_, PyAny>>,
        event_loop: &Bound<'_, PyAny>,
    ) -> PyResult<Option<CircuitBreakerWaiting>> {
        ready::begin(&self.breaker, Until::Closed, timeout, event_loop)
    }

    /// Waits on this thread until the breaker may admit a call, for so many seconds at most; whether
    /// it may.
    fn wait_ready(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        ready::wait(py, &self.breaker, Until::Ready, timeout)
    }

    /// The same until it is closed.
    fn wait_closed(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        ready::wait(py, &self.breaker, Until::Closed, timeout)
    }

    /// In a forked child: frees the slots of probes whose callers are the parent's.
    fn forget_calls_in_flight(&self) {
        self.breaker.abandon_probes();
    }
}

/// Leave to make one call. Collected by Python without a verdict, the call counts as cancelled.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreakerPermit {
    permit: Mutex<Option<OwnedPermit>>,
    breaker: Py<CircuitBreaker>,
    generation: u64,
}

impl CircuitBreakerPermit {
    fn over(
        breaker: &Bound<'_, CircuitBreaker>,
        permit: Result<OwnedPermit, Rejected>,
    ) -> PyResult<Self> {
        let permit = permit.map_err(|rejected| raise_rejected(breaker.py(), &rejected))?;
        Ok(Self {
            permit: Mutex::new(Some(permit)),
            breaker: breaker.clone().unbind(),
            generation: runtime::generation(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedPermit>> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, outcome: Outcome) {
        let Some(permit) = self.held().take() else {
            return;
        };
        if self.generation != runtime::generation() {
            std::mem::forget(permit);
        } else if let Some(ran) = permit.record(outcome) {
            self.breaker.get().durations.add(ran);
        }
    }
}

#[pymethods]
impl CircuitBreakerPermit {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.breaker)
    }

    /// The call succeeded, whatever it returned.
    fn success(&self) {
        self.record(Outcome::Success);
    }

    /// The call failed; the dependency may have said how many seconds to leave it alone.
    #[pyo3(signature = (retry_after=None))]
    fn failure(&self, retry_after: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let outcome = match retry_after {
            Some(wait) => Outcome::RetryAfter(seconds("retry_after", wait)?),
            None => Outcome::Failure,
        };
        self.record(outcome);
        Ok(())
    }

    /// The call returned this.
    fn succeed(&self, result: &Bound<'_, PyAny>) -> PyResult<()> {
        let (outcome, judged) = self.breaker.get().judge().result(result);
        self.record(outcome);
        judged
    }

    /// The call raised this.
    fn fail(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let (outcome, judged) = self.breaker.get().judge().error(error);
        self.record(outcome);
        judged
    }

    /// The call says nothing about the dependency.
    fn ignore(&self) {
        self.record(Outcome::Ignored);
    }

    /// The caller gave up.
    fn cancel(&self) {
        self.record(Outcome::Cancelled);
    }

    /// Stops the call's clock.
    fn pause(&self) {
        if let Some(permit) = self.held().as_mut() {
            permit.pause();
        }
    }

    /// Lets the call's clock go on.
    fn resume(&self) {
        if let Some(permit) = self.held().as_mut() {
            permit.resume();
        }
    }
}

impl Drop for CircuitBreakerPermit {
    fn drop(&mut self) {
        self.record(Outcome::Cancelled);
    }
}

/// A refusal as an exception: its parts are the arguments, its message is made when it is asked for.
pub(crate) fn rejection<'py>(py: Python<'py>, rejected: &Rejected) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static CAUSES: PyOnceLock<[Py<PyString>; Cause::ALL.len()]> = PyOnceLock::new();
    let class = CLASS.import(
        py,
        "kailash.core.resilience.circuit_breaker",
        "CircuitBreakerError",
    )?;
    let causes = CAUSES.get_or_init(py, || {
        Cause::ALL.map(|cause| PyString::intern(py, cause.as_str()).unbind())
    });
    let state = match rejected.state {
        State::HalfOpen => intern!(py, "half_open"),
        _ => intern!(py, "open"),
    };
    let cause = causes.iter().zip(Cause::ALL);
    let cause = cause
        .into_iter()
        .find(|(_, known)| *known == rejected.cause);
    class.call1((
        &*rejected.name,
        state,
        rejected.retry_after.map(|wait| wait.as_secs_f64()),
        cause.map(|(name, _)| name.bind(py)),
        rejected.forced,
    ))
}

pub(crate) fn raise_rejected(py: Python<'_>, rejected: &Rejected) -> PyErr {
    rejection(py, rejected).map_or_else(|failed| failed, PyErr::from_value)
}

/// The refusal that a `CircuitBreakerError` tells of.
pub(crate) fn read_rejected(error: &Bound<'_, PyAny>) -> PyResult<Rejected> {
    let state: String = error.getattr("state")?.getattr("value")?.extract()?;
    let cause: Option<String> = error.getattr("cause")?.extract()?;
    let retry_after: Option<f64> = error.getattr("retry_after")?.extract()?;
    Ok(Rejected {
        name: error.getattr("name")?.extract::<String>()?.into(),
        state: match state.as_str() {
            "half_open" => State::HalfOpen,
            _ => State::Open,
        },
        forced: error.getattr("forced")?.extract()?,
        retry_after: retry_after.and_then(|wait| Duration::try_from_secs_f64(wait).ok()),
        cause: Cause::ALL
            .into_iter()
            .find(|known| Some(known.as_str()) == cause.as_deref())
            .unwrap_or(Cause::Told),
    })
}

/// What a `CircuitBreakerError` says.
#[pyfunction]
pub(crate) fn rejection_message(error: &Bound<'_, PyAny>) -> PyResult<String> {
    read_rejected(error).map(|rejected| rejected.to_string())
}
