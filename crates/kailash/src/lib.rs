//! Circuit breakers, bulkhead partitions and health monitoring for services on tokio.

pub mod bulkhead;
mod chance;
pub mod circuit_breaker;
pub mod clock;
pub mod health;
pub mod redact;
#[cfg(feature = "sql")]
pub mod sql;

pub use kailash_core::config::ConfigError;
