//! How long things took, for Python.

use std::time::Duration;

use kailash::ConfigError;
use kailash::histogram::Snapshot;
use pyo3::prelude::*;

use crate::config;

/// Durations counted by length, at one moment; all in seconds.
///
/// A bucket is an eighth of an octave wide, from a microsecond to an hour, so that a quantile is at
/// most an eighth too long.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct HistogramSnapshot(pub(crate) Snapshot);

#[pymethods]
impl HistogramSnapshot {
    /// How many durations were recorded.
    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    /// All durations together.
    #[getter]
    fn sum(&self) -> f64 {
        self.0.sum().as_secs_f64()
    }

    /// The mean; 0 if there are none.
    #[getter]
    fn mean(&self) -> f64 {
        self.0.mean().as_secs_f64()
    }

    /// The duration that this share (0 to 1) of them does not exceed, at most an eighth too long; 0
    /// if there are none.
    fn quantile(&self, share: &Bound<'_, PyAny>) -> PyResult<f64> {
        let given = share;
        let share = config::number("share", given)?;
        if !(0.0..=1.0).contains(&share) {
            let error = ConfigError::new("share", share, "0 to 1");
            return Err(config::raise(given.py(), &error, Some(given.clone())));
        }
        Ok(self.0.quantile(share).as_secs_f64())
    }

    /// The buckets that hold anything: the upper bound of each, and how many durations do not exceed
    /// it. They are cumulative, as Prometheus wants them, whose `+Inf` is the count; but a bucket is here
    /// once it holds something: choose a few bounds, and take for each the count of the last up to it.
    fn cumulative(&self) -> Vec<(f64, u64)> {
        in_seconds(self.0.cumulative())
    }

    /// How many durations do not exceed each of 31 bounds, which double from 2.048 µs to 37 min and
    /// are always the same: the buckets of a metric, whose series must not come and go. Its last
    /// one, `+Inf`, is `count`.
    fn octaves(&self) -> Vec<(f64, u64)> {
        in_seconds(self.0.octaves())
    }

    fn __repr__(&self) -> String {
        let (count, mean) = (self.0.count(), self.mean());
        format!("<HistogramSnapshot of {count}, mean {mean} s>")
    }
}

fn in_seconds(buckets: impl Iterator<Item = (Duration, u64)>) -> Vec<(f64, u64)> {
    let seconds = |(upper, count): (Duration, u64)| (upper.as_secs_f64(), count);
    buckets.map(seconds).collect()
}
