//! Workflows for Python: the plan and its run are Rust's, a node of one's own runs on Python's threads.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use bigdecimal::BigDecimal;
use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime};
use kailash::bulkhead::{self, Full, OwnedPermit, Partition, Reason};
use kailash_workflow::{
    ConfigProblem, Inputs, LocalRuntime, Map, Node, NodeError, NodeResult, PlanError, PlannedNode,
    Policies, Ports, Registry, Run, Value, Workflow, WorkflowBuilder,
};
use pyo3::exceptions::{PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDate, PyDateTime, PyDict, PyFloat, PyInt, PyList, PyMemoryView,
    PyString, PyTime, PyTuple, PyType,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::bulkhead::{BulkheadManager, BulkheadPartition, raise_full};
use crate::circuit_breaker::{CircuitBreakerManager, raise_rejected, read_rejected};
use crate::runtime::{self, Carried, deliver, promise, wait};

/// The built-in types with their connections, of this process.
static REGISTRY: ArcSwapOption<Registry> = ArcSwapOption::const_empty();

fn registry() -> Registry {
    if let Some(registry) = &*REGISTRY.load() {
        return Registry::clone(registry);
    }
    let built = Arc::new(Registry::new());
    let before = REGISTRY.compare_and_swap(&None::<Arc<Registry>>, Some(Arc::clone(&built)));
    Registry::clone(before.as_ref().unwrap_or(&built))
}

/// Forgets the parent's connections in a forked child, which must not close them.
#[pyfunction]
pub(crate) fn forget_connections() {
    std::mem::forget(REGISTRY.swap(None));
}

/// Which process this is since the library was loaded: 0, and 1 more in each forked child.
#[pyfunction]
pub(crate) fn process_generation() -> u64 {
    runtime::generation()
}

/// The names of the built-in types of node.
#[pyfunction]
pub(crate) fn node_types() -> Vec<String> {
    registry().types()
}

/// The policies' keys among these, which are no inputs of a node of one's own.
#[pyfunction]
pub(crate) fn split_policies<'py>(
    config: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
    let (policies, rest) = (PyDict::new(config.py()), PyDict::new(config.py()));
    for (key, value) in config {
        let name: String = key.extract()?;
        // Of the values only the names matter here.
        let mut probe = Map::from_iter([(name, Value::Null)]);
        let is_policy = Policies::take(&mut probe).is_ok() && probe.is_empty();
        if is_policy { &policies } else { &rest }.set_item(key, value)?;
    }
    Ok((policies, rest))
}

/// What must not be dropped in another process than it was made in.
struct Local<T> {
    value: Option<T>,
    generation: u64,
}

impl<T> Local<T> {
    fn new(value: T) -> Self {
        Self {
            value: Some(value),
            generation: runtime::generation(),
        }
    }

    fn get(&self) -> &T {
        self.value.as_ref().expect("taken only by drop")
    }

    fn get_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("taken only by drop")
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            std::mem::forget(self.value.take());
        }
    }
}

/// A node that can be executed by itself.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct PlannedWorkflowNode(Local<PlannedNode>);

impl PlannedWorkflowNode {
    /// One execution in the slot of `partition`, which its caller holds.
    fn work(
        &self,
        inputs: &Bound<'_, PyDict>,
        partition: Option<&BulkheadPartition>,
    ) -> PyResult<impl Future<Output = Result<Map, NodeError>> + Send + 'static> {
        let node = self.0.get().clone();
        let inputs = map_from_python(inputs)?;
        if let Ports::Named(known) = node.inputs()
            && let Some(unknown) = inputs.keys().find(|name| !known.contains(name))
        {
            let text = format!(
                "execute() has no parameter {unknown:?}, it has {}",
                known.join(", ")
            );
            return Err(PyTypeError::new_err(text));
        }
        let partition = partition.map(BulkheadPartition::partition);
        Ok(async move {
            let after = node.policies().timeout;
            let run = within(partition, node.execute(inputs));
            match after {
                None => run.await,
                Some(after) => match tokio::time::timeout(after, run).await {
                    Ok(result) => result,
                    Err(_) => Err(NodeError::TimedOut { after }),
                },
            }
        })
    }
}

