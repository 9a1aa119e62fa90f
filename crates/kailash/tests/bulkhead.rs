//! What a partition promises, on tokio's paused time and on real threads.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::future::{Future, pending, poll_fn, ready};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use kailash::bulkhead::*;
use kailash::clock::Clock;
use tokio::task::yield_now;

/// A limit that only a hang reaches.
const GENEROUS: Duration = Duration::from_secs(60);

fn partition(slots: u32, queue_size: u32) -> Partition {
    Partition::with_clock(partition_config(slots, queue_size), Clock::tokio()).unwrap()
}

fn partition_config(slots: u32, queue_size: u32) -> PartitionConfig {
    PartitionConfig {
        max_concurrent_operations: slots,
        queue_size,
        ..PartitionConfig::new("p", PartitionType::Custom)
    }
}

fn with_timeout(secs: u64) -> Admission {
    Admission {
        timeout: Some(Duration::from_secs(secs)),
        ..Admission::default()
    }
}

fn with_priority(priority: u8) -> Admission {
    Admission {
        priority: Some(Priority::new(priority).unwrap()),
        ..Admission::default()
    }
}

/// All slots can be had, and nobody waits.
fn assert_whole(partition: &Partition) {
    let snapshot = partition.snapshot();
    assert_eq!((snapshot.active, snapshot.queued), (0, 0));
    let permits: Vec<_> = (0..snapshot.limit)
        .map(|_| partition.try_acquire().unwrap())
        .collect();
    assert!(partition.try_acquire().is_err());
    drop(permits);
}

/// Sleeps from when it is first polled.
async fn sleep(secs: u64) {
    tokio::time::sleep(Duration::from_secs(secs)).await;
}

/// Waits for another thread.
fn eventually(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < GENEROUS, "it never came");
        std::thread::yield_now();
    }
}

/// A door that blocking work waits at.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let is_open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(is_open, |is_open| !*is_open).unwrap());
    }
}

