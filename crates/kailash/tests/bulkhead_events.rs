//! What a partition tells its subscribers, and what it counts.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use kailash::bulkhead::*;
use kailash::clock::Clock;

fn config(slots: u32, queue_size: u32) -> PartitionConfig {
    PartitionConfig {
        max_concurrent_operations: slots,
        queue_size,
        ..PartitionConfig::new("p", PartitionType::Custom)
    }
}

fn all(events: &mut Events) -> Vec<EventKind> {
    std::iter::from_fn(|| events.try_recv())
        .map(|event| event.kind)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_call_is_told_once_and_in_order() {
    let partition = Partition::with_clock(config(1, 1), Clock::tokio()).unwrap();
    let mut events = partition.subscribe();
    let permit = partition.try_acquire().unwrap();
    let waiting = partition.enqueue(Admission::default()).unwrap();
    assert!(partition.enqueue(Admission::default()).is_err());
    assert!(partition.try_acquire().is_err());
    tokio::time::advance(Duration::from_secs(2)).await;
    drop(permit);
    drop(waiting.await.unwrap());
    let expected = [
        EventKind::Started,
        EventKind::Queued,
        EventKind::Rejected(Reason::QueueFull),
        EventKind::Rejected(Reason::Busy),
        EventKind::Ended {
            ran: Duration::from_secs(2),
        },
        EventKind::Started,
        EventKind::Ended {
            ran: Duration::ZERO,
        },
    ];
    assert_eq!(all(&mut events), expected);

    let brief = Admission {
        timeout: Some(Duration::from_secs(3)),
        ..Admission::default()
    };
    assert!(partition.run_with(brief, pending::<()>()).await.is_err());
    partition.reconfigure(config(2, 1)).unwrap();
    partition.reconfigure(config(2, 5)).unwrap();
    assert_eq!((partition.close(), partition.close()), (0, 0));
    let expected = [
        EventKind::Started,
        EventKind::TimedOut,
        EventKind::Ended {
            ran: Duration::from_secs(3),
        },
        EventKind::LimitChanged { from: 1, to: 2 },
        EventKind::Closed,
    ];
    assert_eq!(all(&mut events), expected);
}

/// A subscriber's waker that breaks.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic!("on purpose");
    }
}

#[test]
fn a_subscriber_that_panics_breaks_no_call_and_keeps_no_slot() {
    let partition = Partition::new(config(1, 1)).unwrap();
    let waker = Waker::from(Arc::new(Broken));
    let mut context = Context::from_waker(&waker);
    let (mut first, mut second) = (partition.subscribe(), partition.subscribe());
    let mut next = pin!(first.recv());
    assert!(next.as_mut().poll(&mut context).is_pending());
    let permit = partition.try_acquire().unwrap();
    let told = next.now_or_never().flatten().unwrap();
    assert_eq!(told.kind, EventKind::Started);

    assert_eq!(second.try_recv(), Some(told));
    let mut next = pin!(second.recv());
    assert!(next.as_mut().poll(&mut context).is_pending());
    drop(permit);
    let told = next.now_or_never().flatten().unwrap();
    assert!(matches!(told.kind, EventKind::Ended { .. }), "{told:?}");
    assert_eq!(partition.snapshot().active, 0);
}

#[derive(Default)]
struct Counts(AtomicU64);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn whoevers_waker_panics_the_other_subscribers_are_woken() {
    let partition = Partition::new(config(1, 1)).unwrap();
    let mut all: Vec<_> = (0..5).map(|_| partition.subscribe()).collect();
    let woken = Arc::new(Counts::default());
    let broken = Waker::from(Arc::new(Broken));
    let counts = Waker::from(Arc::clone(&woken));
    let mut waits: Vec<_> = all.iter_mut().map(|it| Box::pin(it.recv())).collect();
    let wakers = [&broken, &counts, &broken, &counts, &broken];
    for (wait, waker) in waits.iter_mut().zip(wakers) {
        let polled = wait.as_mut().poll(&mut Context::from_waker(waker));
        assert!(polled.is_pending());
    }
    partition.close();
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
}

