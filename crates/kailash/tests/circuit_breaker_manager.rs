//! The registry: settings by name, all breakers at once, and what subscribers hear of them.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use kailash::circuit_breaker::{
    CircuitBreaker, Config, CreateError, Event, EventKind, Events, KeyedConfig, Manager, Outcome,
    Overrides, PresetError, Presets, State, Transition, WindowKind,
};
use kailash::clock::Clock;
use proptest::prelude::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn one_failure_opens() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        jitter_enabled: false,
        ..Config::default()
    }
}

fn on(base: &str) -> Overrides {
    Overrides {
        base: Some(base.to_owned()),
        ..Overrides::default()
    }
}

#[test]
fn the_presets_are_those_of_the_python_module() {
    let presets = Presets::new();
    let seen = |name| {
        let config = presets.resolve(name).unwrap();
        let own = (config.failure_threshold, config.recovery_timeout.as_secs());
        let rest = Config {
            failure_threshold: 5,
            recovery_timeout: S(60),
            ..config
        };
        assert_eq!(rest, Config::default());
        own
    };
    assert_eq!(seen("default"), (5, 60));
    assert_eq!(seen("database"), (5, 60));
    assert_eq!(seen("api"), (3, 30));
    assert_eq!(seen("cache"), (2, 15));
    assert_eq!(presets.names(), ["api", "cache", "database", "default"]);
}

fn option<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<T>> {
    proptest::option::of(value).boxed()
}

fn span() -> impl Strategy<Value = Duration> {
    (10_u64..10_000).prop_map(Duration::from_millis)
}

prop_compose! {
    fn overrides()(
        counts in (option(1_u32..100), option(1_u32..100), option(1_u32..100), option(1_u32..100),
            option(1_u32..100)),
        spans in (option(span()), option(span()), option(span())),
        off in (option(option(0.1..1.0)), option(option(span())), option(option(0.1..1.0)),
            option(option(span()))),
        numbers in (option(1.0..10.0), option(0.0..1.0)),
        flags in (option(any::<bool>()), option(any::<bool>()), option(any::<bool>())),
        chosen in (option(prop::sample::select(WindowKind::ALL.to_vec())), option(Just(State::Open)),
            option(span())),
    ) -> Overrides {
        Overrides {
            base: None,
            failure_threshold: counts.0,
            success_threshold: counts.1,
            recovery_timeout: spans.0,
            max_recovery_timeout: spans.1,
            half_open_requests: counts.2,
            error_rate_threshold: off.0,
            window: chosen.0,
            window_size: counts.3,
            window_duration: chosen.2,
            min_calls_before_evaluation: counts.4,
            slow_call_threshold: off.1,
            slow_call_rate_threshold: off.2,
            overdue_calls_enabled: flags.1,
            max_wait_duration_in_half_open: spans.2,
            exponential_backoff_multiplier: numbers.0,
            jitter_enabled: flags.0,
            max_jitter_percentage: numbers.1,
            cancelled_counts_after: off.3,
            ramp_enabled: flags.2,
            initial_state: chosen.1,
        }
    }
}

proptest! {
    // Bug class 38: an option that is dropped on the way from a base.
    #[test]
    fn a_derived_config_is_its_base_with_every_said_field_laid_over_it(
        base in overrides(), own in overrides()
    ) {
        let mut presets = Presets::new();
        presets.insert("base", base.clone());
        presets.insert("own", Overrides { base: Some("base".into()), ..own.clone() });
        let base = base.over(&Config::default());
        let derived = presets.resolve("own").unwrap();
        prop_assert_eq!(&derived, &own.over(&base));
        let differ: Vec<&str> = derived.differences(&base).into_iter().map(|it| it.0).collect();
        macro_rules! each {
            ($($field:ident)*) => {$(
                match own.$field {
                    Some(said) => prop_assert_eq!(derived.$field, said),
                    None => {
                        prop_assert_eq!(derived.$field, base.$field);
                        prop_assert!(!differ.contains(&stringify!($field)));
                    }
                }
            )*};
        }
        each!(failure_threshold success_threshold recovery_timeout max_recovery_timeout
            half_open_requests error_rate_threshold window_size min_calls_before_evaluation
            slow_call_threshold slow_call_rate_threshold max_wait_duration_in_half_open
            exponential_backoff_multiplier jitter_enabled max_jitter_percentage
            cancelled_counts_after window window_duration overdue_calls_enabled ramp_enabled
            initial_state);
    }
}

// Bug class 39: a circle of bases overflows the stack.
#[test]
fn a_circle_of_bases_is_an_error_that_names_the_way_round() {
    let mut presets = Presets::new();
    presets.insert("a", on("b"));
    presets.insert("b", on("c"));
    presets.insert("c", on("b"));
    let error = presets.resolve("a").unwrap_err();
    assert_eq!(error.to_string(), "bases go round in a circle: b -> c -> b");
    presets.insert("default", on("api"));
    let error = presets.resolve("api").unwrap_err();
    assert_eq!(
        error.to_string(),
        "bases go round in a circle: default -> api -> default"
    );
    presets.insert("self", on("self"));
    let error = presets.resolve("self").unwrap_err();
    assert_eq!(
        error.to_string(),
        "bases go round in a circle: self -> self"
    );
}

