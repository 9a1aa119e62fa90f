//! What a breaker is told, and what of it is allowed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::time::Duration;

use super::state::State;
use crate::config::{self, ConfigError};
use crate::ratio::Ratio;

/// What the rates look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WindowKind {
    /// The newest `window_size` calls, however old.
    #[default]
    Count,
    /// The calls that ended within the last `window_duration`, however many.
    Time,
}

impl WindowKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Count, Self::Time];

    /// The kind's name as it is written in JSON, TOML and Python: `count` or `time`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Time => "time",
        }
    }
}

/// The settings of a circuit breaker.
///
/// A plain struct: take [`Config::default`] and change what differs. Whatever takes a config checks
/// it once, and refuses values outside the ranges below.
///
/// ```
/// use core::time::Duration;
/// use kailash_core::circuit_breaker::Config;
///
/// let config = Config {
///     failure_threshold: 10,
///     recovery_timeout: Duration::from_secs(5),
///     ..Config::default()
/// };
/// assert!(config.validate().is_ok());
///
/// let wrong = Config { window_size: 0, ..Config::default() };
/// assert_eq!(wrong.validate().unwrap_err().field, "window_size");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Failures in a row that open the breaker: 1 to 1,000,000, default 5.
    pub failure_threshold: u32,
    /// Successful probes that close it again: 1 to 10,000, default 3.
    pub success_threshold: u32,
    /// How long the first opening in a row lasts: above zero, default 60 s.
    pub recovery_timeout: Duration,
    /// The longest an opening lasts after backoff and jitter, default 10 min. One that is shorter
    /// than `recovery_timeout` counts as equal to it.
    pub max_recovery_timeout: Duration,
    /// Probes that may be in flight at once while half-open: 1 to 1,024, default 3.
    pub half_open_requests: u32,
    /// Share of failed calls in the window that opens the breaker: above 0 and up to 1, default 0.5;
    /// `None` switches the rule off.
    pub error_rate_threshold: Option<f64>,
    /// Whether the rates look at the newest calls or at those of the last seconds: default the
    /// newest calls.
    pub window: WindowKind,
    /// How many of the newest calls a count window holds: 1 to 65,536, default 100.
    pub window_size: u32,
    /// How far back a time window reaches: 10 ms to 24 h, default 60 s. It moves on in steps of a
    /// sixteenth.
    pub window_duration: Duration,
    /// Calls in the window before a rate is looked at: 1 or more, default 10; in a count window more
    /// than `window_size` counts as equal to it.
    pub min_calls_before_evaluation: u32,
    /// A call that takes at least this long is slow: default 5 s; `None` switches slow calls off.
    pub slow_call_threshold: Option<Duration>,
    /// Share of slow calls in the window that opens the breaker: above 0 and up to 1, default 0.8;
    /// `None` switches slow calls off, as it does at `slow_call_threshold`.
    pub slow_call_rate_threshold: Option<f64>,
    /// Whether a call counts as slow while it still runs, once it has run for `slow_call_threshold`, so
    /// that a dependency that hangs opens the breaker before its calls end: default false. Looked at
    /// when another call is admitted, and up to a quarter of the threshold late. If the call fails in
    /// the end, it is a failed one too. Without slow calls it does nothing.
    pub overdue_calls_enabled: bool,
    /// How long a probe may take before it loses its slot and counts as failed: default 60 s; zero
    /// sets no limit.
    pub max_wait_duration_in_half_open: Duration,
    /// Each opening in a row lasts this many times as long as the one before: 1 to 1,000, default 2.
    pub exponential_backoff_multiplier: f64,
    /// Whether each opening is lengthened or shortened by chance: default true.
    pub jitter_enabled: bool,
    /// The largest share by which jitter moves an opening: 0 to 1, default 0.1.
    pub max_jitter_percentage: f64,
    /// A cancelled call that ran at least this long is a failure, one that ran less is neutral:
    /// default 1 s; zero counts each, `None` counts none.
    pub cancelled_counts_after: Option<Duration>,
    /// Whether the probes' success is followed by a ramp before the breaker closes: 5 %, 25 % and 50 %
    /// of the calls, picked by chance, each until `min_calls_before_evaluation` of them have ended, or
    /// in a time window one has after `window_duration`, and the rules of a closed breaker have found
    /// no fault: default false.
    pub ramp_enabled: bool,
    /// The state to start in: default closed. Open begins its wait when it is first looked at.
    pub initial_state: State,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failure_threshold: 5,
            success_threshold: 3,
            recovery_timeout: Duration::from_secs(60),
            max_recovery_timeout: Duration::from_secs(600),
            half_open_requests: 3,
            error_rate_threshold: Some(0.5),
            window: WindowKind::Count,
            window_size: 100,
            window_duration: Duration::from_secs(60),
            min_calls_before_evaluation: 10,
            slow_call_threshold: Some(Duration::from_secs(5)),
            slow_call_rate_threshold: Some(0.8),
            overdue_calls_enabled: false,
            max_wait_duration_in_half_open: Duration::from_secs(60),
            exponential_backoff_multiplier: 2.0,
            jitter_enabled: true,
            max_jitter_percentage: 0.1,
            cancelled_counts_after: Some(Duration::from_secs(1)),
            ramp_enabled: false,
            initial_state: State::Closed,
        }
    }
}