#[test]
fn no_change_of_the_configuration_takes_events_from_a_subscriber() {
    let with = |reject_hopeless| PartitionConfig {
        reject_hopeless,
        ..config(1, 1)
    };
    let partition = Partition::new(with(true)).unwrap();
    let mut events = partition.subscribe();
    for reject_hopeless in [true, false, false, true, false] {
        partition.reconfigure(with(reject_hopeless)).unwrap();
        drop(partition.try_acquire().unwrap());
        assert_eq!(all(&mut events).len(), 2, "its start and its end");
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_never_began_is_told_of_and_is_no_run() {
    let config = PartitionConfig {
        max_threads: Some(1),
        timeout: None,
        ..config(2, 0)
    };
    let partition = Partition::with_clock(config, Clock::tokio()).unwrap();
    let mut events = partition.subscribe();
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let mut first = Box::pin(partition.run_blocking(move || hold.recv().is_err()));
    assert!((&mut first).now_or_never().is_none());

    let brief = Admission {
        timeout: Some(Duration::from_secs(1)),
        ..Admission::default()
    };
    assert!(partition.run_blocking_with(brief, || ()).await.is_err());
    let ran = Duration::from_secs(1);
    let expected = [
        EventKind::Started,
        EventKind::Started,
        EventKind::Ended { ran },
        EventKind::Rejected(Reason::Waited),
    ];
    assert_eq!(all(&mut events), expected);
    assert_eq!(
        (partition.runs().count(), partition.snapshot().active),
        (0, 1)
    );
    drop(release);
    assert!(first.await.unwrap());
    assert_eq!(
        (partition.runs().count(), partition.snapshot().active),
        (1, 0)
    );
}

#[test]
fn a_subscriber_that_sleeps_delays_nobody_and_learns_what_it_lost() {
    let partition = Partition::new(config(1, 0)).unwrap();
    let mut events = partition.subscribe();
    for _ in 0..1_000 {
        drop(partition.try_acquire().unwrap());
    }
    let kinds = all(&mut events);
    assert_eq!(kinds[0], EventKind::Lost(2_000 - 1_024));
    assert_eq!(kinds.len(), 1 + 1_024);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_ends_with_its_partition() {
    let partition = Partition::with_clock(config(1, 0), Clock::tokio()).unwrap();
    let mut events = partition.subscribe();
    partition.run(async {}).await.unwrap();
    drop(partition);
    assert_eq!(events.recv().await.unwrap().kind, EventKind::Started);
    let ended = events.recv().await.unwrap();
    assert!(matches!(ended.kind, EventKind::Ended { .. }));
    assert_eq!(&*ended.partition, "p");
    assert_eq!(events.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn waiting_and_running_are_measured() {
    let partition = Partition::with_clock(config(1, 10), Clock::tokio()).unwrap();
    let sleep = || tokio::time::sleep(Duration::from_secs(2));
    let calls = (0..3).map(|_| partition.run(async { sleep().await }));
    futures_util::future::join_all(calls).await;
    let (waits, runs) = (partition.waits(), partition.runs());
    assert_eq!((waits.count(), waits.sum()), (2, Duration::from_secs(6)));
    assert_eq!((runs.count(), runs.sum()), (3, Duration::from_secs(6)));
    let snapshot = partition.snapshot();
    let about = |duration: Duration, secs: u64| {
        let secs = Duration::from_secs(secs);
        duration >= secs && duration <= secs + secs / 8
    };
    assert!(about(snapshot.run_p50, 2) && about(snapshot.run_p99, 2));
    assert!(about(snapshot.wait_p50, 2) && about(snapshot.wait_p99, 4));

    // Most calls do not wait.
    for _ in 0..10 {
        drop(partition.try_acquire().unwrap());
    }
    assert_eq!(partition.snapshot().wait_p50, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn permits_are_timed_once_it_matters() {
    let partition = Partition::with_clock(config(1, 1), Clock::tokio()).unwrap();
    drop(partition.try_acquire().unwrap());
    assert_eq!(partition.runs().count(), 0);
    let hopeful = PartitionConfig {
        reject_hopeless: true,
        ..config(1, 1)
    };
    partition.reconfigure(hopeful).unwrap();
    for _ in 0..8 {
        let permit = partition.try_acquire().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(permit);
    }
    assert_eq!(partition.runs().count(), 8);

    let _held = partition.try_acquire().unwrap();
    let brief = Admission {
        timeout: Some(Duration::from_millis(500)),
        ..Admission::default()
    };
    // At once, not after half a second.
    let refused = partition.acquire_with(brief).now_or_never().unwrap();
    let full = refused.unwrap_err();
    assert_eq!(full.reason, Reason::Hopeless);
    assert_eq!(
        full.to_string(),
        "partition \"p\": too little time was left for the call to come to an end"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_can_ask_to_be_timed_and_tells_how_long_it_was_held() {
    let partition = Partition::with_clock(config(1, 1), Clock::tokio()).unwrap();
    let untimed = partition.take_free().unwrap().into_owned();
    assert_eq!((untimed.ran(), untimed.end()), (None, None));

    let permit = partition.try_acquire_owned().unwrap().timed();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(permit.ran(), Some(Duration::from_secs(2)));
    assert_eq!(permit.timed().end(), Some(Duration::from_secs(2)));
    assert_eq!(partition.runs().count(), 1);
    assert_eq!(partition.snapshot().active, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_not_free_to_take_is_no_refusal() {
    let partition = Partition::new(config(1, 1)).unwrap();
    let held = partition.take_free().unwrap();
    assert!(partition.take_free().is_none());
    drop(held);
    assert_eq!(partition.snapshot().refused, 0);
}
