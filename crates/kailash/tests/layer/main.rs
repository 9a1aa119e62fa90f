//! What the tower layers promise.

#![expect(clippy::unwrap_used, reason = "a test")]

mod bulkhead;
mod circuit_breaker;
mod dependency;