async fn within<F: Future>(partition: Option<Partition>, run: F) -> F::Output {
    match partition {
        Some(partition) => partition.scope(run).await,
        None => run.await,
    }
}

#[pymethods]
impl PlannedWorkflowNode {
    /// A node of a built-in type by itself.
    #[new]
    fn new(py: Python<'_>, node_type: &str, config: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut builder = WorkflowBuilder::with_registry(registry());
        let config = map_from_python(config)?;
        let planned = builder
            .add_node(node_type, node_type, Value::Map(config))
            .and_then(|id| builder.get_node(&id));
        planned
            .map(|planned| Self(Local::new(planned)))
            .map_err(|error| match &error {
                PlanError::Config { problem, .. } => raise_config(py, node_type, problem),
                other => raise(py, "WorkflowValidationError", other),
            })
    }

    /// The names of its inputs, None if it takes any.
    fn inputs(&self) -> Option<Vec<String>> {
        match self.0.get().inputs() {
            Ports::Named(names) => Some(names),
            Ports::Any => None,
        }
    }

    /// Runs it once, and blocks until it has.
    fn execute<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyDict>,
        partition: Option<&BulkheadPartition>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let outputs = wait(py, self.work(inputs, partition)?)?;
        map_to_python(py, &outputs.map_err(|error| raise_node(py, &error))?)
    }

    /// Runs it once; answers a future of its outputs.
    fn execute_async<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyDict>,
        partition: Option<&BulkheadPartition>,
    ) -> PyResult<Bound<'py, PyAny>> {
        promise(py, self.work(inputs, partition)?, |py, outputs| {
            let outputs = outputs.map_err(|error| raise_node(py, &error))?;
            Ok(map_to_python(py, &outputs)?.into_any().unbind())
        })
    }
}

/// Assembles a plan.
#[pyclass(module = "kailash._native")]
pub(crate) struct WorkflowPlan(Local<WorkflowBuilder>);

#[pymethods]
impl WorkflowPlan {
    #[new]
    fn new() -> Self {
        Self(Local::new(WorkflowBuilder::with_registry(registry())))
    }

    /// Adds a node of a built-in type.
    fn add_node(
        &mut self,
        py: Python<'_>,
        node_type: &str,
        id: &str,
        config: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let config = map_from_python(config)?;
        let added = self.0.get_mut().add_node(node_type, id, Value::Map(config));
        added
            .map(drop)
            .map_err(|error| raise(py, "WorkflowValidationError", &error))
    }

    /// Adds a node of Python's: `start(job)` begins a run, `cancel(job)` ends one nobody waits for.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a node is, each by its name in the stub"
    )]
    fn add_python_node(
        &mut self,
        py: Python<'_>,
        id: &str,
        start: Py<PyAny>,
        cancel: Py<PyAny>,
        inputs: Option<Vec<String>>,
        config: &Bound<'_, PyDict>,
        policies: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let config = map_from_python(config)?;
        let mut policies = map_from_python(policies)?;
        let policies = Policies::take(&mut policies).map_err(|problem| {
            let id = id.to_owned();
            raise(
                py,
                "WorkflowValidationError",
                &PlanError::Config { id, problem },
            )
        })?;
        let node = PythonNode {
            start: Arc::new(Carried::new(start)),
            cancel: Arc::new(Carried::new(cancel)),
            inputs: inputs.map_or(Ports::Any, Ports::Named),
        };
        let added = self.0.get_mut().add(id, node, Value::Map(config), policies);
        added
            .map(drop)
            .map_err(|error| raise(py, "WorkflowValidationError", &error))
    }

    fn add_connection(
        &mut self,
        py: Python<'_>,
        source: &str,
        output: &str,
        target: &str,
        input: &str,
    ) -> PyResult<()> {
        let added = self
            .0
            .get_mut()
            .add_connection(source, output, target, input);
        added
            .map(drop)
            .map_err(|error| raise(py, "WorkflowValidationError", &error))
    }

    /// The node of this id, ready to be executed by itself.
    fn node(&self, py: Python<'_>, id: &str) -> PyResult<PlannedWorkflowNode> {
        let node = self.0.get().get_node(id);
        node.map(|node| PlannedWorkflowNode(Local::new(node)))
            .map_err(|error| raise(py, "NodeNotFoundError", &error))
    }

    /// The plan as it stands, checked.
    fn build(&self, py: Python<'_>) -> PyResult<CheckedWorkflow> {
        let workflow = self.0.get().build();
        workflow
            .map(|workflow| CheckedWorkflow(Local::new(workflow)))
            .map_err(|error| raise(py, "WorkflowValidationError", &error))
    }
}

