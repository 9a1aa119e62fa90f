//! Circuit breakers, bulkhead partitions and health monitoring for services on tokio.

pub mod clock;

pub use kailash_core::config::ConfigError;
