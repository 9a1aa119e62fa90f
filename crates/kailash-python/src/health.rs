//! Health monitoring for Python: schedules, timeouts and alerts are Rust's, the loops of Python checks
//! Python's.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use kailash::ConfigError;
use kailash::health::checks::{
    Http, HttpConfig, Memory, MemoryConfig, Redis, RedisConfig, Sql, SqlConfig,
};
use kailash::health::{
    Alert, BoxFuture, Check, CheckConfig, Config, Monitor, Outcome, Report, Run, Status, run_once,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::config::{self, Settings};
use crate::runtime::{self, Carried, deliver, promise};

/// A check that a monitor can run.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct HealthChecker {
    check: Option<Arc<dyn Check>>,
    generation: u64,
}

impl HealthChecker {
    fn new(check: impl Check) -> Self {
        Self {
            check: Some(Arc::new(check)),
            generation: runtime::generation(),
        }
    }

    fn check(&self) -> Arc<dyn Check> {
        Arc::clone(self.check.as_ref().expect("taken only by drop"))
    }
}

impl Drop for HealthChecker {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            // Made before a fork: its connection and its threads are the parent's.
            std::mem::forget(self.check.take());
        }
    }
}

/// A check whose work is Python's: `start(job)` begins a run, `cancel()` ends one that took too long.
struct PythonCheck {
    start: Arc<Carried>,
    cancel: Arc<Carried>,
}

impl Check for PythonCheck {
    fn check<'a>(&'a self, _: &'a Run) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let (answer, answered) = oneshot::channel();
            let start = Arc::clone(&self.start);
            deliver(move |py| {
                let job = HealthJob {
                    answer: Mutex::new(Some(answer)),
                };
                if let Err(error) = start.get().call1(py, (job,)) {
                    error.write_unraisable(py, None);
                }
            });
            let mut running = Running {
                cancel: Arc::clone(&self.cancel),
                is_over: false,
            };
            let outcome = answered.await;
            running.is_over = true;
            outcome.unwrap_or_else(|_| Outcome::unknown("not run: the check's thread has ended"))
        })
    }
}

