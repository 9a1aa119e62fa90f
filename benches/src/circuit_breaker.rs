//! Circuit breakers: admitted, failing and refused calls.

use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

use circuitbreaker_rs::{CircuitBreaker as CircuitbreakerRs, DefaultPolicy};
use failsafe::{CircuitBreaker as _, backoff, failure_policy};
use kailash::circuit_breaker::{CircuitBreaker, Config, Manager, WindowKind};
use kailash::layer::circuit_breaker::CircuitBreakerLayer;
use recloser::Recloser;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::floors;
use crate::measure::{
    Suite, Table,
    Whose::{self, Floor, Ours, Peer},
    block_on,
};

/// Longer than any run: what has opened stays open.
const HOUR: Duration = Duration::from_secs(3600);

pub fn add(suite: &mut Suite) {
    closed_without_clock(&mut suite.table("breaker closed, no clock, 1 thread"));
    closed_without_clock(&mut suite.table_of_two("breaker closed, no clock, 2 threads"));
    closed_and_timed(&mut suite.table("breaker closed, calls timed, 1 thread"));
    closed_and_timed(&mut suite.table_of_two("breaker closed, calls timed, 2 threads"));
    failing(&mut suite.table("breaker closed, every second call fails, 1 thread"));
    refused(&mut suite.table("breaker open, 1 thread"));
    refused(&mut suite.table_of_two("breaker open, 2 threads"));
    layer_closed(&mut suite.table("breaker as tower layer, closed, 1 thread"));
    layer_closed(&mut suite.table_of_two("breaker as tower layer, closed, 2 threads"));
    layer_refused(&mut suite.table("breaker as tower layer, open, 1 thread"));
}

/// The dependency's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed")
    }
}

impl Error for Failed {}

type Answer = Result<u64, Failed>;

/// How a call ends is not known before it has.
fn answer(is_good: bool) -> Answer {
    if black_box(is_good) {
        Ok(1)
    } else {
        Err(Failed)
    }
}

fn ok() -> Answer {
    answer(true)
}

fn fails() -> Answer {
    answer(false)
}

