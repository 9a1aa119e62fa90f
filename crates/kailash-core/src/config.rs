//! What is wrong with a configuration, and the checks that find it.

use alloc::format;
use alloc::string::{String, ToString};
use core::error::Error;
use core::fmt;
use core::ops::RangeInclusive;
use core::time::Duration;

use crate::ratio::Ratio;

/// A configuration value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field's name, the same in Rust, Python and TOML.
    pub field: &'static str,
    /// The value that was given.
    pub value: String,
    /// What is allowed instead.
    pub allowed: String,
}

impl ConfigError {
    /// An error of this field.
    pub fn new(field: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self {
            field,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            allowed,
        } = self;
        write!(f, "{field}: {value} is not allowed, {allowed} is")
    }
}

impl Error for ConfigError {}

/// Accepts a whole number within a range.
///
/// # Errors
/// When `value` lies outside `range`.
pub fn in_range(
    field: &'static str,
    value: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let allowed = format!("{} to {}", range.start(), range.end());
    Err(ConfigError::new(field, value, allowed))
}

/// Accepts a share above 0 and up to 1; `None` stays off.
///
/// # Errors
/// When the share is outside that range, or not a number.
pub fn share(field: &'static str, value: Option<f64>) -> Result<Option<Ratio>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let ratio = Ratio::new(value);
    let error = || ConfigError::new(field, value, "above 0 and up to 1");
    ratio.map(Some).ok_or_else(error)
}

/// Accepts a duration that is longer than zero.
///
/// # Errors
/// When it is zero.
pub fn positive(field: &'static str, value: Duration) -> Result<Duration, ConfigError> {
    if value.is_zero() {
        return Err(ConfigError::new(field, "0s", "a duration above zero"));
    }
    Ok(value)
}