/// A plan that was checked.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct CheckedWorkflow(Local<Workflow>);

impl CheckedWorkflow {
    fn work(
        &self,
        breakers: &CircuitBreakerManager,
        partitions: &BulkheadManager,
        nodes: &Bound<'_, PyDict>,
        values: &Bound<'_, PyDict>,
    ) -> PyResult<impl Future<Output = Result<Run, PlanError>> + Send + 'static> {
        let runtime = LocalRuntime::new(breakers.manager(), partitions.manager());
        let workflow = self.0.get().clone();
        let mut inputs = Inputs::new(map_from_python(values)?);
        for (id, given) in nodes {
            let (id, given) = (id.extract::<String>()?, given.cast_into::<PyDict>()?);
            inputs.nodes.insert(id, map_from_python(&given)?);
        }
        Ok(async move { runtime.execute(&workflow, inputs).await })
    }
}

#[pymethods]
impl CheckedWorkflow {
    /// Runs it once, and blocks until it has: results by node id, and the run's id.
    fn execute<'py>(
        &self,
        py: Python<'py>,
        breakers: &CircuitBreakerManager,
        partitions: &BulkheadManager,
        nodes: &Bound<'py, PyDict>,
        values: &Bound<'py, PyDict>,
    ) -> PyResult<(Bound<'py, PyDict>, String)> {
        let run = wait(py, self.work(breakers, partitions, nodes, values)?)?;
        run_to_python(py, run)
    }

    /// Runs it once; answers a future of the same.
    fn execute_async<'py>(
        &self,
        py: Python<'py>,
        breakers: &CircuitBreakerManager,
        partitions: &BulkheadManager,
        nodes: &Bound<'py, PyDict>,
        values: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let work = self.work(breakers, partitions, nodes, values)?;
        promise(py, work, |py, run| {
            Ok(run_to_python(py, run)?
                .into_pyobject(py)?
                .into_any()
                .unbind())
        })
    }
}

fn run_to_python(
    py: Python<'_>,
    run: Result<Run, PlanError>,
) -> PyResult<(Bound<'_, PyDict>, String)> {
    let run = run.map_err(|error| raise(py, "WorkflowValidationError", &error))?;
    let results = PyDict::new(py);
    for (id, result) in &run.results {
        let outputs = map_to_python(py, &result.to_map())?;
        if let NodeResult::Done {
            instead_of: Some(error),
            ..
        } = result
        {
            outputs.set_item("fallback_because", error.to_string())?;
        }
        results.set_item(id, outputs)?;
    }
    Ok((results, run.id.to_string()))
}

/// A node whose work is Python's.
struct PythonNode {
    start: Arc<Carried>,
    cancel: Arc<Carried>,
    inputs: Ports,
}

impl Node for PythonNode {
    fn inputs(&self) -> Ports {
        self.inputs.clone()
    }

