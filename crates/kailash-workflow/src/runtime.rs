//! Runs workflows in this process.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use indexmap::IndexMap;
use kailash::bulkhead::{self, Admission, Partition, Priority};
use kailash::circuit_breaker::{self, CallError, CircuitBreaker, Outcome};
use uuid::Uuid;

use crate::builder::{PlanError, Planned, RESULT, Workflow};
use crate::error::NodeError;
use crate::graph::Link;
use crate::value::{Map, Value};

/// Runs workflows with the breakers and partitions it was given.
///
/// ```
/// use kailash::{bulkhead, circuit_breaker};
/// use kailash_workflow::{Inputs, LocalRuntime, Value, WorkflowBuilder};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut builder = WorkflowBuilder::new();
/// builder.add_node("SQLDatabaseNode", "answer", json!({
///     "connection_string": "sqlite::memory:",
///     "query": "SELECT :n + 2 AS sum",
///     "parameters": {"n": "${row.n}"},
///     "partition": "database",
///     "retries": 3,
/// }))?;
/// let workflow = builder.build()?;
///
/// let runtime = LocalRuntime::new(
///     circuit_breaker::Manager::new(),
///     bulkhead::Manager::with_defaults(),
/// );
/// let run = runtime.execute(&workflow, Inputs::from(json!({"row": {"n": 40}}))).await?;
/// let outputs = run.results["answer"].outputs().expect("it did not fail");
/// assert_eq!(outputs["data"], Value::from(json!([{"sum": 42}])));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LocalRuntime {
    breakers: circuit_breaker::Manager,
    partitions: bulkhead::Manager,
}

impl std::fmt::Debug for LocalRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRuntime").finish_non_exhaustive()
    }
}

impl LocalRuntime {
    /// A runtime of these breakers and partitions.
    #[must_use]
    pub fn new(breakers: circuit_breaker::Manager, partitions: bulkhead::Manager) -> Self {
        Self {
            breakers,
            partitions,
        }
    }

    /// Its breakers.
    #[must_use]
    pub fn breakers(&self) -> &circuit_breaker::Manager {
        &self.breakers
    }

    /// Its partitions.
    #[must_use]
    pub fn partitions(&self) -> &bulkhead::Manager {
        &self.partitions
    }

    /// Runs a workflow once.
    ///
    /// It does not fail for a node that does: each node's result says what became of it. A node is
    /// skipped when one it depends on failed, and when a switch did not take the way to it. Cancelled,
    /// it stops all its nodes.
    ///
    /// # Errors
    /// When a node names a partition that there is none of; nothing has run then.
    pub async fn execute(&self, workflow: &Workflow, inputs: Inputs) -> Result<Run, PlanError> {
        Ok(self.prepare(workflow)?.run(&inputs).await)
    }

    /// Finds the breakers and partitions of a workflow, for running it many times.
    ///
    /// A breaker that does not exist yet is made, with default settings.
    ///
    /// # Errors
    /// When a node names a partition that there is none of.
    pub fn prepare(&self, workflow: &Workflow) -> Result<Prepared, PlanError> {
        let guards = workflow.plan().nodes.values().map(|node| self.guards(node));
        let guards = guards.collect::<Result<_, _>>()?;
        Ok(Prepared {
            workflow: workflow.clone(),
            guards,
        })
    }

    fn guards(&self, node: &Planned) -> Result<Guards, PlanError> {
        let policies = &node.policies;
        let breaker = match &policies.breaker {
            None => None,
            Some(name) => match self.breakers.get(name) {
                Some(breaker) => Some(breaker),
                None => {
                    let breaker = self.breakers.get_or_create(name, None);
                    Some(breaker.expect("the name was checked, and no settings are asked for"))
                }
            },
        };
        let partition = match &policies.partition {
            None => None,
            Some(name) => {
                let partition = self.partitions.get(name);
                Some(partition.map_err(|_| PlanError::UnknownPartition {
                    id: node.id.clone(),
                    partition: name.clone(),
                    known: self.partition_names(),
                })?)
            }
        };
        Ok(Guards { breaker, partition })
    }

