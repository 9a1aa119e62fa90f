//! Breakers by key, all of which are judged alike.

use std::sync::Arc;

use kailash::circuit_breaker::{CircuitBreaker as Breaker, Counts, KeyCounts, Keyed, KeyedConfig};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::config::read_config;
use super::judge::Judge;
use super::{CircuitBreaker, Durations};
use crate::config::{self, Settings, raise};
use crate::histogram::HistogramSnapshot;

/// The breakers of one group.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct KeyedCircuitBreakers {
    keyed: Keyed,
    judge: Py<Judge>,
    durations: Arc<Durations>,
}

impl KeyedCircuitBreakers {
    pub(super) fn over(py: Python<'_>, keyed: Keyed) -> PyResult<Self> {
        Ok(Self {
            keyed,
            judge: Py::new(py, Judge::default())?,
            durations: Arc::default(),
        })
    }

    fn of_key(&self, py: Python<'_>, breaker: Breaker) -> CircuitBreaker {
        CircuitBreaker {
            breaker,
            durations: Arc::clone(&self.durations),
            is_of_group: true,
            judge: self.judge.clone_ref(py),
        }
    }
}

#[pymethods]
impl KeyedCircuitBreakers {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.judge)
    }

    /// As `CircuitBreaker.judge_by`, for the breakers of all keys.
    fn judge_by(
        &self,
        neutral: &Bound<'_, PyTuple>,
        is_failure: Option<Py<PyAny>>,
        retry_after: Option<Py<PyAny>>,
    ) {
        let judge = self.judge.get();
        judge.judge_by(neutral, is_failure, retry_after);
    }

    /// The breaker of this key, made if there is none.
    fn get(&self, py: Python<'_>, key: &str) -> CircuitBreaker {
        self.of_key(py, self.keyed.get(key))
    }

    /// The breaker of this key, if there is one.
    fn find(&self, py: Python<'_>, key: &str) -> Option<CircuitBreaker> {
        let found = self.keyed.find(key);
        found.map(|breaker| self.of_key(py, breaker))
    }

    /// Forgets the breaker of this key, and answers it if there was one.
    fn remove(&self, py: Python<'_>, key: &str) -> Option<CircuitBreaker> {
        let removed = self.keyed.remove(key);
        removed.map(|breaker| self.of_key(py, breaker))
    }

    /// Whether this key has a breaker.
    fn holds(&self, key: &str) -> bool {
        self.keyed.find(key).is_some()
    }

    /// How many keys have one.
    fn len(&self) -> usize {
        self.keyed.len()
    }

    fn forget_idle(&self) -> usize {
        self.keyed.forget_idle()
    }

    fn reconfigure(&self, settings: &Bound<'_, PyAny>) -> PyResult<()> {
        let changed = self.keyed.reconfigure(read_keyed_config(settings)?);
        changed.map_err(|error| raise(settings.py(), &error, None))
    }

    fn reset_all(&self) {
        self.keyed.reset_all();
        self.durations.reset();
    }

    /// What all keys together are now, by name.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seen = self.keyed.snapshot();
        let dict = PyDict::new(py);
        dict.set_item("keys", seen.keys)?;
        dict.set_item("open", seen.open)?;
        dict.set_item("half_open", seen.half_open)?;
        dict.set_item("forgotten", seen.forgotten)?;
        dict.set_item("counts", counts(py, &seen.counts)?)?;
        Ok(dict)
    }

    /// How long the calls of all keys took since the last reset.
    fn durations(&self) -> HistogramSnapshot {
        HistogramSnapshot(self.keyed.durations())
    }

    /// As `durations`, but no reset sets it back.
    fn all_durations(&self) -> HistogramSnapshot {
        HistogramSnapshot(self.keyed.all_durations())
    }

    /// The group as metrics, by name.
    fn series<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let series = self.keyed.series();
        let listed = series.listed.iter().map(|key| key_counts(py, key));
        let dict = PyDict::new(py);
        dict.set_item("total", counts(py, &series.total)?)?;
        dict.set_item("listed", listed.collect::<PyResult<Vec<_>>>()?)?;
        dict.set_item("other", counts(py, &series.other)?)?;
        Ok(dict)
    }

    /// In a forked child: frees the slots of probes whose callers are the parent's.
    fn forget_calls_in_flight(&self) {
        self.keyed.abandon_probes();
    }
}

pub(super) fn counts<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("calls", counts.calls)?;
    dict.set_item("failures", counts.failures)?;
    dict.set_item("slow_calls", counts.slow_calls)?;
    dict.set_item("rejections", counts.rejections)?;
    dict.set_item("openings", counts.openings)?;
    Ok(dict)
}

fn key_counts<'py>(py: Python<'py>, key: &KeyCounts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("breaker", &*key.breaker)?;
    dict.set_item("state", key.state.as_str())?;
    dict.set_item("counts", counts(py, &key.counts)?)?;
    dict.set_item("since_listed", counts(py, &key.since_listed)?)?;
    Ok(dict)
}

pub(super) fn read_keyed_config(settings: &Bound<'_, PyAny>) -> PyResult<KeyedConfig> {
    let breaker = read_config(&settings.getattr("breaker")?)?;
    let build = |settings: &Settings<'_, '_>| {
        Ok(KeyedConfig {
            breaker: breaker.clone(),
            capacity: settings.whole("capacity")?,
            idle_timeout: settings.seconds("idle_timeout")?,
            failures_kept: settings.seconds("failures_kept")?,
            series: settings.whole("series")?,
        })
    };
    config::read(settings, build, KeyedConfig::validate)
}

/// Checks the settings of a group of keys.
#[pyfunction]
pub(crate) fn check_keyed_config(settings: &Bound<'_, PyAny>) -> PyResult<()> {
    read_keyed_config(settings).map(drop)
}
