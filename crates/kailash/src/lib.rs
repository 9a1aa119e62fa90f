//! Circuit breakers, bulkhead partitions and health monitoring for services on tokio.

pub mod bulkhead;
mod chance;
pub mod circuit_breaker;
pub mod clock;
pub mod health;
pub mod histogram;
#[cfg(feature = "tower")]
pub mod layer;
mod name;
pub mod near_miss;
pub mod redact;
pub mod refusal;
mod spare;
#[cfg(feature = "sql")]
pub mod sql;

pub use kailash_core::config::ConfigError;
pub use name::Name;

/// The README's examples, as tests.
#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