/// A run in Python, cancelled when it is dropped before its end.
struct Running {
    cancel: Arc<Carried>,
    is_over: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let cancel = Arc::clone(&self.cancel);
        deliver(move |py| {
            if let Err(error) = cancel.get().call0(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}

/// One run of a Python check, which wants an answer.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct HealthJob {
    answer: Mutex<Option<oneshot::Sender<Outcome>>>,
}

#[pymethods]
impl HealthJob {
    /// Whether somebody still waits for the answer.
    fn is_wanted(&self) -> bool {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// Answers: the status's word, what there is to say, and details as a JSON object.
    fn finish(&self, status: &str, message: String, details: &str) -> PyResult<()> {
        let mut outcome = match status {
            "healthy" => Outcome::healthy().message(message),
            "degraded" => Outcome::degraded(message),
            "unhealthy" => Outcome::unhealthy(message),
            "unknown" => Outcome::unknown(message),
            other => return Err(PyValueError::new_err(format!("no status: {other}"))),
        };
        outcome.details = serde_json::from_str(details)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let answer = self
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(answer) = answer {
            // Nobody waits: the run took too long.
            drop(answer.send(outcome));
        }
        Ok(())
    }
}

/// A check of a database by its URL.
#[pyfunction]
#[pyo3(signature = (url, query))]
pub(crate) fn sql_check(
    py: Python<'_>,
    url: String,
    query: Option<String>,
) -> PyResult<HealthChecker> {
    let check = Sql::new(SqlConfig { url, query });
    check.map(HealthChecker::new).map_err(|mut error| {
        if error.field == "url" {
            error.field = "connection_string";
        }
        config::raise(py, &error, None)
    })
}

/// A check of a Redis server.
#[pyfunction]
pub(crate) fn redis_check(
    py: Python<'_>,
    url: Option<String>,
    host: String,
    port: u16,
    db: u32,
    username: Option<String>,
    password: Option<String>,
) -> PyResult<HealthChecker> {
    let check = Redis::new(RedisConfig {
        url,
        host,
        port,
        db,
        username,
        password,
    });
    check.map(HealthChecker::new).map_err(|error| {
        config::raise(
            py,
            &ConfigError {
                field: "redis_config",
                ..error
            },
            None,
        )
    })
}

/// A check of an HTTP service.
#[pyfunction]
pub(crate) fn http_check(
    py: Python<'_>,
    url: String,
    expected_status: Vec<u16>,
    headers: Vec<(String, String)>,
) -> PyResult<HealthChecker> {
    let expected_status: Vec<RangeInclusive<u16>> = expected_status
        .into_iter()
        .map(|status| status..=status)
        .collect();
    let check = Http::new(HttpConfig {
        url,
        expected_status,
        headers,
    });
    check
        .map(HealthChecker::new)
        .map_err(|error| config::raise(py, &error, None))
}

/// A check of the memory in use, by shares of it.
#[pyfunction]
pub(crate) fn memory_check(
    py: Python<'_>,
    degraded_at: f64,
    unhealthy_at: f64,
) -> PyResult<HealthChecker> {
    let check = Memory::new(MemoryConfig {
        degraded_at,
        unhealthy_at,
    });
    check.map(HealthChecker::new).map_err(|mut error| {
        error.field = match error.field {
            "degraded_at" => "warning_threshold",
            _ => "critical_threshold",
        };
        config::raise(py, &error, None)
    })
}

/// A check whose work is Python's.
#[pyfunction]
pub(crate) fn python_check(start: Py<PyAny>, cancel: Py<PyAny>) -> HealthChecker {
    HealthChecker::new(PythonCheck {
        start: Arc::new(Carried::new(start)),
        cancel: Arc::new(Carried::new(cancel)),
    })
}

/// Runs a check once; answers a future of its result.
#[pyfunction]
pub(crate) fn run_check<'py>(
    py: Python<'py>,
    check: &HealthChecker,
    timeout: f64,
) -> PyResult<Bound<'py, PyAny>> {
    let check = check.check();
    let timeout = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::MAX);
    promise(py, run_once(check, timeout), |py, finished| {
        let outcome = &finished.outcome;
        let dict = PyDict::new(py);
        put_outcome(
            &dict,
            outcome.status,
            outcome.class.map(|class| class.as_str()),
            &outcome.message,
        )?;
        dict.set_item("details", to_python(py, &outcome.details)?)?;
        put_times(
            &dict,
            finished.response_time,
            Duration::ZERO,
            Some(SystemTime::now()),
        )?;
        Ok(dict.into_any().unbind())
    })
}

/// Checks on schedules, and their alerts.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct HealthMonitor {
    monitor: Option<Monitor>,
    generation: u64,
}

impl HealthMonitor {
    fn monitor(&self) -> &Monitor {
        self.monitor.as_ref().expect("taken only by drop")
    }
}

impl Drop for HealthMonitor {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            std::mem::forget(self.monitor.take());
        }
    }
}

#[pymethods]
impl HealthMonitor {
    #[new]
    fn new(settings: &Bound<'_, PyAny>) -> PyResult<Self> {
        let config = read_config(settings)?;
        let monitor = Monitor::on(runtime::handle()?, config);
        let monitor = monitor.map_err(|error| config::raise(settings.py(), &error, None))?;
        Ok(Self {
            monitor: Some(monitor),
            generation: runtime::generation(),
        })
    }

    fn reconfigure(&self, settings: &Bound<'_, PyAny>) -> PyResult<()> {
        let changed = self.monitor().reconfigure(read_config(settings)?);
        changed.map_err(|error| config::raise(settings.py(), &error, None))
    }