#[test]
fn a_long_chain_of_bases_is_followed_to_its_end() {
    let mut presets = Presets::new();
    presets.insert("0", on("cache"));
    for n in 1..10_000 {
        presets.insert(n.to_string(), on(&(n - 1).to_string()));
    }
    assert_eq!(presets.resolve("9999").unwrap().failure_threshold, 2);
}

#[test]
fn an_unknown_base_is_named_with_the_one_that_was_meant() {
    let manager = Manager::new();
    let error = manager.define("orders", on("databse")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "preset \"orders\": unknown base \"databse\", did you mean \"database\"? \
         (there are api, cache, database, default, orders)"
    );
    let error = manager.preset("quick").unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown preset \"quick\" (there are api, cache, database, default)"
    );
    assert!(
        manager.preset("orders").is_err(),
        "what was refused is not defined"
    );
}

#[test]
fn a_preset_may_build_on_the_one_that_it_replaces() {
    let manager = Manager::new();
    let api = Overrides {
        success_threshold: Some(1),
        ..on("api")
    };
    manager.define("api", api).unwrap();
    manager.define("payments", on("api")).unwrap();
    let payments = manager.preset("payments").unwrap();
    assert_eq!(
        (payments.failure_threshold, payments.success_threshold),
        (3, 1)
    );
}

#[test]
fn a_definition_that_breaks_one_that_builds_on_it_is_refused_and_changes_nothing() {
    let manager = Manager::new();
    let slow = Overrides {
        min_calls_before_evaluation: Some(50),
        ..Overrides::default()
    };
    manager.define("slow", slow).unwrap();
    manager.define("slower", on("slow")).unwrap();
    assert!(matches!(
        manager.define("slow", on("slower")),
        Err(PresetError::Circle { .. })
    ));
    let wrong = Overrides {
        window_size: Some(0),
        ..Overrides::default()
    };
    let error = manager.define("default", wrong).unwrap_err();
    assert!(error.to_string().contains("window_size: 0 is not allowed"));
    let slower = manager.preset("slower").unwrap();
    assert_eq!(
        (slower.min_calls_before_evaluation, slower.window_size),
        (50, 100)
    );
}

#[test]
fn a_breaker_made_without_settings_takes_those_defined_for_its_name() {
    let manager = Manager::new();
    let default = Overrides {
        half_open_requests: Some(7),
        ..Overrides::default()
    };
    manager.define("default", default).unwrap();
    manager.define("payments", on("cache")).unwrap();
    let seen = |name| {
        let config = manager.get_or_create(name, None).unwrap().config();
        (config.failure_threshold, config.half_open_requests)
    };
    assert_eq!(seen("payments"), (2, 7));
    assert_eq!(seen("other"), (5, 7));
    assert_eq!(
        seen("api"),
        (5, 7),
        "the library's presets are bases, not settings of whatever has the name"
    );
    let keyed = manager.keyed("payments", None).unwrap();
    assert_eq!(keyed.get("a").config().failure_threshold, 2);
}

#[test]
fn all_breakers_are_reset_and_seen_at_once() {
    let manager = Manager::new();
    for name in ["b", "a", "c"] {
        let breaker = manager.get_or_create(name, one_failure_opens()).unwrap();
        breaker.record_failure();
    }
    let group = KeyedConfig {
        breaker: one_failure_opens(),
        ..KeyedConfig::default()
    };
    let host = manager.keyed("host", group).unwrap().get("x");
    host.force_open();
    let seen = manager.snapshots();
    let names: Vec<&str> = seen.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(seen.iter().all(|(_, seen)| seen.state == State::Open));
    manager.reset_all();
    let is_new = |(_, seen): (_, kailash::circuit_breaker::Snapshot)| {
        (seen.state, seen.failures, seen.openings) == (State::Closed, 0, 0)
    };
    assert!(manager.snapshots().into_iter().all(is_new));
    assert_eq!(host.state(), State::Closed);
}

#[test]
fn a_removed_breaker_goes_on_for_those_who_hold_it() {
    let manager = Manager::new();
    let old = manager.get_or_create("db", one_failure_opens()).unwrap();
    let mut events = manager.subscribe_transitions();
    assert!(manager.remove("db").is_some());
    assert!(manager.remove("db").is_none());
    old.record_failure();
    let new = manager.get_or_create("db", None).unwrap();
    assert_eq!((old.state(), new.state()), (State::Open, State::Closed));
    assert!(matches!(
        events.try_recv().map(|event| event.kind),
        Some(EventKind::Transition(_))
    ));
}

// Bug class 40: a reload that disposes of breakers under calls in flight.
#[test]
fn a_reload_under_a_thousand_calls_in_flight_loses_none_of_them() {
    let manager = Manager::new();
    let config = Config {
        failure_threshold: 1_000_000,
        error_rate_threshold: None,
        ..Config::default()
    };
    let breaker = manager.get_or_create("db", config.clone()).unwrap();
    let permits: Vec<_> = (0..1000)
        .map(|_| breaker.try_acquire_owned().unwrap())
        .collect();
    let reloaded = Config {
        failure_threshold: 500,
        ..config
    };
    breaker.reconfigure(reloaded.clone()).unwrap();
    manager.remove("db");
    let next = manager.get_or_create("db", reloaded).unwrap();
    for permit in permits {
        permit.failure();
    }
    assert_eq!(breaker.counts().failures, 500, "then it was open");
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(next.counts().calls, 0);
}

