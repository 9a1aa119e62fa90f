//! Plans, policies and the runtime, with nodes that do as they are told.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kailash::bulkhead::{self, PartitionConfig, PartitionType};
use kailash::circuit_breaker::{self, CircuitBreaker, State};
use kailash::clock::Clock;
use kailash_workflow::{
    Inputs, LocalRuntime, Map, Node, NodeError, NodeResult, PlanError, Policies, Ports, Run, Value,
    WorkflowBuilder,
};
use serde_json::json;
use tokio::time::Instant;

fn map(json: serde_json::Value) -> Map {
    let Value::Map(map) = Value::from(json) else {
        panic!("no map")
    };
    map
}

/// What a scripted node does when it is run the next time.
#[derive(Clone)]
enum Step {
    Answer(serde_json::Value),
    Fail(&'static str),
    Panic,
    Hang,
    Take(Duration),
}

/// A node that does its steps one after the other, the last again and again.
#[derive(Clone)]
struct Script {
    steps: Arc<Mutex<VecDeque<Step>>>,
    runs: Arc<AtomicU32>,
    seen: Arc<Mutex<Vec<Map>>>,
}

impl Script {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: Arc::new(Mutex::new(steps.into_iter().collect())),
            runs: Arc::default(),
            seen: Arc::default(),
        }
    }

    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    fn seen(&self) -> Vec<serde_json::Value> {
        let seen = self.seen.lock().unwrap().clone();
        seen.into_iter()
            .map(|map| Value::Map(map).to_json())
            .collect()
    }
}

impl Node for Script {
    fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            self.runs.fetch_add(1, Ordering::SeqCst);
            self.seen.lock().unwrap().push(inputs);
            let step = {
                let mut steps = self.steps.lock().unwrap();
                match steps.len() {
                    1 => steps[0].clone(),
                    _ => steps.pop_front().unwrap(),
                }
            };
            match step {
                Step::Answer(json) => Ok(map(json)),
                Step::Fail(message) => Err(NodeError::execution(message)),
                Step::Panic => panic!("at the node"),
                Step::Hang => std::future::pending().await,
                Step::Take(duration) => {
                    tokio::time::sleep(duration).await;
                    Ok(Map::new())
                }
            }
        })
    }
}

fn runtime() -> LocalRuntime {
    let breakers = circuit_breaker::Manager::with_clock(Clock::tokio());
    LocalRuntime::new(breakers, bulkhead::Manager::with_clock(Clock::tokio()))
}

async fn execute(builder: &WorkflowBuilder) -> Run {
    runtime()
        .execute(&builder.build().unwrap(), Inputs::default())
        .await
        .unwrap()
}

async fn alone(runtime: &LocalRuntime, node: &Script, policies: Policies) -> NodeResult {
    let mut builder = WorkflowBuilder::new();
    builder.add("n", node.clone(), (), policies).unwrap();
    let workflow = builder.build().unwrap();
    runtime
        .execute(&workflow, Inputs::default())
        .await
        .unwrap()
        .results
        .swap_remove("n")
        .unwrap()
}

fn shown(result: &NodeResult) -> serde_json::Value {
    Value::Map(result.to_map()).to_json()
}

fn results(run: &Run) -> serde_json::Value {
    let results = run
        .results
        .iter()
        .map(|(id, result)| (id.clone(), shown(result)));
    serde_json::Value::Object(results.collect())
}

fn plan(nodes: &[&str]) -> WorkflowBuilder {
    let mut builder = WorkflowBuilder::new();
    for id in nodes {
        let node = Script::new([Step::Answer(json!({"x": id, "deep": {"y": [1]}}))]);
        builder.add(*id, node, (), Policies::default()).unwrap();
    }
    builder
}