    /// Adds a check under a name, with the settings that the Python check object has.
    fn register(
        &self,
        name: String,
        check: &HealthChecker,
        settings: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let config = read_check_config(settings)?;
        let registered = self.monitor().register(name, config, check.check());
        registered.map_err(|error| config::raise(settings.py(), &error, None))
    }

    fn unregister(&self, name: &str) -> bool {
        self.monitor().unregister(name)
    }

    fn start(&self) {
        self.monitor().start();
    }

    fn stop(&self) {
        self.monitor().stop();
    }

    fn is_running(&self) -> bool {
        self.monitor().is_running()
    }

    /// A future of the newest result of a check.
    fn status<'py>(&self, py: Python<'py>, name: String) -> PyResult<Bound<'py, PyAny>> {
        let monitor = self.monitor().clone();
        promise(
            py,
            async move { monitor.status(&name).await },
            |py, report| {
                let report = report.map_err(|error| PyValueError::new_err(error.to_string()))?;
                Ok(report_to_dict(py, &report)?.into_any().unbind())
            },
        )
    }

    /// A future of the newest results of all checks by name.
    fn statuses<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let monitor = self.monitor().clone();
        promise(
            py,
            async move { monitor.statuses().await },
            |py, reports| {
                let dict = PyDict::new(py);
                for (name, report) in &reports {
                    dict.set_item(name, report_to_dict(py, report)?)?;
                }
                Ok(dict.into_any().unbind())
            },
        )
    }

    /// A future of the overall status's word.
    fn overall<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let monitor = self.monitor().clone();
        promise(py, async move { monitor.overall().await }, |py, status| {
            Ok(status.as_str().into_pyobject(py)?.into_any().unbind())
        })
    }

    /// A future of the result of a run that begins now.
    fn check_now<'py>(&self, py: Python<'py>, name: String) -> PyResult<Bound<'py, PyAny>> {
        let monitor = self.monitor().clone();
        promise(
            py,
            async move { monitor.check_now(&name).await },
            |py, report| {
                let report = report.map_err(|error| PyValueError::new_err(error.to_string()))?;
                Ok(report_to_dict(py, &report)?.into_any().unbind())
            },
        )
    }

    /// What the runs of each check came to, by its name.
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let every = PyDict::new(py);
        for (name, totals) in self.monitor().totals() {
            let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
            let judged = totals.successes + totals.failures;
            let uptime = match judged {
                0 => 100.0,
                _ => totals.successes as f64 * 100.0 / judged as f64,
            };
            let dict = PyDict::new(py);
            dict.set_item("total_checks", totals.runs)?;
            dict.set_item("successful_checks", totals.successes)?;
            dict.set_item("failed_checks", totals.failures)?;
            let average = millis(totals.response_time) / totals.runs.max(1) as f64;
            dict.set_item("avg_response_time_ms", average)?;
            dict.set_item("max_response_time_ms", millis(totals.longest))?;
            dict.set_item("uptime_percentage", uptime)?;
            dict.set_item("consecutive_failures", totals.failures_in_a_row)?;
            let time = |at: Option<SystemTime>| at.map(DateTime::<Utc>::from);
            dict.set_item("last_successful_check", time(totals.last_success))?;
            dict.set_item("last_failed_check", time(totals.last_failure))?;
            every.set_item(name, dict)?;
        }
        Ok(every)
    }

    /// The alerts, oldest first: all, the resolved, or the unresolved ones.
    fn alerts<'py>(&self, py: Python<'py>, resolved: Option<bool>) -> PyResult<Bound<'py, PyList>> {
        let alerts = self.monitor().alerts(resolved);
        let alerts = alerts.iter().map(|alert| alert_to_dict(py, alert));
        PyList::new(py, alerts.collect::<PyResult<Vec<_>>>()?)
    }

    /// Has `callback(alert)` called on the courier's thread at each alert; it must be quick.
    fn on_alert(&self, callback: Py<PyAny>) {
        let callback = Arc::new(Carried::new(callback));
        self.monitor().on_alert(move |alert| {
            let (callback, alert) = (Arc::clone(&callback), alert.clone());
            deliver(move |py| {
                let told =
                    alert_to_dict(py, &alert).and_then(|alert| callback.get().call1(py, (alert,)));
                if let Err(error) = told {
                    error.write_unraisable(py, None);
                }
            });
        });
    }

    /// Threads that checks hold on to although their runs were given up.
    fn leaked_threads(&self) -> usize {
        self.monitor().leaked_threads()
    }
}

