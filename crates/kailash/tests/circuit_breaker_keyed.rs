//! Breakers by key: made when asked for, forgotten when idle, few as metrics.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use kailash::circuit_breaker::{
    CircuitBreaker, Config, Counts, CreateError, Keyed, KeyedConfig, Manager, State,
};
use kailash::clock::{Clock, ManualClock};
use proptest::prelude::*;

const S: fn(u64) -> Duration = Duration::from_secs;
/// Longer than any machine needs.
const LIMIT: Duration = Duration::from_secs(20);

fn breaker_config() -> Config {
    Config {
        failure_threshold: 3,
        success_threshold: 1,
        jitter_enabled: false,
        ..Config::default()
    }
}

fn small() -> KeyedConfig {
    KeyedConfig {
        breaker: breaker_config(),
        capacity: 10,
        idle_timeout: S(60),
        failures_kept: S(3600),
        series: 3,
    }
}

fn group(config: KeyedConfig) -> (Keyed, ManualClock) {
    let (clock, hand) = Clock::manual();
    let keyed = Manager::with_clock(clock).keyed("host", config).unwrap();
    (keyed, hand)
}

fn fail(breaker: &CircuitBreaker, times: u64) {
    for _ in 0..times {
        let _ = breaker.call_sync(|| Err::<(), _>(()));
    }
}

#[test]
fn one_bad_key_of_ten_leaves_the_others_alone() {
    let (hosts, _) = group(small());
    for n in 0..10 {
        let host = hosts.get(&n.to_string());
        fail(&host, if n == 7 { 3 } else { 2 });
    }
    for n in 0..10 {
        let state = hosts.get(&n.to_string()).state();
        let is_bad = n == 7;
        assert_eq!(state == State::Open, is_bad, "{n}");
    }
    assert_eq!(&**hosts.get("7").name(), "host/7");
}

#[test]
fn the_child_of_a_fork_frees_the_slots_of_all_keys() {
    let (hosts, hand) = group(small());
    let mut probes = Vec::new();
    for key in ["a", "b"] {
        fail(&hosts.get(key), 3);
    }
    hand.advance(S(60));
    for key in ["a", "b"] {
        let host = hosts.get(key);
        probes.extend(std::iter::from_fn(|| host.try_acquire_owned().ok()));
    }
    assert_eq!(probes.len(), 6);
    hosts.abandon_probes();
    for key in ["a", "b"] {
        hosts.get(key).try_acquire().unwrap().success();
        assert_eq!(hosts.get(key).state(), State::Closed);
    }
}

#[test]
fn one_key_gives_one_breaker_to_all_threads() {
    let (hosts, _) = group(KeyedConfig::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for key in 0..500 {
                    hosts.get(&key.to_string()).record_success();
                }
            });
        }
    });
    assert_eq!(hosts.len(), 500);
    assert!((0..500).all(|key| hosts.find(&key.to_string()).unwrap().counts().calls == 4));
    assert!(hosts.find("500").is_none());
}

// Bug class 43: a registry that grows without bound.
#[test]
fn keys_that_were_not_asked_for_in_a_while_are_forgotten() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 1000,
        ..small()
    });
    for n in 0..100 {
        hosts.get(&n.to_string()).record_success();
    }
    hand.advance(S(59));
    let _ = hosts.get("7");
    hand.advance(S(1));
    assert_eq!(hosts.forget_idle(), 99);
    assert!(hosts.find("7").is_some());
    assert_eq!((hosts.len(), hosts.snapshot().forgotten), (1, 99));
}

#[test]
fn new_keys_push_idle_ones_out_without_being_told() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 1_000_000,
        ..small()
    });
    for n in 0..10_000 {
        let _ = hosts.get(&n.to_string());
        hand.advance(S(1));
    }
    assert!(hosts.len() < 1000, "{} keys are left", hosts.len());
}

#[test]
fn a_full_group_forgets_those_that_were_idle_longest() {
    let (hosts, hand) = group(small());
    for n in 0..1000 {
        let _ = hosts.get(&n.to_string());
        hand.advance(Duration::from_millis(1));
        assert!(hosts.len() <= 10);
    }
    for n in 990..1000 {
        assert!(hosts.find(&n.to_string()).is_some(), "{n}");
    }
}

type Bring = fn(&CircuitBreaker, &ManualClock);

