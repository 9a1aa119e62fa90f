//! Partitions by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use kailash_core::config::{ConfigError, in_range};

use super::line::Ceiling;
use super::{Drained, Partition, PartitionConfig, PartitionType, UnknownPartition};
use crate::clock::Clock;

/// Partitions by name; clones are handles to the same ones.
///
/// ```
/// use kailash::bulkhead::{Manager, PartitionConfig, PartitionType};
///
/// let partitions = Manager::with_defaults();
/// let database = partitions.get("database").unwrap();
/// let limit = || database.snapshot().limit;
/// assert_eq!(limit(), 20);
///
/// let config = PartitionConfig { max_concurrent_operations: 5, ..database.config() };
/// partitions.configure(config).unwrap();
/// assert_eq!(limit(), 5);
///
/// let error = partitions.get("datbase").unwrap_err();
/// assert!(error.to_string().contains("database"));
/// ```
#[derive(Clone)]
pub struct Manager(Arc<Registry>);

struct Registry {
    partitions: RwLock<BTreeMap<Arc<str>, Partition>>,
    clock: Clock,
    ceiling: Option<Arc<Ceiling>>,
}

/// How full the ceiling over all partitions of a manager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CeilingSnapshot {
    /// Calls that run, in all partitions together.
    pub active: u32,
    /// How many may.
    pub limit: u32,
    /// Partitions in which somebody waits for nothing but the ceiling.
    pub held_up: u32,
    /// The most calls that ran at once.
    pub peak_active: u32,
}