// Bug classes 41 and 57: series that double or die on a change, and show only tripped breakers.
#[test]
fn a_breaker_is_one_series_from_its_creation_on_however_often_it_is_reconfigured() {
    let manager = Manager::new();
    let breaker = manager.get_or_create("db", one_failure_opens()).unwrap();
    let series = || {
        let all = manager.snapshots().into_iter();
        all.map(|(name, seen)| (name.to_string(), seen.state))
            .collect::<Vec<_>>()
    };
    assert_eq!(series(), [("db".to_owned(), State::Closed)]);
    let mut events = manager.subscribe_transitions();
    for half_open_requests in 1..50 {
        breaker
            .reconfigure(Config {
                half_open_requests,
                ..one_failure_opens()
            })
            .unwrap();
    }
    breaker.record_failure();
    assert_eq!(series(), [("db".to_owned(), State::Open)]);
    let heard: Vec<_> = std::iter::from_fn(|| events.try_recv()).collect();
    assert_eq!(heard.len(), 1, "{heard:?}");
}

type Bring = fn(&CircuitBreaker);

// Bug class 52: a reset that keeps counts.
#[test]
fn a_reset_from_every_state_leaves_zeros_and_no_metric_falls() {
    let states: [(&str, Bring); 6] = [
        ("closed", |_| {}),
        ("open", CircuitBreaker::record_failure),
        ("forced open", CircuitBreaker::force_open),
        ("half-open", |it| {
            it.record_failure();
            let _ = it.try_acquire().map(|permit| permit.ignore());
        }),
        ("disabled", CircuitBreaker::disable),
        ("metrics-only", CircuitBreaker::metrics_only),
    ];
    for (state, bring) in states {
        let (clock, hand) = Clock::manual();
        let manager = Manager::with_clock(clock);
        manager.record_durations();
        let breaker = manager.get_or_create("db", one_failure_opens()).unwrap();
        for _ in 0..20 {
            let _ = breaker.call_sync(|| {
                hand.advance(S(1));
                Ok::<_, ()>(())
            });
        }
        bring(&breaker);
        hand.advance(S(60));
        let before = (breaker.counts(), breaker.all_durations());
        assert_eq!(breaker.durations().unwrap().count(), 20);
        breaker.reset();
        let seen = breaker.snapshot();
        assert_eq!(seen.state, State::Closed, "{state}");
        let counts = [
            seen.calls,
            seen.failures,
            seen.slow_calls,
            seen.rejections,
            seen.openings,
            seen.window_calls.into(),
            seen.window_failures.into(),
            seen.consecutive_failures.into(),
            seen.probes_in_flight.into(),
            seen.openings_in_a_row.into(),
        ];
        assert_eq!(counts, [0; 10], "{state}");
        assert_eq!(breaker.durations().unwrap().count(), 0, "{state}");
        assert_eq!((breaker.counts(), breaker.all_durations()), before);
    }
}

#[test]
fn durations_are_recorded_only_while_they_are_wanted() {
    let (clock, hand) = Clock::manual();
    let manager = Manager::with_clock(clock);
    let config = Config {
        slow_call_threshold: None,
        cancelled_counts_after: None,
        ..Config::default()
    };
    let breaker = manager.get_or_create("db", config).unwrap();
    let hosts = manager.keyed("host", None).unwrap();
    let call = |breaker: &CircuitBreaker, ms| {
        breaker.call_sync(|| {
            hand.advance(Duration::from_millis(ms));
            Ok::<_, ()>(())
        })
    };
    call(&breaker, 10).unwrap();
    assert_eq!(breaker.durations(), None);
    manager.record_durations();
    for ms in [10, 20, 30] {
        call(&breaker, ms).unwrap();
        call(&hosts.get(&ms.to_string()), ms).unwrap();
    }
    manager.stop_recording_durations();
    call(&breaker, 10).unwrap();
    let seen = breaker.durations().unwrap();
    assert_eq!((seen.count(), seen.mean().as_millis()), (3, 20));
    assert_eq!(hosts.durations().sum().as_millis(), 60);
    assert_eq!(hosts.get("10").durations(), None, "the group has them");
}

#[test]
fn racing_makers_of_one_name_with_different_settings_agree_on_one() {
    for _ in 0..100 {
        let manager = Manager::new();
        let made: Vec<_> = std::thread::scope(|scope| {
            let racers = [1, 2].map(|failure_threshold| {
                let manager = &manager;
                scope.spawn(move || {
                    let config = Config {
                        failure_threshold,
                        ..Config::default()
                    };
                    manager.get_or_create("db", config)
                })
            });
            racers.map(|racer| racer.join().unwrap()).into()
        });
        let right = made.iter().filter(|made| made.is_ok()).count();
        assert_eq!(right, 1);
        let wrong = made.into_iter().find_map(Result::err);
        assert!(matches!(wrong, Some(CreateError::OtherSettings { .. })));
    }
}

fn heard(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv()).collect()
}

fn transitions(events: &mut Events) -> Vec<Transition> {
    let heard = heard(events).into_iter();
    heard
        .filter_map(|event| match event.kind {
            EventKind::Transition(transition) => Some(transition),
            EventKind::Lost(lost) => panic!("{lost} are lost"),
            _ => None,
        })
        .collect()
}