#[test]
fn what_must_not_be_forgotten_is_not_forgotten() {
    let protected: [(&str, Bring); 7] = [
        ("open", |it, _| fail(it, 3)),
        ("half-open", |it, hand| {
            fail(it, 3);
            hand.advance(S(60));
            it.try_acquire().unwrap().ignore();
        }),
        ("a probe in flight", |it, hand| {
            fail(it, 3);
            hand.advance(S(60));
            std::mem::forget(it.try_acquire().unwrap());
        }),
        ("forced open", |it, _| it.force_open()),
        ("disabled", |it, _| it.disable()),
        ("metrics-only", |it, _| it.metrics_only()),
        ("failures in its window", |it, _| {
            fail(it, 1);
            let _ = it.call_sync(|| Ok::<_, ()>(()));
        }),
    ];
    let (hosts, hand) = group(small());
    for (key, bring) in protected {
        bring(&hosts.get(key), &hand);
    }
    let held = hosts.get("held");
    let permit = hosts.get("in flight").try_acquire_owned().unwrap();
    hand.advance(S(60));
    assert_eq!(hosts.forget_idle(), 0);
    for n in 0..1000 {
        let _ = hosts.get(&n.to_string());
    }
    for (key, _) in protected {
        assert!(hosts.find(key).is_some(), "{key}");
    }
    let same = |key: &str, name: &Arc<str>| Arc::ptr_eq(hosts.find(key).unwrap().name(), name);
    assert!(same("held", held.name()));
    permit.failure();
    assert_eq!(hosts.find("in flight").unwrap().counts().failures, 1);
}

#[test]
fn a_group_that_had_to_grow_beyond_its_capacity_comes_back_to_it() {
    let (hosts, hand) = group(small());
    let held: Vec<_> = (0..50).map(|n| hosts.get(&n.to_string())).collect();
    assert_eq!(hosts.len(), 50);
    drop(held);
    for n in 100..140 {
        hand.advance(Duration::from_millis(1));
        let _ = hosts.get(&n.to_string());
    }
    assert_eq!(hosts.len(), 10);
}

#[test]
fn failures_are_no_longer_a_reason_to_remember_once_they_are_old() {
    let (hosts, hand) = group(small());
    fail(&hosts.get("a"), 1);
    hand.advance(S(3599));
    assert_eq!(hosts.forget_idle(), 0);
    hand.advance(S(1));
    assert_eq!(hosts.forget_idle(), 1);
}

#[test]
fn a_host_that_died_is_forgotten_some_day() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 1000,
        ..small()
    });
    for pod in 0..5000 {
        fail(&hosts.get(&pod.to_string()), 3);
    }
    hosts.get("told").force_open();
    assert_eq!(hosts.len(), 5001, "none is forgotten while it is open");
    hand.advance(S(3599));
    assert_eq!(
        hosts.forget_idle(),
        0,
        "their waits are over for not as long"
    );
    hand.advance(S(1));
    assert_eq!(hosts.forget_idle(), 5000);
    assert!(hosts.find("told").is_some());
}

#[test]
fn new_keys_push_hosts_that_died_out_without_being_told() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 1_000_000,
        failures_kept: S(600),
        ..small()
    });
    for pod in 0..10_000 {
        fail(&hosts.get(&pod.to_string()), 3);
        hand.advance(S(1));
    }
    assert!(hosts.len() < 2000, "{} keys are left", hosts.len());
}

// Whoever picks the keys must not fill the memory.
#[test]
fn a_flood_of_keys_that_fail_stays_within_the_capacity_and_pushes_nothing_out_that_must_stay() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 1000,
        ..small()
    });
    let name_of = |key: &str| hosts.find(key).map(|it| Arc::clone(it.name()));
    let open: Vec<_> = (0..500).map(|n| format!("open {n}")).collect();
    open.iter().for_each(|key| fail(&hosts.get(key), 3));
    let held: Vec<_> = (0..100).map(|n| hosts.get(&format!("held {n}"))).collect();
    let names: Vec<_> = open.iter().map(|key| name_of(key)).collect();
    for n in 0..100_000 {
        fail(&hosts.get(&format!("flood {n}")), 1);
        hand.advance(Duration::from_micros(1));
        assert!(hosts.len() <= 1600, "{} keys after {n}", hosts.len());
    }
    assert_eq!(hosts.snapshot().open, 500);
    for (key, name) in open.iter().zip(names) {
        assert!(Arc::ptr_eq(&name_of(key).unwrap(), &name.unwrap()), "{key}");
    }
    for host in held {
        let key = host.name().strip_prefix("host/").unwrap();
        assert!(Arc::ptr_eq(&name_of(key).unwrap(), host.name()), "{key}");
    }
}

