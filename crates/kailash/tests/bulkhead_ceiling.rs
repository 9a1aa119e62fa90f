//! What partitions under a common ceiling promise.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use kailash::bulkhead::*;
use kailash::clock::Clock;
use tokio::task::yield_now;

/// The partitions "database" (priority 2) and "background" (priority 8) under a ceiling.
fn under(ceiling: u32, slots: u32, queue_size: u32) -> (Manager, [Partition; 2]) {
    let manager = Manager::with_clock(Clock::tokio());
    let types = [PartitionType::Database, PartitionType::Background];
    for (name, partition_type) in ["database", "background"].into_iter().zip(types) {
        let config = PartitionConfig {
            max_concurrent_operations: slots,
            queue_size,
            ..PartitionConfig::new(name, partition_type)
        };
        manager.configure(config).unwrap();
    }
    let manager = manager.under_ceiling(ceiling).unwrap();
    let partitions = ["database", "background"].map(|name| manager.get(name).unwrap());
    (manager, partitions)
}

fn assert_whole(manager: &Manager) {
    for partition in manager.partitions() {
        let snapshot = partition.snapshot();
        assert_eq!((snapshot.active, snapshot.queued), (0, 0));
    }
    let ceiling = manager.ceiling().unwrap();
    assert_eq!((ceiling.active, ceiling.held_up), (0, 0));
    assert!(ceiling.peak_active <= ceiling.limit);
}

#[tokio::test(start_paused = true)]
async fn the_ceiling_counts_all_partitions_and_each_keeps_its_own_limit() {
    let (manager, [database, background]) = under(3, 2, 0);
    let mut held = vec![
        database.try_acquire().unwrap(),
        database.try_acquire().unwrap(),
    ];
    assert_eq!(database.try_acquire().unwrap_err().reason, Reason::Busy);
    held.push(background.try_acquire().unwrap());
    let full = background.acquire().await.unwrap_err();
    assert_eq!(full.reason, Reason::Ceiling);
    assert_eq!(
        full.to_string(),
        "partition \"background\": the ceiling over all partitions is reached"
    );
    assert_eq!(manager.ceiling().unwrap().active, 3);
    held.clear();
    assert_whole(&manager);
}

