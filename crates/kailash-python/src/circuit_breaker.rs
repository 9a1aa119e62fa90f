//! Circuit breakers for Python: they admit a call before it starts and judge how it ended.

mod guarded;
mod ready;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::Utc;
use kailash::circuit_breaker::{
    Cause, CircuitBreaker as Breaker, Config, CreateError, EventKind, Manager, Outcome,
    OwnedPermit, Permit, Presets, Rejected, State, WindowKind,
};
use kailash_core::time::nanos;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, ffi, intern};

use crate::calling;
use crate::config::{self, Settings};
use crate::runtime::{self, Carried, ManualClock, Task, deliver};
use ready::Until;

pub(crate) use guarded::{add_types, guard};
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
    fn new() -> Self {
        Self(Manager::new())
    }

    /// The breaker of this name, made with these settings if there is none.
    fn get_or_create(&self, name: &str, settings: &Bound<'_, PyAny>) -> PyResult<CircuitBreaker> {
        let made = self.0.get_or_create(name, read_config(settings)?);
        made.map(CircuitBreaker::over).map_err(|error| match error {
            CreateError::Config(error) => config::raise(settings.py(), &error, None),
            CreateError::OtherSettings { .. } => PyValueError::new_err(error.to_string()),
        })
    }

    /// The breaker of this name, if there is one.
    fn get(&self, name: &str) -> Option<CircuitBreaker> {
        self.0.get(name).map(CircuitBreaker::over)
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

/// What tells of a breaker's transitions, until it is let go.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreakerSubscription {
    _task: Task,
}

/// How long the calls of one breaker took.
#[derive(Default)]
struct Durations {
    calls: AtomicU64,
    nanos: AtomicU64,
}

/// What counts as a failure: only Python can look at its errors and results.
#[derive(Default)]
struct Judge {
    /// Exceptions that say nothing about the dependency.
    neutral: Option<Py<PyTuple>>,
    /// Whether the class of an exception alone tells if it is neutral: no metaclass has a say.
    goes_by_class: bool,
    is_failure: Option<Py<PyAny>>,
    /// How many seconds a failure asks to be left alone, or None.
    retry_after: Option<Py<PyAny>>,
}

impl Judge {
    /// What a failure comes to; where the judge raises, it counts all the same.
    fn failed(&self, outcome: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        let Some(retry_after) = &self.retry_after else {
            return (Outcome::Failure, Ok(()));
        };
        let answer = calling::call(retry_after.bind(outcome.py()), [outcome]);
        let wait = answer.and_then(|answer| {
            let seconds = |answer| config::seconds("retry_after", answer);
            (!answer.is_none()).then(|| seconds(&answer)).transpose()
        });
        match wait {
            Ok(None) => (Outcome::Failure, Ok(())),
            Ok(Some(wait)) => (Outcome::RetryAfter(wait), Ok(())),
            Err(raised) => (Outcome::Failure, Err(raised)),
        }
    }
}

/// One circuit breaker.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CircuitBreaker {
    breaker: Breaker,
    durations: Durations,
    judge: ArcSwap<Judge>,
    /// Whether the judge looks at results too, so that most calls need not load it.
    judges_results: AtomicBool,
}

impl Durations {
    #[inline]
    fn add(&self, ran: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos(ran), Ordering::Relaxed);
    }
}