#[test]
fn however_many_are_open_no_more_closed_ones_are_kept_than_the_capacity() {
    let (hosts, _) = group(small());
    for n in 0..1000 {
        fail(&hosts.get(&format!("open {n}")), 3);
    }
    for n in 0..1000 {
        fail(&hosts.get(&n.to_string()), 1);
        assert!(hosts.len() <= 1010);
    }
    let seen = hosts.snapshot();
    assert_eq!((seen.keys, seen.open), (1010, 1000));
}

#[test]
fn hosts_that_died_are_no_more_than_the_capacity_and_push_no_live_one_out() {
    let (hosts, hand) = group(KeyedConfig {
        capacity: 100,
        ..small()
    });
    let live: Vec<_> = (0..20).map(|n| format!("live {n}")).collect();
    live.iter().for_each(|key| fail(&hosts.get(key), 2));
    for pod in 0..10_000 {
        fail(&hosts.get(&pod.to_string()), 3);
        let _ = hosts.get(&live[pod % 20]);
        hand.advance(S(1));
        // Each waits for a minute, in which it must not be forgotten.
        assert!(hosts.len() <= 100 + 100 + 60, "{} keys", hosts.len());
    }
    for key in &live {
        fail(&hosts.get(key), 1);
        assert_eq!(hosts.get(key).state(), State::Open, "{key}");
    }
}

#[test]
fn a_full_group_forgets_first_what_has_not_failed_and_then_what_was_idle_longest() {
    let (hosts, hand) = group(small());
    for n in 0..10 {
        let host = hosts.get(&n.to_string());
        if n < 8 {
            fail(&host, 1);
        } else {
            host.record_success();
        }
        hand.advance(Duration::from_millis(1));
    }
    let _ = hosts.get("0");
    let kept = || {
        let kept = (0..10).filter(|n: &u32| hosts.find(&n.to_string()).is_some());
        kept.collect::<Vec<_>>()
    };
    for (key, left) in [
        ("a", &[0, 1, 2, 3, 4, 5, 6, 7, 9][..]),
        ("b", &[0, 1, 2, 3, 4, 5, 6, 7]),
        ("c", &[0, 2, 3, 4, 5, 6, 7]),
        ("d", &[0, 3, 4, 5, 6, 7]),
    ] {
        hand.advance(Duration::from_millis(1));
        fail(&hosts.get(key), 1);
        assert_eq!(kept(), left, "{key}");
    }
}

#[test]
fn breakers_that_begin_disabled_or_metrics_only_are_forgotten_unless_somebody_told_them_to() {
    for initial_state in [State::Disabled, State::MetricsOnly] {
        let breaker = Config {
            initial_state,
            ..breaker_config()
        };
        let (hosts, hand) = group(KeyedConfig { breaker, ..small() });
        hosts.get("told").enable();
        hosts.get("told").metrics_only();
        for n in 0..1000 {
            fail(&hosts.get(&n.to_string()), 1);
            assert!(hosts.len() <= 11);
        }
        hand.advance(S(3600));
        assert_eq!(hosts.forget_idle(), 10);
        assert!(hosts.find("told").is_some());
    }
}

#[test]
fn what_was_told_to_close_is_not_forgotten_where_keys_begin_in_another_state() {
    for initial_state in [State::Disabled, State::MetricsOnly, State::Open] {
        let breaker = Config {
            initial_state,
            ..breaker_config()
        };
        let (hosts, hand) = group(KeyedConfig { breaker, ..small() });
        hosts.get("enabled").enable();
        hosts.get("closed").force_close();
        hosts.get("reset").reset();
        for n in 0..1000 {
            let _ = hosts.get(&n.to_string()).try_acquire();
        }
        hand.advance(S(48 * 3600));
        hosts.forget_idle();
        let begins_open = initial_state == State::Open;
        assert_eq!(hosts.find("enabled").is_some(), !begins_open);
        for key in ["closed", "reset"] {
            let kept = hosts.find(key).map(|it| it.state());
            assert_eq!(kept, Some(State::Closed), "{key} among {initial_state}");
        }
    }
}

