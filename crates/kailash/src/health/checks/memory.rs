//! How much of the memory is in use.

use kailash_core::config::share;
use sysinfo::System;

use crate::ConfigError;
use crate::health::{BoxFuture, Check, Outcome, Run};

/// From which share of the memory on it is no longer well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryConfig {
    /// The share in use from which on it is degraded, above 0 and up to 1; 0.8 by default.
    pub degraded_at: f64,
    /// The share in use from which on it is unhealthy, above 0 and up to 1; 0.95 by default.
    pub unhealthy_at: f64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            degraded_at: 0.8,
            unhealthy_at: 0.95,
        }
    }
}

/// A check of the memory of this machine, or of its control group where that has a limit.
///
/// ```
/// use kailash::health::checks::{Memory, MemoryConfig};
///
/// let memory = Memory::new(MemoryConfig::default())?;
/// # let _ = memory;
/// # Ok::<(), kailash::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Memory(MemoryConfig);

impl Memory {
    /// A check with these limits.
    ///
    /// # Errors
    /// When a share is out of range, or the limits are in the wrong order.
    pub fn new(config: MemoryConfig) -> Result<Self, ConfigError> {
        share("degraded_at", Some(config.degraded_at))?;
        share("unhealthy_at", Some(config.unhealthy_at))?;
        if config.unhealthy_at < config.degraded_at {
            let allowed = format!("at least degraded_at ({})", config.degraded_at);
            return Err(ConfigError::new(
                "unhealthy_at",
                config.unhealthy_at,
                allowed,
            ));
        }
        Ok(Self(config))
    }

    fn judge(&self, used: u64, total: u64) -> Outcome {
        if total == 0 {
            return Outcome::unknown("the system does not tell its memory");
        }
        let share = used as f64 / total as f64;
        let message = format!("{:.1} % of the memory is in use", share * 100.0);
        let outcome = if share >= self.0.unhealthy_at {
            Outcome::unhealthy(message)
        } else if share >= self.0.degraded_at {
            Outcome::degraded(message)
        } else {
            Outcome::healthy().message(message)
        };
        outcome
            .detail("used_bytes", used)
            .detail("total_bytes", total)
    }
}

impl Check for Memory {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            // What the system tells is quickly read, but from files.
            match run.on_thread(memory).await {
                Ok(Some((used, total))) => self.judge(used, total),
                Ok(None) => Outcome::unknown("the system does not tell its memory"),
                Err(no_answer) => no_answer,
            }
        })
    }
}

/// Bytes in use and in all: of the control group where it has a limit of its own.
fn memory() -> Option<(u64, u64)> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let total = system.total_memory();
    match system.cgroup_limits() {
        Some(group) if group.total_memory < total => {
            let used = group.total_memory.saturating_sub(group.free_memory);
            Some((used, group.total_memory))
        }
        _ => Some((total.saturating_sub(system.available_memory()), total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Status;

    #[test]
    fn a_limit_is_reached_from_the_share_itself_on() {
        let memory = Memory::new(MemoryConfig::default()).unwrap();
        for (used, status) in [
            (799, Status::Healthy),
            (800, Status::Degraded),
            (949, Status::Degraded),
            (950, Status::Unhealthy),
        ] {
            assert_eq!(memory.judge(used, 1000).status, status, "{used}");
        }
        assert_eq!(memory.judge(0, 0).status, Status::Unknown);
    }

    #[tokio::test]
    async fn the_memory_of_this_machine_is_told() {
        let memory = Memory::new(MemoryConfig {
            degraded_at: 1.0,
            unhealthy_at: 1.0,
        });
        let limit = std::time::Duration::from_secs(60);
        let finished = crate::health::run_once(std::sync::Arc::new(memory.unwrap()), limit).await;
        let outcome = finished.outcome;
        assert_eq!(outcome.status, Status::Healthy, "{outcome:?}");
        let bytes = |name: &str| outcome.details[name].as_u64().unwrap();
        assert!(bytes("used_bytes") > 0 && bytes("used_bytes") < bytes("total_bytes"));
    }

    #[test]
    fn limits_out_of_range_or_order_are_refused() {
        for (degraded_at, unhealthy_at, field) in [
            (0.0, 0.9, "degraded_at"),
            (0.8, 1.1, "unhealthy_at"),
            (0.8, 0.7, "unhealthy_at"),
        ] {
            let config = MemoryConfig {
                degraded_at,
                unhealthy_at,
            };
            assert_eq!(Memory::new(config).unwrap_err().field, field);
        }
    }
}