    fn partition_names(&self) -> Vec<String> {
        let partitions = self.partitions.partitions();
        partitions
            .iter()
            .map(|partition| partition.name().to_owned())
            .collect()
    }
}

/// What a workflow is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Values by name, for the expressions of all nodes.
    pub values: Map,
    /// Inputs by node id, over those of its configuration.
    pub nodes: IndexMap<String, Map>,
}

impl Inputs {
    /// Values by name, for the expressions of all nodes.
    #[must_use]
    pub fn new(values: Map) -> Self {
        Self {
            values,
            nodes: IndexMap::new(),
        }
    }
}

impl From<Map> for Inputs {
    fn from(values: Map) -> Self {
        Self::new(values)
    }
}

/// The fields of an object; anything else gives none.
impl From<serde_json::Value> for Inputs {
    fn from(json: serde_json::Value) -> Self {
        match Value::from(json) {
            Value::Map(values) => Self::new(values),
            _ => Self::default(),
        }
    }
}

/// What became of a workflow.
#[derive(Clone, Debug)]
pub struct Run {
    /// Names this run.
    pub id: Uuid,
    /// What became of each node, by its id, in the order they were added.
    pub results: IndexMap<String, NodeResult>,
}

impl Run {
    /// Whether no node failed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        !self
            .results
            .values()
            .any(|result| matches!(result, NodeResult::Failed(_)))
    }
}

/// What became of a node.
#[derive(Clone, Debug)]
pub enum NodeResult {
    /// It answered.
    Done {
        /// Its outputs by name.
        outputs: Map,
        /// Why the outputs are its fallback, if they are.
        instead_of: Option<NodeError>,
    },
    /// It failed.
    Failed(NodeError),
    /// It did not run.
    Skipped {
        /// The node that failed, was skipped, or did not produce what this one takes.
        because: String,
    },
}

impl NodeResult {
    /// Its outputs, when it answered.
    #[must_use]
    pub fn outputs(&self) -> Option<&Map> {
        match self {
            Self::Done { outputs, .. } => Some(outputs),
            _ => None,
        }
    }

    /// The result as a map: the outputs, or `failed`, `error` and `error_type`, or `skipped` and
    /// `because`.
    #[must_use]
    pub fn to_map(&self) -> Map {
        match self {
            Self::Done { outputs, .. } => outputs.clone(),
            Self::Failed(error) => Map::from_iter([
                ("failed".to_owned(), Value::Bool(true)),
                ("error".to_owned(), Value::Text(error.to_string())),
                ("error_type".to_owned(), Value::from(error.error_type())),
            ]),
            Self::Skipped { because } => Map::from_iter([
                ("skipped".to_owned(), Value::Bool(true)),
                ("because".to_owned(), Value::from(because.as_str())),
            ]),
        }
    }
}

/// A workflow with its breakers and partitions at hand; clones share the plan.
#[derive(Clone)]
pub struct Prepared {
    workflow: Workflow,
    guards: Arc<[Guards]>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("workflow", &self.workflow)
            .finish_non_exhaustive()
    }
}

struct Guards {
    breaker: Option<CircuitBreaker>,
    partition: Option<Partition>,
}

/// How a node ended, as those after it see it.
struct Ended {
    result: NodeResult,
    /// Skipped only because a switch went another way: not a failure to those after it.
    is_untaken: bool,
}

/// What is there for a node when its turn comes.
enum Ready {
    Run(Map),
    Skip { because: usize, is_untaken: bool },
}