#[test]
fn what_was_enabled_is_not_forgotten_once_it_has_opened_and_closed_by_itself_either() {
    for initial_state in [State::Disabled, State::MetricsOnly] {
        let breaker = Config {
            initial_state,
            success_threshold: 1,
            ..breaker_config()
        };
        let (hosts, hand) = group(KeyedConfig { breaker, ..small() });
        for key in ["recovered", "opened"] {
            let host = hosts.get(key);
            host.enable();
            while host.state() == State::Closed {
                host.record_failure();
            }
        }
        hand.advance(S(3600));
        hosts.get("recovered").record_success();
        hand.advance(S(48 * 3600));
        hosts.forget_idle();
        let kept = |key| hosts.find(key).map(|it| it.state());
        assert_eq!(kept("recovered"), Some(State::Closed));
        assert_eq!(kept("opened"), Some(State::HalfOpen));
    }
}

#[test]
fn what_closed_by_itself_or_would_begin_closed_is_forgotten_though_it_was_told() {
    let begins = |initial_state| {
        let breaker = Config {
            initial_state,
            ..breaker_config()
        };
        group(KeyedConfig { breaker, ..small() })
    };
    let (hosts, hand) = begins(State::HalfOpen);
    hosts.get("probed").record_success();
    assert_eq!(hosts.get("probed").state(), State::Closed);
    hand.advance(S(3600));
    assert_eq!(hosts.forget_idle(), 1);

    let (hosts, hand) = begins(State::Closed);
    hosts.get("told").disable();
    hosts.get("told").enable();
    hand.advance(S(3600));
    assert_eq!(hosts.forget_idle(), 1);
}

#[test]
fn a_reconfiguration_reaches_every_key_and_those_to_come() {
    let (hosts, _) = group(small());
    let old: Vec<_> = (0..5).map(|n| hosts.get(&n.to_string())).collect();
    fail(&old[0], 2);
    let breaker = Config {
        failure_threshold: 4,
        window_size: 500,
        ..breaker_config()
    };
    let config = KeyedConfig {
        breaker: breaker.clone(),
        ..small()
    };
    hosts.reconfigure(config.clone()).unwrap();
    assert!(old.iter().all(|each| each.config() == breaker));
    assert_eq!(hosts.get("new").config(), breaker);
    fail(&old[0], 1);
    assert_eq!(old[0].state(), State::Closed);
    fail(&old[0], 1);
    assert_eq!(old[0].state(), State::Open, "two of four are from before");

    let wrong = KeyedConfig {
        capacity: 0,
        ..config.clone()
    };
    assert_eq!(hosts.reconfigure(wrong).unwrap_err().field, "capacity");
    assert_eq!(hosts.config(), config);
}

#[test]
fn a_reconfiguration_misses_no_key_that_is_made_meanwhile() {
    let (hosts, _) = group(KeyedConfig::default());
    for round in 1..20 {
        let breaker = Config {
            failure_threshold: round,
            ..Config::default()
        };
        let config = KeyedConfig {
            breaker: breaker.clone(),
            ..KeyedConfig::default()
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200 {
                    let _ = hosts.get(&format!("{round}-{n}"));
                }
            });
            hosts.reconfigure(config).unwrap();
        });
        for made in 1..=round {
            for n in 0..200 {
                let found = hosts.find(&format!("{made}-{n}")).unwrap();
                assert_eq!(found.config(), breaker);
            }
        }
    }
}

#[test]
fn of_two_reconfigurations_at_once_one_is_the_later_for_all_keys() {
    let (hosts, _) = group(KeyedConfig::default());
    let all: Vec<_> = (0..200).map(|n| hosts.get(&n.to_string())).collect();
    let reconfigure = |failure_threshold| {
        let breaker = Config {
            failure_threshold,
            ..Config::default()
        };
        let config = KeyedConfig {
            breaker,
            ..KeyedConfig::default()
        };
        hosts.reconfigure(config).unwrap();
    };
    for round in 1..300 {
        thread::scope(|scope| {
            scope.spawn(|| reconfigure(2 * round));
            reconfigure(2 * round + 1);
        });
        let newest = hosts.config().breaker;
        assert!(all.iter().all(|it| it.config() == newest));
    }
}

#[test]
fn the_same_group_asked_for_with_other_settings_is_an_error_that_names_them() {
    let manager = Manager::new();
    let hosts = manager.keyed("host", small()).unwrap();
    let _ = hosts.get("a");
    assert_eq!(manager.keyed("host", None).unwrap().len(), 1);
    assert_eq!(manager.keyed("host", small()).unwrap().len(), 1);
    let error = manager.keyed("host", KeyedConfig::default()).unwrap_err();
    assert!(matches!(error, CreateError::OtherSettings { .. }));
    assert!(error.to_string().contains("capacity is 10, not 1000000"));
    assert_eq!(manager.groups().len(), 1);
    assert!(manager.remove_group("host").is_some());
    assert!(manager.keyed("host", None).unwrap().is_empty());
}

