//! A breaker's settings, to and from Python.

use std::time::Duration;

use kailash::circuit_breaker::{Config, State, WindowKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::{self, Settings};

pub(super) fn read_config(settings: &Bound<'_, PyAny>) -> PyResult<Config> {
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

pub(super) fn config_to_dict<'py>(
    py: Python<'py>,
    config: &Config,
) -> PyResult<Bound<'py, PyDict>> {
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