impl Manager {
    /// No partitions yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::monotonic())
    }

    /// No partitions yet; those to come are on this clock.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self(Arc::new(Registry {
            partitions: RwLock::default(),
            clock,
            ceiling: None,
        }))
    }

    /// Partitions configured like these, new ones, of which no more than `limit` calls may run at once in
    /// all of them together: 1 to 1,000,000.
    ///
    /// Each partition's own limit and queue hold as before. When the ceiling is reached, calls wait in the
    /// queues of their partitions, and a call that ends lets the most urgent start of all that only the
    /// ceiling holds up: under overload, what is less urgent yields. Every 20th start goes to the longest
    /// waiting, so that nobody starves. A caller that comes while another is being refused because of the
    /// ceiling may find its partition full for that moment, and be refused as `Busy` or wait.
    ///
    /// ```
    /// use kailash::bulkhead::{Manager, Reason};
    ///
    /// let partitions = Manager::with_defaults().under_ceiling(2).unwrap();
    /// let [database, background] = ["database", "background"].map(|n| partitions.get(n).unwrap());
    /// let permits = (database.try_acquire().unwrap(), background.try_acquire().unwrap());
    /// assert_eq!(database.try_acquire().unwrap_err().reason, Reason::Ceiling);
    /// drop(permits);
    /// assert_eq!(partitions.ceiling().unwrap().peak_active, 2);
    /// ```
    ///
    /// # Errors
    /// When `limit` is out of its range.
    #[expect(
        clippy::missing_panics_doc,
        reason = "the configurations are valid already"
    )]
    pub fn under_ceiling(&self, limit: u32) -> Result<Self, ConfigError> {
        let limit = check_ceiling(limit)?;
        let manager = Self(Arc::new(Registry {
            partitions: RwLock::default(),
            clock: self.0.clock.clone(),
            ceiling: Some(Arc::new(Ceiling::new(limit))),
        }));
        for partition in self.partitions() {
            let configured = manager.configure(partition.config());
            configured.expect("it is a partition's already");
        }
        Ok(manager)
    }

    /// How full the ceiling is, if there is one.
    #[must_use]
    pub fn ceiling(&self) -> Option<CeilingSnapshot> {
        let slots = &self.0.ceiling.as_ref()?.slots;
        let occupancy = slots.occupancy();
        Some(CeilingSnapshot {
            active: occupancy.active,
            limit: occupancy.limit,
            held_up: occupancy.queued,
            peak_active: slots.peak(),
        })
    }

    /// Changes the ceiling live. A lower one takes effect as calls end; a higher one starts waiters at once.
    ///
    /// # Errors
    /// When `limit` is out of its range, or this manager was made without a ceiling.
    pub fn set_ceiling(&self, limit: u32) -> Result<(), ConfigError> {
        let limit = check_ceiling(limit)?;
        let Some(ceiling) = &self.0.ceiling else {
            let allowed = "none, since the manager was made without one,";
            return Err(ConfigError::new("ceiling", limit, allowed));
        };
        ceiling.set_limit(limit, self.0.clock.now());
        Ok(())
    }

    /// The partitions critical, database, api, compute and background.
    ///
    /// | name | slots | queue | timeout | priority | threads |
    /// |---|---|---|---|---|---|
    /// | critical | 5 | 20 | 10 s | 1 | 5 |
    /// | database | 20 | 100 | 30 s | 2 | 20 |
    /// | api | 50 | 100 | 15 s | 3 | 25 |
    /// | compute | 5 | 50 | 60 s | 4 | 4 |
    /// | background | 10 | 200 | 120 s | 8 | 10 |
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the defaults are valid")]
    pub fn with_defaults() -> Self {
        let manager = Self::new();
        let defaults = [
            ("critical", PartitionType::Critical, None),
            ("database", PartitionType::Database, None),
            ("api", PartitionType::Api, Some(25)),
            ("compute", PartitionType::CpuBound, Some(4)),
            ("background", PartitionType::Background, None),
        ];
        for (name, partition_type, max_threads) in defaults {
            let config = PartitionConfig {
                max_threads,
                ..PartitionConfig::new(name, partition_type)
            };
            manager.configure(config).expect("the defaults are valid");
        }
        manager
    }

    /// Creates the partition of this name, or changes its whole configuration live.
    ///
    /// Calls that run keep their slots and those that wait their places. A closed partition is replaced
    /// by a new one.
    ///
    /// # Errors
    /// When a field of `config` is out of its range.
    pub fn configure(&self, config: PartitionConfig) -> Result<Partition, ConfigError> {
        let partitions = self.0.partitions.write();
        let mut partitions = partitions.unwrap_or_else(PoisonError::into_inner);
        if let Some(partition) = partitions.get(config.name.as_str())
            && !partition.0.slots.occupancy().is_closed
        {
            let partition = partition.clone();
            // Waiters and subscribers are woken, who may use this manager.
            drop(partitions);
            partition.reconfigure(config)?;
            return Ok(partition);
        }
        let (clock, ceiling) = (self.0.clock.clone(), self.0.ceiling.as_ref());
        let partition = Partition::under(ceiling, config, clock)?;
        let name = Arc::clone(&partition.0.name);
        let replaced = partitions.insert(name, partition.clone());
        drop(partitions);
        // Its end wakes its subscribers.
        drop(replaced);
        Ok(partition)
    }

    /// The partition of this name.
    ///
    /// # Errors
    /// When there is none; the error lists the names that there are.
    pub fn get(&self, name: &str) -> Result<Partition, UnknownPartition> {
        let partitions = self.0.partitions.read();
        let partitions = partitions.unwrap_or_else(PoisonError::into_inner);
        let found = partitions.get(name).cloned();
        found.ok_or_else(|| UnknownPartition {
            name: name.to_owned(),
            known: partitions.keys().cloned().collect(),
        })
    }

    /// All partitions, sorted by name.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let partitions = self.0.partitions.read();
        let partitions = partitions.unwrap_or_else(PoisonError::into_inner);
        partitions.values().cloned().collect()
    }

    /// Closes all partitions at once and waits until their last slots are given back, at most this long.
    ///
    /// Dropping the future leaves them closed.
    pub async fn shutdown(&self, within: Duration) -> Vec<Drained> {
        let partitions = self.partitions();
        let drains = partitions
            .iter()
            .map(|partition| partition.shutdown(within));
        join_all(drains).await
    }
}

fn check_ceiling(limit: u32) -> Result<u32, ConfigError> {
    in_range("ceiling", limit, 1..=1_000_000)
}

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Manager").field(&self.partitions()).finish()
    }
}