#[test]
fn what_is_wrong_with_a_plan_is_named_with_its_place() {
    let mut builder = plan(&["a", "b", "c"]);
    let mut check = |change: &dyn Fn(&mut WorkflowBuilder) -> Result<(), PlanError>, text: &str| {
        assert_eq!(change(&mut builder).unwrap_err().to_string(), text);
    };
    let sql = json!({"connection_string": "sqlite::memory:", "query": "SELECT 1"});
    check(
        &|b| b.add_node("SQLNode", "x", json!({})).map(|_| ()),
        "node \"x\": unknown type \"SQLNode\", known are HTTPRequestNode, HealthCheckNode, SQLDatabaseNode, SwitchNode",
    );
    check(
        &|b| b.add_node("SQLDatabaseNode", "a", sql.clone()).map(|_| ()),
        "node \"a\": the id is taken already",
    );
    check(
        &|b| b.add_node("SQLDatabaseNode", "x", json!({})).map(|_| ()),
        "node \"x\": connection_string: is missing",
    );
    check(
        &|b| {
            b.add_node("HTTPRequestNode", "x", json!({"urll": "http://a"}))
                .map(|_| ())
        },
        "node \"x\": urll: unknown key, known are url, method, headers, params, json, data, timeout",
    );
    check(
        &|b| {
            b.add_node("HTTPRequestNode", "x", json!({"retries": -1}))
                .map(|_| ())
        },
        "node \"x\": retries: -1 is not allowed, 0 to 1000 is",
    );
    check(
        &|b| b.add_node("HTTPRequestNode", "x", json!([])).map(|_| ()),
        "node \"x\": config: a list is not allowed, a map is",
    );
    check(
        &|b| {
            b.add_node(
                "HealthCheckNode",
                "x",
                json!({"services": [{"name": "d", "type": "db"}]}),
            )
            .map(|_| ())
        },
        "node \"x\": services[0].type: \"db\" is not allowed, one of database, redis, http is",
    );
    check(
        &|b| {
            b.add_connection("source", "result", "a", "input")
                .map(|_| ())
        },
        "source.result -> a.input: unknown node \"source\", known are a, b, c",
    );
    check(
        &|b| b.add_order("a", "target").map(|_| ()),
        "a -> target: unknown node \"target\", known are a, b, c",
    );
    check(
        &|b| b.get_node("target").map(|_| ()),
        "get_node: unknown node \"target\", known are a, b, c",
    );
    let wrong = builder
        .add_node("SwitchNode", "s", json!({"condition": "a =="}))
        .unwrap_err()
        .to_string();
    assert!(
        wrong.starts_with("node \"s\": condition: \"a ==\" is no CEL expression"),
        "{wrong}"
    );
    let wrong = builder.add_node("HTTPRequestNode", "s", json!({"json": {"a": ["${1 +}"]}}));
    let wrong = wrong.unwrap_err().to_string();
    assert!(
        wrong.starts_with("node \"s\": json: a: \"1 +\" is no CEL expression"),
        "{wrong}"
    );

    builder.add_node("SQLDatabaseNode", "sql", sql).unwrap();
    let error = builder
        .add_connection("sql", "rows", "a", "x")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "sql.rows -> a.x: node \"sql\" has no output \"rows\", it has data, row_count, columns, execution_time, results, result"
    );
    let error = builder
        .add_connection("a", "result", "sql", "sql")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "a.result -> sql.sql: node \"sql\" has no input \"sql\", it has query, parameters, params, statements, input"
    );

    builder.add_connection("a", "x", "b", "x").unwrap();
    builder.add_connection("b", "x", "c", "x").unwrap();
    builder.build().unwrap();
    builder.add_connection("c", "x", "b", "y").unwrap();
    assert_eq!(
        builder.build().unwrap_err().to_string(),
        "nodes wait for each other: b -> c -> b"
    );
}

#[tokio::test]
async fn an_unknown_partition_is_told_before_anything_runs() {
    let node = Script::new([Step::Answer(json!({}))]);
    let mut builder = WorkflowBuilder::new();
    builder
        .add("first", node.clone(), (), Policies::default())
        .unwrap();
    let policies = Policies {
        partition: Some("nope".to_owned()),
        ..Policies::default()
    };
    builder.add("second", node.clone(), (), policies).unwrap();
    let error = runtime()
        .execute(&builder.build().unwrap(), Inputs::default())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("node \"second\": partition: unknown partition \"nope\"")
    );
    assert_eq!(node.runs(), 0);
}

#[tokio::test]
async fn get_node_gives_a_node_that_is_ready_to_be_executed() {
    let mut builder = WorkflowBuilder::new();
    let config =
        json!({"connection_string": "sqlite::memory:", "query": "SELECT ? AS a", "params": [1]});
    builder.add_node("SQLDatabaseNode", "db", config).unwrap();
    let node = builder.get_node("db").unwrap();
    let outputs = node.execute(Map::new()).await.unwrap();
    assert_eq!(outputs["data"], Value::from(json!([{"a": 1}])));
    let outputs = node.execute(map(json!({"params": ["x"]}))).await.unwrap();
    assert_eq!(outputs["data"], Value::from(json!([{"a": "x"}])));
}

