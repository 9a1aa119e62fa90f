//! Circuit breakers, bulkhead partitions and health monitoring for services on tokio.

pub mod bulkhead;
mod chance;
pub mod circuit_breaker;
pub mod clock;
pub mod health;
pub mod histogram;
#[cfg(feature = "tower")]
pub mod layer;
pub mod near_miss;
pub mod redact;
#[cfg(feature = "sql")]
pub mod sql;

pub use kailash_core::config::ConfigError;

/// The README's examples, as tests.
#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
