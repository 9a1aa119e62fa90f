//! When failures become an alert.

use core::fmt;

use super::Status;

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertLevel {
    /// To know, not to act.
    Info,
    /// To act on in working hours.
    Warning,
    /// To act on now.
    Critical,
    /// Beyond what one service can mend.
    Fatal,
}

impl AlertLevel {
    /// The word for it, the same everywhere: `info`, `warning`, `critical`, `fatal`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Fatal => "fatal",
        }
    }
}

impl fmt::Display for AlertLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The threshold is reached: an incident begins.
    Raised(AlertLevel),
    /// The incident is over.
    Resolved,
}

/// The failures in a row of one check, and the incident they raise.
///
/// A degraded result is a success, an unknown one changes nothing: who cannot say proves neither.
///
/// ```
/// use kailash_core::health::{AlertLevel, Incident, News, Status};
///
/// let mut incident = Incident::new(true);
/// assert_eq!(incident.record(Status::Unhealthy, 2), None);
/// let raised = incident.record(Status::Unhealthy, 2);
/// assert_eq!(raised, Some(News::Raised(AlertLevel::Critical)));
/// assert_eq!(incident.record(Status::Unhealthy, 2), None);
/// assert_eq!(incident.record(Status::Healthy, 2), Some(News::Resolved));
/// ```
#[derive(Clone, Debug)]
pub struct Incident {
    critical: bool,
    failures: u32,
    open: bool,
}

impl Incident {
    /// No failure so far, of a check that is critical or not.
    #[must_use]
    pub const fn new(critical: bool) -> Self {
        Self {
            critical,
            failures: 0,
            open: false,
        }
    }

    /// Takes a result; the threshold may change between two results.
    pub fn record(&mut self, status: Status, alert_threshold: u32) -> Option<News> {
        match status {
            Status::Unknown => None,
            Status::Healthy | Status::Degraded => {
                self.failures = 0;
                self.close()
            }
            Status::Unhealthy => {
                self.failures = self.failures.saturating_add(1);
                if self.open || self.failures < alert_threshold {
                    return None;
                }
                self.open = true;
                Some(News::Raised(if self.critical {
                    AlertLevel::Critical
                } else {
                    AlertLevel::Warning
                }))
            }
        }
    }

    /// Ends an open incident, as when its check goes away.
    pub fn close(&mut self) -> Option<News> {
        core::mem::take(&mut self.open).then_some(News::Resolved)
    }

    /// Failures in a row up to now.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether an alert is raised and not resolved.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const STATUSES: [Status; 4] = [
        Status::Healthy,
        Status::Degraded,
        Status::Unhealthy,
        Status::Unknown,
    ];

    /// Every sequence of results up to a length, against the rule said in another way.
    #[test]
    fn raised_and_resolved_take_turns_in_every_sequence() {
        for threshold in 1..=3 {
            walk(threshold, &mut Vec::new());
        }
    }

    fn walk(threshold: u32, sequence: &mut Vec<Status>) {
        let mut incident = Incident::new(true);
        let mut open = false;
        for (at, status) in sequence.iter().enumerate() {
            let known = sequence[..=at].iter().filter(|&&s| s != Status::Unknown);
            let failing = known.rev().take_while(|s| !s.is_healthy()).count();
            let should_open = match status {
                Status::Unknown => open,
                _ => failing > 0 && (open || failing >= threshold as usize),
            };
            let expected = match (open, should_open) {
                (false, true) => Some(News::Raised(AlertLevel::Critical)),
                (true, false) => Some(News::Resolved),
                _ => None,
            };
            assert_eq!(
                incident.record(*status, threshold),
                expected,
                "{sequence:?}"
            );
            open = should_open;
            assert_eq!(incident.is_open(), open);
            assert_eq!(incident.failures() as usize, failing);
        }
        if sequence.len() < 6 {
            for status in STATUSES {
                sequence.push(status);
                walk(threshold, sequence);
                sequence.pop();
            }
        }
    }

    #[test]
    fn a_lower_threshold_takes_hold_with_the_next_failure() {
        let mut incident = Incident::new(false);
        assert_eq!(incident.record(Status::Unhealthy, 100), None);
        let raised = incident.record(Status::Unhealthy, 2);
        assert_eq!(raised, Some(News::Raised(AlertLevel::Warning)));
    }

    #[test]
    fn a_level_is_written_as_its_word() {
        let levels = [
            AlertLevel::Info,
            AlertLevel::Warning,
            AlertLevel::Critical,
            AlertLevel::Fatal,
        ];
        let words = levels.map(|level| std::format!("{level}"));
        assert_eq!(words, ["info", "warning", "critical", "fatal"]);
    }

    #[test]
    fn closing_resolves_once() {
        let mut incident = Incident::new(true);
        assert_eq!(incident.close(), None);
        let _ = incident.record(Status::Unhealthy, 1);
        assert_eq!(incident.close(), Some(News::Resolved));
        assert_eq!(incident.close(), None);
    }
}