#[tokio::test]
async fn outputs_lead_to_inputs_and_every_node_has_a_result() {
    let mut builder = plan(&["a"]);
    let target = Script::new([Step::Answer(json!({}))]);
    let config = json!({"own": 1, "both": "config", "text": "${input.x}-${row.id}"});
    builder
        .add("t", target.clone(), config, Policies::default())
        .unwrap();
    builder.add_connection("a", "x", "t", "both").unwrap();
    builder.add_connection("a", "deep.y", "t", "list").unwrap();
    builder.add_connection("a", "result", "t", "input").unwrap();
    let mut inputs = Inputs::from(json!({"row": {"id": 7}}));
    inputs
        .nodes
        .insert("t".to_owned(), map(json!({"own": 2, "both": "given"})));
    let run = runtime()
        .execute(&builder.build().unwrap(), inputs)
        .await
        .unwrap();
    assert!(run.is_success());
    let whole = json!({"x": "a", "deep": {"y": [1]}});
    let seen = json!({"text": "a-7", "both": "a", "list": [1], "input": whole, "own": 2});
    assert_eq!(target.seen(), [seen]);
}

#[tokio::test]
async fn a_failed_node_skips_what_depends_on_it_and_nothing_else() {
    let mut builder = plan(&["a", "d", "e", "sibling"]);
    let failing = Script::new([Step::Fail("broken")]);
    let panicking = Script::new([Step::Panic]);
    builder.add("b", failing, (), Policies::default()).unwrap();
    builder
        .add("p", panicking, (), Policies::default())
        .unwrap();
    builder.add_connection("a", "x", "b", "x").unwrap();
    builder.add_connection("b", "x", "d", "x").unwrap();
    builder.add_order("d", "e").unwrap();
    let run = execute(&builder).await;
    assert!(!run.is_success());
    let ok = |id: &str| json!({"x": id, "deep": {"y": [1]}});
    let expected = json!({
        "a": ok("a"),
        "d": {"skipped": true, "because": "b"},
        "e": {"skipped": true, "because": "d"},
        "sibling": ok("sibling"),
        "b": {"failed": true, "error": "broken", "error_type": "NodeExecutionError"},
        "p": {"failed": true, "error": "panicked: at the node", "error_type": "NodeExecutionError"},
    });
    assert_eq!(results(&run), expected);
}

#[tokio::test]
async fn a_way_not_taken_is_skipped_and_ways_that_meet_again_go_on() {
    for (status, taken, untaken) in [("healthy", "yes", "no"), ("degraded", "no", "yes")] {
        let mut builder = WorkflowBuilder::new();
        let health = Script::new([Step::Answer(json!({"overall_status": status}))]);
        let meet = Script::new([Step::Answer(json!({}))]);
        builder
            .add("health", health, (), Policies::default())
            .unwrap();
        let condition = json!({"condition": "overall_status == 'healthy'"});
        builder.add_node("SwitchNode", "switch", condition).unwrap();
        for id in ["yes", "no"] {
            let node = Script::new([Step::Answer(json!({"x": id}))]);
            builder.add(id, node, (), Policies::default()).unwrap();
        }
        builder
            .add("meet", meet.clone(), (), Policies::default())
            .unwrap();
        builder
            .add("after_no", meet.clone(), (), Policies::default())
            .unwrap();
        builder
            .add_connection("health", "result", "switch", "input")
            .unwrap();
        builder
            .add_connection("switch", "true_output", "yes", "input")
            .unwrap();
        builder
            .add_connection("switch", "false_output", "no", "input")
            .unwrap();
        builder.add_connection("yes", "x", "meet", "way").unwrap();
        builder.add_connection("no", "x", "meet", "way").unwrap();
        let run = execute(&builder).await;
        assert_eq!(
            shown(&run.results[untaken]),
            json!({"skipped": true, "because": "switch"})
        );
        assert_eq!(shown(&run.results[taken]), json!({"x": taken}));
        assert!(meet.seen().contains(&json!({"way": taken})));
        assert!(run.is_success());
    }
}

#[tokio::test(start_paused = true)]
async fn independent_nodes_run_at_the_same_time() {
    let mut builder = WorkflowBuilder::new();
    for id in ["a", "b", "c"] {
        let node = Script::new([Step::Take(Duration::from_secs(10))]);
        builder.add(id, node, (), Policies::default()).unwrap();
    }
    builder.add_order("a", "c").unwrap();
    let started = Instant::now();
    execute(&builder).await;
    assert_eq!(started.elapsed(), Duration::from_secs(20));
}