#[tokio::test]
async fn a_call_is_hardly_larger_than_what_it_makes_and_its_wait() {
    let partition = partition(1, 0);
    let ask = || {
        let kibibyte = [1_u8; 1024];
        async move {
            yield_now().await;
            Ok::<_, ()>(kibibyte.len())
        }
    };
    let most = size_of_val(&ask()) + 512;
    assert!(most > 1536, "it is held across its await");
    let carried = ask();
    let sizes = [
        size_of_val(&partition.run(ask())),
        size_of_val(&partition.call(ask)),
        size_of_val(&partition.call(|| carried)),
    ];
    assert!(sizes.iter().all(|&size| size <= most), "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn n_run_q_wait_and_one_more_is_refused() {
    let partition = partition(2, 3);
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let partition = partition.clone();
            tokio::spawn(async move { partition.run(sleep(1)).await })
        })
        .collect();
    yield_now().await;
    let full = partition.snapshot();
    assert_eq!((full.active, full.queued, full.refused), (2, 3, 1));

    let results = join_all(calls).await;
    let refused: Vec<_> = results
        .into_iter()
        .filter_map(|r| r.unwrap().err())
        .collect();
    let [RunError::Full(full)] = refused.as_slice() else {
        panic!("{refused:?}");
    };
    assert_eq!(
        (full.active, full.queued, full.reason),
        (2, 3, Reason::QueueFull)
    );
    assert_eq!(
        full.to_string(),
        "partition \"p\": queue is full (3 waiting)"
    );
    let after = partition.snapshot();
    assert_eq!((after.run, after.refused, after.peak_active), (5, 1, 2));
    assert!(
        after.wait_p99 >= Duration::from_secs(2) && after.wait_p99 < Duration::from_millis(2_300)
    );
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_10_000_leaves_nothing_behind() {
    let partition = partition(20, 100);
    let calls = (0..10_000).map(|_| partition.run(yield_now()));
    let results = join_all(calls).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 120);
    assert_eq!(results.iter().filter(|r| r.is_err()).count(), 9_880);
    let after = partition.snapshot();
    assert_eq!(
        (after.run, after.refused, after.peak_active),
        (120, 9_880, 20)
    );
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_held_until_the_future_is_done() {
    let partition = partition(1, 0);
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let mut call = pin!(partition.run(told));
    assert!(call.as_mut().now_or_never().is_none());
    assert_eq!(partition.try_acquire().unwrap_err().reason, Reason::Busy);
    tell.send(()).unwrap();
    assert!(call.await.unwrap().is_ok());
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_times_out_in_the_queue_never_starts() {
    let partition = partition(1, 1);
    let permit = partition.try_acquire().unwrap();
    let started = AtomicBool::new(false);
    let call = async { started.store(true, Ordering::SeqCst) };
    let error = partition.run_with(with_timeout(3), call).await.unwrap_err();
    let RunError::Full(full) = error else {
        panic!("{error}")
    };
    assert_eq!(full.reason, Reason::Waited);
    assert_eq!(partition.snapshot().queued, 0);
    drop(permit);
    assert!(!started.load(Ordering::SeqCst));
    assert_eq!(partition.snapshot().expired, 1);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_covers_waiting_and_running_together() {
    let partition = partition(1, 1);
    let begin = tokio::time::Instant::now();
    let first = partition.run(sleep(2));
    let second = partition.run_with(with_timeout(3), pending::<()>());
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    let error = second.unwrap_err();
    let RunError::TimedOut(timed_out) = &error else {
        panic!("{error}")
    };
    assert_eq!(timed_out.timeout, Duration::from_secs(3));
    assert_eq!(error.to_string(), "partition \"p\": timed out after 3s");
    assert_eq!(begin.elapsed().as_secs(), 3);
    assert_eq!(partition.snapshot().timed_out, 1);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_zero_never_waits_and_may_run() {
    let partition = partition(1, 5);
    let call = sleep(5);
    partition.run_with(with_timeout(0), call).await.unwrap();

    let _permit = partition.try_acquire().unwrap();
    let refused = partition.acquire_with(with_timeout(0)).now_or_never();
    assert_eq!(refused.unwrap().unwrap_err().reason, Reason::Busy);
    assert!(partition.enqueue(with_timeout(0)).is_err());
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeout_is_no_end() {
    let config = PartitionConfig {
        timeout: Some(Duration::from_secs(1)),
        ..partition(1, 1).config()
    };
    let partition = Partition::with_clock(config, Clock::tokio()).unwrap();
    let admission = Admission {
        timeout: Some(Duration::MAX),
        ..Admission::default()
    };
    let call = sleep(1_000_000);
    partition.run_with(admission, call).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_frees_its_place() {
    let partition = partition(1, 1);
    let permit = partition.try_acquire().unwrap();
    let mut waiter = Box::pin(partition.acquire());
    assert!(waiter.as_mut().now_or_never().is_none());
    assert_eq!(partition.snapshot().queued, 1);
    drop(waiter);
    assert_eq!(partition.snapshot().queued, 0);
    drop(permit);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_after_its_turn_passes_the_slot_on() {
    let partition = partition(1, 2);
    let permit = partition.try_acquire().unwrap();
    let first = partition.enqueue(Admission::default()).unwrap();
    let second = partition.enqueue(Admission::default()).unwrap();
    drop(permit);
    assert_eq!(partition.snapshot().queued, 1);
    drop(first);
    assert_eq!(partition.snapshot().queued, 0);
    drop(second.await.unwrap());
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn an_expired_waiter_passes_on_the_slot_it_was_handed() {
    let partition = partition(1, 2);
    let permit = partition.try_acquire().unwrap();
    let first = partition.enqueue(Admission::default()).unwrap();
    let second = partition.enqueue(Admission::default()).unwrap();
    drop(permit);
    assert_eq!(first.expire().reason, Reason::Waited);
    drop(second.now_or_never().unwrap().unwrap());
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_past_its_deadline_is_passed_over() {
    let (clock, hand) = Clock::manual();
    let partition = Partition::with_clock(partition(1, 2).config(), clock).unwrap();
    let permit = partition.try_acquire().unwrap();
    let late = partition.enqueue(with_timeout(1)).unwrap();
    let patient = partition.enqueue(with_timeout(9)).unwrap();
    assert_eq!(late.time_left(), Some(Duration::from_secs(1)));
    hand.advance(Duration::from_secs(1));
    drop(permit);
    let late = late.now_or_never().unwrap();
    assert_eq!(late.unwrap_err().reason, Reason::Waited);
    drop(patient.now_or_never().unwrap().unwrap());
    assert_whole(&partition);
}

/// Drops the call after every number of polls it can take, in a partition that is free, busy and left.
#[tokio::test(start_paused = true)]
async fn a_call_may_be_cancelled_at_every_await_point() {
    for is_busy in [false, true] {
        for polls in 0..8 {
            let partition = partition(1, 1);
            let mut permit = is_busy.then(|| partition.try_acquire().unwrap());
            let body = async {
                yield_now().await;
                yield_now().await;
            };
            let mut call = Box::pin(partition.run(body));
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
            assert_whole(&partition);
        }
    }
}

#[tokio::test]
async fn blocking_work_may_be_cancelled_at_every_await_point() {
    for is_busy in [false, true] {
        for polls in 0..4 {
            let partition = partition(1, 1);
            let mut permit = is_busy.then(|| partition.try_acquire().unwrap());
            let mut call = Box::pin(partition.run_blocking(|| ()));
            let mut context = Context::from_waker(Waker::noop());
            for poll in 0..polls {
                if poll == 2 {
                    drop(permit.take());
                }
                if call.as_mut().poll(&mut context).is_ready() {
                    break;
                }
            }
            drop(call);
            drop(permit);
            // What has begun ends.
            eventually(|| partition.snapshot().active == 0);
            assert_whole(&partition);
        }
    }
}

/// Notes how many slots are taken as it is dropped.
struct Notes<'a>(&'a Partition, &'a Mutex<Vec<u32>>);

impl Drop for Notes<'_> {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0.snapshot().active);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_call_held_is_gone_before_its_slot_is_free_however_it_ends() {
    let partition = partition(1, 0);
    let noted = Mutex::new(Vec::new());
    let ends = [
        || Poll::Ready(()),
        || panic!("on purpose"),
        || Poll::Pending,
        || Poll::Pending,
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let held = Notes(&partition, &noted);
        let future = poll_fn(move |_| {
            let _until_it_is_dropped = &held;
            end()
        });
        let admission = [Admission::default(), with_timeout(1)][number / 2];
        let call = partition.run_with(admission, future);
        let mut call = Box::pin(AssertUnwindSafe(call).catch_unwind());
        if number < 3 {
            let _ = call.as_mut().await;
        } else {
            assert!(futures_util::poll!(call.as_mut()).is_pending());
            drop(call);
        }
        assert_eq!(noted.lock().unwrap().len(), number + 1);
        assert_whole(&partition);
    }
    assert_eq!(noted.into_inner().unwrap(), [1; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_future_gives_the_slot_back() {
    let partition = partition(1, 0);
    let call = partition.run(async { panic!("on purpose") });
    let mut call = pin!(AssertUnwindSafe(call).catch_unwind());
    assert!(call.as_mut().await.is_err());
    // Though what has panicked is still there.
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn the_urgent_start_first_and_the_first_come_first_within_one() {
    let partition = partition(1, 100);
    let order = Mutex::new(Vec::new());
    let permit = partition.try_acquire().unwrap();
    let calls = [5, 2, 9, 2, 1, 5].into_iter().enumerate();
    let calls = calls.map(|(number, priority)| {
        let order = &order;
        let note = async move { order.lock().unwrap().push((priority, number)) };
        partition.run_with(with_priority(priority), note)
    });
    let release = async {
        yield_now().await;
        drop(permit);
    };
    tokio::join!(join_all(calls), release);
    let expected = [(1, 4), (2, 1), (2, 3), (5, 0), (5, 5), (9, 2)];
    assert_eq!(*order.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_pass_a_waiter() {
    let partition = partition(1, 1);
    let permit = partition.try_acquire().unwrap();
    let mut waiting = partition.enqueue(Admission::default()).unwrap();
    drop(permit);
    assert_eq!(partition.try_acquire().unwrap_err().active, 1);
    let permit = (&mut waiting).now_or_never().unwrap().unwrap();
    drop(permit);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn an_urgent_call_pushes_out_the_newest_of_the_least_urgent() {
    let partition = partition(1, 2);
    let _permit = partition.try_acquire().unwrap();
    let mut older = partition.enqueue(with_priority(9)).unwrap();
    let newer = partition.enqueue(with_priority(9)).unwrap();
    let equal = partition.enqueue(with_priority(9)).unwrap_err();
    assert_eq!(equal.reason, Reason::QueueFull);
    let _urgent = partition.enqueue(with_priority(1)).unwrap();
    let evicted = newer.now_or_never().unwrap().unwrap_err();
    assert_eq!(evicted.reason, Reason::Evicted);
    assert!((&mut older).now_or_never().is_none());
    assert_eq!(partition.snapshot().evicted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_drains_and_a_higher_one_starts_waiters() {
    let partition = partition(3, 10);
    let limit = |max_concurrent_operations| {
        let config = PartitionConfig {
            max_concurrent_operations,
            ..partition.config()
        };
        partition.reconfigure(config).unwrap();
    };
    let mut permits: Vec<_> = (0..3).map(|_| partition.try_acquire().unwrap()).collect();
    let mut waiting = partition.enqueue(Admission::default()).unwrap();
    limit(1);
    permits.truncate(1);
    assert_eq!(partition.snapshot().active, 1);
    assert!((&mut waiting).now_or_never().is_none());
    let second = partition.enqueue(Admission::default()).unwrap();
    limit(3);
    assert_eq!(
        (partition.snapshot().active, partition.snapshot().queued),
        (3, 0)
    );
    drop(waiting.await.unwrap());
    drop(second.await.unwrap());
    permits.clear();
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_outlive_a_change_of_everything() {
    let partition = partition(100, 900);
    let calls = (0..1_000).map(|_| partition.run(sleep(1)));
    let change = async {
        for slots in [1, 50, 7, 200] {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let config = PartitionConfig {
                max_concurrent_operations: slots,
                queue_size: slots,
                timeout: Some(Duration::from_millis(1)),
                priority: 9,
                ..partition.config()
            };
            partition.reconfigure(config).unwrap();
        }
    };
    let (results, ()) = tokio::join!(join_all(calls), change);
    assert!(results.iter().all(Result::is_ok));
    assert_whole(&partition);
}

#[test]
fn a_partition_keeps_its_name() {
    let partition = partition(1, 1);
    let config = PartitionConfig::new("other", PartitionType::Api);
    assert_eq!(partition.reconfigure(config).unwrap_err().field, "name");
}

#[tokio::test(start_paused = true)]
async fn a_closed_partition_turns_all_away_and_lets_the_running_end() {
    let partition = partition(1, 5);
    let running = {
        let partition = partition.clone();
        tokio::spawn(async move { partition.run(sleep(1)).await })
    };
    yield_now().await;
    let mut waiter = Box::pin(partition.run(ready(())));
    assert!(waiter.as_mut().now_or_never().is_none());

    let drained = partition.shutdown(Duration::from_millis(100)).await;
    assert_eq!((drained.turned_away, drained.left), (1, 1));
    assert!(matches!(waiter.await, Err(RunError::Closed(_))));
    assert_eq!(partition.try_acquire().unwrap_err().reason, Reason::Closed);
    assert!(matches!(
        partition.run(ready(())).await,
        Err(RunError::Closed(_))
    ));

    let drained = partition.shutdown(Duration::from_secs(60)).await;
    assert_eq!((drained.turned_away, drained.left), (0, 0));
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_manager_shuts_all_partitions_down_within_one_deadline() {
    let partitions = Manager::with_defaults();
    let _permit = partitions.get("api").unwrap().try_acquire_owned().unwrap();
    let begin = tokio::time::Instant::now();
    let report = partitions.shutdown(Duration::from_secs(2)).await;
    assert_eq!(begin.elapsed().as_secs(), 2);
    let left: Vec<_> = report
        .iter()
        .filter(|d| d.left > 0)
        .map(|d| &*d.partition)
        .collect();
    assert_eq!(left, ["api"]);
    assert_eq!(report.len(), 5);

    let again = PartitionConfig::new("api", PartitionType::Api);
    let fresh = partitions.configure(again).unwrap();
    assert!(fresh.try_acquire().is_ok());
}

#[test]
fn the_default_partitions_are_the_ruled_ones() {
    let partitions = Manager::with_defaults();
    let figures: Vec<_> = partitions
        .partitions()
        .iter()
        .map(Partition::config)
        .map(|c| {
            let seconds = c.timeout.unwrap().as_secs();
            (
                c.name.clone(),
                c.max_concurrent_operations,
                c.queue_size,
                seconds,
                c.priority,
                c.threads(),
            )
        })
        .collect();
    let expected = [
        ("api", 50, 100, 15, 3, 25),
        ("background", 10, 200, 120, 8, 10),
        ("compute", 5, 50, 60, 4, 4),
        ("critical", 5, 20, 10, 1, 5),
        ("database", 20, 100, 30, 2, 20),
    ]
    .map(|(name, slots, queue, seconds, priority, threads)| {
        (name.to_owned(), slots, queue, seconds, priority, threads)
    });
    assert_eq!(figures, expected);
    let error = partitions.get("db").unwrap_err();
    assert_eq!(
        error.to_string(),
        "partition \"db\": unknown, there are api, background, compute, critical, database"
    );
}

#[tokio::test]
async fn a_call_finds_the_partition_it_runs_in() {
    assert!(current().is_none());
    let (outer, inner) = (
        partition(1, 0),
        Manager::with_defaults().get("api").unwrap(),
    );
    let name = || current().unwrap().name().to_owned();
    let names = outer.run(async {
        let within = inner.run(async { name() }).await.unwrap();
        (within, name())
    });
    assert_eq!(names.await.unwrap(), ("api".to_owned(), "p".to_owned()));
    assert_eq!(inner.run_blocking(name).await.unwrap(), "api");
    assert!(current().is_none());
}

#[test]
fn a_waiter_needs_no_runtime() {
    let config = partition_config(1, 1);
    let partition = Partition::new(config).unwrap();
    let permit = partition.try_acquire().unwrap();
    let (woken, calls) = (Arc::new(Count::default()), Admission::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut waiting = pin!(partition.enqueue(calls).unwrap());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    drop(permit);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    let Poll::Ready(Ok(permit)) = waiting.as_mut().poll(&mut context) else {
        panic!("handed over, and yet not ready");
    };

    let (tell, told) = mpsc::channel();
    let done = move |outcome: Result<u32, Panicked>| tell.send(outcome.unwrap()).unwrap();
    let job = permit.spawn_blocking(|| 7, done).unwrap();
    assert_eq!(told.recv_timeout(GENEROUS), Ok(7));
    assert!(!job.cancel());
    assert_whole(&partition);
}

#[test]
fn a_refusal_shares_the_partitions_name() {
    let partition = partition_on_threads(1);
    let _permit = partition.try_acquire().unwrap();
    let full = partition.try_acquire().unwrap_err();
    assert!(ptr::eq(&*full.partition, &*partition.snapshot().name));
    assert_eq!(
        full.to_string(),
        "partition \"p\": no slot is free (1 running)"
    );
}

#[derive(Default)]
struct Count(AtomicU32);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn blocking_work_runs_in_threads_named_after_the_partition() {
    let partition = partition(2, 0);
    let name = || std::thread::current().name().unwrap().to_owned();
    assert_eq!(partition.run_blocking(name).await.unwrap(), "p-1");
    assert_whole(&partition);
}

#[tokio::test]
async fn a_panic_in_blocking_work_reaches_the_caller_and_leaks_nothing() {
    let partition = partition(1, 0);
    for _ in 0..3 {
        let call = partition.run_blocking(|| panic!("on purpose"));
        let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
        assert_whole(&partition);
    }
    assert_eq!(partition.snapshot().threads, 1);
}

#[tokio::test(start_paused = true)]
async fn blocking_work_that_timed_out_keeps_its_slot_until_its_thread_returns() {
    let partition = partition(1, 0);
    let (gate, begun) = (Gate::default(), Gate::default());
    let work = {
        let (gate, begun) = (gate.clone(), begun.clone());
        move || {
            begun.open();
            gate.pass();
        }
    };
    let mut call = Box::pin(partition.run_blocking_with(with_timeout(1), work));
    assert!(call.as_mut().now_or_never().is_none());
    begun.pass();
    assert!(matches!(call.await, Err(RunError::TimedOut(_))));
    assert_eq!(partition.try_acquire().unwrap_err().active, 1);
    assert_eq!(partition.shutdown(Duration::from_secs(1)).await.left, 1);
    gate.open();
    eventually(|| partition.snapshot().active == 0);
    assert_eq!(partition.shutdown(Duration::from_secs(1)).await.left, 0);
}

#[tokio::test]
async fn blocking_work_whose_caller_is_gone_keeps_its_slot_until_its_thread_returns() {
    let partition = partition(1, 0);
    let (gate, begun) = (Gate::default(), Gate::default());
    let work = {
        let (gate, begun) = (gate.clone(), begun.clone());
        move || {
            begun.open();
            gate.pass();
        }
    };
    let mut call = Box::pin(partition.run_blocking(work));
    assert!(call.as_mut().now_or_never().is_none());
    begun.pass();
    drop(call);
    assert_eq!(partition.snapshot().active, 1);
    gate.open();
    eventually(|| partition.snapshot().active == 0);
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn blocking_work_that_found_no_thread_in_time_never_starts() {
    let config = PartitionConfig {
        max_threads: Some(1),
        timeout: None,
        ..partition_config(2, 0)
    };
    let partition = Partition::with_clock(config, Clock::tokio()).unwrap();
    let gate = Gate::default();
    let blocker = {
        let gate = gate.clone();
        move || gate.pass()
    };
    let mut first = Box::pin(partition.run_blocking(blocker));
    assert!(first.as_mut().now_or_never().is_none());

    let started = Arc::new(AtomicBool::new(false));
    let work = {
        let started = Arc::clone(&started);
        move || started.store(true, Ordering::SeqCst)
    };
    let error = partition.run_blocking_with(with_timeout(1), work).await;
    let Err(RunError::Full(full)) = error else {
        panic!("{error:?}")
    };
    assert_eq!(full.reason, Reason::Waited);
    assert_eq!(partition.snapshot().active, 1);
    gate.open();
    first.await.unwrap();
    assert!(!started.load(Ordering::SeqCst));
    assert_whole(&partition);
}

#[tokio::test]
async fn partitions_share_no_threads() {
    let gate = Gate::default();
    let (busy, free) = (partition(10, 0), partition(1, 0));
    let calls = (0..10).map(|_| {
        let gate = gate.clone();
        busy.run_blocking(move || gate.pass())
    });
    let mut calls = pin!(join_all(calls));
    assert!(calls.as_mut().now_or_never().is_none());
    assert_eq!(free.run_blocking(|| 1).await.unwrap(), 1);
    gate.open();
    assert!(calls.await.iter().all(Result::is_ok));
}

struct Inside<'a>(&'a AtomicU32);

impl<'a> Inside<'a> {
    fn enter(inside: &'a AtomicU32) -> Self {
        assert!(inside.fetch_add(1, Ordering::SeqCst) < 10);
        Self(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racers_on_threads_never_exceed_the_limit() {
    let partition = partition(10, 1_000);
    let inside = Arc::new(AtomicU32::new(0));
    let calls = (0..1_000_u32).map(|number| {
        let (partition, inside) = (partition.clone(), Arc::clone(&inside));
        tokio::spawn(async move {
            let body = async {
                let _inside = Inside::enter(&inside);
                yield_now().await;
            };
            let admission = with_priority(1 + (number % 10) as u8);
            let mut call = Box::pin(partition.run_with(admission, body));
            if number % 7 == 0 {
                // Polled once, then given up.
                let once = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready()));
                once.await;
                return;
            }
            call.await.unwrap();
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    assert!(partition.snapshot().peak_active <= 10);
    assert_whole(&partition);
}

#[tokio::test]
async fn every_way_to_make_a_call_takes_one_slot_once() {
    let partition = partition(1, 1);
    let mut expected = 0;
    let mut took_one = |partition: &Partition| {
        expected += 1;
        assert_eq!(partition.snapshot().run, expected);
        assert_eq!(partition.snapshot().active, 0);
    };
    drop(partition.try_acquire().unwrap());
    took_one(&partition);
    drop(partition.try_acquire_owned().unwrap());
    took_one(&partition);
    drop(partition.acquire().await.unwrap().into_owned());
    took_one(&partition);
    drop(partition.acquire().await.unwrap());
    took_one(&partition);
    drop(partition.acquire_with(with_priority(2)).await.unwrap());
    took_one(&partition);
    drop(
        partition
            .enqueue(Admission::default())
            .unwrap()
            .await
            .unwrap(),
    );
    took_one(&partition);
    drop(partition.enqueue(Admission::default()).unwrap());
    took_one(&partition);
    partition.run(ready(())).await.unwrap();
    took_one(&partition);
    partition.run_blocking(|| ()).await.unwrap();
    took_one(&partition);
    assert_eq!(partition.snapshot().peak_active, 1);
}

#[test]
fn a_panic_in_the_end_of_a_job_frees_its_slot_once() {
    let partition = partition_on_threads(2);
    let (tell, told) = mpsc::channel::<()>();
    for _ in 0..3 {
        let tell = tell.clone();
        let done = move |_| {
            let _told = tell;
            panic!("on purpose");
        };
        let permit = partition.try_acquire_owned().unwrap();
        let job = permit.spawn_blocking(|| (), done).unwrap();
        eventually(|| partition.snapshot().active == 0);
        assert!(!job.cancel());
    }
    drop(tell);
    assert!(told.recv_timeout(GENEROUS).is_err());
    assert_whole(&partition);
}

#[test]
fn a_late_cancel_touches_no_other_work() {
    let partition = partition_on_threads(1);
    let (tell, told) = mpsc::channel();
    let mut earlier: Option<Job> = None;
    for number in 0..1_000 {
        let tell = tell.clone();
        let done = move |outcome: Result<u32, Panicked>| tell.send(outcome.unwrap()).unwrap();
        let permit = partition.try_acquire_owned().unwrap();
        let job = permit.spawn_blocking(move || number, done).unwrap();
        assert!(!earlier.take().is_some_and(Job::cancel));
        assert_eq!(told.recv_timeout(GENEROUS), Ok(number));
        earlier = Some(job);
    }
    assert_eq!(partition.snapshot().threads, 1);
}

#[test]
fn a_job_that_has_not_begun_can_be_cancelled_and_frees_its_slot() {
    let config = PartitionConfig {
        max_threads: Some(1),
        ..partition_config(2, 0)
    };
    let partition = Partition::new(config).unwrap();
    let gate = Gate::default();
    let blocker = {
        let gate = gate.clone();
        move || gate.pass()
    };
    let permit = partition.try_acquire_owned().unwrap();
    let blocked = permit.spawn_blocking(blocker, drop).unwrap();
    let never = || panic!("it was cancelled");
    let permit = partition.try_acquire_owned().unwrap();
    let job = permit
        .spawn_blocking(never, |_| panic!("it was cancelled"))
        .unwrap();
    assert!(job.cancel());
    assert_eq!(partition.snapshot().active, 1);
    gate.open();
    eventually(|| partition.snapshot().active == 0);
    assert!(!blocked.cancel());
}

#[test]
fn a_long_queue_that_is_ready_at_once_needs_little_stack() {
    const WAITERS: u32 = 100_000;
    let queue = || {
        let partition = partition_on_threads(1);
        let config = PartitionConfig {
            queue_size: WAITERS,
            ..partition.config()
        };
        partition.reconfigure(config).unwrap();
        let permit = partition.try_acquire().unwrap();
        let waiting = (0..WAITERS).map(|_| partition.enqueue(Admission::default()).unwrap());
        let waiting: Vec<_> = waiting.collect();
        drop(permit);
        for waiting in waiting {
            // Handed over and not taken up: it passes the slot on.
            drop(waiting);
        }
        assert_eq!(partition.snapshot().run, u64::from(WAITERS) + 1);
        assert_whole(&partition);
    };
    let thread = std::thread::Builder::new().stack_size(64 * 1024);
    thread.spawn(queue).unwrap().join().unwrap();
}

/// A partition for tests without a runtime.
fn partition_on_threads(slots: u32) -> Partition {
    Partition::new(partition_config(slots, 0)).unwrap()
}

/// Uses its partition whenever it is woken.
struct Reentrant(Partition, AtomicU32);

impl std::task::Wake for Reentrant {
    fn wake(self: Arc<Self>) {
        let Self(partition, woken) = &*self;
        woken.fetch_add(1, Ordering::SeqCst);
        assert!(partition.snapshot().is_closed || partition.snapshot().active > 0);
        drop(partition.enqueue(with_priority(10)));
        partition.reconfigure(partition.config()).unwrap();
    }
}

#[test]
fn a_waker_may_use_the_partition() {
    let partition = Partition::new(partition_config(1, 2)).unwrap();
    let reentrant = Arc::new(Reentrant(partition.clone(), AtomicU32::new(0)));
    let waker = Waker::from(Arc::clone(&reentrant));
    let mut context = Context::from_waker(&waker);
    let mut wait = |priority| {
        let mut waiting = Box::pin(partition.enqueue(with_priority(priority)).unwrap());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        waiting
    };
    let woken = || reentrant.1.load(Ordering::SeqCst);

    let permit = partition.try_acquire().unwrap();
    let (_handed_over, _evicted, _more_urgent) = (wait(5), wait(9), wait(2));
    assert_eq!(woken(), 1, "the eviction");
    drop(permit);
    assert_eq!(woken(), 2, "the hand-over");
    let mut drained = pin!(partition.drained());
    let mut context = Context::from_waker(&waker);
    assert!(drained.as_mut().poll(&mut context).is_pending());
    partition.close();
    assert_eq!(woken(), 3, "the end of the wait");
}

/// Uses its manager when it is woken.
struct ManagerUser(Manager, mpsc::Sender<u32>);

impl std::task::Wake for ManagerUser {
    fn wake(self: Arc<Self>) {
        let limit = self.0.get("p").unwrap().snapshot().limit;
        self.1.send(limit).unwrap();
    }
}

#[test]
fn a_waker_may_use_the_manager_that_is_configured() {
    let manager = Manager::new();
    let partition = manager.configure(partition_config(1, 2)).unwrap();
    let (tell, told) = mpsc::channel();
    let waker = Waker::from(Arc::new(ManagerUser(manager.clone(), tell)));
    let _permit = partition.try_acquire().unwrap();
    let mut waiting = pin!(partition.enqueue(Admission::default()).unwrap());
    let polled = waiting.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    // On a thread, for a lock that is held twice would hang.
    let configures =
        std::thread::spawn(move || manager.configure(partition_config(2, 2)).map(drop));
    assert_eq!(told.recv_timeout(GENEROUS), Ok(2));
    configures.join().unwrap().unwrap();
}

#[derive(Default)]
struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn who_awaits_the_end_of_an_idle_partition_learns_of_it() {
    let partition = partition_on_threads(1);
    let mut drained = pin!(partition.drained());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(drained.as_mut().poll(&mut context).is_pending());
    partition.close();
    assert!(woken.0.load(Ordering::SeqCst), "nothing runs any more");
    assert!(drained.as_mut().poll(&mut context).is_ready());
}

#[tokio::test(start_paused = true)]
async fn work_that_outlives_its_call_keeps_a_slot_until_it_ends() {
    struct Work<'a>(&'a Partition, Arc<Mutex<Option<OwnedPermit>>>);
    impl Drop for Work<'_> {
        fn drop(&mut self) {
            *self.1.lock().unwrap() = self.0.take_over();
        }
    }
    let partition = partition(1, 4);
    let kept = Arc::default();
    let work = Work(&partition, Arc::clone(&kept));
    let call = partition.run_with(with_timeout(1), async move {
        let _work = work;
        pending::<()>().await;
    });
    let (result, next) = futures_util::future::join(call, async {
        yield_now().await;
        let mut next = Box::pin(partition.acquire_with(with_timeout(60)));
        assert!((&mut next).now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!((&mut next).now_or_never().is_none(), "the work still runs");
        assert_eq!(partition.snapshot().active, 1);
        kept.lock().unwrap().take();
        next.await.map(drop)
    })
    .await;
    assert!(matches!(result, Err(RunError::TimedOut(_))));
    assert!(next.is_ok(), "who waited has the slot");
    assert_whole(&partition);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_waiters_with_one_deadline_all_learn_of_it() {
    const WAITERS: usize = 100_000;
    let config = PartitionConfig {
        queue_size: 1_000_000,
        ..partition_config(1, 0)
    };
    let partition = Partition::with_clock(config, Clock::tokio()).unwrap();
    let permit = partition.try_acquire().unwrap();
    let waiters = (0..WAITERS).map(|_| partition.acquire_with(with_timeout(1)));
    // One task for them all has more to do than tokio lets a task do at once.
    let results = tokio::task::unconstrained(join_all(waiters)).await;
    let is_late = |result: &Result<_, Full>| {
        let full = result.as_ref().err();
        full.is_some_and(|full| full.reason == Reason::Waited)
    };
    assert!(results.iter().all(is_late));
    assert_eq!(partition.snapshot().expired, WAITERS as u64);
    drop(permit);
    assert_whole(&partition);
}

#[tokio::test]
async fn a_full_partition_keeps_no_other_task_from_running() {
    let partition = partition(1, 10);
    let gate = Gate::default();
    let work = {
        let gate = gate.clone();
        move || gate.pass()
    };
    let blocked = tokio::spawn({
        let partition = partition.clone();
        async move { partition.run_blocking(work).await }
    });
    let waiting = tokio::spawn({
        let partition = partition.clone();
        async move { partition.run(ready(())).await }
    });
    // On the runtime's only thread, while one call blocks and another waits.
    for _ in 0..100 {
        tokio::spawn(async { yield_now().await }).await.unwrap();
    }
    assert_eq!(partition.snapshot().active, 1);
    gate.open();
    blocked.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_whole(&partition);
}
