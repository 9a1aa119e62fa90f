//! The machines of Kailash Resilience: what a circuit breaker, a partition and a health monitor decide.
//!
//! Nothing here reads a clock, draws a random number, waits, or calls back. Time and chance come in
//! as arguments, news goes out as a value, so that tokio, asyncio, a simulation and a fleet can all
//! drive the same rules. The crate is `no_std`, needs `alloc`, and depends on nothing.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bulkhead;
pub mod circuit_breaker;
pub mod config;
pub mod health;
pub mod ratio;
pub mod time;

mod once_box;
mod sync;
