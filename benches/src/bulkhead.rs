//! Bulkheads: a free slot taken and given back, and none left.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
use kailash::layer::bulkhead as kailash_layer;
use tokio::sync::Semaphore;
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_bulkhead::BulkheadLayer;

use crate::measure::{
    Suite, Table,
    Whose::{self, Floor, Ours, Peer},
    block_on,
};

pub fn add(suite: &mut Suite) {
    free(&mut suite.table("bulkhead, a free slot, 1 thread"));
    free(&mut suite.table_of_two("bulkhead, a free slot, 2 threads"));
    full(&mut suite.table("bulkhead full, 1 thread"));
}

const SLOTS: usize = 100;

fn partition(slots: u32) -> Partition {
    let config = PartitionConfig {
        max_concurrent_operations: slots,
        ..PartitionConfig::new("dependency", PartitionType::Custom)
    };
    Partition::new(config).expect("the config is right")
}

fn free(table: &mut Table<'_>) {
    let word = AtomicU64::new(0);
    let change = move |by: u64| {
        let seen = word.load(Ordering::Relaxed);
        let new = seen.wrapping_add(by);
        word.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Relaxed)
    };
    table.case(Floor, "2 compare-exchanges of one word", move |calls| {
        for _ in 0..calls {
            while change(1).is_err() {}
            while change(u64::MAX).is_err() {}
        }
    });
    let slots = partition(SLOTS as u32);
    table.case(Ours, "kailash, try_acquire", move |calls| {
        for _ in 0..calls {
            black_box(&slots.try_acquire());
        }
    });
    let slots = partition(SLOTS as u32);
    table.case(Ours, "kailash, run", move |calls| {
        block_on(async {
            for _ in 0..calls {
                black_box(&slots.run(async { black_box(1) }).await);
            }
        });
    });
    let layer = kailash_layer::BulkheadLayer::new(partition(SLOTS as u32));
    requests(
        table,
        Ours,
        "kailash, tower layer",
        layer.layer(service_fn(serve)),
    );
    let semaphore = Semaphore::new(SLOTS);
    table.case(Peer, "tokio's Semaphore, try_acquire", move |calls| {
        for _ in 0..calls {
            black_box(&semaphore.try_acquire());
        }
    });
    let limit = ConcurrencyLimit::new(service_fn(serve), SLOTS);
    requests(table, Peer, "tower's ConcurrencyLimit", limit);
    let layer = BulkheadLayer::builder().max_concurrent_calls(SLOTS).build();
    let layer = layer.expect("the config is right");
    requests(
        table,
        Peer,
        "tower-resilience",
        layer.layer(service_fn(serve)),
    );
}

fn full(table: &mut Table<'_>) {
    let word = AtomicU64::new(0);
    table.case(Floor, "acquiring load", move |calls| {
        for _ in 0..calls {
            black_box(word.load(Ordering::Acquire));
        }
    });
    let slots = partition(1);
    let held = slots.clone().try_acquire_owned().expect("it is free");
    table.case(Ours, "kailash, try_acquire", move |calls| {
        let _held = &held;
        for _ in 0..calls {
            black_box(&slots.try_acquire().is_err());
        }
    });
    let slots = partition(1);
    let layer = kailash_layer::BulkheadLayer::new(slots.clone()).rejecting();
    std::mem::forget(slots.try_acquire_owned().expect("it is free"));
    requests(
        table,
        Ours,
        "kailash, tower layer",
        layer.layer(service_fn(serve)),
    );
    let semaphore = Semaphore::new(0);
    table.case(Peer, "tokio's Semaphore, try_acquire", move |calls| {
        for _ in 0..calls {
            black_box(&semaphore.try_acquire().is_err());
        }
    });
    let limit = ConcurrencyLimit::new(service_fn(serve), 1);
    let mut held = limit.clone();
    block_on(async { held.ready().await.map(drop) }).expect("the only slot is free");
    // What is ready and not called holds its slot; forgotten, it does so for good.
    std::mem::forget(held);
    requests(
        table,
        Peer,
        "tower's LoadShed over ConcurrencyLimit",
        LoadShed::new(limit),
    );
    let layer = BulkheadLayer::builder()
        .max_concurrent_calls(1)
        .reject_when_full()
        .build();
    let bulkhead = layer.expect("the config is right").layer(service_fn(serve));
    let mut holder = bulkhead.clone();
    block_on(async {
        let held = holder.ready().await.expect("it is always ready").call(0);
        let mut held = pin!(Box::leak(Box::new(held)));
        poll_fn(|context| {
            assert!(held.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    });
    requests(table, Peer, "tower-resilience, reject_when_full", bulkhead);
}

/// Answers at once, or never where the input is 0.
async fn serve(input: u64) -> Result<u64, Infallible> {
    if input == 0 {
        pending::<()>().await;
    }
    Ok(input)
}

/// Adds a loop of requests to clones of one service.
fn requests<S>(table: &mut Table<'_>, whose: Whose, name: &'static str, service: S)
where
    S: Service<u64> + Clone + Sync + 'static,
{
    table.case(whose, name, move |calls| {
        let mut service = service.clone();
        block_on(async {
            for _ in 0..calls {
                if let Ok(ready) = service.ready().await {
                    black_box(&ready.call(black_box(1)).await);
                }
            }
        });
    });
}
