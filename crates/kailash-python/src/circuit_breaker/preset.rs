//! Settings by name, where one may build on another.

use kailash::circuit_breaker::{Overrides, PresetError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::config::read_config;
use crate::config::raise;

/// What a preset says itself: the fields of `settings` that are `said`.
pub(super) fn read_overrides(
    base: Option<String>,
    settings: &Bound<'_, PyAny>,
    said: &[String],
) -> PyResult<Overrides> {
    let config = read_config(settings)?;
    macro_rules! overrides {
        ($($field:ident),*) => {
            Overrides {
                base,
                $($field: said.iter().any(|field| field == stringify!($field)).then_some(config.$field)),*
            }
        };
    }
    // Whole, so that a new field cannot be forgotten here.
    Ok(overrides!(
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
        initial_state
    ))
}

pub(super) fn raise_preset(py: Python<'_>, error: &PresetError) -> PyErr {
    match error {
        PresetError::Config { error, .. } => raise(py, error, None),
        PresetError::Unknown { .. } | PresetError::Circle { .. } => {
            PyValueError::new_err(error.to_string())
        }
    }
}