/// Adds a loop of one call, after making sure that the calls end as the table says.
fn calls<T, E: fmt::Debug>(
    table: &mut Table<'_>,
    whose: Whose,
    name: &'static str,
    call: impl Fn() -> Result<T, E> + Sync + 'static,
) {
    for _ in 0..10_000 {
        call().unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    table.case(whose, name, move |calls| {
        for _ in 0..calls {
            black_box(&call());
        }
    });
}

fn untimed() -> Config {
    Config {
        slow_call_threshold: None,
        cancelled_counts_after: None,
        ..Config::default()
    }
}

fn ours(config: Config) -> CircuitBreaker {
    CircuitBreaker::new("dependency", config).expect("the config is right")
}

fn closed_without_clock(table: &mut Table<'_>) {
    floors::fetch_add(table);
    let breaker = ours(untimed());
    calls(table, Ours, "kailash, call_sync", move || {
        breaker.call_sync(ok)
    });
    let breaker = ours(untimed());
    table.case(Ours, "kailash, call", move |calls| {
        block_on(async {
            for _ in 0..calls {
                black_box(&breaker.call(|| async { ok() }).await);
            }
        });
    });
    let recloser = Recloser::default();
    calls(table, Peer, "recloser, call", move || recloser.call(ok));
    let failsafe = failsafe::Config::new()
        .failure_policy(failure_policy::consecutive_failures(
            5,
            backoff::constant(HOUR),
        ))
        .build();
    calls(
        table,
        Peer,
        "failsafe, consecutive failures, call",
        move || failsafe.call(ok),
    );
    let breaker = breaker::CircuitBreaker::new(breaker::CircuitBreakerConfig::standard());
    table.case(Peer, "breaker, async call", move |calls| {
        block_on(async {
            for _ in 0..calls {
                black_box(&breaker.call(|| async { ok() }).await);
            }
        });
    });
}

fn closed_and_timed(table: &mut Table<'_>) {
    floors::fetch_add_and_two_reads(table);
    let breaker = ours(Config {
        cancelled_counts_after: None,
        ..Config::default()
    });
    calls(
        table,
        Ours,
        "kailash, slow calls counted, call_sync",
        move || breaker.call_sync(ok),
    );
    let breaker = ours(Config::default());
    calls(
        table,
        Ours,
        "kailash, default config, call_sync",
        move || breaker.call_sync(ok),
    );
    let breaker = ours(Config::default());
    table.case(Ours, "kailash, default config, call", move |calls| {
        block_on(async {
            for _ in 0..calls {
                black_box(&breaker.call(|| async { ok() }).await);
            }
        });
    });
    let breakers = Manager::new();
    breakers.record_durations();
    let breaker = breakers.get_or_create("dependency", None);
    let breaker = breaker.expect("the defaults are right");
    calls(
        table,
        Ours,
        "kailash, histograms of durations, call_sync",
        move || breaker.call_sync(ok),
    );
    let breaker = ours(Config::default());
    let events = breaker.subscribe();
    calls(
        table,
        Ours,
        "kailash, a subscriber to every call, call_sync",
        move || {
            let _subscribed = &events;
            breaker.call_sync(ok)
        },
    );
    let breaker = ours(Config {
        overdue_calls_enabled: true,
        ..Config::default()
    });
    calls(
        table,
        Ours,
        "kailash, overdue calls counted, call_sync",
        move || breaker.call_sync(ok),
    );
    let breaker = ours(Config {
        window: WindowKind::Time,
        ..Config::default()
    });
    calls(table, Ours, "kailash, time window, call_sync", move || {
        breaker.call_sync(ok)
    });
    let breaker = ours(Config {
        window: WindowKind::Time,
        ..untimed()
    });
    calls(
        table,
        Ours,
        "kailash, time window, slow calls off, call_sync",
        move || breaker.call_sync(ok),
    );
    let failsafe = failsafe::Config::new().build();
    calls(table, Peer, "failsafe, default policy, call", move || {
        failsafe.call(ok)
    });
    let breaker = CircuitbreakerRs::<DefaultPolicy, Failed>::builder().build();
    calls(table, Peer, "circuitbreaker-rs, call", move || {
        breaker.call(ok)
    });
}

/// Adds a loop of calls that take turns in succeeding and failing, and never open the breaker.
fn turns<T, E: fmt::Debug>(
    table: &mut Table<'_>,
    whose: Whose,
    name: &'static str,
    call: impl Fn(fn() -> Answer) -> Result<T, E> + Sync + 'static,
) {
    let turn = |n| if n % 2 == 0 { ok } else { fails };
    for n in 0..10_000 {
        let ended = call(turn(n));
        assert!(n % 2 == 1 || ended.is_ok(), "{name}: {:?}", ended.err());
    }
    table.case(whose, name, move |calls| {
        for n in 0..calls {
            black_box(&call(turn(n)));
        }
    });
}

fn failing(table: &mut Table<'_>) {
    floors::fetch_add(table);
    let never = || Config {
        error_rate_threshold: Some(1.0),
        ..untimed()
    };
    let breaker = ours(never());
    turns(table, Ours, "kailash, no clock, call_sync", move |call| {
        breaker.call_sync(call)
    });
    let breaker = ours(Config {
        error_rate_threshold: Some(1.0),
        ..Config::default()
    });
    turns(
        table,
        Ours,
        "kailash, calls timed, call_sync",
        move |call| breaker.call_sync(call),
    );
    let recloser = Recloser::custom().error_rate(1.0).build();
    turns(table, Peer, "recloser, call", move |call| {
        recloser.call(call)
    });
    let failsafe = failsafe::Config::new()
        .failure_policy(failure_policy::consecutive_failures(
            5,
            backoff::constant(HOUR),
        ))
        .build();
    turns(
        table,
        Peer,
        "failsafe, consecutive failures, call",
        move |call| failsafe.call(call),
    );
    let breaker = CircuitbreakerRs::<DefaultPolicy, Failed>::builder()
        .failure_threshold(1.0)
        .build();
    turns(table, Peer, "circuitbreaker-rs, call", move |call| {
        breaker.call(call)
    });
    let config = breaker::CircuitBreakerConfig::builder()
        .failure_rate_threshold(1.0)
        .build();
    let breaker = breaker::CircuitBreaker::new(config);
    table.case(Peer, "breaker, async call", move |calls| {
        block_on(async {
            for n in 0..calls {
                let call = if n % 2 == 0 { ok } else { fails };
                black_box(&breaker.call(|| async { call() }).await);
            }
        });
    });
}

fn opened() -> CircuitBreaker {
    let breaker = ours(Config {
        failure_threshold: 1,
        recovery_timeout: HOUR,
        max_recovery_timeout: HOUR,
        ..Config::default()
    });
    breaker.record_failure();
    breaker
}

/// Adds a loop of one call, after making sure that it is refused.
fn refusals<T: fmt::Debug, E>(
    table: &mut Table<'_>,
    whose: Whose,
    name: &'static str,
    call: impl Fn(fn() -> Answer) -> Result<T, E> + Sync + 'static,
) {
    for _ in 0..1000 {
        let _ = call(fails);
    }
    assert!(call(ok).is_err(), "{name} is not open");
    table.case(whose, name, move |calls| {
        for _ in 0..calls {
            black_box(&call(ok));
        }
    });
}

fn refused(table: &mut Table<'_>) {
    floors::read(table);
    let breaker = opened();
    refusals(table, Ours, "kailash, try_acquire", move |_| {
        breaker.try_acquire().map(|permit| permit.ignore())
    });
    let breaker = opened();
    refusals(table, Ours, "kailash, call_sync", move |call| {
        breaker.call_sync(call)
    });
    let recloser = Recloser::custom().closed_len(1).open_wait(HOUR).build();
    refusals(table, Peer, "recloser, call", move |call| {
        recloser.call(call)
    });
    let failsafe = failsafe::Config::new()
        .failure_policy(failure_policy::consecutive_failures(
            1,
            backoff::constant(HOUR),
        ))
        .build();
    refusals(table, Peer, "failsafe, call", move |call| {
        failsafe.call(call)
    });
    let breaker = CircuitbreakerRs::<DefaultPolicy, Failed>::builder()
        .cooldown(HOUR)
        .build();
    refusals(table, Peer, "circuitbreaker-rs, call", move |call| {
        breaker.call(call)
    });
    let config = breaker::CircuitBreakerConfig::builder()
        .wait_duration(HOUR)
        .build();
    let breaker = breaker::CircuitBreaker::new(config);
    breaker.trip();
    table.case(Peer, "breaker, async call", move |calls| {
        block_on(async {
            for _ in 0..calls {
                black_box(&breaker.call(|| async { ok() }).await);
            }
        });
    });
}

/// Adds a loop of requests to clones of one service.
fn requests<S>(
    table: &mut Table<'_>,
    whose: Whose,
    name: &'static str,
    service: S,
    are_answered: bool,
) where
    S: Service<u64, Error: fmt::Debug> + Clone + Sync + 'static,
{
    let mut checked = service.clone();
    block_on(async {
        for _ in 0..1000 {
            let input = u64::from(are_answered);
            let ready = checked.ready().await.expect("it is always ready");
            let ended = ready.call(input).await;
            assert!(!are_answered || ended.is_ok(), "{name}: {:?}", ended.err());
        }
        let ready = checked.ready().await.expect("it is always ready");
        assert_eq!(ready.call(1).await.is_ok(), are_answered, "{name}");
    });
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

async fn serve(input: u64) -> Answer {
    if input == 0 { Err(Failed) } else { Ok(input) }
}

/// The clock's runtime lives as long as the process.
fn seatbelt_context() -> ResilienceContext<u64, Answer> {
    static CLOCK: OnceLock<tick::Clock> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = Box::leak(Box::new(
            runtime.expect("a runtime needs no more than memory"),
        ));
        let _entered = runtime.enter();
        tick::Clock::new_tokio()
    });
    ResilienceContext::new(clock)
}