impl Prepared {
    /// Runs the workflow once; see [`LocalRuntime::execute`].
    pub async fn run(&self, inputs: &Inputs) -> Run {
        let plan = self.workflow.plan();
        let mut ended: Vec<Option<Ended>> = plan.nodes.iter().map(|_| None).collect();
        let mut missing: Vec<usize> = (0..plan.nodes.len())
            .map(|index| plan.graph.links_to(index).count())
            .collect();
        let mut ready: Vec<usize> = (0..plan.nodes.len())
            .rev()
            .filter(|index| missing[*index] == 0)
            .collect();
        let mut running = FuturesUnordered::new();
        loop {
            while let Some(index) = ready.pop() {
                match self.ready(index, &ended, inputs) {
                    Ready::Run(given) => running.push(async move {
                        let result = self.run_node(index, inputs, given).await;
                        (
                            index,
                            Ended {
                                result,
                                is_untaken: false,
                            },
                        )
                    }),
                    Ready::Skip {
                        because,
                        is_untaken,
                    } => {
                        let because = plan.nodes[because].id.clone();
                        let result = NodeResult::Skipped { because };
                        ended[index] = Some(Ended { result, is_untaken });
                        self.release(index, &mut missing, &mut ready);
                    }
                }
            }
            let Some((index, end)) = running.next().await else {
                break;
            };
            ended[index] = Some(end);
            self.release(index, &mut missing, &mut ready);
        }
        drop(running);
        let ids = plan.nodes.keys().cloned();
        // A checked plan has no cycle, so each has ended.
        let results = ended.into_iter().flatten().map(|ended| ended.result);
        Run {
            id: Uuid::new_v4(),
            results: ids.zip(results).collect(),
        }
    }

    /// Tells those after a node that it has ended.
    fn release(&self, index: usize, missing: &mut [usize], ready: &mut Vec<usize>) {
        for next in self.workflow.plan().graph.after(index) {
            missing[next] -= 1;
            if missing[next] == 0 {
                ready.push(next);
            }
        }
    }

    /// What the nodes before one leave it. One that failed, or was skipped after a failure, skips it; a
    /// way not taken does so only where no other leads to the same input.
    fn ready(&self, index: usize, ended: &[Option<Ended>], inputs: &Inputs) -> Ready {
        let plan = self.workflow.plan();
        let mut given = Map::new();
        let mut untaken: Vec<(usize, Option<&str>)> = Vec::new();
        for (source, link) in plan.graph.links_to(index) {
            let end = ended[source].as_ref().expect("it was waited for");
            let input = link.input.as_deref();
            match &end.result {
                NodeResult::Done { outputs, .. } => match produced(outputs, link) {
                    Some(value) => {
                        if let Some(input) = input.filter(|input| !given.contains_key(*input)) {
                            given.insert(input.to_owned(), value);
                        }
                    }
                    None => untaken.push((source, input)),
                },
                NodeResult::Skipped { .. } if end.is_untaken => untaken.push((source, input)),
                _ => {
                    return Ready::Skip {
                        because: source,
                        is_untaken: false,
                    };
                }
            }
        }
        let is_fed = |input: Option<&str>| input.is_some_and(|input| given.contains_key(input));
        if let Some((source, _)) = untaken.iter().find(|(_, input)| !is_fed(*input)) {
            return Ready::Skip {
                because: *source,
                is_untaken: true,
            };
        }
        if let Some(own) = inputs.nodes.get(&plan.nodes[index].id) {
            for (name, value) in own {
                given.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        Ready::Run(given)
    }

    async fn run_node(&self, index: usize, inputs: &Inputs, given: Map) -> NodeResult {
        let (node, guards) = (&self.workflow.plan().nodes[index], &self.guards[index]);
        let result = match node.inputs(&inputs.values, given) {
            Ok(inputs) => with_retries(node, guards, inputs).await,
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(Answer::Success(outputs)) => return done(outputs, None),
            Ok(Answer::Failure(outputs)) if node.policies.fallback.is_none() => {
                return done(outputs, None);
            }
            Ok(Answer::Failure(_)) => NodeError::execution("the answer counts as a failure"),
            Err(error) => error,
        };
        match &node.policies.fallback {
            None => NodeResult::Failed(error),
            Some(Value::Map(outputs)) => done(outputs.clone(), Some(error)),
            Some(value) => {
                let outputs = Map::from_iter([(RESULT.to_owned(), value.clone())]);
                done(outputs, Some(error))
            }
        }
    }
}

fn done(outputs: Map, instead_of: Option<NodeError>) -> NodeResult {
    NodeResult::Done {
        outputs,
        instead_of,
    }
}

/// What a node's outputs hold at the start of a link.
fn produced(outputs: &Map, link: &Link) -> Option<Value> {
    let (port, path) = link.output.split_first()?;
    let Some(value) = outputs.get(port) else {
        if port != RESULT {
            return None;
        }
        return match path.split_first() {
            None if link.input.is_none() => Some(Value::Null),
            None => Some(Value::Map(outputs.clone())),
            Some((field, path)) => within(outputs.get(field)?, path).cloned(),
        };
    };
    within(value, path).cloned()
}

fn within<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| value.field(name))
}

