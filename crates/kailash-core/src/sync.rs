//! The atomics of the machines, which a model checker can replace.

#[cfg(all(kailash_loom, test))]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

#[cfg(all(kailash_shuttle, test))]
pub(crate) use shuttle::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

#[cfg(not(all(any(kailash_loom, kailash_shuttle), test)))]
pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Lets another thread go on, where this one waits for it to finish an instruction or two.
#[inline]
pub(crate) fn relax() {
    #[cfg(all(kailash_loom, test))]
    loom::thread::yield_now();
    #[cfg(all(kailash_shuttle, test))]
    shuttle::thread::yield_now();
    #[cfg(not(all(any(kailash_loom, kailash_shuttle), test)))]
    core::hint::spin_loop();
}