fn seatbelt() -> seatbelt::breaker::BreakerLayer<u64, Answer> {
    seatbelt::breaker::Breaker::layer("dependency", &seatbelt_context())
        .recovery_with(|answer: &Answer, _| match answer {
            Ok(_) => RecoveryInfo::never(),
            Err(_) => RecoveryInfo::retry(),
        })
        .rejected_input_error(|_, _| Failed)
        .break_duration(HOUR)
}

fn layer_closed(table: &mut Table<'_>) {
    requests(table, Floor, "the service alone", service_fn(serve), true);
    let layer = CircuitBreakerLayer::new(ours(untimed()));
    requests(
        table,
        Ours,
        "kailash, no clock",
        layer.layer(service_fn(serve)),
        true,
    );
    let layer = CircuitBreakerLayer::new(ours(Config::default()));
    requests(
        table,
        Ours,
        "kailash, default config",
        layer.layer(service_fn(serve)),
        true,
    );
    let config = breaker::CircuitBreakerConfig::standard();
    let layer = breaker::tower::BreakerLayer::new(breaker::CircuitBreaker::new(config));
    requests(table, Peer, "breaker", layer.layer(service_fn(serve)), true);
    requests(
        table,
        Peer,
        "seatbelt",
        seatbelt().layer(service_fn(serve)),
        true,
    );
    let layer = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder()
        .build()
        .expect("the defaults are right");
    requests(
        table,
        Peer,
        "tower-resilience",
        layer.layer(service_fn(serve)),
        true,
    );
}

fn layer_refused(table: &mut Table<'_>) {
    floors::read(table);
    let layer = CircuitBreakerLayer::new(opened());
    requests(
        table,
        Ours,
        "kailash",
        layer.layer(service_fn(serve)),
        false,
    );
    let config = breaker::CircuitBreakerConfig::builder()
        .wait_duration(HOUR)
        .build();
    let layer = breaker::tower::BreakerLayer::new(breaker::CircuitBreaker::new(config));
    requests(
        table,
        Peer,
        "breaker",
        layer.layer(service_fn(serve)),
        false,
    );
    requests(
        table,
        Peer,
        "seatbelt",
        seatbelt().layer(service_fn(serve)),
        false,
    );
    let layer = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder()
        .wait_duration_in_open(HOUR)
        .build();
    let layer = layer.expect("the config is right");
    requests(
        table,
        Peer,
        "tower-resilience",
        layer.layer(service_fn(serve)),
        false,
    );
}
