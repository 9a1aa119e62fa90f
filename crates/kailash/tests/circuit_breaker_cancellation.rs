//! Calls behind breakers and partitions may be dropped at every await point: whatever they held is
//! free again, and they count as ruled.
//!
//! Each scenario is polled so many times and then dropped, for every number of polls until it ends
//! by itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{join, poll_fn};
use futures_util::{FutureExt, poll};
use kailash::bulkhead::{OwnedPermit, Partition, PartitionConfig, PartitionType, RunError};
use kailash::circuit_breaker::{
    CallError, CircuitBreaker, Config, EventKind, Events, Outcome, Snapshot, State,
};
use kailash::clock::{Clock, ManualClock};
#[cfg(feature = "tower")]
use tower::{Layer, Service, ServiceExt};

const PROBES: u32 = 2;

/// A call's future; its output does not matter, only what the layers made of it.
type Call = Pin<Box<dyn Future<Output = ()>>>;

/// How the outer and the inner breaker see a call that ends by itself.
struct Scenario {
    name: &'static str,
    outer: Outcome,
    /// `None` where the call does not pass the inner breaker.
    inner: Option<Outcome>,
    call: fn(&World) -> Call,
}

struct World {
    outer: CircuitBreaker,
    inner: CircuitBreaker,
    partition: Partition,
    hand: ManualClock,
    events: [Events; 2],
}

impl World {
    fn new(half_open: bool) -> Self {
        let (clock, hand) = Clock::manual();
        let config = Config {
            failure_threshold: 1_000_000,
            success_threshold: 1000,
            half_open_requests: PROBES,
            error_rate_threshold: None,
            slow_call_rate_threshold: None,
            cancelled_counts_after: Some(Duration::from_secs(1)),
            jitter_enabled: false,
            ..Config::default()
        };
        let [outer, inner] = ["outer", "inner"].map(|name| {
            let breaker = CircuitBreaker::with_clock(name, config.clone(), clock.clone()).unwrap();
            if half_open {
                let one = Config {
                    failure_threshold: 1,
                    ..config.clone()
                };
                breaker.reconfigure(one).unwrap();
                breaker.record_failure();
                breaker.reconfigure(config.clone()).unwrap();
            }
            breaker
        });
        if half_open {
            hand.advance(config.recovery_timeout);
            assert_eq!(outer.state(), State::HalfOpen);
        }
        let partition = PartitionConfig {
            max_concurrent_operations: 1,
            queue_size: 1,
            timeout: None,
            ..PartitionConfig::new("partition", PartitionType::Custom)
        };
        let events = [&outer, &inner].map(CircuitBreaker::subscribe);
        Self {
            partition: Partition::with_clock(partition, clock).unwrap(),
            outer,
            inner,
            hand,
            events,
        }
    }

    /// What must hold whenever the call is gone.
    fn check(
        &mut self,
        place: &str,
        expected: [Option<(Outcome, bool)>; 2],
        before: [Snapshot; 2],
    ) {
        let snapshot = self.partition.snapshot();
        assert_eq!((snapshot.active, snapshot.queued), (0, 0), "{place}");
        drop(self.partition.try_acquire().unwrap());
        let breakers = [&self.outer, &self.inner];
        for ((breaker, events), (expected, before)) in breakers
            .into_iter()
            .zip(&mut self.events)
            .zip(expected.into_iter().zip(before))
        {
            let place = format!("{place}, {}", breaker.name());
            let told =
                std::iter::from_fn(|| events.try_recv()).filter_map(|event| match event.kind {
                    EventKind::Ended { outcome, .. } => Some(outcome),
                    _ => None,
                });
            let told: Vec<_> = told.collect();
            let ended: Vec<_> = expected.iter().map(|(outcome, _)| *outcome).collect();
            assert_eq!(told, ended, "{place}: it ends once, or never began");

            let found = breaker.snapshot();
            let is_probe = before.state == State::HalfOpen;
            let (calls, failures) = match expected {
                Some((Outcome::Success, _)) => (1, 0),
                Some((Outcome::Failure, _)) => (1, 1),
                Some((Outcome::Cancelled, true)) if !is_probe => (1, 1),
                _ => (0, 0),
            };
            assert_eq!(found.calls - before.calls, calls, "{place}");
            assert_eq!(found.failures - before.failures, failures, "{place}");
            let opens = is_probe && failures == 1;
            let state = if opens { State::Open } else { before.state };
            assert_eq!(found.state, state, "{place}");
            assert_eq!(found.probes_in_flight, 0, "{place}");
            if is_probe && !opens {
                let probes: Vec<_> = (0..PROBES)
                    .map(|_| breaker.try_acquire().unwrap())
                    .collect();
                assert!(breaker.try_acquire().is_err(), "{place}");
                drop(probes);
            }
        }
    }
}

