//! Bulkhead: a partition's slots, its queue, and who may start next.
//!
//! A partition lets `max_concurrent_operations` calls run at once and `queue_size` more wait. Two
//! structures decide it together:
//!
//! * [`Slots`], one atomic word of *active*, *queued*, *limit* and *closed*. A free slot is taken and
//!   given back by one compare-and-swap, without a lock and without an allocation.
//! * [`Queue`], who waits, in order. It is a `&mut self` structure; the lock around it belongs to a
//!   shell, and every change of *queued* and *limit* is made while holding that lock.
//!
//! ```text
//!            queued = 0 and active < limit
//!  newcomer ────────────────────────────────► running ──► release ──► slot free
//!      │                                         ▲           │ queued > 0
//!      └──► waiting ─────────────────────────────┴───────────┘ handed over, never free in between
//!              └──► left, expired, evicted, closed: never starts
//! ```
//!
//! Partitions may stand under a common ceiling: [`Queues`] then holds all their queues.
//!
//! # Why no wake-up is lost and nobody barges
//!
//! Whenever the lock is free, **queued > 0 implies active >= limit**. A newcomer is counted as queued
//! by a compare-and-swap that succeeds only on a word without a free slot. Outside the lock *active*
//! falls only in a word with queued = 0 or active > limit, which keeps the rule; any other release
//! must take the lock, where the slot goes straight to the next waiter and *active* does not move. A
//! raised limit is filled from the queue before the lock is dropped. So somebody who will release is
//! running as long as anybody waits; and since a slot is taken without the lock only from a word
//! with queued = 0, no newcomer passes a waiter.

pub use ceiling::{Decided, Denied, Member, Queues};
pub use config::{PartitionConfig, PartitionType, Priority, QueueOrder};
pub use limit::{Occupancy, Released, Slots};
pub use queue::{Entry, HandOver, Queue, Ticket};
pub use runs::Runs;

mod ceiling;
#[cfg(all(test, not(kailash_loom)))]
mod ceiling_model;
mod config;
mod limit;
#[cfg(all(test, kailash_loom))]
mod loom_tests;
#[cfg(all(test, not(kailash_loom)))]
mod model;
mod queue;
mod runs;
