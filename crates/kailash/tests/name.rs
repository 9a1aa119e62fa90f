//! The name in a refusal: whose it is, and what a thread keeps of it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kailash::Name;
use kailash::bulkhead::{Admission, Partition, PartitionConfig, PartitionType, RunError};
use kailash::circuit_breaker::{CallError, CircuitBreaker, Config, Rejected};

fn refusing(name: &str) -> CircuitBreaker {
    let breaker = CircuitBreaker::new(name, Config::default()).expect("the defaults are right");
    breaker.force_open();
    breaker
}

fn refusal(breaker: &CircuitBreaker) -> Rejected {
    breaker.try_acquire().expect_err("it is forced open")
}

fn full(name: &str) -> Partition {
    let config = PartitionConfig {
        max_concurrent_operations: 1,
        queue_size: 0,
        ..PartitionConfig::new(name, PartitionType::Custom)
    };
    let partition = Partition::new(config).expect("the config is right");
    std::mem::forget(partition.try_acquire_owned().expect("its slot is free"));
    partition
}

/// How many hold the breaker's name: itself is one.
fn holders(breaker: &CircuitBreaker) -> usize {
    Arc::strong_count(breaker.name())
}

/// Runs something on a thread, and waits until all that the thread had is gone.
fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    thread::spawn(work).join().expect("it does not panic");
}

#[test]
fn a_refusal_has_the_name_of_its_breaker_whichever_was_refused_before() {
    let breakers = ["a", "b", ""].map(refusing);
    for _ in 0..3 {
        for breaker in &breakers {
            let rejected = refusal(breaker);
            assert_eq!(rejected.name, *breaker.name());
            let again = breaker.call_sync(|| Ok::<_, ()>(()));
            assert_eq!(again, Err(CallError::Rejected(rejected)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gets_no_slot_or_no_time_names_its_partition() {
    let (first, second) = (full("first"), full("second"));
    for _ in 0..3 {
        for partition in [&first, &second] {
            let full = partition.try_acquire().expect_err("it has no slot");
            assert_eq!(full.partition, partition.name());
            let expired = partition.expire();
            assert_eq!(expired.partition, partition.name());
            let timed_out = partition.time_out(Duration::ZERO);
            assert_eq!(timed_out.partition, partition.name());
        }
    }
    second.close();
    let admission = Admission {
        timeout: Some(Duration::ZERO),
        ..Admission::default()
    };
    match second.run_with(admission, async {}).await {
        Err(RunError::Closed(closed)) => assert_eq!(closed.partition, "second"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_thread_that_is_refused_again_and_again_holds_the_name_once() {
    let breaker = refusing("b");
    assert_eq!(holders(&breaker), 1);
    for _ in 0..1000 {
        let rejected = refusal(&breaker);
        assert_eq!(holders(&breaker), 2, "the refusal's own");
        drop(rejected);
        assert_eq!(holders(&breaker), 2, "kept for the next refusal");
    }
}

#[test]
fn what_a_thread_keeps_is_the_name_that_it_dropped_last() {
    let (first, second) = (refusing("first"), refusing("second"));
    drop(refusal(&first));
    drop(refusal(&second));
    assert_eq!((holders(&first), holders(&second)), (1, 2));
    let refusals = [refusal(&first), refusal(&second)];
    assert_eq!((holders(&first), holders(&second)), (2, 2));
    drop(refusals);
    assert_eq!((holders(&first), holders(&second)), (1, 2));
}

#[test]
fn refusals_and_their_clones_that_are_kept_hold_a_name_each() {
    let breaker = refusing("b");
    let mut refusals: Vec<_> = (0..10).map(|_| refusal(&breaker)).collect();
    refusals.extend(refusals.clone());
    assert_eq!(holders(&breaker), 1 + 20);
    drop(refusals);
    assert_eq!(holders(&breaker), 1 + 1);
}

#[test]
fn a_thread_that_has_ended_keeps_no_name() {
    let breaker = refusing("b");
    let refused = breaker.clone();
    on_a_thread(move || {
        drop(refusal(&refused));
        assert_eq!(holders(&refused), 2);
    });
    assert_eq!(holders(&breaker), 1);
}

#[test]
fn a_refusal_that_outlives_what_its_thread_keeps_is_dropped_like_any_other() {
    thread_local! {
        static KEPT: RefCell<Vec<Rejected>> = const { RefCell::new(Vec::new()) };
    }
    for is_kept_first in [true, false] {
        let breaker = refusing("b");
        let refused = breaker.clone();
        on_a_thread(move || {
            // What a thread had first is dropped last, or first: either must do.
            if is_kept_first {
                KEPT.with_borrow_mut(Vec::clear);
            }
            drop(refusal(&refused));
            let rejected = refusal(&refused);
            KEPT.with_borrow_mut(|kept| kept.extend([rejected.clone(), rejected]));
        });
        assert_eq!(holders(&breaker), 1);
    }
}

#[test]
fn a_refusal_may_be_dropped_on_another_thread_than_the_one_it_was_made_on() {
    let breaker = refusing("b");
    for _ in 0..3 {
        let rejected = refusal(&breaker);
        on_a_thread(move || {
            assert_eq!(rejected.name, "b");
            drop(rejected);
        });
        assert_eq!(holders(&breaker), 1);
    }
}

#[test]
fn a_refusal_has_its_name_when_the_breaker_is_gone() {
    let breaker = refusing("gone");
    let rejected = refusal(&breaker);
    drop(breaker);
    assert_eq!(rejected.name, "gone");
    assert_eq!(
        rejected.to_string(),
        "circuit breaker \"gone\" is forced open"
    );
}

#[test]
fn a_name_becomes_the_shared_text_that_it_was_made_of() {
    let shared: Arc<str> = "b".into();
    let same: Arc<str> = Name::from(Arc::clone(&shared)).into();
    assert!(Arc::ptr_eq(&same, &shared));
    assert_eq!(Arc::strong_count(&shared), 2, "none is kept of it");
    let breaker = refusing("b");
    let name: Arc<str> = refusal(&breaker).name.into();
    assert!(Arc::ptr_eq(&name, breaker.name()));
}

#[test]
fn a_name_is_shown_compared_ordered_and_looked_up_as_its_text() {
    let name = Name::from("database");
    assert_eq!(
        format!("{name} {name:?} {name:>9}"),
        "database \"database\"  database"
    );
    assert_eq!(name, "database");
    assert_eq!(name, *"database");
    assert_eq!(name, Arc::<str>::from("database"));
    assert_eq!(name, Name::from(String::from("database")));
    assert_ne!(name, Name::from("cache"));
    assert_eq!(name.as_str().len(), name.len());
    let sorted = BTreeSet::from(["c", "a", "b"].map(Name::from));
    assert!(sorted.iter().eq(["a", "b", "c"].iter()));
    let counts = HashMap::from([(name, 1)]);
    assert_eq!(counts.get("database"), Some(&1));
}
