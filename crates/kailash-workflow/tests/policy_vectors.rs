//! The vectors of a node's policies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kailash::bulkhead::{self, Partition, PartitionConfig, PartitionType};
use kailash::circuit_breaker::{self, Config, State};
use kailash::clock::Clock;
use kailash_workflow::{
    Inputs, LocalRuntime, Map, Node, NodeError, Policies, Value, WorkflowBuilder,
};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    policies: serde_json::Value,
    breaker: Option<BreakerSettings>,
    partition: Option<PartitionSettings>,
    node: VecDeque<Step>,
    executions: Vec<Execution>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BreakerSettings {
    failure_threshold: u32,
    recovery_timeout: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionSettings {
    max_concurrent_operations: u32,
    #[serde(default)]
    queue_size: u32,
    timeout: Option<f64>,
    #[serde(default)]
    held: u32,
    released_after: Option<f64>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Answer(serde_json::Value),
    Bad(serde_json::Value),
    Fail(String),
    Refuse,
    Panic,
    Hang,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Execution {
    result: serde_json::Map<String, serde_json::Value>,
    runs: u64,
    elapsed: Option<f64>,
    breaker: Option<String>,
    admitted: Option<u64>,
}

struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    runs: Arc<AtomicU64>,
}

impl Node for Scripted {
    fn is_failure(&self, outputs: &Map) -> bool {
        outputs.contains_key("bad")
    }

    fn run(&self, _: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            self.runs.fetch_add(1, Ordering::SeqCst);
            let step = {
                let mut steps = self.steps.lock().unwrap();
                if steps.len() > 1 {
                    steps.pop_front()
                } else {
                    steps.front().cloned()
                }
            };
            match step.unwrap() {
                Step::Answer(json) | Step::Bad(json) => Ok(map(json)),
                Step::Fail(message) => Err(NodeError::execution(message)),
                Step::Refuse => Err(NodeError::Input("no".to_owned())),
                Step::Panic => panic!("as the vector says"),
                Step::Hang => std::future::pending().await,
            }
        })
    }
}

fn map(json: serde_json::Value) -> Map {
    let Value::Map(map) = Value::from(json) else {
        panic!("no map")
    };
    map
}

fn runtime(vector: &Vector) -> LocalRuntime {
    let breakers = circuit_breaker::Manager::with_clock(Clock::tokio());
    let partitions = bulkhead::Manager::with_clock(Clock::tokio());
    if let Some(settings) = &vector.breaker {
        let mut config = Config {
            failure_threshold: settings.failure_threshold,
            jitter_enabled: false,
            ..Config::default()
        };
        if let Some(timeout) = settings.recovery_timeout {
            config.recovery_timeout = Duration::from_secs_f64(timeout);
        }
        breakers.get_or_create("b", config).unwrap();
    }
    if let Some(settings) = &vector.partition {
        let config = PartitionConfig {
            max_concurrent_operations: settings.max_concurrent_operations,
            queue_size: settings.queue_size,
            timeout: settings.timeout.map(Duration::from_secs_f64),
            ..PartitionConfig::new("p", PartitionType::Custom)
        };
        hold(partitions.configure(config).unwrap(), settings);
    }
    LocalRuntime::new(breakers, partitions)
}

fn hold(partition: Partition, settings: &PartitionSettings) {
    let permits: Vec<_> = (0..settings.held)
        .map(|_| partition.try_acquire_owned().unwrap())
        .collect();
    let released_after = settings.released_after.map(Duration::from_secs_f64);
    tokio::spawn(async move {
        match released_after {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
        drop(permits);
    });
}

async fn check(name: &str, vector: Vector) {
    let runtime = runtime(&vector);
    let runs = Arc::new(AtomicU64::new(0));
    let mut builder = WorkflowBuilder::new();
    let node = Scripted {
        steps: Mutex::new(vector.node),
        runs: Arc::clone(&runs),
    };
    let policies = Policies::take(&mut map(vector.policies)).unwrap();
    builder.add("n", node, (), policies).unwrap();
    let workflow = builder.build().unwrap();
    for (index, expected) in vector.executions.iter().enumerate() {
        let place = format!("{name}, execution {}", index + 1);
        let held = vector
            .partition
            .as_ref()
            .map_or(0, |settings| u64::from(settings.held));
        let started = Instant::now();
        let run = runtime.execute(&workflow, Inputs::default()).await.unwrap();
        let result = Value::Map(run.results["n"].to_map()).to_json();
        for (field, value) in &expected.result {
            assert_eq!(&result[field], value, "{place}: {field} of {result}");
        }
        assert_eq!(runs.load(Ordering::SeqCst), expected.runs, "{place}: runs");
        if let Some(elapsed) = expected.elapsed {
            // A timer has a resolution of one millisecond.
            let difference = started.elapsed().as_secs_f64() - elapsed;
            assert!(
                (0.0..0.1).contains(&difference),
                "{place}: took {difference} more"
            );
        }
        if let Some(state) = &expected.breaker {
            let found = match runtime.breakers().get("b").unwrap().state() {
                State::Closed => "closed",
                State::Open => "open",
                _ => "another",
            };
            assert_eq!(found, state, "{place}: breaker");
        }
        if let Some(admitted) = expected.admitted {
            let partition = runtime.partitions().get("p").unwrap();
            assert_eq!(
                partition.snapshot().run,
                admitted + held,
                "{place}: admitted"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_vector_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/workflow");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let vector = serde_json::from_str(&text);
        check(
            &name,
            vector.unwrap_or_else(|error| panic!("{name}: {error}")),
        )
        .await;
        count += 1;
    }
    assert!(count >= 19, "only {count} vectors were found");
}
