//! Settings as Python gives them: their types, and errors that name field, value and what is allowed.

use std::time::Duration;

use kailash::ConfigError;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyType};

/// A Python object whose attributes are the fields of a config.
pub(crate) struct Settings<'a, 'py> {
    object: &'a Bound<'py, PyAny>,
    /// What a whole number becomes that no `u32` can hold.
    beyond: u32,
}

impl<'py> Settings<'_, 'py> {
    fn get(&self, field: &'static str) -> PyResult<Bound<'py, PyAny>> {
        self.object.getattr(field)
    }

    fn optional<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&Self, &'static str) -> PyResult<T>,
    ) -> PyResult<Option<T>> {
        if self.get(field)?.is_none() {
            return Ok(None);
        }
        read(self, field).map(Some)
    }

    pub(crate) fn whole(&self, field: &'static str) -> PyResult<u32> {
        let value = self.get(field)?;
        let py = value.py();
        let index = py.import("operator")?.getattr("index")?;
        let number = match index.call1((&value,)) {
            Ok(number) if !value.is_instance_of::<PyBool>() => number,
            _ => return Err(wrong_type(field, &value, "a whole number")),
        };
        Ok(number.extract().unwrap_or(self.beyond))
    }

    pub(crate) fn optional_whole(&self, field: &'static str) -> PyResult<Option<u32>> {
        self.optional(field, Self::whole)
    }

    pub(crate) fn number(&self, field: &'static str) -> PyResult<f64> {
        let value = self.get(field)?;
        number(field, &value)
    }

    pub(crate) fn optional_number(&self, field: &'static str) -> PyResult<Option<f64>> {
        self.optional(field, Self::number)
    }

    pub(crate) fn seconds(&self, field: &'static str) -> PyResult<Duration> {
        let value = self.get(field)?;
        seconds(field, &value)
    }

    pub(crate) fn optional_seconds(&self, field: &'static str) -> PyResult<Option<Duration>> {
        self.optional(field, Self::seconds)
    }

    pub(crate) fn flag(&self, field: &'static str) -> PyResult<bool> {
        let value = self.get(field)?;
        let flag = value.cast::<PyBool>();
        flag.map(|flag| flag.is_true())
            .map_err(|_| wrong_type(field, &value, "True or False"))
    }

    /// One of a few values by its name.
    pub(crate) fn choice<T: Copy, const N: usize>(
        &self,
        field: &'static str,
        choices: [(&'static str, T); N],
    ) -> PyResult<T> {
        let value = self.get(field)?;
        // A member of an enum stands for its value.
        let name = value.getattr("value").unwrap_or_else(|_| value.clone());
        let name: Option<String> = name.extract().ok();
        let chosen = choices
            .iter()
            .find(|(known, _)| Some(*known) == name.as_deref());
        let (_, choice) = chosen.ok_or_else(|| {
            let known: Vec<_> = choices.iter().map(|(known, _)| *known).collect();
            let allowed = known.join(" or ");
            match name {
                Some(name) => raise(
                    value.py(),
                    &ConfigError::new(field, name, allowed),
                    Some(value.clone()),
                ),
                None => wrong_type(field, &value, &allowed),
            }
        })?;
        Ok(*choice)
    }

    pub(crate) fn text(&self, field: &'static str) -> PyResult<String> {
        let value = self.get(field)?;
        value
            .extract()
            .map_err(|_| wrong_type(field, &value, "a text"))
    }
}

/// Builds a config from the attributes of `object` and checks it.
///
/// # Errors
/// `ConfigError` or `ConfigTypeError` of Python, with the value as it was given.
pub(crate) fn read<T>(
    object: &Bound<'_, PyAny>,
    build: impl Fn(&Settings<'_, '_>) -> PyResult<T>,
    check: impl Fn(&T) -> Result<(), ConfigError>,
) -> PyResult<T> {
    // A number beyond u32 is wrong at the lower or at the upper end of every range.
    for beyond in [0, u32::MAX] {
        let config = build(&Settings { object, beyond })?;
        check(&config).map_err(|error| {
            let given = object.getattr(error.field).ok();
            raise(object.py(), &error, given)
        })?;
    }
    build(&Settings { object, beyond: 0 })
}

/// The number of an argument.
pub(crate) fn number(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(field, value, "a number"));
    }
    match value.extract::<f64>() {
        // A whole number too large for any range.
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            let is_negative = value.lt(0)?;
            Ok(f64::INFINITY.copysign(if is_negative { -1.0 } else { 1.0 }))
        }
        read => read.map_err(|_| wrong_type(field, value, "a number")),
    }
}

/// The duration of an argument in seconds.
pub(crate) fn seconds(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds = number(field, value)?;
    if !seconds.is_finite() || seconds < 0.0 {
        let error = ConfigError::new(field, seconds, "a finite number of seconds, 0 or more");
        return Err(raise(value.py(), &error, Some(value.clone())));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// The Python exception of a wrong value; `given` is the value as Python knows it.
pub(crate) fn raise(py: Python<'_>, error: &ConfigError, given: Option<Bound<'_, PyAny>>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "kailash.core.resilience.config", "ConfigError");
    let exception = class.and_then(|class| match given {
        Some(given) => class.call1((error.field, given, &error.allowed)),
        None => class.call1((error.field, &error.value, &error.allowed)),
    });
    exception.map_or_else(|failed| failed, PyErr::from_value)
}

pub(crate) fn wrong_type(field: &str, given: &Bound<'_, PyAny>, allowed: &str) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(
        given.py(),
        "kailash.core.resilience.config",
        "ConfigTypeError",
    );
    let exception = class.and_then(|class| class.call1((field, given, allowed)));
    exception.map_or_else(|failed| failed, PyErr::from_value)
}