#[test]
fn every_kind_of_event_is_told() {
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock("test", one_failure_opens(), clock).unwrap();
    let mut events = breaker.subscribe();
    let run = |seconds, outcome| {
        let permit = breaker.try_acquire().unwrap();
        hand.advance(S(seconds));
        permit.record(outcome);
    };
    run(1, Outcome::Success);
    run(5, Outcome::Success);
    run(0, Outcome::Ignored);
    run(0, Outcome::Cancelled);
    run(2, Outcome::Failure);
    assert!(breaker.try_acquire().is_err());
    let kinds: Vec<_> = heard(&mut events).into_iter().map(|it| it.kind).collect();
    let ended = |outcome, seconds, is_slow| EventKind::Ended {
        outcome,
        ran: Some(S(seconds)),
        is_slow,
    };
    assert_eq!(
        kinds[..5],
        [
            ended(Outcome::Success, 1, false),
            ended(Outcome::Success, 5, true),
            ended(Outcome::Ignored, 0, false),
            ended(Outcome::Cancelled, 0, false),
            ended(Outcome::Failure, 2, false),
        ]
    );
    assert!(matches!(kinds[5], EventKind::Transition(_)));
    assert_eq!(kinds[6..], [EventKind::Rejected]);
}

#[test]
fn who_subscribes_while_a_call_finds_nobody_hears_of_the_next_call_and_refusal() {
    for _ in 0..500 {
        let breaker = CircuitBreaker::new("test", Config::default()).unwrap();
        // The next call looks for somebody.
        drop(breaker.subscribe());
        let mut events = std::thread::scope(|scope| {
            scope.spawn(|| breaker.call_sync(|| Ok::<_, ()>(())));
            let events = breaker.subscribe();
            breaker.try_acquire().unwrap().ignore();
            breaker.force_open();
            assert!(breaker.try_acquire().is_err());
            events
        });
        let kinds: Vec<_> = heard(&mut events).into_iter().map(|it| it.kind).collect();
        assert!(kinds.contains(&EventKind::Rejected), "{kinds:?}");
        let is_own = |kind: &EventKind| {
            matches!(
                kind,
                EventKind::Ended {
                    outcome: Outcome::Ignored,
                    ..
                }
            )
        };
        assert!(kinds.iter().any(is_own), "{kinds:?}");
    }
}

#[test]
fn a_registrys_subscriber_hears_of_breakers_made_later_and_of_keys() {
    let manager = Manager::new();
    let mut events = manager.subscribe();
    let late = manager.get_or_create("late", one_failure_opens()).unwrap();
    late.record_failure();
    manager.keyed("host", None).unwrap().get("a").force_open();
    let heard = heard(&mut events).into_iter();
    let names: Vec<String> = heard.map(|event| event.breaker.to_string()).collect();
    assert_eq!(names, ["late", "late", "host/a"]);
}

