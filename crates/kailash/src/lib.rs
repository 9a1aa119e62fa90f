//! Circuit breakers, bulkhead partitions and health monitoring for services on tokio.
//!
//! # Features
//! None is on by default.
//!
//! - `tower`: breakers and partitions as layers (`layer`).
//! - `sql`, `redis`, `http`, `system`: checks of databases, Redis, HTTP services and memory (`health::checks`);
//!   `sql` also database URLs, `http` also answers of `reqwest`.
//!
//! `http` builds `reqwest` with its feature `rustls-no-provider`, which spares everybody the build of aws-lc, and cargo gives
//! a crate the features that anybody in the build asks for. If your own `reqwest` has its default features, or
//! `rustls`, nothing changes. If it is built without, `reqwest::Client::new()` panics ("No rustls crypto
//! provider is configured") until `main` has chosen one:
//! `rustls::crypto::ring::default_provider().install_default()`. What this crate asks by itself needs none.

pub mod bulkhead;
mod chance;
pub mod circuit_breaker;
pub mod clock;
mod foreign;
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