/// Lets others run once.
async fn step() {
    let mut stepped = false;
    poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn work(result: Result<(), ()>) -> Result<(), ()> {
    for _ in 0..3 {
        step().await;
    }
    result
}

/// A refusal by a partition is neutral to a breaker around it.
fn classify<T>(result: &Result<T, RunError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(RunError::Full(_)) => Outcome::Ignored,
        Err(_) => Outcome::Failure,
    }
}

fn hold(world: &World) -> OwnedPermit {
    world.partition.try_acquire_owned().unwrap()
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a call",
        outer: Outcome::Success,
        inner: None,
        call: |world| {
            let outer = world.outer.clone();
            async move { drop(outer.call(|| work(Ok(()))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a call that fails",
        outer: Outcome::Failure,
        inner: None,
        call: |world| {
            let outer = world.outer.clone();
            async move { drop(outer.call(|| work(Err(()))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a call that is ignored",
        outer: Outcome::Ignored,
        inner: None,
        call: |world| {
            let outer = world.outer.clone();
            let ignore = |_: &Result<(), ()>| Outcome::Ignored;
            async move { drop(outer.call_with(ignore, || work(Err(()))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a permit across awaits",
        outer: Outcome::Failure,
        inner: None,
        call: |world| {
            let outer = world.outer.clone();
            async move {
                let permit = outer.try_acquire_owned().unwrap();
                let _ = work(Ok(())).await;
                permit.failure();
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "a breaker around a breaker",
        outer: Outcome::Success,
        inner: Some(Outcome::Success),
        call: |world| {
            let (outer, inner) = (world.outer.clone(), world.inner.clone());
            async move { drop(outer.call(|| inner.call(|| work(Ok(())))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a breaker around one that fails",
        outer: Outcome::Failure,
        inner: Some(Outcome::Failure),
        call: |world| {
            let (outer, inner) = (world.outer.clone(), world.inner.clone());
            async move { drop(outer.call(|| inner.call(|| work(Err(())))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a breaker around a partition",
        outer: Outcome::Success,
        inner: None,
        call: |world| {
            let (outer, partition) = (world.outer.clone(), world.partition.clone());
            async move { drop(outer.call(|| partition.run(work(Ok(())))).await) }.boxed_local()
        },
    },
    Scenario {
        name: "a breaker around the queue of a partition",
        outer: Outcome::Success,
        inner: None,
        call: |world| {
            let (outer, partition) = (world.outer.clone(), world.partition.clone());
            let held = hold(world);
            let release = async move {
                step().await;
                step().await;
                drop(held);
            };
            let call = async move { drop(outer.call(|| partition.run(work(Ok(())))).await) };
            async move {
                join(release, call).await;
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "a breaker around a full partition",
        outer: Outcome::Ignored,
        inner: None,
        call: |world| {
            let (outer, partition) = (world.outer.clone(), world.partition.clone());
            let held = hold(world);
            async move {
                // The only place in the queue is taken too.
                let waiting = partition.enqueue(kailash::bulkhead::Admission::default());
                step().await;
                let call = || partition.run(work(Ok(())));
                let result = outer.call_with(classify, call).await;
                assert!(matches!(result, Err(CallError::Inner(RunError::Full(_)))));
                drop((waiting, held));
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "a partition around two breakers",
        outer: Outcome::Success,
        inner: Some(Outcome::Success),
        call: |world| {
            let (outer, inner) = (world.outer.clone(), world.inner.clone());
            let partition = world.partition.clone();
            async move {
                let call = outer.call(|| inner.call(|| work(Ok(()))));
                drop(partition.run(call).await);
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "a call once the breaker is ready",
        outer: Outcome::Success,
        inner: None,
        call: |world| {
            let outer = world.outer.clone();
            async move {
                outer.ready().await;
                drop(outer.call(|| work(Ok(()))).await);
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "a call with a fallback",
        outer: Outcome::Failure,
        inner: Some(Outcome::Success),
        call: |world| {
            let (outer, inner) = (world.outer.clone(), world.inner.clone());
            async move {
                let fallback = |_| work(Ok(()));
                let within = || inner.call_or(fallback, || work(Ok(())));
                let result = outer.call_or(fallback, || async {
                    within().await?;
                    Err(())
                });
                assert_eq!(result.await, Err(()));
            }
            .boxed_local()
        },
    },
    #[cfg(feature = "tower")]
    Scenario {
        name: "a service in a layer",
        outer: Outcome::Success,
        inner: Some(Outcome::Success),
        call: |world| {
            let [outer, inner] = [&world.outer, &world.inner].map(|breaker| {
                kailash::layer::circuit_breaker::CircuitBreakerLayer::new(breaker.clone())
            });
            let service = tower::service_fn(|()| work(Ok(())));
            let mut service = outer.layer(inner.layer(service));
            async move {
                let ready = service.ready().await.unwrap();
                drop(ready.call(()).await);
            }
            .boxed_local()
        },
    },
    Scenario {
        name: "all of them, with a timeout",
        outer: Outcome::Success,
        inner: Some(Outcome::Success),
        call: |world| {
            let (outer, inner) = (world.outer.clone(), world.inner.clone());
            let partition = world.partition.clone();
            async move {
                let timed = || tokio::time::timeout(Duration::from_secs(60), work(Ok(())));
                let within = || async { partition.run(inner.call(timed)).await };
                drop(outer.call(within).await);
            }
            .boxed_local()
        },
    },
];

/// Drops the scenario's call after so many polls. Answers whether it had ended.
async fn drop_after(polls: usize, scenario: &Scenario, half_open: bool, long: bool) -> bool {
    let mut world = World::new(half_open);
    let before = [world.outer.snapshot(), world.inner.snapshot()];
    let mut call = (scenario.call)(&world);
    let mut ended = false;
    for _ in 0..polls {
        assert!(!ended);
        ended = poll!(&mut call).is_ready();
    }
    let in_flight = [&world.outer, &world.inner].map(|breaker| breaker.snapshot().probes_in_flight);
    if long {
        world.hand.advance(Duration::from_secs(2));
    }
    drop(call);
    let expect = |by_itself: Option<Outcome>, began: bool| match by_itself {
        Some(outcome) if ended => Some((outcome, long)),
        Some(_) if began => Some((Outcome::Cancelled, long)),
        _ => None,
    };
    // A call that is made late in its scenario begins with a later poll than the first.
    let late = scenario.name == "a breaker around a full partition";
    let expected = [
        expect(Some(scenario.outer), polls > 0 && !late),
        expect(scenario.inner, polls > 0),
    ];
    if half_open && !ended {
        let probes = expected.map(|expected| u32::from(expected.is_some()));
        assert_eq!(in_flight, probes, "{}, after {polls} polls", scenario.name);
    }
    let place = format!("{}, dropped after {polls} polls", scenario.name);
    world.check(&place, expected, before);
    ended
}

async fn drop_everywhere(half_open: bool, long: bool) {
    for scenario in SCENARIOS {
        let mut polls = 0;
        while !drop_after(polls, scenario, half_open, long).await {
            polls += 1;
            assert!(polls < 50, "{} does not end", scenario.name);
        }
        assert!(polls > 1, "{} has no await point", scenario.name);
    }
}

#[tokio::test(start_paused = true)]
async fn while_closed_a_call_that_ran_short_is_neutral() {
    drop_everywhere(false, false).await;
}

#[tokio::test(start_paused = true)]
async fn while_closed_a_call_that_ran_long_is_a_failure() {
    drop_everywhere(false, true).await;
}

#[tokio::test(start_paused = true)]
async fn while_half_open_a_probe_gives_its_slot_back_and_decides_nothing() {
    drop_everywhere(true, false).await;
}

#[tokio::test(start_paused = true)]
async fn while_half_open_a_probe_that_ran_long_decides_nothing_either() {
    drop_everywhere(true, true).await;
}