impl Config {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// Names the first field that is out of range, its value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.checked().map(drop)
    }

    /// The fields in which two configs differ: name, value here, value there.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let (ours, theirs) = (self.fields(), other.fields());
        let pairs = ours.into_iter().zip(theirs);
        pairs
            .filter(|((_, here), (_, there))| here != there)
            .map(|((field, here), (_, there))| (field, here, there))
            .collect()
    }

    fn fields(&self) -> [(&'static str, String); 20] {
        // Destructured, so that a new field cannot be forgotten here.
        let Self {
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
            initial_state,
        } = self;
        let show = |value: &dyn Debug| format!("{value:?}");
        let share = |value: &Option<f64>| value.map_or("off".into(), |value| format!("{value}"));
        let span =
            |value: &Option<Duration>| value.map_or("off".into(), |value| format!("{value:?}"));
        [
            ("failure_threshold", show(failure_threshold)),
            ("success_threshold", show(success_threshold)),
            ("recovery_timeout", show(recovery_timeout)),
            ("max_recovery_timeout", show(max_recovery_timeout)),
            ("half_open_requests", show(half_open_requests)),
            ("error_rate_threshold", share(error_rate_threshold)),
            ("window", window.as_str().into()),
            ("window_size", show(window_size)),
            ("window_duration", show(window_duration)),
            (
                "min_calls_before_evaluation",
                show(min_calls_before_evaluation),
            ),
            ("slow_call_threshold", span(slow_call_threshold)),
            ("slow_call_rate_threshold", share(slow_call_rate_threshold)),
            ("overdue_calls_enabled", show(overdue_calls_enabled)),
            (
                "max_wait_duration_in_half_open",
                show(max_wait_duration_in_half_open),
            ),
            (
                "exponential_backoff_multiplier",
                show(exponential_backoff_multiplier),
            ),
            ("jitter_enabled", show(jitter_enabled)),
            ("max_jitter_percentage", show(max_jitter_percentage)),
            ("cancelled_counts_after", span(cancelled_counts_after)),
            ("ramp_enabled", show(ramp_enabled)),
            ("initial_state", initial_state.as_str().into()),
        ]
    }

    pub(super) fn checked(&self) -> Result<Checked, ConfigError> {
        let window_size = config::in_range("window_size", self.window_size, 1..=65_536)?;
        let shortest = Duration::from_millis(10);
        let longest = Duration::from_secs(24 * 3600);
        if !(shortest..=longest).contains(&self.window_duration) {
            let given = format!("{:?}", self.window_duration);
            return Err(ConfigError::new("window_duration", given, "10ms to 24h"));
        }
        let window = match self.window {
            WindowKind::Count => Window::Calls(window_size),
            WindowKind::Time => Window::Span(self.window_duration),
        };
        let min_calls = config::in_range(
            "min_calls_before_evaluation",
            self.min_calls_before_evaluation,
            1..=u32::MAX,
        )?;
        let recovery = config::positive("recovery_timeout", self.recovery_timeout)?;
        let multiplier = self.exponential_backoff_multiplier;
        let field = "exponential_backoff_multiplier";
        number_in(field, multiplier, 1.0, 1000.0)?;
        let jitter = self.max_jitter_percentage;
        number_in("max_jitter_percentage", jitter, 0.0, 1.0)?;
        let slow_rate = config::share("slow_call_rate_threshold", self.slow_call_rate_threshold)?;
        Ok(Checked {
            failure_threshold: config::in_range(
                "failure_threshold",
                self.failure_threshold,
                1..=1_000_000,
            )?,
            success_threshold: config::in_range(
                "success_threshold",
                self.success_threshold,
                1..=10_000,
            )?,
            half_open_requests: config::in_range(
                "half_open_requests",
                self.half_open_requests,
                1..=1024,
            )?,
            window,
            min_calls: match window {
                Window::Calls(most) => min_calls.min(most),
                Window::Span(_) => min_calls,
            },
            error_rate: config::share("error_rate_threshold", self.error_rate_threshold)?,
            slow_call: self.slow_call_threshold.zip(slow_rate),
            overdue_calls: self.overdue_calls_enabled,
            recovery_timeout: recovery,
            max_recovery_timeout: self.max_recovery_timeout.max(recovery),
            probe_lease: self.max_wait_duration_in_half_open,
            multiplier,
            jitter: if self.jitter_enabled { jitter } else { 0.0 },
            cancelled_counts_after: self.cancelled_counts_after,
            ramp: self.ramp_enabled,
        })
    }
}

