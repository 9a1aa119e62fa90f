//! One hot path in a loop, for callgrind to count: `hot-paths PATH` runs it, `hot-paths` lists all.
//!
//! Instructions don't depend on how busy the machine is, so that each path has a budget
//! (`budgets.json`) which `cargo xtask instructions` holds it to. Calls are timed by the manual
//! clock: how the real one is read differs from machine to machine.

#![expect(clippy::print_stdout, reason = "a command line for developers")]

use std::array;
use std::cell::{Cell, RefCell};
use std::env;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};

use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
use kailash::circuit_breaker::{CallError, CircuitBreaker, Config, Manager, WindowKind};
use kailash::clock::Clock;
use kailash::layer::circuit_breaker::CircuitBreakerLayer;
use tower_layer::Layer;
use tower_service::Service;

/// Calls of one run; `xtask` divides by it.
const CALLS: u32 = 10_000;

const PATHS: [(&str, fn()); 12] = [
    ("breaker_closed_without_clock", || {
        let breaker = breaker(without_clock());
        measured(|| black_box(breaker.call_sync(ok)).is_ok());
    }),
    ("breaker_closed_timed", || {
        let breaker = breaker(Config::default());
        measured(|| black_box(breaker.call_sync(ok)).is_ok());
    }),
    ("breaker_closed_future", || {
        let breaker = breaker(without_clock());
        let mut cx = Context::from_waker(Waker::noop());
        measured(|| {
            let call = pin!(breaker.call(|| ready(ok())));
            let polled = black_box(call.poll(&mut cx));
            matches!(polled, Poll::Ready(Ok(_)))
        });
    }),
    ("breaker_closed_time_window", || {
        let breaker = breaker(Config {
            window: WindowKind::Time,
            ..Config::default()
        });
        measured(|| black_box(breaker.call_sync(ok)).is_ok());
    }),
    ("breaker_every_second_call_fails", || {
        let breaker = breaker(Config {
            error_rate_threshold: Some(1.0),
            ..without_clock()
        });
        let turn = Cell::new(false);
        measured(|| {
            turn.set(!turn.get());
            let call = if turn.get() { ok } else { fails };
            !matches!(
                black_box(breaker.call_sync(call)),
                Err(CallError::Rejected(_))
            )
        });
    }),
    ("breaker_permit_dropped", || {
        let breaker = breaker(Config::default());
        measured(|| black_box(breaker.try_acquire()).is_ok());
    }),
    ("breaker_rejected", || {
        let breaker = breaker(Config {
            failure_threshold: 1,
            ..Config::default()
        });
        breaker.record_failure();
        measured(|| black_box(breaker.try_acquire()).is_err());
    }),
    ("breaker_layer_closed", || {
        let layer = CircuitBreakerLayer::new(breaker(without_clock()));
        let service = RefCell::new(layer.layer(Answers));
        let mut cx = Context::from_waker(Waker::noop());
        measured(|| {
            let mut service = service.borrow_mut();
            let is_ready = service.poll_ready(&mut cx).is_ready();
            let response = pin!(service.call(()));
            is_ready && matches!(response.poll(&mut cx), Poll::Ready(Ok(_)))
        });
    }),
    // As much with 2,000 that are open as with one.
    ("registry_event_heard", || {
        let breakers = Manager::with_clock(Clock::manual().0);
        let hosts = breakers
            .keyed("host", None)
            .expect("the defaults are right");
        for host in 0..2000 {
            for _ in 0..5 {
                hosts.get(&host.to_string()).record_failure();
            }
        }
        let events = RefCell::new(breakers.subscribe());
        let breaker = hosts.get("up");
        measured(|| {
            let called = black_box(breaker.call_sync(ok)).is_ok();
            let heard = black_box(events.borrow_mut().try_recv()).is_some();
            called && heard
        });
    }),
    ("registry_look_up", || {
        // In one registry of a hundred the name that is looked for collides with another: hashes are
        // seeded by chance. Over many registries that is less than an instruction.
        let registries: [Manager; 64] = array::from_fn(|_| registry());
        let mut turns = registries.iter().cycle();
        measured(|| {
            let breakers = turns.next().expect("a cycle has no end");
            black_box(breakers.get(black_box("api"))).is_some()
        });
    }),
    ("partition_acquired_and_released", || {
        let partition = partition();
        measured(|| black_box(partition.try_acquire()).is_ok());
    }),
    ("partition_full", || {
        let partition = partition();
        let held = partition.try_acquire().expect("it is free");
        measured(|| black_box(partition.try_acquire()).is_err());
        drop(held);
    }),
];

fn main() -> ExitCode {
    let Some(wanted) = env::args().nth(1) else {
        println!("{CALLS}");
        for (name, _) in PATHS {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    let found = PATHS.iter().find(|(name, _)| *name == wanted);
    let Some((_, path)) = found else {
        println!("there is no hot path {wanted}");
        return ExitCode::FAILURE;
    };
    path();
    ExitCode::SUCCESS
}

/// Callgrind counts while this runs. `expected` makes sure that it is the path that its name says.
#[inline(never)]
fn measured(mut expected: impl FnMut() -> bool) {
    for _ in 0..CALLS {
        assert!(expected());
    }
}

struct Answers;

impl Service<()> for Answers {
    type Response = u32;
    type Error = u32;
    type Future = Ready<Result<u32, u32>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), u32>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(ok())
    }
}

fn ok() -> Result<u32, u32> {
    black_box(Ok(1))
}

fn fails() -> Result<u32, u32> {
    black_box(Err(1))
}

fn breaker(config: Config) -> CircuitBreaker {
    let (clock, _) = Clock::manual();
    CircuitBreaker::with_clock("dependency", config, clock).expect("the config is right")
}

fn registry() -> Manager {
    let breakers = Manager::new();
    for name in ["database", "api", "cache", "search"] {
        breakers
            .get_or_create(name, None)
            .expect("the defaults are right");
    }
    breakers
}

fn without_clock() -> Config {
    Config {
        slow_call_threshold: None,
        cancelled_counts_after: None,
        ..Config::default()
    }
}

fn partition() -> Partition {
    let config = PartitionConfig {
        max_concurrent_operations: 1,
        ..PartitionConfig::new("dependency", PartitionType::Custom)
    };
    Partition::new(config).expect("the config is right")
}