#[test]
fn a_removed_key_begins_anew_and_its_counts_stay_in_the_total() {
    let (hosts, _) = group(small());
    let old = hosts.get("a");
    fail(&old, 3);
    assert!(hosts.remove("a").is_some());
    assert!(hosts.remove("a").is_none());
    assert_eq!(hosts.get("a").state(), State::Closed);
    assert_eq!((hosts.len(), hosts.snapshot().counts.failures), (1, 3));
}

// Bug class 42: as many series as there are keys.
#[test]
fn two_hundred_thousand_keys_are_no_more_series_than_allowed() {
    let (hosts, _) = group(KeyedConfig {
        capacity: 1_000_000,
        ..small()
    });
    for n in 0..200_000_u64 {
        let host = hosts.get(&n.to_string());
        fail(&host, u64::from(n.is_multiple_of(1000)));
    }
    fail(&hosts.get("1234"), 40);
    fail(&hosts.get("4321"), 30);
    fail(&hosts.get("3"), 2);
    let seen = hosts.series();
    let names: Vec<&str> = seen.listed.iter().map(|key| &*key.breaker).collect();
    assert_eq!(names, ["host/1234", "host/4321", "host/3"]);
    let worst = &seen.listed[0];
    assert_eq!((worst.counts.failures, worst.counts.rejections), (3, 37));
    assert_eq!(worst.state, State::Open);
    assert_eq!(seen.total.failures, 200 + 3 + 3 + 2);
    assert_eq!(seen.other, seen.total, "nothing was listed before");
    let now = hosts.snapshot();
    assert_eq!((now.keys, now.open, now.counts), (200_000, 2, seen.total));
    fail(&hosts.get("4321"), 10);
    let next = hosts.series();
    assert_eq!(next.listed.len(), 3);
    assert_eq!(next.listed[1].since_listed.rejections, 10);
    assert_eq!(next.other, seen.other);
}

fn none_fell(before: &Counts, after: &Counts) -> bool {
    let pairs = [
        (before.calls, after.calls),
        (before.failures, after.failures),
        (before.rejections, after.rejections),
        (before.openings, after.openings),
    ];
    pairs.into_iter().all(|(before, after)| before <= after)
}

proptest! {
    #[test]
    fn no_exported_counter_ever_falls_and_the_series_add_up(
        steps in prop::collection::vec((0_u8..6, 0_u64..30, 0_u64..6), 1..120)
    ) {
        let (hosts, hand) = group(small());
        let mut before = hosts.series();
        for (step, key, times) in steps {
            let key = key.to_string();
            match step {
                0 => hosts.get(&key).record_success(),
                1 | 2 => fail(&hosts.get(&key), times),
                3 => hosts.get(&key).reset(),
                4 => drop(hosts.remove(&key)),
                _ => {
                    hand.advance(S(times * 600));
                    hosts.forget_idle();
                }
            }
            let now = hosts.series();
            prop_assert!(now.listed.len() <= 3);
            prop_assert!(none_fell(&before.total, &now.total));
            prop_assert!(none_fell(&before.other, &now.other));
            for key in &now.listed {
                let earlier = before.listed.iter().find(|it| it.breaker == key.breaker);
                // A key that was removed and made again begins a new series.
                if let Some(earlier) = earlier.filter(|_| step != 4 && step != 5) {
                    prop_assert!(none_fell(&earlier.since_listed, &key.since_listed));
                }
            }
            let listed = now.listed.iter().map(|key| key.since_listed);
            let sum = listed.fold(now.other, |sum, counts| sum + counts);
            prop_assert_eq!(sum, now.total);
            prop_assert_eq!(hosts.snapshot().counts, now.total);
            prop_assert_eq!(hosts.snapshot().keys, hosts.len());
            before = now;
        }
    }

    #[test]
    fn whatever_happens_to_the_keys_none_is_forgotten_that_is_open_or_held(
        steps in prop::collection::vec((0_u8..9, 0_u64..40, 0_u64..100), 1..200)
    ) {
        let (hosts, hand) = group(KeyedConfig { capacity: 5, failures_kept: S(200), ..small() });
        let mut held = Vec::new();
        for (step, key, seconds) in steps {
            let key = key.to_string();
            let is_open = |key: &u64| {
                let found = hosts.find(&key.to_string())?;
                (found.state() == State::Open).then(|| (*key, Arc::clone(found.name())))
            };
            let open: Vec<_> = (0..40).filter_map(|key| is_open(&key)).collect();
            let known = held.len();
            match step {
                0 => hosts.get(&key).record_success(),
                1 => fail(&hosts.get(&key), 1),
                2 | 3 => fail(&hosts.get(&key), 3),
                4 => hosts.get(&key).force_open(),
                5 => held.push(hosts.get(&key)),
                6 => held.truncate(known / 2),
                7 => hand.advance(S(seconds)),
                _ => drop(hosts.forget_idle()),
            }
            let held = held.iter().take(known).map(CircuitBreaker::name);
            for name in open.iter().map(|(_, name)| name).chain(held) {
                let found = hosts.find(name.strip_prefix("host/").unwrap());
                prop_assert!(found.is_some_and(|it| Arc::ptr_eq(it.name(), name)), "{}", name);
            }
            prop_assert_eq!(hosts.snapshot().keys, hosts.len());
        }
    }
}

