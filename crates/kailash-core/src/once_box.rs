//! A box that is filled at most once, from a shared reference, without a lock.
//!
//! `OnceLock` needs an operating system to wait on, and the machines are `no_std`; a race here is
//! settled by one compare-exchange instead, and the loser's box is dropped.
//!
//! The unsafe code rests on two facts, which a loom test below walks: a pointer that is not null
//! came from `Box::into_raw` and was published by a compare-exchange with release ordering; and
//! nobody takes it back before `drop`, which owns the box alone.

#![expect(
    unsafe_code,
    reason = "core has no shared cell that can be filled once without a lock"
)]

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr;

use crate::sync::{AtomicPtr, Ordering};

pub(crate) struct OnceBox<T> {
    value: AtomicPtr<T>,
    owns: PhantomData<Box<T>>,
}

impl<T: Send + Sync> OnceBox<T> {
    pub(crate) fn new() -> Self {
        Self {
            value: AtomicPtr::new(ptr::null_mut()),
            owns: PhantomData,
        }
    }

    /// The value, if there is one.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        let value = self.value.load(Ordering::Acquire);
        // SAFETY: null, or a published box that lives until `self` is dropped, which the borrow of
        // `self` rules out. Acquire pairs with the release that published its contents.
        unsafe { value.as_ref() }
    }

    /// The value, made now if there was none.
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let made = Box::into_raw(Box::new(make()));
        let published =
            self.value
                .compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        let winner = match published {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: the exchange failed, so nobody else has seen this box.
                drop(unsafe { Box::from_raw(made) });
                other
            }
        };
        // SAFETY: as in `get`; an exchange only fails when another box was published.
        unsafe { &*winner }
    }
}

impl<T: Send + Sync> Default for OnceBox<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for OnceBox<T> {
    fn drop(&mut self) {
        let value = self.value.load(Ordering::Acquire);
        if !value.is_null() {
            // SAFETY: published by `get_or_init`, and `&mut self` means no reference is left.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use alloc::sync::Arc;

    use super::*;

    #[test]
    fn it_is_filled_once_and_dropped_once() {
        let value = Arc::new(7);
        let cell = OnceBox::new();
        assert!(cell.get().is_none());
        assert_eq!(**cell.get_or_init(|| Arc::clone(&value)), 7);
        assert_eq!(**cell.get_or_init(|| unreachable!("it is filled")), 7);
        assert_eq!(Arc::strong_count(&value), 2);
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

#[cfg(all(test, kailash_loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn two_threads_see_the_same_value_and_the_other_one_is_dropped() {
        loom::model(|| {
            let cell = Arc::new(OnceBox::new());
            let made = Arc::new(());
            let racers = [1, 2].map(|mark| {
                let (cell, made) = (Arc::clone(&cell), Arc::clone(&made));
                thread::spawn(move || cell.get_or_init(|| (mark, made)).0)
            });
            let [a, b] = racers.map(|racer| racer.join().unwrap());
            assert_eq!(a, b);
            assert_eq!(cell.get().unwrap().0, a);
            drop(cell);
            assert_eq!(Arc::strong_count(&made), 1);
        });
    }
}
