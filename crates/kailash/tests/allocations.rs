//! What takes no memory: a call behind a closed breaker or a free partition, and a refusal.

#![expect(
    unsafe_code,
    reason = "an allocator that counts can only be written so; it forwards each call unchanged"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kailash::bulkhead::{self, Admission, PartitionConfig, PartitionType};
use kailash::circuit_breaker::{CircuitBreaker, Config, KeyedConfig, Manager};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread has allocated and not freed.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get().wrapping_add(layout.size()));
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(layout.size()));
        // SAFETY: the caller keeps the promises of `dealloc`, and `place` came from `System`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// The bytes that stay allocated for what `make` makes.
fn bytes_of<T>(make: impl FnOnce() -> T) -> (usize, T) {
    let before = BYTES.get();
    let made = make();
    (BYTES.get() - before, made)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(1))), 1);
    assert_eq!(bytes_of(|| Box::new(1_u64)).0, 8);
}

#[test]
fn a_breaker_allocates_nothing_for_a_success_a_failure_or_a_refusal() {
    let breaker = CircuitBreaker::new("b", Config::default()).expect("the defaults are right");
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        assert_eq!(breaker.call(|| async { Ok::<_, ()>(()) }).await, Ok(()));
        let calls = async {
            let before = ALLOCATIONS.get();
            for _ in 0..1000 {
                let _ = breaker.call(|| async { Ok::<_, ()>(()) }).await;
                let _ = breaker.call_sync(|| Ok::<_, ()>(()));
            }
            let _ = breaker.call_sync(|| Err::<(), _>(()));
            ALLOCATIONS.get() - before
        };
        assert_eq!(calls.await, 0);
    });
    breaker.force_open();
    let refusals = || (0..1000).all(|_| breaker.try_acquire().is_err());
    assert_eq!(allocations(|| assert!(refusals())), 0);
}

#[cfg(feature = "tower")]
#[test]
fn a_breaker_as_a_layer_allocates_nothing_for_a_success_a_failure_or_a_refusal() {
    use kailash::layer::circuit_breaker::CircuitBreakerLayer;
    use tower::{Layer, Service, ServiceExt, service_fn};

    let config = Config {
        failure_threshold: 1_000_000,
        error_rate_threshold: None,
        ..Config::default()
    };
    let breaker = CircuitBreaker::new("b", config).expect("the config is right");
    let layer = CircuitBreakerLayer::new(breaker.clone());
    let mut service = layer.layer(service_fn(|answer: Result<u8, u8>| async move { answer }));
    let mut calls = async |answer| {
        let before = ALLOCATIONS.get();
        for _ in 0..1000 {
            let ready = service.ready().await.expect("always ready");
            let _ = ready.call(answer).await;
        }
        ALLOCATIONS.get() - before
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        assert_eq!(calls(Ok(1)).await, 0);
        assert_eq!(calls(Err(1)).await, 0);
        breaker.force_open();
        assert_eq!(calls(Ok(1)).await, 0);
    });
    assert_eq!(breaker.snapshot().rejections, 1000);
}

#[test]
fn a_breaker_that_was_watched_allocates_nothing_for_a_call_either() {
    let manager = Manager::new();
    manager.record_durations();
    let breaker = manager.get_or_create("b", None).expect("the defaults");
    let changes = (
        manager.subscribe_transitions(),
        breaker.subscribe_transitions(),
    );
    drop((manager.subscribe(), breaker.subscribe()));
    let calls = || {
        for _ in 0..1000 {
            let _ = breaker.call_sync(|| Ok::<_, ()>(()));
            let _ = breaker.call_sync_or(|_| Err(()), || Ok(()));
        }
        let _ = breaker.call_sync(|| Err::<(), _>(()));
    };
    calls();
    assert_eq!(allocations(calls), 0);
    drop(changes);
}

#[test]
fn a_subscriber_allocates_nothing_for_an_event_or_a_loss_however_many_breakers_are_open() {
    let manager = Manager::new();
    let hosts = manager.keyed("host", None).expect("the defaults");
    let open: Vec<_> = (0..3000).map(|key| hosts.get(&key.to_string())).collect();
    let mut events = manager.subscribe();
    for breaker in &open {
        (0..5).for_each(|_| breaker.record_failure());
    }
    let mut heard = 0;
    let hear = || {
        while events.try_recv().is_some() {
            heard += 1;
        }
    };
    assert_eq!(allocations(hear), 0);
    assert_eq!(heard, 1 + 1024, "a loss, and what is left");
}

#[test]
fn a_look_up_allocates_nothing_by_name_or_by_key() {
    let manager = Manager::new();
    let hosts = manager.keyed("host", None).expect("the defaults");
    let look = || {
        let _ = manager.get_or_create("b", None);
        let _ = hosts.get("10.0.0.7").call_sync(|| Ok::<_, ()>(()));
    };
    look();
    assert_eq!(allocations(|| (0..1000).for_each(|_| look())), 0);
}

