//! A workflow, assembled in steps and checked as a whole.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::NodeError;
use crate::expression::Template;
use crate::graph::{Graph, Link};
use crate::node::{Node, Ports};
use crate::nodes::{ConfigProblem, Registry};
use crate::policy::Policies;
use crate::value::{Map, Value};

/// The port that every node has besides its own: its whole output.
pub(crate) const RESULT: &str = "result";

/// The policy that a node may also take as an input.
const TIMEOUT: &str = "timeout";

/// The input that every node takes: to be used in expressions where it is not one of its own.
const INPUT: &str = "input";

/// Assembles a workflow.
///
/// A node's configuration holds its inputs and its policies (see [`Policies::take`]). Its texts may
/// have `${expression}` in them, in CEL, over what is connected to the node and over the workflow's
/// inputs; only a `query` is left as it is. A plan is checked before anything of it runs.
///
/// ```
/// use kailash_workflow::{Value, WorkflowBuilder};
/// use serde_json::json;
///
/// let mut builder = WorkflowBuilder::new();
/// builder.add_node("SQLDatabaseNode", "orders", json!({
///     "connection_string": "sqlite::memory:",
///     "query": "SELECT 7 AS id",
///     "partition": "database",
/// }))?;
/// builder.add_node("SwitchNode", "any", json!({"condition": "row_count > 0"}))?;
/// builder.add_connection("orders", "result", "any", "input")?;
/// let workflow = builder.build()?;
/// assert_eq!(workflow.ids().collect::<Vec<_>>(), ["orders", "any"]);
/// # Ok::<(), kailash_workflow::PlanError>(())
/// ```
#[derive(Debug, Default)]
pub struct WorkflowBuilder {
    registry: Registry,
    nodes: IndexMap<String, Arc<Planned>>,
    graph: Graph,
}

impl WorkflowBuilder {
    /// No nodes yet; the types of this library.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No nodes yet; these types.
    #[must_use]
    pub fn with_registry(registry: Registry) -> Self {
        Self {
            registry,
            ..Self::default()
        }
    }

    /// Adds a node of a registered type under an id of its own, and gives the id back.
    ///
    /// # Errors
    /// When the id is taken, the type unknown, or the configuration wrong.
    pub fn add_node(
        &mut self,
        node_type: &str,
        id: impl Into<String>,
        config: impl Into<Value>,
    ) -> Result<String, PlanError> {
        let (id, config) = (id.into(), config.into());
        let problem = |problem: ConfigProblem| PlanError::Config {
            id: id.clone(),
            problem,
        };
        self.check_id(&id)?;
        let mut config = match config {
            Value::Map(map) => map,
            Value::Null => Map::new(),
            other => {
                let message = format!("{} is not allowed, a map is", other.kind());
                return Err(problem(ConfigProblem::new("config", message)));
            }
        };
        let policies = Policies::take(&mut config).map_err(problem)?;
        let Some(node) = self.registry.make(node_type, &mut config) else {
            let (node_type, known) = (node_type.to_owned(), self.registry.types());
            return Err(PlanError::UnknownType {
                id,
                node_type,
                known,
            });
        };
        let node = node.map_err(problem)?;
        self.insert(id, node_type, node, config, policies)
    }

    /// Adds a node of one's own under an id of its own, and gives the id back.
    ///
    /// # Errors
    /// When the id is taken, or an input or a policy wrong.
    pub fn add(
        &mut self,
        id: impl Into<String>,
        node: impl Node,
        inputs: impl Into<Value>,
        policies: Policies,
    ) -> Result<String, PlanError> {
        let id = id.into();
        self.check_id(&id)?;
        let inputs = match inputs.into() {
            Value::Map(map) => map,
            _ => Map::new(),
        };
        policies.validate().map_err(|error| PlanError::Config {
            id: id.clone(),
            problem: ConfigProblem::new(
                error.field,
                format!("{} is not allowed, {} is", error.value, error.allowed),
            ),
        })?;
        self.insert(
            id,
            std::any::type_name_of_val(&node),
            Arc::new(node),
            inputs,
            policies,
        )
    }

    fn check_id(&self, id: &str) -> Result<(), PlanError> {
        if self.nodes.contains_key(id) {
            return Err(PlanError::DuplicateNode { id: id.to_owned() });
        }
        Ok(())
    }

