//! How a monitor and its checks are set up, and when a check runs.

use core::time::Duration;

use crate::config::{ConfigError, in_range, positive};
use crate::time::{Timestamp, nanos};

/// The share of an interval by which a start may move to either side, so that the checks of many
/// processes do not fall together.
pub const JITTER: f64 = 0.1;

const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
const HIGHEST_THRESHOLD: u32 = 1_000_000;

/// What holds for every check of a monitor that does not say otherwise.
///
/// ```
/// use kailash_core::health::Config;
///
/// let config = Config { alert_threshold: 2, ..Config::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// From the start of one run to the start of the next, at least 1 ms; 30 s by default.
    pub check_interval: Duration,
    /// How many failures in a row raise an alert, 1 to 1,000,000; 3 by default.
    pub alert_threshold: u32,
}

impl Config {
    /// Accepts this config.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        interval(self.check_interval)?;
        threshold(self.alert_threshold)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            check_interval: Duration::from_secs(30),
            alert_threshold: 3,
        }
    }
}

/// How one check is run and what its failure means.
///
/// ```
/// use core::time::Duration;
/// use kailash_core::health::CheckConfig;
///
/// let cache = CheckConfig {
///     timeout: Duration::from_secs(1),
///     critical: false,
///     ..CheckConfig::default()
/// };
/// assert!(cache.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    /// How long one run may take in all, above zero; 5 s by default.
    pub timeout: Duration,
    /// Whether the whole is unhealthy when this is; true by default.
    pub critical: bool,
    /// An interval of its own, at least 1 ms; the monitor's by default.
    pub check_interval: Option<Duration>,
    /// A threshold of its own, 1 to 1,000,000; the monitor's by default.
    pub alert_threshold: Option<u32>,
}

impl CheckConfig {
    /// Accepts this config.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        positive("timeout", self.timeout)?;
        self.check_interval.map_or(Ok(()), interval)?;
        self.alert_threshold.map_or(Ok(()), threshold)
    }
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            critical: true,
            check_interval: None,
            alert_threshold: None,
        }
    }
}

/// When a check runs again that started at `started`; `draw` is a random number from 0 up to 1.
///
/// ```
/// use core::time::Duration;
/// use kailash_core::{health::next_start, time::Timestamp};
///
/// let interval = Duration::from_secs(30);
/// let middle = next_start(Timestamp::ZERO, interval, 0.5);
/// assert_eq!(middle, Timestamp::ZERO + interval);
/// ```
#[must_use]
pub fn next_start(started: Timestamp, check_interval: Duration, draw: f64) -> Timestamp {
    let share = 1.0 + JITTER * (2.0 * draw - 1.0);
    // A float this large is rounded, by less than a microsecond in a century.
    let delay = nanos(check_interval) as f64 * share;
    started + Duration::from_nanos(delay as u64)
}

/// Whether a result of that time is too old to be told without asking again.
#[must_use]
pub fn is_due(checked: Timestamp, check_interval: Duration, now: Timestamp) -> bool {
    now.since(checked) > check_interval
}

fn interval(check_interval: Duration) -> Result<(), ConfigError> {
    if check_interval >= SHORTEST_INTERVAL {
        return Ok(());
    }
    let value = alloc::format!("{check_interval:?}");
    let allowed = "at least 1ms";
    Err(ConfigError::new("check_interval", value, allowed))
}

fn threshold(alert_threshold: u32) -> Result<(), ConfigError> {
    in_range("alert_threshold", alert_threshold, 1..=HIGHEST_THRESHOLD).map(drop)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_allowed() {
        let config = Config {
            check_interval: Duration::ZERO,
            ..Config::default()
        };
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(error, "check_interval: 0ns is not allowed, at least 1ms is");
        let config = Config {
            alert_threshold: 0,
            ..Config::default()
        };
        assert_eq!(config.validate().unwrap_err().field, "alert_threshold");
        for (config, field) in [
            (
                CheckConfig {
                    timeout: Duration::ZERO,
                    ..CheckConfig::default()
                },
                "timeout",
            ),
            (
                CheckConfig {
                    check_interval: Some(Duration::ZERO),
                    ..CheckConfig::default()
                },
                "check_interval",
            ),
            (
                CheckConfig {
                    alert_threshold: Some(1_000_001),
                    ..CheckConfig::default()
                },
                "alert_threshold",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn starts_spread_by_a_tenth_to_either_side() {
        let interval = Duration::from_secs(30);
        let started = Timestamp::ZERO + interval;
        let delay = |draw| next_start(started, interval, draw).since(started);
        assert_eq!(delay(0.0), Duration::from_secs(27));
        assert_eq!(delay(0.5), interval);
        assert!(delay(0.999) < Duration::from_secs(33));
        assert_eq!(next_start(started, Duration::MAX, 0.999), Timestamp::NEVER);
    }

    #[test]
    fn a_result_is_due_once_it_is_older_than_the_interval() {
        let interval = Duration::from_secs(30);
        let now = Timestamp::ZERO + interval;
        assert!(!is_due(Timestamp::ZERO, interval, now));
        assert!(is_due(
            Timestamp::ZERO,
            interval,
            now + Duration::from_nanos(1)
        ));
    }
}
