//! A reference that a thread keeps for its next call.
//!
//! The next call takes it along and gives it back, so that a thread which keeps to one breaker counts no
//! references in the long run: that would be two atomic operations for each call, half of what it costs, on a
//! word that all threads share.

use std::cell::Cell;
use std::sync::Arc;
use std::thread::LocalKey;

/// Where a thread keeps a reference.
pub(crate) type Spare<T> = Cell<Option<Arc<T>>>;

/// A reference to `wanted`: the one that is kept, if it is one, else a new one.
#[inline]
pub(crate) fn take<T: ?Sized>(spare: &'static LocalKey<Spare<T>>, wanted: &Arc<T>) -> Arc<T> {
    match spare.try_with(Cell::take) {
        Ok(Some(kept)) if Arc::ptr_eq(&kept, wanted) => kept,
        other => take_new(other.ok().flatten(), wanted),
    }
}

#[cold]
fn take_new<T: ?Sized>(other: Option<Arc<T>>, wanted: &Arc<T>) -> Arc<T> {
    drop(other);
    Arc::clone(wanted)
}

/// Keeps a reference in place of the one kept so far. A thread that ends keeps none.
#[inline]
pub(crate) fn keep<T: ?Sized>(spare: &'static LocalKey<Spare<T>>, reference: Arc<T>) {
    let _ = spare.try_with(|spare| {
        if let Some(other) = spare.replace(Some(reference)) {
            drop_other(other);
        }
    });
}

#[cold]
fn drop_other<T: ?Sized>(other: Arc<T>) {
    drop(other);
}