/// An answer, as a breaker sees it.
enum Answer {
    Success(Map),
    Failure(Map),
}

async fn with_retries(node: &Planned, guards: &Guards, inputs: Map) -> Result<Answer, NodeError> {
    let retry = &node.policies.retry;
    for attempt in 1..=retry.retries {
        let result = behind_breaker(node, guards, inputs.clone()).await;
        let wait = match &result {
            Ok(Answer::Failure(_)) => retry.delay(attempt, chance()),
            Err(error) if error.is_rejection() => {
                if !retry.retry_rejections {
                    return result;
                }
                let announced = match error {
                    NodeError::Rejected(rejected) => rejected.retry_after.unwrap_or_default(),
                    _ => std::time::Duration::ZERO,
                };
                retry.delay(attempt, chance()).max(announced)
            }
            Ok(Answer::Success(_)) | Err(NodeError::Input(_)) => return result,
            Err(_) => retry.delay(attempt, chance()),
        };
        tokio::time::sleep(wait).await;
    }
    behind_breaker(node, guards, inputs).await
}

/// A draw from 0 to 1, so that what failed together does not come again together.
fn chance() -> f64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    // The version's bits stand in the lower 16.
    (high >> 16) as f64 / (1_u64 << 48) as f64
}

async fn behind_breaker(node: &Planned, guards: &Guards, inputs: Map) -> Result<Answer, NodeError> {
    let Some(breaker) = &guards.breaker else {
        return in_partition(node, guards, inputs).await;
    };
    let outcome = |result: &Result<Answer, NodeError>| match result {
        Ok(Answer::Success(_)) => Outcome::Success,
        Ok(Answer::Failure(_)) => Outcome::Failure,
        // Nothing was tried, so nothing was learnt.
        Err(NodeError::Input(_)) => Outcome::Ignored,
        Err(error) if error.is_rejection() || node.node.is_neutral(error) => Outcome::Ignored,
        Err(_) => Outcome::Failure,
    };
    let call = || in_partition(node, guards, inputs);
    match breaker.call_with(outcome, call).await {
        Ok(answer) => Ok(answer),
        Err(CallError::Rejected(rejected)) => Err(NodeError::Rejected(rejected)),
        Err(CallError::Inner(error)) => Err(error),
    }
}

async fn in_partition(node: &Planned, guards: &Guards, inputs: Map) -> Result<Answer, NodeError> {
    let Some(partition) = &guards.partition else {
        return timed(node, inputs).await;
    };
    let priority = node
        .policies
        .priority
        .and_then(|priority| Priority::new(priority).ok());
    let admission = Admission {
        priority,
        timeout: None,
    };
    let call = || timed(node, inputs);
    match partition.call_with(admission, call).await {
        Ok(answer) => Ok(answer),
        Err(bulkhead::CallError::Inner(error)) => Err(error),
        Err(bulkhead::CallError::Full(full)) => Err(NodeError::Full(full)),
        Err(bulkhead::CallError::Closed(closed)) => Err(NodeError::Closed(closed)),
        Err(bulkhead::CallError::TimedOut(timed_out)) => Err(NodeError::TimedOut {
            after: timed_out.timeout,
        }),
    }
}

async fn timed(node: &Planned, inputs: Map) -> Result<Answer, NodeError> {
    // A node that panics fails, and no other does.
    let run = AssertUnwindSafe(async { node.node.run(inputs).await }).catch_unwind();
    let result = match node.policies.timeout {
        None => run.await,
        Some(after) => match tokio::time::timeout(after, run).await {
            Ok(result) => result,
            Err(_) => return Err(NodeError::TimedOut { after }),
        },
    };
    let outputs = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))?;
    match node.node.is_failure(&outputs) {
        true => Ok(Answer::Failure(outputs)),
        false => Ok(Answer::Success(outputs)),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> NodeError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    NodeError::execution(format!("panicked: {}", text.unwrap_or("no text")))
}
