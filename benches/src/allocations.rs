//! An allocator that counts when it is asked to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, and counters of the calling thread.
pub struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);

thread_local! {
    static COUNTED: Cell<Counted> = const { Cell::new(Counted { allocations: 0, bytes: 0 }) };
}

/// What a piece of work asked of the allocator.
#[derive(Clone, Copy)]
pub struct Counted {
    pub allocations: u64,
    /// Bytes that it holds afterwards.
    pub bytes: i64,
}

fn count(allocations: u64, bytes: i64) {
    // Off while times are taken: what is left then is one load and a branch that is never taken.
    if IS_COUNTING.load(Ordering::Relaxed) {
        let counted = COUNTED.get();
        COUNTED.set(Counted {
            allocations: counted.allocations + allocations,
            bytes: counted.bytes + bytes,
        });
    }
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller keeps the promises of `dealloc`, and `place` came from `System`.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Counts what the calling thread allocates during `work`.
pub fn count_during<T>(work: impl FnOnce() -> T) -> (T, Counted) {
    COUNTED.set(Counted {
        allocations: 0,
        bytes: 0,
    });
    IS_COUNTING.store(true, Ordering::Relaxed);
    let result = work();
    IS_COUNTING.store(false, Ordering::Relaxed);
    (result, COUNTED.get())
}