#[test]
fn a_registrys_subscriber_misses_no_breaker_that_is_made_while_he_subscribes() {
    for _ in 0..500 {
        let manager = Manager::new();
        let mut events = std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = manager.get_or_create("db", None);
                let _ = manager.keyed("host", None).map(|hosts| hosts.get("a"));
            });
            manager.subscribe()
        });
        let hosts = manager.keyed("host", None).unwrap();
        for breaker in [manager.get("db").unwrap(), hosts.get("a")] {
            breaker.call_sync(|| Ok::<_, ()>(())).unwrap();
            let heard = heard(&mut events);
            assert_eq!(heard.len(), 1);
            assert_eq!(heard[0].breaker, *breaker.name());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_registrys_subscriber_hears_on_time_of_what_time_brings_about() {
    let manager = Manager::with_clock(Clock::tokio());
    let before = manager
        .get_or_create("before", one_failure_opens())
        .unwrap();
    before.record_failure();
    tokio::time::advance(S(20)).await;
    let mut events = manager.subscribe_transitions();
    let after = manager.get_or_create("after", one_failure_opens()).unwrap();
    after.record_failure();
    let started = tokio::time::Instant::now();
    let mut heard = Vec::new();
    for _ in 0..3 {
        let event = events.recv().await.unwrap();
        let EventKind::Transition(transition) = event.kind else {
            panic!("{event:?}");
        };
        let seconds = started.elapsed().as_secs();
        heard.push((event.breaker.to_string(), transition.to, seconds));
    }
    assert_eq!(
        heard,
        [
            ("after".to_owned(), State::Open, 0),
            ("before".to_owned(), State::HalfOpen, 40),
            ("after".to_owned(), State::HalfOpen, 60),
        ]
    );
    // A probe that hangs lapses on time too, though nothing else tells of it.
    let _probe = before.try_acquire().unwrap();
    let event = events.recv().await.unwrap();
    assert_eq!((&*event.breaker, started.elapsed()), ("before", S(120)));
    assert!(matches!(event.kind, EventKind::Transition(it) if it.to == State::Open));
}

/// When the first lapse is heard of whose probe began long after its breaker became half-open.
async fn hears_of_a_lapse(mut events: Events, breaker: CircuitBreaker) -> Duration {
    let started = tokio::time::Instant::now();
    let listener = tokio::spawn(async move {
        loop {
            let event = events.recv().await.expect("the breaker is there");
            if let EventKind::Transition(news) = event.kind
                && news.from == State::HalfOpen
            {
                return started.elapsed();
            }
        }
    });
    tokio::task::yield_now().await;
    breaker.record_failure();
    tokio::time::sleep(S(70)).await;
    let _probe = breaker.try_acquire().unwrap();
    let heard = tokio::time::timeout(S(3600), listener).await;
    heard.expect("nobody told of it").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lapse_is_told_on_time_to_whoever_waited_before_the_probe_began() {
    let manager = Manager::with_clock(Clock::tokio());
    let create = |name| manager.get_or_create(name, one_failure_opens()).unwrap();
    for name in ["own", "all"] {
        let breaker = create(name);
        let events = match name {
            "own" => breaker.subscribe_transitions(),
            _ => manager.subscribe(),
        };
        assert_eq!(hears_of_a_lapse(events, breaker).await, S(130), "{name}");
        manager.remove(name);
    }
}

#[test]
fn a_wait_that_begins_at_birth_is_told_of_when_it_is_over() {
    let (clock, hand) = Clock::manual();
    let own_clock = clock.clone();
    let manager = Manager::with_clock(clock);
    let born_open = Config {
        initial_state: State::Open,
        ..one_failure_opens()
    };
    let mut events = manager.subscribe_transitions();
    let group = KeyedConfig {
        breaker: born_open.clone(),
        ..KeyedConfig::default()
    };
    let _named = manager.get_or_create("named", born_open.clone()).unwrap();
    let _key = manager.keyed("group", group).unwrap().get("key");
    let alone = CircuitBreaker::with_clock("alone", born_open, own_clock).unwrap();
    let mut own = alone.subscribe();
    hand.advance(S(60));
    let told = heard(&mut events);
    let told: Vec<&str> = told.iter().map(|it| &*it.breaker).collect();
    assert_eq!(told, ["named", "group/key"]);
    assert_eq!(transitions(&mut own).len(), 1);
}

/// Keys whose breakers are open and become half-open at the same time.
fn down(manager: &Manager, keys: usize) -> Vec<CircuitBreaker> {
    let config = KeyedConfig {
        breaker: one_failure_opens(),
        ..KeyedConfig::default()
    };
    let hosts = manager.keyed("host", config).unwrap();
    let open = |key: usize| {
        let host = hosts.get(&key.to_string());
        host.record_failure();
        host
    };
    (0..keys).map(open).collect()
}

#[tokio::test(start_paused = true)]
async fn however_many_are_due_at_once_who_keeps_up_hears_of_each() {
    let manager = Manager::with_clock(Clock::tokio());
    let hosts = down(&manager, 5000);
    let mut events = manager.subscribe_transitions();
    for _ in &hosts {
        let told = events.recv().await.unwrap();
        assert!(matches!(told.kind, EventKind::Transition(it) if it.to == State::HalfOpen));
    }
    tokio::time::advance(S(3600)).await;
    assert_eq!((events.try_recv(), events.lost_so_far()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn who_always_finds_something_to_hear_of_hears_on_time_of_what_time_brings_about_too() {
    let manager = Manager::with_clock(Clock::tokio());
    let _hosts = down(&manager, 3);
    let busy = manager.get_or_create("busy", None).unwrap();
    let mut events = manager.subscribe();
    let (mut changes, started) = (Vec::new(), tokio::time::Instant::now());
    for _ in 0..70 {
        busy.record_success();
        tokio::time::advance(S(1)).await;
        let event = events.recv().await.unwrap();
        if matches!(event.kind, EventKind::Transition(_)) {
            changes.push(started.elapsed().as_secs());
        }
    }
    // Each is heard behind the call that was told before it.
    assert_eq!(changes, [61, 63, 65]);
}

#[tokio::test(start_paused = true)]
async fn who_has_fallen_behind_is_not_pushed_further_by_what_is_due() {
    let manager = Manager::with_clock(Clock::tokio());
    let hosts = down(&manager, 3);
    let busy = manager.get_or_create("busy", None).unwrap();
    let mut events = manager.subscribe();
    tokio::time::advance(S(60)).await;
    for _ in 0..1024 {
        busy.record_success();
    }
    assert!(events.recv().await.is_some());
    assert!(hosts.iter().all(|host| host.transitions().len() == 1));
    while events.try_recv().is_some() {}
    assert!(hosts.iter().all(|host| host.transitions().len() == 2));
    assert_eq!(events.lost_so_far(), 0);
}

#[test]
fn one_look_of_a_subscriber_changes_one_breaker_at_most() {
    let (clock, hand) = Clock::manual();
    let manager = Manager::with_clock(clock);
    let hosts = down(&manager, 500);
    let mut events = manager.subscribe_transitions();
    let changed = || hosts.iter().filter(|host| host.transitions().len() > 1);
    assert_eq!((events.try_recv(), changed().count()), (None, 0));
    hand.advance(S(60));
    for looks in 1..=3 {
        assert!(events.try_recv().is_some());
        assert_eq!(changed().count(), looks);
    }
    for looks in 4..=6 {
        let mut next = pin!(events.recv());
        let context = &mut Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(context).is_ready());
        assert_eq!(changed().count(), looks);
    }
}

// Bug class 31: transitions that are told twice, not at all, or in another order.
#[test]
fn each_transition_is_told_once_and_in_order_whoever_brings_it_about() {
    told_in_order(false);
}

// The last stage of a ramp closes the breaker at the end of a call that is no probe.
#[test]
fn transitions_at_the_end_of_a_ramp_are_told_in_order_too() {
    told_in_order(true);
}

fn told_in_order(ramp_enabled: bool) {
    let config = Config {
        ramp_enabled,
        min_calls_before_evaluation: 1,
        recovery_timeout: Duration::from_nanos(1),
        exponential_backoff_multiplier: 1.0,
        half_open_requests: 2,
        ..one_failure_opens()
    };
    let manager = Manager::new();
    let breaker = manager.get_or_create("test", config).unwrap();
    let stop = AtomicBool::new(false);
    let read = AtomicU64::new(0);
    let mut all = manager.subscribe_transitions();
    let mut log = Vec::new();
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (breaker, stop, read) = (&breaker, &stop, &read);
            // An opening is two or three transitions: so none is lost to the reader.
            let is_ahead = || 2 * breaker.counts().openings > read.load(Ordering::Relaxed) + 300;
            scope.spawn(move || {
                for round in worker.. {
                    while is_ahead() && !stop.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                    let result = if round % 8 < 6 { Ok(()) } else { Err(()) };
                    let _ = breaker.call_sync(|| result);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        while log.len() < 1000 {
            let new = transitions(&mut all);
            read.fetch_add(new.len() as u64, Ordering::Relaxed);
            log.extend(new);
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    log.extend(transitions(&mut all));
    for pair in log.windows(2) {
        assert_eq!(pair[0].to, pair[1].from, "{pair:?}");
        assert!(pair[0].at <= pair[1].at, "{pair:?}");
    }
    // At rest, what was told last is what is kept.
    let kept: Vec<Transition> = breaker.transitions().into_iter().map(|it| it.0).collect();
    assert_eq!(log[log.len() - kept.len()..], kept);
}

#[test]
fn one_breakers_subscriber_and_the_registrys_hear_the_same() {
    let manager = Manager::new();
    let breaker = manager.get_or_create("test", one_failure_opens()).unwrap();
    let (mut own, mut all) = (breaker.subscribe_transitions(), manager.subscribe());
    for _ in 0..50 {
        breaker.record_failure();
        breaker.reset();
        breaker.disable();
        breaker.enable();
    }
    let own = transitions(&mut own);
    assert_eq!(own.len(), 200);
    assert_eq!(own, transitions(&mut all));
}

#[test]
fn a_subscriber_to_transitions_loses_none_to_a_storm_of_calls() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events = breaker.subscribe_transitions();
    for _ in 0..5000 {
        let _ = breaker.call_sync(|| Ok::<_, ()>(()));
    }
    breaker.record_failure();
    for _ in 0..5000 {
        assert!(breaker.try_acquire().is_err());
    }
    assert_eq!(heard(&mut events).len(), 1);
    assert_eq!(events.lost_so_far(), 0);
}

/// Subscribes to logs, and asks the breaker back at each transition that it is shown; or panics.
struct Meddler<F>(F);

impl<F: Fn() + 'static> tracing_core::Subscriber for Meddler<F> {
    fn enabled(&self, metadata: &tracing_core::Metadata<'_>) -> bool {
        metadata.target().starts_with("kailash")
    }
    fn new_span(&self, _: &tracing_core::span::Attributes<'_>) -> tracing_core::span::Id {
        tracing_core::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing_core::span::Id, _: &tracing_core::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing_core::span::Id, _: &tracing_core::span::Id) {}
    fn event(&self, _: &tracing_core::Event<'_>) {
        (self.0)();
    }
    fn enter(&self, _: &tracing_core::span::Id) {}
    fn exit(&self, _: &tracing_core::span::Id) {}
    fn current_span(&self) -> tracing_core::span::Current {
        tracing_core::span::Current::none()
    }
}

fn with_logs_to<R>(meddle: impl Fn() + Send + Sync + 'static, run: impl FnOnce() -> R) -> R {
    let dispatch = tracing_core::Dispatch::new(Meddler(meddle));
    tracing_core::dispatcher::with_default(&dispatch, run)
}

// Bug class 29: a listener that uses its breaker deadlocks it.
#[test]
fn who_is_told_may_use_the_breaker_while_he_is_told() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events = breaker.subscribe_transitions();
    let (own, is_first) = (breaker.clone(), AtomicBool::new(true));
    let meddle = move || {
        let _ = (own.state(), own.snapshot(), own.config(), own.transitions());
        let _ = own.call_sync(|| Ok::<_, ()>(()));
        if is_first.swap(false, Ordering::Relaxed) {
            own.force_open();
            own.reset();
        }
    };
    with_logs_to(meddle, || breaker.record_failure());
    let told = transitions(&mut events);
    let states: Vec<_> = told.iter().map(|it| (it.to, it.forced)).collect();
    assert_eq!(
        states,
        [
            (State::Open, false),
            (State::Open, true),
            (State::Closed, false)
        ]
    );
}

#[test]
fn who_waits_is_woken_by_a_change_that_comes_while_another_is_still_being_told() {
    let breaker = CircuitBreaker::with_clock("test", one_failure_opens(), Clock::manual().0);
    let breaker = breaker.unwrap();
    let (own, is_first) = (breaker.clone(), AtomicBool::new(true));
    let wakes = Arc::new(Counts::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let is_slow = move || {
        if !is_first.swap(false, Ordering::Relaxed) {
            return;
        }
        let context = &mut Context::from_waker(&waker);
        let (mut ready, mut closed) = (pin!(own.ready()), pin!(own.wait_until_closed()));
        assert!(ready.as_mut().poll(context).is_pending());
        assert!(closed.as_mut().poll(context).is_pending());
        own.reset();
        sees.lock().unwrap().push(wakes.0.load(Ordering::Relaxed));
    };
    with_logs_to(is_slow, || breaker.record_failure());
    assert_eq!(*seen.lock().unwrap(), [2]);
}

// Bug class 30: a listener that panics breaks the breaker, or the other listeners.
#[test]
fn a_listener_to_logs_that_panics_harms_neither_the_breaker_nor_other_listeners() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events = breaker.subscribe_transitions();
    let panics = || panic!("in a listener");
    let failed = with_logs_to(panics, || {
        catch_unwind(AssertUnwindSafe(|| breaker.record_failure()))
    });
    assert!(failed.is_ok(), "the panic is not the caller's");
    assert_eq!(breaker.state(), State::Open);
    breaker.reset();
    let told: Vec<State> = transitions(&mut events).iter().map(|it| it.to).collect();
    assert_eq!(told, [State::Open, State::Closed]);
}

#[test]
fn a_listener_to_logs_that_panics_turns_no_refusal_into_a_panic() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events = breaker.subscribe();
    breaker.force_open();
    let panics = || panic!("in a listener");
    let refused = with_logs_to(panics, || {
        catch_unwind(AssertUnwindSafe(|| breaker.try_acquire().is_err()))
    });
    assert!(refused.unwrap());
    assert_eq!(heard(&mut events).len(), 2, "the opening and the refusal");
}

/// A subscriber's waker that breaks.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic!("in a waker");
    }
}

/// Acts while somebody waits whose waker breaks.
fn with_broken_waker<T>(waits: impl Future<Output = T>, act: impl FnOnce()) {
    let waker = Waker::from(Arc::new(Broken));
    let mut waits = pin!(waits);
    let pending = waits.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    let acted = catch_unwind(AssertUnwindSafe(act));
    assert!(acted.is_ok(), "the panic is not the caller's");
}

#[test]
fn a_subscriber_whose_waker_panics_takes_no_call_its_result_and_no_probe_its_slot() {
    let (clock, hand) = Clock::manual();
    let config = Config {
        failure_threshold: 2,
        success_threshold: 3,
        ..one_failure_opens()
    };
    let breaker = CircuitBreaker::with_clock("test", config, clock).unwrap();
    let mut events = breaker.subscribe();
    with_broken_waker(events.recv(), || {
        assert!(breaker.call_sync(|| Err::<(), _>(())).is_err());
    });
    assert_eq!(breaker.snapshot().failures, 1);
    heard(&mut events);
    with_broken_waker(events.recv(), || breaker.record_failure());
    assert_eq!(breaker.state(), State::Open);
    heard(&mut events);
    with_broken_waker(breaker.wait_until_closed(), || {
        hand.advance(S(60));
        let probe = breaker.try_acquire().unwrap();
        assert_eq!(breaker.snapshot().probes_in_flight, 1);
        probe.success();
    });
    heard(&mut events);
    let probe = breaker.try_acquire().unwrap();
    with_broken_waker(events.recv(), || probe.success());
    assert_eq!(breaker.snapshot().probes_in_flight, 0);
    assert_eq!(breaker.snapshot().probe_successes, 2);
}

#[test]
fn whoevers_waker_panics_the_others_are_woken() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events: Vec<_> = (0..5).map(|_| breaker.subscribe()).collect();
    let waits = events
        .iter_mut()
        .map(|it| it.recv().map(drop).boxed_local());
    let ready = (0..5).map(|_| breaker.wait_until_closed().boxed_local());
    let woken = Arc::new(Counts::default());
    let (broken, counts) = (
        Waker::from(Arc::new(Broken)),
        Waker::from(Arc::clone(&woken)),
    );
    let poll = |wait: &mut LocalBoxFuture<'_, ()>, waker: &Waker| {
        assert!(
            wait.as_mut()
                .poll(&mut Context::from_waker(waker))
                .is_pending()
        );
    };
    let wakers = [&broken, &counts, &broken, &counts, &broken];
    let mut waits: Vec<_> = waits.collect();
    waits
        .iter_mut()
        .zip(wakers)
        .for_each(|(wait, waker)| poll(wait, waker));
    breaker.force_open();
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    let mut ready: Vec<_> = ready.collect();
    ready
        .iter_mut()
        .zip(wakers)
        .for_each(|(wait, waker)| poll(wait, waker));
    breaker.reset();
    assert_eq!(woken.0.load(Ordering::Relaxed), 4);
}

