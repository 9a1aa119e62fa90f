//! How a partition is set up.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use super::limit::MOST_SLOTS;
use crate::config::{ConfigError, in_range, positive};

/// How one partition is set up.
///
/// ```
/// use kailash_core::bulkhead::{PartitionConfig, PartitionType};
///
/// let config = PartitionConfig {
///     max_concurrent_operations: 20,
///     ..PartitionConfig::new("orders", PartitionType::Database)
/// };
/// assert!(config.validate().is_ok());
///
/// let wrong = PartitionConfig { max_concurrent_operations: 0, ..config };
/// assert_eq!(wrong.validate().unwrap_err().field, "max_concurrent_operations");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionConfig {
    /// The partition's name: 1 to 128 characters, none of them a control character.
    pub name: String,
    /// What the partition is for. It chooses the defaults in [`PartitionConfig::new`] and nothing else.
    pub partition_type: PartitionType,
    /// How many calls may run at once: 1 to 1,000,000.
    pub max_concurrent_operations: u32,
    /// How many calls may wait for a slot: 0 (nobody waits) to 1,000,000.
    pub queue_size: u32,
    /// How long a call may take, waiting and running together: above zero, or `None` for no end.
    pub timeout: Option<Duration>,
    /// The priority of a call that names none: 1 (most urgent) to 10.
    pub priority: u8,
    /// How many threads may run blocking work: 1 to 10,000, or `None` for one per slot, at most 10,000.
    pub max_threads: Option<u32>,
    /// How many connections a pool inside the partition may open: 1 to 10,000, or `None` for the pool's
    /// own default.
    pub max_connections: Option<u32>,
    /// Whether a newcomer to a full queue pushes out a waiter of a lower priority. Default true.
    pub evict_lower_priority: bool,
    /// In which order calls of one priority leave the queue. Default first come, first served.
    pub queue_order: QueueOrder,
    /// Whether a call that finds no free slot is refused when less time is left of its timeout than half of
    /// the newest calls took: instead of waiting, or, where that comes while it waits, when a slot of the
    /// partition is next handed over. Default false.
    ///
    /// The newest calls are the last 32 that ended within a minute; fewer than 8 say nothing. It costs
    /// two looks at the clock per call.
    pub reject_hopeless: bool,
}

const MOST_THREADS: u32 = 10_000;
const MOST_CONNECTIONS: u32 = 10_000;
const LONGEST_NAME: usize = 128;

impl PartitionConfig {
    /// The defaults of this type.
    ///
    /// | type | slots | queue | timeout | priority |
    /// |---|---|---|---|---|
    /// | critical | 5 | 20 | 10 s | 1 |
    /// | database | 20 | 100 | 30 s | 2 |
    /// | api | 50 | 100 | 15 s | 3 |
    /// | cpu_bound | 5 | 50 | 60 s | 4 |
    /// | io_bound, custom | 10 | 100 | 30 s | 5 |
    /// | background | 10 | 200 | 120 s | 8 |
    pub fn new(name: impl Into<String>, partition_type: PartitionType) -> Self {
        let (slots, queue_size, timeout, priority) = match partition_type {
            PartitionType::Critical => (5, 20, 10, 1),
            PartitionType::Database => (20, 100, 30, 2),
            PartitionType::Api => (50, 100, 15, 3),
            PartitionType::CpuBound => (5, 50, 60, 4),
            PartitionType::IoBound | PartitionType::Custom => (10, 100, 30, 5),
            PartitionType::Background => (10, 200, 120, 8),
        };
        Self {
            name: name.into(),
            partition_type,
            max_concurrent_operations: slots,
            queue_size,
            timeout: Some(Duration::from_secs(timeout)),
            priority,
            max_threads: None,
            max_connections: None,
            evict_lower_priority: true,
            queue_order: QueueOrder::Fifo,
            reject_hopeless: false,
        }
    }

    /// The number of threads that may run blocking work.
    #[must_use]
    pub fn threads(&self) -> u32 {
        let slots = self.max_concurrent_operations.min(MOST_THREADS);
        self.max_threads.unwrap_or(slots)
    }

    /// Checks every field, and gives the default priority of a call.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<Priority, ConfigError> {
        let length = self.name.chars().count();
        if !(1..=LONGEST_NAME).contains(&length) || self.name.contains(char::is_control) {
            let allowed = "1 to 128 characters, none of them a control character";
            return Err(ConfigError::new(
                "name",
                format_args!("{:?}", self.name),
                allowed,
            ));
        }
        let slots = self.max_concurrent_operations;
        in_range("max_concurrent_operations", slots, 1..=MOST_SLOTS)?;
        in_range("queue_size", self.queue_size, 0..=MOST_SLOTS)?;
        if let Some(timeout) = self.timeout {
            positive("timeout", timeout)?;
        }
        if let Some(threads) = self.max_threads {
            in_range("max_threads", threads, 1..=MOST_THREADS)?;
        }
        if let Some(connections) = self.max_connections {
            in_range("max_connections", connections, 1..=MOST_CONNECTIONS)?;
        }
        Priority::new(self.priority)
    }
}