    fn is_neutral(&self, error: &NodeError) -> bool {
        let source = match error {
            NodeError::Execution { source, .. } | NodeError::Other { source, .. } => source,
            _ => return false,
        };
        source
            .as_ref()
            .is_some_and(|source| source.is::<Excluded>())
    }

    fn run(
        &self,
        inputs: Map,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Map, NodeError>> + Send + '_>> {
        Box::pin(async {
            let (answer, answered) = oneshot::channel();
            let job = Arc::new(Job {
                inputs: Mutex::new(Some(inputs)),
                answer: Mutex::new(Some(answer)),
                partition: bulkhead::current(),
                phase: Mutex::new(Phase::Waiting),
            });
            let mut running = Running {
                cancel: Arc::clone(&self.cancel),
                job: Arc::clone(&job),
                is_over: false,
            };
            let start = Arc::clone(&self.start);
            deliver(move |py| {
                if let Err(error) = start.get().call1(py, (NodeJob(job),)) {
                    error.write_unraisable(py, None);
                }
            });
            let result = answered.await;
            running.is_over = true;
            result.unwrap_or_else(|_| Err(NodeError::execution("the node's thread has ended")))
        })
    }
}

/// An exception that the node's breaker excludes.
#[derive(Debug)]
struct Excluded;

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the breaker excludes it")
    }
}

impl Error for Excluded {}

struct Running {
    cancel: Arc<Carried>,
    job: Arc<Job>,
    is_over: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        {
            let mut phase = lock(&self.job.phase);
            // This runs before the call's own slot is given back.
            let partition = match *phase {
                Phase::Running => self.job.partition.as_ref(),
                _ => None,
            };
            *phase = Phase::GivenUp(partition.and_then(Partition::take_over));
        }
        let (cancel, job) = (Arc::clone(&self.cancel), Arc::clone(&self.job));
        deliver(move |py| {
            if let Err(error) = cancel.get().call1(py, (NodeJob(job),)) {
                error.write_unraisable(py, None);
            }
        });
    }
}

struct Job {
    inputs: Mutex<Option<Map>>,
    answer: Mutex<Option<oneshot::Sender<Result<Map, NodeError>>>>,
    partition: Option<Partition>,
    phase: Mutex<Phase>,
}