#[derive(Default)]
struct Counts(AtomicU64);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A subscriber's waker that looks at the breaker: its state, failures and probes in flight.
struct Looks(CircuitBreaker, Mutex<Vec<(State, u64, u32)>>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let seen = self.0.snapshot();
        let seen = (seen.state, seen.failures, seen.probes_in_flight);
        self.1.lock().unwrap().push(seen);
    }
}

#[test]
fn an_end_is_told_once_it_is_recorded_and_what_it_brought_about_is_done() {
    let (clock, hand) = Clock::manual();
    let config = Config {
        failure_threshold: 2,
        ..one_failure_opens()
    };
    let breaker = CircuitBreaker::with_clock("test", config, clock).unwrap();
    let mut events = breaker.subscribe();
    let looks = Arc::new(Looks(breaker.clone(), Mutex::default()));
    let waker = Waker::from(Arc::clone(&looks));
    let mut first_look = |act: &dyn Fn()| {
        heard(&mut events);
        let mut next = pin!(events.recv());
        let pending = next.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
        act();
        std::mem::take(&mut *looks.1.lock().unwrap())[0]
    };
    let fails = || assert!(breaker.call_sync(|| Err::<(), _>(())).is_err());
    assert_eq!(first_look(&fails), (State::Closed, 1, 0));
    assert_eq!(first_look(&fails), (State::Open, 2, 0));
    hand.advance(S(60));
    let probe = breaker.try_acquire().unwrap();
    let probe = Cell::new(Some(probe));
    let succeeds = || probe.take().unwrap().success();
    assert_eq!(first_look(&succeeds), (State::Closed, 2, 0));
    assert_eq!(
        first_look(&|| breaker.record_failure()),
        (State::Closed, 3, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_lost_an_opening_still_hears_when_its_wait_is_over() {
    let breakers = Manager::with_clock(Clock::tokio());
    let mut events = breakers.subscribe();
    let config = Config {
        failure_threshold: 1,
        ..Config::default()
    };
    breakers
        .get_or_create("down", config)
        .unwrap()
        .record_failure();
    let busy = breakers.get_or_create("busy", None).unwrap();
    (0..2000).for_each(|_| busy.record_success());
    let half_open = async {
        loop {
            let event = events.recv().await.unwrap();
            if let EventKind::Transition(transition) = event.kind {
                return (event.breaker, transition.to);
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(600), half_open).await;
    assert_eq!(heard.unwrap(), ("down".into(), State::HalfOpen));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_hears_what_happened_last_and_ends_with_its_breaker() {
    let breaker = CircuitBreaker::with_clock("test", one_failure_opens(), Clock::tokio()).unwrap();
    let mut events = breaker.subscribe();
    let mut waiting = breaker.subscribe_transitions();
    let waiting = tokio::spawn(async move {
        let told = waiting.recv().await;
        (told.is_some(), waiting.recv().await)
    });
    tokio::task::yield_now().await;
    breaker.record_failure();
    tokio::task::yield_now().await;
    drop(breaker);
    let last = [events.recv().await, events.recv().await].map(|it| it.unwrap().kind);
    assert!(matches!(last[0], EventKind::Ended { .. }));
    assert!(matches!(last[1], EventKind::Transition(_)));
    assert_eq!(events.recv().await, None, "it never becomes half-open");
    assert_eq!(events.try_recv(), None);
    assert_eq!(waiting.await.unwrap(), (true, None));
}

#[tokio::test(start_paused = true)]
async fn a_registrys_subscription_ends_with_the_last_of_its_breakers() {
    let manager = Manager::with_clock(Clock::tokio());
    let kept = manager.get_or_create("kept", one_failure_opens()).unwrap();
    let mut events = manager.subscribe();
    let host = manager.keyed("host", None).unwrap().get("a");
    drop(manager);
    drop(host);
    kept.record_failure();
    // Of what is left it hears on time as before.
    for _ in ["its end", "its opening", "the end of its wait"] {
        assert_eq!(&*events.recv().await.unwrap().breaker, "kept");
    }
    assert_eq!(kept.transitions().len(), 2);
    drop(kept);
    assert_eq!(events.recv().await, None);
}

#[test]
fn a_subscription_keeps_no_key_from_being_forgotten() {
    let (clock, hand) = Clock::manual();
    let hosts = Manager::with_clock(clock).keyed("host", None).unwrap();
    let mut events = hosts.get("gone").subscribe();
    hand.advance(S(25 * 3600));
    assert_eq!(hosts.forget_idle(), 1);
    assert_eq!(events.recv().now_or_never(), Some(None));
}

#[test]
fn a_subscriber_whose_waker_panics_harms_nobody_who_drops_the_breaker() {
    let breaker = CircuitBreaker::new("test", one_failure_opens()).unwrap();
    let mut events = breaker.subscribe();
    with_broken_waker(events.recv(), || drop(breaker));
    assert_eq!(events.recv().now_or_never(), Some(None));
}

#[test]
fn a_reset_of_all_forgets_how_long_the_calls_of_groups_took_and_metrics_do_not() {
    let (clock, hand) = Clock::manual();
    let breakers = Manager::with_clock(clock);
    breakers.record_durations();
    let hosts = breakers.keyed("host", None).unwrap();
    let permit = hosts.get("a").try_acquire_owned().unwrap();
    hand.advance(Duration::from_millis(5));
    permit.success();
    assert_eq!(hosts.durations().count(), 1);
    breakers.reset_all();
    assert_eq!(hosts.durations().count(), 0);
    assert_eq!(hosts.all_durations().count(), 1);
}