/// What a partition is for, which chooses its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// Work that keeps a processor busy.
    CpuBound,
    /// Work that waits for something else.
    IoBound,
    /// What must go on when all else is refused.
    Critical,
    /// What may be late.
    Background,
    /// Anything else.
    Custom,
    /// Calls to a database.
    Database,
    /// Calls to a service.
    Api,
}

impl PartitionType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::CpuBound,
        Self::IoBound,
        Self::Critical,
        Self::Background,
        Self::Custom,
        Self::Database,
        Self::Api,
    ];

    /// The type's word in files, JSON and Python.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CpuBound => "cpu_bound",
            Self::IoBound => "io_bound",
            Self::Critical => "critical",
            Self::Background => "background",
            Self::Custom => "custom",
            Self::Database => "database",
            Self::Api => "api",
        }
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PartitionType {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.into_iter().find(|t| t.as_str() == word);
        let allowed = "cpu_bound, io_bound, critical, background, custom, database or api";
        found.ok_or_else(|| ConfigError::new("partition_type", format_args!("{word:?}"), allowed))
    }
}

/// In which order calls of one priority leave the queue.
///
/// Whatever the order, every 20th start goes to the longest waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QueueOrder {
    /// First come, first served.
    #[default]
    Fifo,
    /// First come, first served; last come, first served once the queue has not been empty for 100 ms.
    ///
    /// Under an overload that lasts, the newest callers still have time left, and the oldest do not.
    AdaptiveLifo,
}

impl QueueOrder {
    /// Every order.
    pub const ALL: [Self; 2] = [Self::Fifo, Self::AdaptiveLifo];

    /// The order's word in files, JSON and Python.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::AdaptiveLifo => "adaptive_lifo",
        }
    }
}

impl fmt::Display for QueueOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for QueueOrder {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.into_iter().find(|order| order.as_str() == word);
        let allowed = "fifo or adaptive_lifo";
        found.ok_or_else(|| ConfigError::new("queue_order", format_args!("{word:?}"), allowed))
    }
}

/// How urgent a call is: 1 is the most urgent, 10 the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// The most urgent.
    pub const MOST_URGENT: Self = Self(1);
    /// The least urgent.
    pub const LEAST_URGENT: Self = Self(10);

    /// A priority from 1 to 10.
    ///
    /// # Errors
    /// When `priority` is 0 or above 10.
    pub fn new(priority: u8) -> Result<Self, ConfigError> {
        in_range("priority", u32::from(priority), 1..=10)?;
        Ok(Self(priority))
    }

    /// The priority as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn refused(change: impl FnOnce(&mut PartitionConfig)) -> &'static str {
        let mut config = PartitionConfig::new("p", PartitionType::Custom);
        change(&mut config);
        config.validate().unwrap_err().field
    }

    #[test]
    fn every_field_out_of_range_is_named() {
        assert_eq!(refused(|c| c.name.clear()), "name");
        assert_eq!(refused(|c| c.name = "a\0b".to_string()), "name");
        assert_eq!(refused(|c| c.name = "n".repeat(129)), "name");
        let slots = "max_concurrent_operations";
        assert_eq!(refused(|c| c.max_concurrent_operations = 0), slots);
        assert_eq!(refused(|c| c.max_concurrent_operations = u32::MAX), slots);
        assert_eq!(refused(|c| c.queue_size = u32::MAX), "queue_size");
        assert_eq!(refused(|c| c.timeout = Some(Duration::ZERO)), "timeout");
        assert_eq!(refused(|c| c.priority = 0), "priority");
        assert_eq!(refused(|c| c.priority = 11), "priority");
        assert_eq!(refused(|c| c.max_threads = Some(0)), "max_threads");
        assert_eq!(refused(|c| c.max_threads = Some(u32::MAX)), "max_threads");
        assert_eq!(refused(|c| c.max_connections = Some(0)), "max_connections");
    }

    #[test]
    fn the_ends_of_every_range_are_allowed() {
        let config = PartitionConfig {
            max_concurrent_operations: MOST_SLOTS,
            queue_size: MOST_SLOTS,
            timeout: Some(Duration::MAX),
            ..PartitionConfig::new("n".repeat(128), PartitionType::Custom)
        };
        assert!(config.validate().is_ok());
        assert_eq!(config.threads(), MOST_THREADS);
    }

    #[test]
    fn the_defaults_of_every_type_are_valid() {
        for partition_type in PartitionType::ALL {
            let config = PartitionConfig::new("p", partition_type);
            assert!(config.validate().is_ok(), "{partition_type}");
            assert_eq!(partition_type.as_str().parse(), Ok(partition_type));
            assert_eq!(partition_type.to_string(), partition_type.as_str());
        }
        assert!("API".parse::<PartitionType>().is_err());
    }

    #[test]
    fn every_order_is_its_word() {
        for order in QueueOrder::ALL {
            assert_eq!(order.as_str().parse(), Ok(order));
        }
        let error = "lifo".parse::<QueueOrder>().unwrap_err();
        assert_eq!(error.field, "queue_order");
    }
}