fn number_in(field: &'static str, value: f64, least: f64, most: f64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(field, value, format!("{least} to {most}")))
}

/// A config whose values have been found right.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) failure_threshold: u32,
    pub(super) success_threshold: u32,
    pub(super) half_open_requests: u32,
    pub(super) window: Window,
    /// At most what the window can hold.
    pub(super) min_calls: u32,
    pub(super) error_rate: Option<Ratio>,
    /// Present when slow calls can open the breaker.
    pub(super) slow_call: Option<(Duration, Ratio)>,
    pub(super) overdue_calls: bool,
    pub(super) recovery_timeout: Duration,
    pub(super) max_recovery_timeout: Duration,
    pub(super) probe_lease: Duration,
    pub(super) multiplier: f64,
    /// Zero when jitter is off.
    pub(super) jitter: f64,
    pub(super) cancelled_counts_after: Option<Duration>,
    pub(super) ramp: bool,
}

/// What the rates look at, with the extent that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    Calls(u32),
    Span(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        let ok = Config::default();
        let check = |config: Config, text: &str| {
            let error = config.validate().expect_err(text);
            assert_eq!(alloc::string::ToString::to_string(&error), text);
        };
        check(
            Config {
                failure_threshold: 0,
                ..ok.clone()
            },
            "failure_threshold: 0 is not allowed, 1 to 1000000 is",
        );
        check(
            Config {
                success_threshold: 10_001,
                ..ok.clone()
            },
            "success_threshold: 10001 is not allowed, 1 to 10000 is",
        );
        check(
            Config {
                half_open_requests: 1025,
                ..ok.clone()
            },
            "half_open_requests: 1025 is not allowed, 1 to 1024 is",
        );
        check(
            Config {
                window_size: 65_537,
                ..ok.clone()
            },
            "window_size: 65537 is not allowed, 1 to 65536 is",
        );
        check(
            Config {
                window_duration: Duration::from_millis(9),
                ..ok.clone()
            },
            "window_duration: 9ms is not allowed, 10ms to 24h is",
        );
        check(
            Config {
                min_calls_before_evaluation: 0,
                ..ok.clone()
            },
            "min_calls_before_evaluation: 0 is not allowed, 1 to 4294967295 is",
        );
        check(
            Config {
                error_rate_threshold: Some(0.0),
                ..ok.clone()
            },
            "error_rate_threshold: 0 is not allowed, above 0 and up to 1 is",
        );
        check(
            Config {
                slow_call_rate_threshold: Some(f64::NAN),
                ..ok.clone()
            },
            "slow_call_rate_threshold: NaN is not allowed, above 0 and up to 1 is",
        );
        check(
            Config {
                recovery_timeout: Duration::ZERO,
                ..ok.clone()
            },
            "recovery_timeout: 0s is not allowed, a duration above zero is",
        );
        check(
            Config {
                exponential_backoff_multiplier: 0.5,
                ..ok.clone()
            },
            "exponential_backoff_multiplier: 0.5 is not allowed, 1 to 1000 is",
        );
        check(
            Config {
                max_jitter_percentage: f64::INFINITY,
                ..ok
            },
            "max_jitter_percentage: inf is not allowed, 0 to 1 is",
        );
    }

    #[test]
    fn two_configs_differ_in_the_fields_that_differ() {
        let ok = Config::default();
        assert_eq!(ok.differences(&ok), []);
        let other = Config {
            failure_threshold: 10,
            slow_call_threshold: None,
            initial_state: State::Open,
            ..ok.clone()
        };
        let (from, to) = (String::from, String::from);
        assert_eq!(
            ok.differences(&other),
            [
                ("failure_threshold", from("5"), to("10")),
                ("slow_call_threshold", from("5s"), to("off")),
                ("initial_state", from("closed"), to("open")),
            ]
        );
    }

    #[test]
    fn extreme_values_are_taken() {
        let config = Config {
            recovery_timeout: Duration::MAX,
            max_recovery_timeout: Duration::MAX,
            slow_call_threshold: Some(Duration::MAX),
            max_wait_duration_in_half_open: Duration::MAX,
            cancelled_counts_after: Some(Duration::MAX),
            window_duration: Duration::from_secs(86_400),
            ..Config::default()
        };
        assert!(config.validate().is_ok());
    }
}