enum Phase {
    Waiting,
    Running,
    /// Nobody waits any more; work that has begun keeps a slot until it ends.
    GivenUp(#[expect(dead_code, reason = "held, not read")] Option<OwnedPermit>),
    Over,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run of a Python node, which wants an answer.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct NodeJob(Arc<Job>);

impl NodeJob {
    fn answer(&self, result: Result<Map, NodeError>) {
        let before = std::mem::replace(&mut *lock(&self.0.phase), Phase::Over);
        drop(before);
        let answer = lock(&self.0.answer).take();
        if let Some(answer) = answer {
            // Nobody waits: the node took too long, or its run was given up.
            drop(answer.send(result));
        }
    }
}

#[pymethods]
impl NodeJob {
    /// Tells one run from another.
    #[getter]
    fn key(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// The name of the partition in whose slot it runs.
    #[getter]
    fn partition(&self) -> Option<&str> {
        self.0.partition.as_ref().map(Partition::name)
    }

    /// Whether the work should begin: not if nobody waits for it any more.
    fn begin(&self) -> bool {
        let mut phase = lock(&self.0.phase);
        let is_wanted = matches!(*phase, Phase::Waiting);
        if is_wanted {
            *phase = Phase::Running;
        }
        is_wanted
    }

    /// The inputs; to be taken once.
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inputs = lock(&self.0.inputs).take();
        map_to_python(py, &inputs.unwrap_or_default())
    }

    /// Answers with outputs.
    fn finish(&self, outputs: &Bound<'_, PyDict>) -> PyResult<()> {
        self.answer(Ok(map_from_python(outputs)?));
        Ok(())
    }

    /// Answers with what was raised, and whether the node's breaker excludes it.
    fn fail(&self, error: &Bound<'_, PyAny>, is_excluded: bool) -> PyResult<()> {
        let name: String = error.get_type().qualname()?.extract()?;
        let mut error = error_from_python(error, &name)?;
        if let NodeError::Execution { source, .. } | NodeError::Other { source, .. } = &mut error
            && is_excluded
        {
            *source = Some(Arc::new(Excluded));
        }
        self.answer(Err(error));
        Ok(())
    }
}

fn error_from_python(error: &Bound<'_, PyAny>, name: &str) -> PyResult<NodeError> {
    let message = kailash::redact::redact(&error.str()?.to_string()).into_owned();
    Ok(match name {
        // Refusals keep their kind: they are neutral to a breaker, and not tried again.
        "CircuitBreakerError" => NodeError::Rejected(read_rejected(error)?),
        "BulkheadFullError" => {
            let reason: String = error.getattr("reason")?.extract()?;
            NodeError::Full(Full {
                partition: error.getattr("partition")?.extract::<String>()?.into(),
                active: error.getattr("active")?.extract()?,
                queued: error.getattr("queued")?.extract()?,
                reason: Reason::ALL
                    .into_iter()
                    .find(|known| known.as_str() == reason)
                    .unwrap_or(Reason::Busy),
            })
        }
        "NodeExecutionError" => NodeError::execution(message),
        "NodeValidationError" => NodeError::Input(message),
        other => NodeError::Other {
            error_type: other.to_owned(),
            message,
            source: None,
        },
    })
}

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    Ok(py
        .import("kailash.sdk_exceptions")?
        .getattr(name)?
        .cast_into()?)
}

fn raise(py: Python<'_>, name: &str, error: &dyn fmt::Display) -> PyErr {
    let exception = class(py, name).and_then(|class| class.call1((error.to_string(),)));
    exception.map_or_else(|failed| failed, PyErr::from_value)
}

fn raise_config(py: Python<'_>, node_type: &str, problem: &ConfigProblem) -> PyErr {
    if problem.message.starts_with("unknown key") {
        let key = &problem.key;
        return PyTypeError::new_err(format!(
            "{node_type} has no setting {key:?}: {}",
            problem.message
        ));
    }
    raise(py, "NodeConfigurationError", problem)
}

fn raise_node(py: Python<'_>, error: &NodeError) -> PyErr {
    match error {
        NodeError::Rejected(rejected) => raise_rejected(py, rejected),
        NodeError::Full(full) => raise_full(py, full),
        NodeError::Closed(closed) => {
            let module = py.import("kailash.core.resilience.bulkhead");
            let exception = module.and_then(|module| {
                module
                    .getattr("BulkheadRejectionError")?
                    .call1((closed.to_string(),))
            });
            exception.map_or_else(|failed| failed, PyErr::from_value)
        }
        NodeError::TimedOut { .. } => PyTimeoutError::new_err(error.to_string()),
        NodeError::Input(_) => raise(py, "NodeValidationError", error),
        NodeError::Execution { .. } | NodeError::Other { .. } => {
            raise(py, "NodeExecutionError", error)
        }
    }
}

fn map_to_python<'py>(py: Python<'py>, map: &Map) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in map {
        dict.set_item(name, to_python(py, value)?)?;
    }
    Ok(dict)
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Int(value) => value.into_pyobject(py)?.into_any(),
        Value::Float(value) => PyFloat::new(py, *value).into_any(),
        Value::Decimal(value) => decimal(py, value)?,
        Value::Text(value) => PyString::new(py, value).into_any(),
        Value::Bytes(value) => PyBytes::new(py, value).into_any(),
        Value::Date(value) => value.into_pyobject(py)?.into_any(),
        Value::Time(value) => value.into_pyobject(py)?.into_any(),
        Value::DateTime(value) => value.into_pyobject(py)?.into_any(),
        Value::OffsetDateTime(value) => value.into_pyobject(py)?.into_any(),
        Value::Uuid(value) => value.into_pyobject(py)?.into_any(),
        Value::List(values) => {
            let values = values.iter().map(|value| to_python(py, value));
            PyList::new(py, values.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Map(map) => map_to_python(py, map)?.into_any(),
    })
}