    fn insert(
        &mut self,
        id: String,
        node_type: &str,
        node: Arc<dyn Node>,
        config: Map,
        policies: Policies,
    ) -> Result<String, PlanError> {
        let problem = |key: &str, message: String| PlanError::Config {
            id: id.clone(),
            problem: ConfigProblem::new(key, message),
        };
        let (ports, mut inputs) = (node.inputs(), Vec::with_capacity(config.len()));
        for (key, value) in config {
            if !ports.contains(&key) && key != INPUT {
                let message = match &ports {
                    Ports::Named(names) if !names.is_empty() => {
                        format!("unknown key, known are {}", names.join(", "))
                    }
                    _ => "unknown key".to_owned(),
                };
                return Err(problem(&key, message));
            }
            let template = Template::compile_named(&key, value);
            // The key is the place already.
            let template = template.map_err(|error| {
                let prefix = format!("{key}: ");
                problem(
                    &key,
                    error.strip_prefix(&prefix).unwrap_or(&error).to_owned(),
                )
            })?;
            inputs.push((key, template));
        }
        if let Some(timeout) = policies.timeout
            && matches!(&ports, Ports::Named(names) if names.iter().any(|name| name == TIMEOUT))
        {
            // A node with a limit of its own has the one that was asked for, not its default.
            let timeout = Value::Float(timeout.as_secs_f64());
            inputs.push((TIMEOUT.to_owned(), Template::Fixed(timeout)));
        }
        if let Some(error) = policies
            .breaker
            .as_deref()
            .and_then(Policies::breaker_problem)
        {
            return Err(problem("breaker", error.to_string()));
        }
        let mut names = BTreeSet::new();
        inputs
            .iter()
            .for_each(|(_, template)| template.names(&mut names));
        let planned = Planned {
            id: id.clone(),
            node_type: node_type.to_owned(),
            node,
            inputs,
            names,
            policies,
        };
        self.graph.add_node();
        self.nodes.insert(id.clone(), Arc::new(planned));
        Ok(id)
    }

    /// Leads an output of one node to an input of another, which then runs after it.
    ///
    /// `output` is a port, or a field within its value: `response.content.id`. Beside its own inputs
    /// every node takes `input`, and the names that its expressions use. Several outputs may lead to one
    /// input, as the ways of a switch that meet again: it takes the first that there is.
    ///
    /// # Errors
    /// When a node or a port is unknown.
    pub fn add_connection(
        &mut self,
        source: &str,
        output: &str,
        target: &str,
        input: &str,
    ) -> Result<&mut Self, PlanError> {
        let place = || format!("{source}.{output} -> {target}.{input}");
        let (from, to) = (self.index(source, place)?, self.index(target, place)?);
        let output: Vec<_> = output.split('.').map(str::to_owned).collect();
        let ports = self.nodes[from].node.outputs();
        if output[0] != RESULT && !ports.contains(&output[0]) {
            return Err(unknown_port(place(), source, &output[0], "output", &ports));
        }
        let planned = &self.nodes[to];
        let ports = planned.node.inputs();
        if input != INPUT && !ports.contains(input) && !planned.names.contains(input) {
            return Err(unknown_port(place(), target, input, "input", &ports));
        }
        self.graph.link(
            from,
            to,
            Link {
                output,
                input: Some(input.to_owned()),
            },
        );
        Ok(self)
    }

    /// Lets a node run after another without taking anything from it; it is skipped when the other
    /// fails.
    ///
    /// # Errors
    /// When a node is unknown.
    pub fn add_order(&mut self, first: &str, then: &str) -> Result<&mut Self, PlanError> {
        let place = || format!("{first} -> {then}");
        let (from, to) = (self.index(first, place)?, self.index(then, place)?);
        self.graph.link(
            from,
            to,
            Link {
                output: vec![RESULT.to_owned()],
                input: None,
            },
        );
        Ok(self)
    }

    fn index(&self, id: &str, place: impl Fn() -> String) -> Result<usize, PlanError> {
        self.nodes
            .get_index_of(id)
            .ok_or_else(|| PlanError::UnknownNode {
                place: place(),
                id: id.to_owned(),
                known: self.nodes.keys().cloned().collect(),
            })
    }

    /// The node added under this id, ready to be executed by itself.
    ///
    /// # Errors
    /// When there is none.
    pub fn get_node(&self, id: &str) -> Result<PlannedNode, PlanError> {
        let index = self.index(id, || "get_node".to_owned())?;
        Ok(PlannedNode(Arc::clone(&self.nodes[index])))
    }

    /// The workflow as it stands.
    ///
    /// # Errors
    /// When nodes wait for each other in a cycle.
    pub fn build(&self) -> Result<Workflow, PlanError> {
        if let Some(cycle) = self.graph.cycle() {
            let path = cycle
                .iter()
                .map(|index| self.nodes[*index].id.clone())
                .collect();
            return Err(PlanError::Cycle { path });
        }
        let plan = Plan {
            nodes: self.nodes.clone(),
            graph: self.graph.clone(),
        };
        Ok(Workflow(Arc::new(plan)))
    }
}

fn unknown_port(
    place: String,
    node: &str,
    port: &str,
    direction: &'static str,
    ports: &Ports,
) -> PlanError {
    let mut known = match ports {
        Ports::Any => Vec::new(),
        Ports::Named(names) => names.clone(),
    };
    let common = if direction == "output" { RESULT } else { INPUT };
    if !known.iter().any(|name| name == common) {
        known.push(common.to_owned());
    }
    PlanError::UnknownPort {
        place,
        node: node.to_owned(),
        port: port.to_owned(),
        direction,
        known,
    }
}

/// A plan that was checked; clones share it.
#[derive(Clone, Debug)]
pub struct Workflow(Arc<Plan>);

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: IndexMap<String, Arc<Planned>>,
    pub(crate) graph: Graph,
}