struct WhereAmI;

impl Node for WhereAmI {
    fn outputs(&self) -> Ports {
        Ports::named(["partition"])
    }

    fn run(&self, _: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async {
            let partition = bulkhead::current().map(|partition| partition.name().to_owned());
            Ok(Map::from_iter([("partition".to_owned(), partition.into())]))
        })
    }
}

#[tokio::test]
async fn a_node_runs_inside_its_partition_and_the_partition_s_timeout_holds() {
    let runtime = runtime();
    let timeout = Some(Duration::from_millis(20));
    let config = PartitionConfig {
        timeout,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    runtime.partitions().configure(config).unwrap();
    let policies = Policies {
        partition: Some("p".to_owned()),
        ..Policies::default()
    };
    let mut builder = WorkflowBuilder::new();
    builder.add("in", WhereAmI, (), policies.clone()).unwrap();
    builder
        .add("out", WhereAmI, (), Policies::default())
        .unwrap();
    let run = runtime
        .execute(&builder.build().unwrap(), Inputs::default())
        .await
        .unwrap();
    assert_eq!(shown(&run.results["in"]), json!({"partition": "p"}));
    assert_eq!(shown(&run.results["out"]), json!({"partition": null}));
    let result = alone(&runtime, &Script::new([Step::Hang]), policies).await;
    assert_eq!(shown(&result)["error_type"], "TimeoutError");
}

fn behind(breaker: &str) -> Policies {
    Policies {
        breaker: Some(breaker.to_owned()),
        ..Policies::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_elsewhere_cancels_the_nodes_it_drops_and_fails_none() {
    let runtime = Arc::new(runtime());
    let config = circuit_breaker::Config {
        failure_threshold: 1,
        ..circuit_breaker::Config::default()
    };
    let breaker = runtime.breakers().get_or_create("b", config).unwrap();
    let handler = tokio::spawn(async move {
        let node = Script::new([Step::Hang]);
        let mut run = Box::pin(alone(&runtime, &node, behind("b")));
        assert!(futures_util::poll!(&mut run).is_pending());
        assert_eq!(node.runs(), 1);
        panic!("a mistake of the handler, and not of the node");
    });
    assert!(handler.await.unwrap_err().is_panic());
    assert_eq!(breaker.snapshot().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_hang_open_a_breaker_that_counts_overdue_calls_before_they_end() {
    let runtime = runtime();
    let config = circuit_breaker::Config {
        overdue_calls_enabled: true,
        slow_call_threshold: Some(Duration::from_secs(1)),
        min_calls_before_evaluation: 2,
        ..circuit_breaker::Config::default()
    };
    let breaker = runtime.breakers().get_or_create("b", config).unwrap();
    let hanging = Script::new([Step::Hang]);
    let mut runs: Vec<_> = (0..2)
        .map(|_| Box::pin(alone(&runtime, &hanging, behind("b"))))
        .collect();
    for run in &mut runs {
        assert!(futures_util::poll!(run).is_pending());
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    let result = alone(&runtime, &hanging, behind("b")).await;
    assert_eq!(shown(&result)["error_type"], "CircuitBreakerError");
    assert_eq!((breaker.state(), hanging.runs()), (State::Open, 2));
}

/// A node that is refused by a breaker of its own.
struct Refused(AtomicU32);

impl Node for Refused {
    fn run(&self, _: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let own = CircuitBreaker::new("own", circuit_breaker::Config::default()).unwrap();
        own.force_open();
        let refused = own.call_sync(|| Ok::<_, std::fmt::Error>(Map::new()));
        let failed = |error| NodeError::caused_by("no answer", error);
        Box::pin(std::future::ready(refused.map_err(failed)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_within_a_node_is_neutral_to_its_breaker_and_not_tried_again() {
    let runtime = runtime();
    let node = Arc::new(Refused(AtomicU32::new(0)));
    let mut builder = WorkflowBuilder::new();
    let mut policies = behind("b");
    policies.retry.retries = 3;
    builder.add("n", Arc::clone(&node), (), policies).unwrap();
    let workflow = builder.build().unwrap();
    for _ in 0..10 {
        let run = runtime.execute(&workflow, Inputs::default()).await.unwrap();
        assert!(!run.is_success());
    }
    assert_eq!(node.0.load(Ordering::SeqCst), 10);
    let breaker = runtime.breakers().get("b").unwrap().snapshot();
    assert_eq!((breaker.state, breaker.failures), (State::Closed, 0));
}