fn read_config(settings: &Bound<'_, PyAny>) -> PyResult<Config> {
    let build = |settings: &Settings<'_, '_>| {
        Ok(Config {
            check_interval: settings.seconds("check_interval")?,
            alert_threshold: settings.whole("alert_threshold")?,
        })
    };
    config::read(settings, build, Config::validate)
}

fn read_check_config(settings: &Bound<'_, PyAny>) -> PyResult<CheckConfig> {
    let build = |settings: &Settings<'_, '_>| {
        Ok(CheckConfig {
            timeout: settings.seconds("timeout")?,
            critical: settings.flag("critical")?,
            check_interval: settings.optional_seconds("check_interval")?,
            alert_threshold: settings.optional_whole("alert_threshold")?,
        })
    };
    config::read(settings, build, CheckConfig::validate)
}

/// Checks the settings of a health check.
#[pyfunction]
pub(crate) fn check_health_check_config(settings: &Bound<'_, PyAny>) -> PyResult<()> {
    read_check_config(settings).map(drop)
}

/// Checks the settings of a monitor.
#[pyfunction]
pub(crate) fn check_health_monitor_config(settings: &Bound<'_, PyAny>) -> PyResult<()> {
    read_config(settings).map(drop)
}

fn report_to_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    put_outcome(
        &dict,
        report.status,
        report.class.map(|class| class.as_str()),
        &report.message,
    )?;
    dict.set_item("service_name", &report.name)?;
    dict.set_item("critical", report.critical)?;
    dict.set_item("consecutive_failures", report.failures)?;
    dict.set_item("details", to_python(py, &report.details)?)?;
    put_times(&dict, report.response_time, report.age, report.checked_at)?;
    Ok(dict)
}

fn put_outcome(
    dict: &Bound<'_, PyDict>,
    status: Status,
    class: Option<&str>,
    message: &str,
) -> PyResult<()> {
    dict.set_item("status", status.as_str())?;
    dict.set_item("error_class", class)?;
    dict.set_item("message", message)
}

fn put_times(
    dict: &Bound<'_, PyDict>,
    response_time: Duration,
    age: Duration,
    at: Option<SystemTime>,
) -> PyResult<()> {
    dict.set_item("response_time_ms", response_time.as_secs_f64() * 1e3)?;
    dict.set_item("age", age.as_secs_f64())?;
    dict.set_item("timestamp", at.map(DateTime::<Utc>::from))
}

fn alert_to_dict<'py>(py: Python<'py>, alert: &Alert) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("alert_id", alert.id.to_string())?;
    dict.set_item("service_name", &alert.check)?;
    dict.set_item("level", alert.level.as_str())?;
    dict.set_item("message", &alert.message)?;
    dict.set_item("details", to_python(py, &alert.details)?)?;
    dict.set_item("failures", alert.failures)?;
    dict.set_item("timestamp", DateTime::<Utc>::from(alert.raised_at))?;
    dict.set_item("resolved_at", alert.resolved_at.map(DateTime::<Utc>::from))?;
    Ok(dict)
}

fn to_python<'py>(py: Python<'py>, details: &Map<String, Value>) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let text = serde_json::to_string(details).expect("a JSON value is a JSON text");
    LOADS.import(py, "json", "loads")?.call1((text,))
}