impl Workflow {
    /// The ids of its nodes, in the order they were added.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.nodes.keys().map(String::as_str)
    }

    /// The node of this id, ready to be executed by itself.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<PlannedNode> {
        self.0
            .nodes
            .get(id)
            .map(|node| PlannedNode(Arc::clone(node)))
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.0
    }
}

/// A node of a plan, with what its configuration gives it.
pub(crate) struct Planned {
    pub(crate) id: String,
    pub(crate) node_type: String,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) inputs: Vec<(String, Template)>,
    /// The names that its expressions use.
    pub(crate) names: BTreeSet<String>,
    pub(crate) policies: Policies,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Planned");
        shown
            .field("id", &self.id)
            .field("type", &self.node_type)
            .finish_non_exhaustive()
    }
}

impl Planned {
    /// What the node is given: its configuration, and over it what is `given` now. Names that only its
    /// expressions use are not handed on.
    pub(crate) fn inputs(&self, inputs: &Map, given: Map) -> Result<Map, NodeError> {
        let mut all = Map::with_capacity(self.inputs.len() + given.len());
        for (name, template) in &self.inputs {
            if given.contains_key(name) {
                continue;
            }
            let value = template.evaluate(&|name| given.get(name).or_else(|| inputs.get(name)));
            let value = value.map_err(|error| NodeError::Input(format!("{name}: {error}")))?;
            all.insert(name.clone(), value);
        }
        let ports = self.node.inputs();
        for (name, value) in given {
            let is_only_used = name == INPUT || self.names.contains(&name);
            if ports.contains(&name) || !is_only_used {
                all.insert(name, value);
            }
        }
        Ok(all)
    }
}

/// One node of a plan, to be executed by itself.
#[derive(Clone, Debug)]
pub struct PlannedNode(Arc<Planned>);

impl PlannedNode {
    /// The name of its type.
    #[must_use]
    pub fn node_type(&self) -> &str {
        &self.0.node_type
    }

    /// Its policies.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.0.policies
    }

    /// The names that its expressions take values from: inputs of the workflow, or what is connected.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names.iter().map(String::as_str)
    }

    /// The names of its inputs.
    #[must_use]
    pub fn inputs(&self) -> Ports {
        self.0.node.inputs()
    }

    /// Runs it once with these inputs over those of its configuration, without its policies.
    ///
    /// # Errors
    /// When it fails.
    pub async fn execute(&self, inputs: Map) -> Result<Map, NodeError> {
        let inputs = self.0.inputs(&Map::new(), inputs)?;
        self.0.node.run(inputs).await
    }
}

/// What is wrong with a plan, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// A node is of a type that nobody registered.
    UnknownType {
        /// The node.
        id: String,
        /// The type it names.
        node_type: String,
        /// The types there are.
        known: Vec<String>,
    },
    /// Two nodes have one id.
    DuplicateNode {
        /// The id.
        id: String,
    },
    /// A node is named that was not added.
    UnknownNode {
        /// Where it is named.
        place: String,
        /// The id that is named.
        id: String,
        /// The ids there are.
        known: Vec<String>,
    },
    /// A port is named that its node does not have.
    UnknownPort {
        /// Where it is named.
        place: String,
        /// The node.
        node: String,
        /// The port.
        port: String,
        /// `input` or `output`.
        direction: &'static str,
        /// The ports there are.
        known: Vec<String>,
    },
    /// Nodes wait for each other.
    Cycle {
        /// The ids along the cycle.
        path: Vec<String>,
    },
    /// A node's configuration is wrong.
    Config {
        /// The node.
        id: String,
        /// What is wrong.
        problem: ConfigProblem,
    },
    /// A node names a partition that the runtime does not have.
    UnknownPartition {
        /// The node.
        id: String,
        /// The partition it names.
        partition: String,
        /// The partitions there are.
        known: Vec<String>,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType {
                id,
                node_type,
                known,
            } => write!(
                f,
                "node {id:?}: unknown type {node_type:?}, known are {}",
                known.join(", ")
            ),
            Self::DuplicateNode { id } => write!(f, "node {id:?}: the id is taken already"),
            Self::UnknownNode { place, id, known } => {
                write!(
                    f,
                    "{place}: unknown node {id:?}, known are {}",
                    known.join(", ")
                )
            }
            Self::UnknownPort {
                place,
                node,
                port,
                direction,
                known,
            } => write!(
                f,
                "{place}: node {node:?} has no {direction} {port:?}, it has {}",
                known.join(", ")
            ),
            Self::Cycle { path } => {
                let first = path.first().map(String::as_str).unwrap_or_default();
                write!(
                    f,
                    "nodes wait for each other: {} -> {first}",
                    path.join(" -> ")
                )
            }
            Self::Config { id, problem } => write!(f, "node {id:?}: {problem}"),
            Self::UnknownPartition {
                id,
                partition,
                known,
            } => write!(
                f,
                "node {id:?}: partition: unknown partition {partition:?}, known are {}",
                known.join(", ")
            ),
        }
    }
}

impl Error for PlanError {}