/// Looks into the group when it is woken.
struct Looks {
    hosts: Keyed,
    woken: AtomicUsize,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let _ = self.hosts.find("other");
        let _ = self.hosts.get("other");
        self.woken.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_is_woken_by_the_end_of_a_key_may_ask_for_the_group() {
    let forget: [fn(&Keyed, &ManualClock); 4] = [
        // By an insertion that finds it idle.
        |hosts, hand| {
            hand.advance(S(60));
            let _ = hosts.get("b");
        },
        // By an insertion that finds no room.
        |hosts, _| (0..20).for_each(|n| drop(hosts.get(&n.to_string()))),
        |hosts, hand| {
            hand.advance(S(60));
            hosts.forget_idle();
        },
        |hosts, _| drop(hosts.remove("a")),
    ];
    for (n, forget) in forget.into_iter().enumerate() {
        let (tell, told) = mpsc::channel();
        let waits = thread::spawn(move || {
            let (hosts, hand) = group(small());
            let mut events = hosts.get("a").subscribe();
            let looks = Arc::new(Looks {
                hosts: hosts.clone(),
                woken: AtomicUsize::new(0),
            });
            let waker = Waker::from(Arc::clone(&looks));
            let mut end = pin!(events.recv());
            let waiting = end.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(waiting.is_pending());
            forget(&hosts, &hand);
            tell.send(looks.woken.load(Ordering::SeqCst)).unwrap();
        });
        let woken = told.recv_timeout(LIMIT);
        assert!(
            woken.is_ok_and(|woken| woken > 0),
            "way {n}: woken {woken:?}"
        );
        waits.join().unwrap();
    }
}

/// Reconfigures the group when it is first woken.
struct Reconfigures {
    hosts: Keyed,
    to: Mutex<Option<KeyedConfig>>,
}

impl Wake for Reconfigures {
    fn wake(self: Arc<Self>) {
        let to = self.to.lock().unwrap().take();
        if let Some(to) = to {
            self.hosts.reconfigure(to).unwrap();
        }
    }
}

#[test]
fn who_is_woken_by_a_reconfiguration_may_reconfigure_the_group() {
    let threshold = |failure_threshold| KeyedConfig {
        breaker: Config {
            failure_threshold,
            ..breaker_config()
        },
        ..small()
    };
    let (tell, told) = mpsc::channel();
    let waits = thread::spawn(move || {
        let (hosts, _) = group(small());
        let all: Vec<_> = (0..9).map(|n| hosts.get(&n.to_string())).collect();
        all[4].force_open();
        let waker = Waker::from(Arc::new(Reconfigures {
            hosts: hosts.clone(),
            to: Mutex::new(Some(threshold(8))),
        }));
        let mut ready = pin!(all[4].ready());
        let waiting = ready.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(waiting.is_pending());
        hosts.reconfigure(threshold(7)).unwrap();
        let have = all.iter().map(|it| it.config().failure_threshold);
        tell.send(have.collect::<Vec<_>>()).unwrap();
    });
    let have = told.recv_timeout(LIMIT);
    assert_eq!(have, Ok(vec![8; 9]), "the newest settings are the last");
    waits.join().unwrap();
}