impl CircuitBreaker {
    fn over(breaker: Breaker) -> Self {
        Self {
            breaker,
            durations: Durations::default(),
            judge: ArcSwap::default(),
            judges_results: AtomicBool::new(false),
        }
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

    /// How a call ended that returned, and what the judge raised, which makes it a failure.
    #[inline]
    fn judge_result(&self, result: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        if self.judges_results.load(Ordering::Acquire) {
            self.ask(result)
        } else {
            (Outcome::Success, Ok(()))
        }
    }

    /// How a call ended that raised, where the exception's class alone tells: `is` whether it is of
    /// one of these classes.
    #[inline]
    fn judge_class(
        &self,
        is_exception: bool,
        is: impl FnOnce(*mut ffi::PyObject) -> bool,
    ) -> Option<Outcome> {
        if !is_exception {
            return Some(Outcome::Cancelled);
        }
        let judge = self.judge.load();
        let neutral = judge.neutral.as_ref()?;
        if !judge.goes_by_class || judge.is_failure.is_some() || judge.retry_after.is_some() {
            return None;
        }
        let is_neutral = is(neutral.as_ptr());
        Some(if is_neutral {
            Outcome::Ignored
        } else {
            Outcome::Failure
        })
    }

    /// How a call ended that raised, and what the judge raised in its turn.
    fn judge_error(&self, error: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        if !error.is_instance_of::<PyException>() {
            return (Outcome::Cancelled, Ok(()));
        }
        let judge = self.judge.load_full();
        if let Some(neutral) = &judge.neutral {
            match is_instance(error, neutral.bind(error.py())) {
                Ok(true) => return (Outcome::Ignored, Ok(())),
                Ok(false) => {}
                Err(raised) => return (Outcome::Failure, Err(raised)),
            }
        }
        match (&judge.is_failure, &judge.retry_after) {
            (None, None) => (Outcome::Failure, Ok(())),
            (None, Some(_)) => guarded::handling(error, || judge.failed(error)),
            (Some(_), _) => guarded::handling(error, || self.ask(error)),
        }
    }

    #[cold]
    fn ask(&self, outcome: &Bound<'_, PyAny>) -> (Outcome, PyResult<()>) {
        let judge = self.judge.load_full();
        let Some(is_failure) = &judge.is_failure else {
            return (Outcome::Success, Ok(()));
        };
        let answer = calling::call(is_failure.bind(outcome.py()), [outcome]);
        match answer.and_then(|answer| calling::is_true(&answer)) {
            Ok(false) => (Outcome::Success, Ok(())),
            Ok(true) => judge.failed(outcome),
            Err(raised) => (Outcome::Failure, Err(raised)),
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
        breaker
            .map(Self::over)
            .map_err(|error| config::raise(settings.py(), &error, None))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let judge = self.judge.load();
        visit.call(&judge.neutral)?;
        visit.call(&judge.is_failure)?;
        visit.call(&judge.retry_after)
    }

    fn __clear__(&self) {
        self.judge.store(Arc::default());
    }

    /// Exceptions of these classes are neutral; `is_failure` is asked about all others and results,
    /// `retry_after` about failures.
    fn judge_by(
        &self,
        neutral: &Bound<'_, PyTuple>,
        is_failure: Option<Py<PyAny>>,
        retry_after: Option<Py<PyAny>>,
    ) {
        let judges_results = is_failure.is_some();
        let plain = neutral.py().get_type::<PyType>();
        self.judge.store(Arc::new(Judge {
            neutral: Some(neutral.clone().unbind()),
            goes_by_class: neutral.iter().all(|class| class.get_type().is(&plain)),
            is_failure,
            retry_after,
        }));
        self.judges_results.store(judges_results, Ordering::Release);
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
        self.durations.calls.store(0, Ordering::Relaxed);
        self.durations.nanos.store(0, Ordering::Relaxed);
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
        changed.map_err(|error| config::raise(settings.py(), &error, None))
    }

    /// Has `callback(from, to)` called on the courier's thread at each transition, as long as what
    /// this answers is kept; it must be quick.
    fn listen(&self, callback: Py<PyAny>) -> CircuitBreakerSubscription {
        let mut events = self.breaker.subscribe_transitions();
        let callback = Carried::new(callback);
        let task = Task::spawn(async move {
            let callback = Arc::new(callback);
            loop {
                if let EventKind::Transition(transition) = events.recv().await.kind {
                    let callback = Arc::clone(&callback);
                    deliver(move |py| {
                        let (from, to) = (transition.from.as_str(), transition.to.as_str());
                        if let Err(error) = callback.get().call1(py, (from, to)) {
                            error.write_unraisable(py, None);
                        }
                    });
                }
            }
        });
        CircuitBreakerSubscription { _task: task }
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
            Some(wait) => Outcome::RetryAfter(config::seconds("retry_after", wait)?),
            None => Outcome::Failure,
        };
        self.record(outcome);
        Ok(())
    }

    /// The call returned this.
    fn succeed(&self, result: &Bound<'_, PyAny>) -> PyResult<()> {
        let (outcome, judged) = self.breaker.get().judge_result(result);
        self.record(outcome);
        judged
    }

    /// The call raised this.
    fn fail(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let (outcome, judged) = self.breaker.get().judge_error(error);
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

/// What `isinstance` says, which may ask a metaclass of a user's.
fn is_instance(error: &Bound<'_, PyAny>, classes: &Bound<'_, PyTuple>) -> PyResult<bool> {
    static ISINSTANCE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let isinstance = ISINSTANCE.import(error.py(), "builtins", "isinstance")?;
    calling::call(isinstance, [error, classes.as_any()])?.is_truthy()
}

fn read_config(settings: &Bound<'_, PyAny>) -> PyResult<Config> {
    let build = |settings: &Settings<'_, '_>| {
        Ok(Config {
            failure_threshold: settings.whole("failure_threshold")?,
            success_threshold: settings.whole("success_threshold")?,
            recovery_timeout: settings.seconds("recovery_timeout")?,
            max_recovery_timeout: settings.seconds("max_recovery_timeout")?,
            half_open_requests: settings.whole("half_open_requests")?,
            error_rate_threshold: settings.optional_number("error_rate_threshold")?,
            window: settings.choice("window", WindowKind::ALL.map(|kind| (kind.as_str(), kind)))?,
            window_size: settings.whole("window_size")?,
            window_duration: settings.seconds("window_duration")?,
            min_calls_before_evaluation: settings.whole("min_calls_before_evaluation")?,
            slow_call_threshold: settings.optional_seconds("slow_call_threshold")?,
            slow_call_rate_threshold: settings.optional_number("slow_call_rate_threshold")?,
            overdue_calls_enabled: settings.flag("overdue_calls_enabled")?,
            max_wait_duration_in_half_open: settings.seconds("max_wait_duration_in_half_open")?,
            exponential_backoff_multiplier: settings.number("exponential_backoff_multiplier")?,
            jitter_enabled: settings.flag("jitter_enabled")?,
            max_jitter_percentage: settings.number("max_jitter_percentage")?,
            cancelled_counts_after: settings.optional_seconds("cancelled_counts_after")?,
            ramp_enabled: settings.flag("ramp_enabled")?,
            initial_state: settings.choice(
                "initial_state",
                State::ALL.map(|state| (state.as_str(), state)),
            )?,
        })
    };
    config::read(settings, build, Config::validate)
}

fn config_to_dict<'py>(py: Python<'py>, config: &Config) -> PyResult<Bound<'py, PyDict>> {
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    let dict = PyDict::new(py);
    dict.set_item("failure_threshold", config.failure_threshold)?;
    dict.set_item("success_threshold", config.success_threshold)?;
    dict.set_item("recovery_timeout", config.recovery_timeout.as_secs_f64())?;
    dict.set_item(
        "max_recovery_timeout",
        config.max_recovery_timeout.as_secs_f64(),
    )?;
    dict.set_item("half_open_requests", config.half_open_requests)?;
    dict.set_item("error_rate_threshold", config.error_rate_threshold)?;
    dict.set_item("window", config.window.as_str())?;
    dict.set_item("window_size", config.window_size)?;
    dict.set_item("window_duration", config.window_duration.as_secs_f64())?;
    dict.set_item(
        "min_calls_before_evaluation",
        config.min_calls_before_evaluation,
    )?;
    dict.set_item("slow_call_threshold", seconds(config.slow_call_threshold))?;
    dict.set_item("slow_call_rate_threshold", config.slow_call_rate_threshold)?;
    dict.set_item("overdue_calls_enabled", config.overdue_calls_enabled)?;
    let lease = config.max_wait_duration_in_half_open.as_secs_f64();
    dict.set_item("max_wait_duration_in_half_open", lease)?;
    dict.set_item(
        "exponential_backoff_multiplier",
        config.exponential_backoff_multiplier,
    )?;
    dict.set_item("jitter_enabled", config.jitter_enabled)?;
    dict.set_item("max_jitter_percentage", config.max_jitter_percentage)?;
    dict.set_item(
        "cancelled_counts_after",
        seconds(config.cancelled_counts_after),
    )?;
    dict.set_item("ramp_enabled", config.ramp_enabled)?;
    dict.set_item("initial_state", config.initial_state.as_str())?;
    Ok(dict)
}

/// Checks the settings of a circuit breaker.
#[pyfunction]
pub(crate) fn check_circuit_breaker_config(settings: &Bound<'_, PyAny>) -> PyResult<()> {
    read_config(settings).map(drop)
}

/// The settings of the presets that come with the library, by name.
#[pyfunction]
pub(crate) fn circuit_breaker_presets(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let presets = Presets::new();
    let dict = PyDict::new(py);
    for name in presets.names() {
        let config = presets.resolve(name);
        let config = config.map_err(|error| PyValueError::new_err(error.to_string()))?;
        dict.set_item(name, config_to_dict(py, &config)?)?;
    }
    Ok(dict)
}