#[tokio::test(start_paused = true)]
async fn under_overload_the_less_urgent_yields() {
    let (manager, [database, background]) = under(4, 10, 1_000);
    let order = Mutex::new(Vec::new());
    let call = |partition: Partition, name: &'static str| {
        let order = &order;
        async move {
            let body = async {
                order.lock().unwrap().push(name);
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            partition.run(body).await.unwrap();
        }
    };
    // The background is there first, with all its calls.
    let first = join_all((0..60).map(|_| call(background.clone(), "background")));
    let then = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        join_all((0..60).map(|_| call(database.clone(), "database"))).await
    };
    tokio::join!(first, then);
    let order = order.into_inner().unwrap();
    let early = order[..64].iter().filter(|name| **name == "database");
    // Four of the background ran already, and every 20th start is the longest waiting's.
    assert_eq!(early.count(), 57);
    assert_eq!(order.len(), 120);
    assert_whole(&manager);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_its_own_partition_holds_up_no_other() {
    let (manager, [database, background]) = under(2, 1, 5);
    let permit = database.try_acquire().unwrap();
    let mut waiting = database.enqueue(Admission::default()).unwrap();
    let other = background.try_acquire().unwrap();
    assert_eq!(manager.ceiling().unwrap().held_up, 0);
    drop(other);
    assert!((&mut waiting).now_or_never().is_none());
    drop(permit);
    drop(waiting.now_or_never().unwrap().unwrap());
    assert_whole(&manager);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_to_any_partition_passes_nobody_who_is_held_up() {
    let (manager, [database, background]) = under(1, 5, 5);
    let permit = background.try_acquire().unwrap();
    let waiting = background.enqueue(Admission::default()).unwrap();
    assert_eq!(manager.ceiling().unwrap().held_up, 1);
    drop(permit);
    assert_eq!(database.try_acquire().unwrap_err().reason, Reason::Ceiling);
    drop(waiting.now_or_never().unwrap().unwrap());
    assert_whole(&manager);
}

#[tokio::test(start_paused = true)]
async fn a_changed_ceiling_starts_waiters_or_drains() {
    let (manager, [database, background]) = under(1, 5, 5);
    let first = database.try_acquire_owned().unwrap();
    let waiting = [&database, &background].map(|p| p.enqueue(Admission::default()).unwrap());
    manager.set_ceiling(3).unwrap();
    let started = waiting.map(|waiting| waiting.now_or_never().unwrap().unwrap());
    manager.set_ceiling(1).unwrap();
    let mut last = background.enqueue(Admission::default()).unwrap();
    drop(started);
    assert!((&mut last).now_or_never().is_none(), "one still runs");
    drop(first);
    drop(last.now_or_never().unwrap().unwrap());

    assert_eq!(manager.set_ceiling(0).unwrap_err().field, "ceiling");
    assert!(Manager::with_defaults().set_ceiling(1).is_err());
    assert!(Manager::with_defaults().ceiling().is_none());
    assert!(Manager::new().under_ceiling(1_000_001).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_ceiling_ends_with_the_timeout_or_the_partition() {
    let (manager, [database, background]) = under(1, 5, 5);
    let permit = database.try_acquire().unwrap();
    let timeout = Some(Duration::from_secs(1));
    let brief = Admission {
        timeout,
        ..Admission::default()
    };
    let full = background.acquire_with(brief).await.unwrap_err();
    assert_eq!(full.reason, Reason::Waited);
    let closed = background.enqueue(Admission::default()).unwrap();
    assert_eq!(background.close(), 1);
    assert_eq!(closed.await.unwrap_err().reason, Reason::Closed);
    assert_eq!(manager.ceiling().unwrap().held_up, 0);
    drop(permit);
    drop(database.try_acquire().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_for_the_ceiling_that_is_dropped_passes_its_turn_on() {
    let (manager, [database, background]) = under(1, 5, 5);
    let permit = database.try_acquire().unwrap();
    let gone = database.enqueue(Admission::default()).unwrap();
    let handed = database.enqueue(Admission::default()).unwrap();
    let next = background.enqueue(Admission::default()).unwrap();
    drop(gone);
    drop(permit);
    drop(handed);
    drop(next.now_or_never().unwrap().unwrap());
    assert_whole(&manager);
}

/// Drops the call after every number of polls it can take.
#[tokio::test(start_paused = true)]
async fn a_call_under_a_ceiling_may_be_cancelled_at_every_await_point() {
    for polls in 0..8 {
        let (manager, [database, background]) = under(1, 1, 1);
        let mut permit = Some(background.try_acquire().unwrap());
        let body = async {
            yield_now().await;
            yield_now().await;
        };
        let mut call = Box::pin(database.run(body));
        let mut context = Context::from_waker(Waker::noop());
        for poll in 0..polls {
            if poll == 3 {
                drop(permit.take());
            }
            if call.as_mut().poll(&mut context).is_ready() {
                break;
            }
        }
        drop(call);
        drop(permit);
        assert_whole(&manager);
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_outlives_its_call_counts_under_the_ceiling() {
    let (manager, [database, background]) = under(1, 5, 0);
    let mut call = Box::pin(database.run(pending::<()>()));
    assert!((&mut call).now_or_never().is_none());
    let kept = database.take_over().unwrap();
    drop(call);
    assert!(background.try_acquire().is_err());
    drop(kept);
    drop(background.try_acquire().unwrap());
    // For that moment the count was one above the ceiling.
    let ceiling = manager.ceiling().unwrap();
    assert_eq!((ceiling.active, ceiling.held_up), (0, 0));
}

#[tokio::test]
async fn blocking_work_holds_its_slot_under_the_ceiling() {
    let (manager, [database, background]) = under(1, 5, 5);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let work = move || {
        begun.send(()).unwrap();
        assert!(held.recv().is_err());
    };
    let call = tokio::spawn(async move { database.run_blocking(work).await });
    begins.await.unwrap();
    assert_eq!(manager.ceiling().unwrap().active, 1);
    let mut next = background.enqueue(Admission::default()).unwrap();
    assert!((&mut next).now_or_never().is_none());
    drop(hold);
    call.await.unwrap().unwrap();
    drop(next.await.unwrap());
    assert_whole(&manager);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_racers_never_exceed_the_ceiling() {
    let (manager, partitions) = under(5, 4, 1_000);
    let inside = Arc::new(AtomicU32::new(0));
    let calls = (0..1_000_usize).map(|number| {
        let partition = partitions[number % 2].clone();
        let inside = Arc::clone(&inside);
        tokio::spawn(async move {
            let body = async {
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 5);
                yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            };
            if number % 7 == 0 {
                drop(partition.enqueue(Admission::default()));
                drop(partition.try_acquire());
                return;
            }
            partition.run(body).await.unwrap();
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    assert_whole(&manager);
}

#[test]
fn a_partition_that_is_gone_leaves_its_ceiling() {
    let (manager, partitions) = under(1, 1, 1);
    partitions[0].close();
    let config = partitions[0].config();
    // A closed partition is replaced by a new one.
    let fresh = manager.configure(config).unwrap();
    drop(partitions);
    let permit = fresh.try_acquire().unwrap();
    let background = manager.get("background").unwrap();
    assert_eq!(
        background.try_acquire().unwrap_err().reason,
        Reason::Ceiling
    );
    drop(permit);
    assert_whole(&manager);
}