#[test]
fn a_look_up_with_the_settings_it_has_allocates_nothing() {
    let manager = Manager::new();
    let config = Config {
        failure_threshold: 7,
        ..Config::default()
    };
    let group = KeyedConfig {
        breaker: config.clone(),
        ..KeyedConfig::default()
    };
    let look = || {
        assert!(manager.get_or_create("b", config.clone()).is_ok());
        assert!(manager.keyed("host", group.clone()).is_ok());
    };
    look();
    assert_eq!(allocations(|| (0..1000).for_each(|_| look())), 0);
}

#[test]
fn a_breaker_with_the_default_settings_takes_no_more_than_512_bytes() {
    let manager = Manager::new();
    let config = KeyedConfig {
        capacity: 100,
        ..KeyedConfig::default()
    };
    let hosts = manager.keyed("host", config).expect("the config is right");
    // So few keys are in one table, which has room for another one then.
    for n in 0..5 {
        let _ = hosts.get(&n.to_string());
    }
    let key = "192.168.100.200";
    let (bytes, breaker) = bytes_of(|| hosts.get(key));
    assert!(bytes <= 512, "{bytes} bytes by key");
    let _ = breaker.call_sync(|| Err::<(), _>(()));
    let (bytes, _) = bytes_of(|| breaker.call_sync(|| Ok::<_, ()>(())));
    assert_eq!(bytes, 0);
    let _ = manager.get_or_create("first", None);
    let (bytes, _) = bytes_of(|| manager.get_or_create("database.example.com", None));
    assert!(bytes <= 512, "{bytes} bytes by name");
}

#[test]
fn a_hundred_thousand_keys_take_no_more_than_600_bytes_each() {
    const KEYS: usize = 100_000;
    let manager = Manager::new();
    let hosts = manager
        .keyed("host", KeyedConfig::default())
        .expect("the defaults");
    let (bytes, ()) = bytes_of(|| {
        for n in 0..KEYS {
            let _ = hosts.get(&format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255));
        }
    });
    assert_eq!(hosts.len(), KEYS);
    assert!(bytes / KEYS <= 600, "{} bytes a key", bytes / KEYS);
    drop(hosts);
    manager.remove_group("host");
}

#[test]
fn a_million_refusals_take_no_memory() {
    let breaker = CircuitBreaker::new("b", Config::default()).expect("the defaults are right");
    breaker.force_open();
    let _ = breaker.try_acquire();
    let refuse = || (0..1_000_000).for_each(|_| drop(breaker.try_acquire()));
    assert_eq!(bytes_of(refuse).0, 0);
}

#[test]
fn a_partition_allocates_nothing_for_a_free_slot_or_a_refusal() {
    let config = PartitionConfig {
        max_concurrent_operations: 2,
        queue_size: 0,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    let manager = bulkhead::Manager::new();
    let alone = manager.configure(config).expect("the config is right");
    let under = manager.under_ceiling(1).expect("the ceiling is right");
    let under = under.get("p").expect("it is there");
    for partition in [alone, under] {
        let take = || partition.try_acquire().is_ok();
        assert_eq!(allocations(|| assert!((0..1000).all(|_| take()))), 0);
        let held: [_; 2] = std::array::from_fn(|_| partition.try_acquire());
        assert_eq!(allocations(|| assert!((0..1000).all(|_| !take()))), 0);
        let waits = || partition.enqueue(Admission::default()).is_ok();
        assert_eq!(allocations(|| assert!((0..1000).all(|_| !waits()))), 0);
        drop(held);
    }
}

#[cfg(feature = "tower")]
#[test]
fn a_partition_as_a_layer_allocates_nothing_for_a_free_slot_or_a_refusal() {
    use kailash::bulkhead::Partition;
    use kailash::layer::bulkhead::BulkheadLayer;
    use tower::{Layer, Service, ServiceExt, service_fn};

    let config = PartitionConfig {
        max_concurrent_operations: 1,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    let partition = Partition::new(config).expect("the config is right");
    let layer = BulkheadLayer::new(partition.clone()).rejecting();
    let mut service = layer.layer(service_fn(|()| async { Ok::<_, ()>(()) }));
    let mut call = async || {
        let service = service.ready().await.expect("it is always ready");
        service.call(()).await.is_ok()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        for is_free in [true, false] {
            let held = (!is_free).then(|| partition.try_acquire().expect("it is free"));
            let before = ALLOCATIONS.get();
            for _ in 0..1000 {
                assert_eq!(call().await, is_free);
            }
            assert_eq!(ALLOCATIONS.get() - before, 0);
            drop(held);
        }
    });
}