fn decimal<'py>(py: Python<'py>, value: &BigDecimal) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    // As text, so that the digits after the point stay as they are.
    CLASS
        .import(py, "decimal", "Decimal")?
        .call1((value.to_plain_string(),))
}

fn map_from_python(dict: &Bound<'_, PyDict>) -> PyResult<Map> {
    let mut map = Map::with_capacity(dict.len());
    for (name, value) in dict {
        let Ok(name) = name.extract::<String>() else {
            let kind = name.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!(
                "a map's names are texts, not {kind}"
            )));
        };
        let value = from_python(&value).map_err(|error| place(dict.py(), &error, &name))?;
        map.insert(name, value);
    }
    Ok(map)
}

/// The same error, with the name of what holds the value before it.
fn place(py: Python<'_>, error: &PyErr, name: &str) -> PyErr {
    let text = format!("{name}: {}", error.value(py));
    PyErr::from_type(error.get_type(py), (text,))
}

fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Value> {
    let py = value.py();
    if value.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Value::Bool(value.is_true()));
    }
    if let Ok(value) = value.cast::<PyInt>() {
        return Ok(match value.extract::<i64>() {
            Ok(value) => Value::Int(value),
            Err(_) => Value::Decimal(parse_decimal(&value.str()?.to_string())?),
        });
    }
    if let Ok(value) = value.cast::<PyFloat>() {
        return Ok(Value::Float(value.extract()?));
    }
    if let Ok(value) = value.cast::<PyString>() {
        return Ok(Value::Text(value.extract()?));
    }
    if let Ok(map) = value.cast::<PyDict>() {
        return Ok(Value::Map(map_from_python(map)?));
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let values = value.try_iter()?.map(|value| from_python(&value?));
        return Ok(Value::List(values.collect::<PyResult<_>>()?));
    }
    if let Ok(value) = value.cast::<PyBytes>() {
        return Ok(Value::Bytes(value.as_bytes().to_vec()));
    }
    if value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>() {
        return Ok(Value::Bytes(
            value
                .call_method0("__bytes__")
                .or_else(|_| value.call_method0("tobytes"))?
                .extract()?,
        ));
    }
    if let Ok(value) = value.cast::<PyDateTime>() {
        let offset = value.call_method0("utcoffset")?;
        if offset.is_none() {
            return Ok(Value::DateTime(value.extract::<NaiveDateTime>()?));
        }
        // A zone with rules becomes the offset that holds at this moment.
        let zone = py
            .import("datetime")?
            .getattr("timezone")?
            .call1((offset,))?;
        let fixed = value.call_method1("astimezone", (zone,))?;
        return Ok(Value::OffsetDateTime(
            fixed.extract::<DateTime<FixedOffset>>()?,
        ));
    }
    if value.is_instance_of::<PyDate>() {
        return Ok(Value::Date(value.extract::<NaiveDate>()?));
    }
    if value.is_instance_of::<PyTime>() {
        return Ok(Value::Time(value.extract::<NaiveTime>()?));
    }
    let kind = value.get_type();
    match (
        kind.module()?.to_string().as_str(),
        kind.qualname()?.to_string().as_str(),
    ) {
        ("decimal", "Decimal") => {
            let text = value.call_method1("__format__", ("f",))?;
            Ok(Value::Decimal(parse_decimal(&text.str()?.to_string())?))
        }
        ("uuid", "UUID") => Ok(Value::Uuid(value.extract::<Uuid>()?)),
        (_, kind) => Err(PyTypeError::new_err(format!("no value can hold a {kind}"))),
    }
}

fn parse_decimal(text: &str) -> PyResult<BigDecimal> {
    text.parse()
        .map_err(|_| PyValueError::new_err(format!("{text} is no decimal number")))
}
