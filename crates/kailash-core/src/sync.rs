//! The atomics of the machines, which a model checker can replace.

#[cfg(all(kailash_loom, test))]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(not(all(kailash_loom, test)))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
