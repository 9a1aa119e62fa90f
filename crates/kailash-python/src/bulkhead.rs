//! Partitions for asyncio and threads: slots and queue are Rust's, waiting and threads Python's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use kailash::bulkhead::{
    Admission, Full, Manager, OwnedPermit, Partition, PartitionConfig, PartitionType, Permit,
    Priority, Waiting,
};
use kailash_core::config::ConfigError;
use kailash_core::time::nanos;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::config::{self, Settings};
use crate::runtime::{self, ManualClock, attached, promise};

pub(crate) use call::BulkheadCall;
pub(crate) use waiting::BulkheadWaiting;

mod call;
mod event;
mod waiting;

/// The module that this one is the native half of.
const PYTHON: &str = "kailash.core.resilience.bulkhead";

/// Partitions by name.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadManager(ArcSwap<Manager>);

impl BulkheadManager {
    pub(crate) fn manager(&self) -> Manager {
        Manager::clone(&self.0.load())
    }
}

#[pymethods]
impl BulkheadManager {
    #[new]
    fn new() -> Self {
        Self(ArcSwap::from_pointee(Manager::with_defaults()))
    }

    /// Creates or changes the partition that this config names.
    fn configure(&self, settings: &Bound<'_, PyAny>) -> PyResult<BulkheadPartition> {
        let config = read_config(settings)?;
        let partition = attached(settings.py(), || self.0.load().configure(config));
        partition
            .map(BulkheadPartition::new)
            .map_err(|error| config::raise(settings.py(), &error, None))
    }

    /// The partition of this name.
    fn get(&self, name: &str) -> PyResult<BulkheadPartition> {
        let partition = self.0.load().get(name);
        partition
            .map(BulkheadPartition::new)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The names of all partitions, sorted.
    fn names(&self) -> Vec<String> {
        let partitions = self.0.load().partitions();
        partitions
            .iter()
            .map(|partition| partition.name().to_owned())
            .collect()
    }

    /// Partitions configured like these, new ones, under a ceiling.
    fn under_ceiling(&self, py: Python<'_>, limit: u32) -> PyResult<Self> {
        let manager = self.0.load().under_ceiling(limit);
        let manager = manager.map_err(|error| config::raise(py, &error, None))?;
        Ok(Self(ArcSwap::from_pointee(manager)))
    }

    /// How full the ceiling is, by name; None without one.
    fn ceiling<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(seen) = self.0.load().ceiling() else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("active", seen.active)?;
        dict.set_item("limit", seen.limit)?;
        dict.set_item("held_up", seen.held_up)?;
        dict.set_item("peak_active", seen.peak_active)?;
        Ok(Some(dict))
    }

    /// Changes the ceiling live.
    fn set_ceiling(&self, py: Python<'_>, limit: u32) -> PyResult<()> {
        let changed = attached(py, || self.0.load().set_ceiling(limit));
        changed.map_err(|error| config::raise(py, &error, None))
    }

    /// In a forked child: new partitions like these, with nobody inside.
    fn rebuild(&self, partitions: Vec<Py<BulkheadPartition>>) {
        let mut manager = Manager::with_defaults();
        if let Some(ceiling) = self.0.load().ceiling() {
            let under = manager.under_ceiling(ceiling.limit);
            manager = under.expect("it was valid in the parent");
        }
        for partition in &partitions {
            let partition = partition.get();
            let config = partition.inner.load().config();
            partition.replace(
                manager
                    .configure(config)
                    .expect("it was valid in the parent"),
            );
        }
        std::mem::forget(self.0.swap(Arc::new(manager)));
    }
}

/// How the calls of Python ended.
#[derive(Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Nanoseconds.
    longest: AtomicU64,
}

impl Counts {
    fn count(&self, succeeded: bool, ran: Option<Duration>) {
        let which = if succeeded {
            &self.succeeded
        } else {
            &self.failed
        };
        which.fetch_add(1, Ordering::Relaxed);
        self.time(ran);
    }

    fn time(&self, ran: Option<Duration>) {
        let ran = ran.map_or(0, nanos);
        if ran > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(ran, Ordering::Relaxed);
        }
    }

    fn clear(&self) {
        for count in [&self.succeeded, &self.failed, &self.longest] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// One partition.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadPartition {
    inner: ArcSwap<Partition>,
    counts: Arc<Counts>,
    refusal: Mutex<Option<Refusal>>,
}

/// The newest refusal, and the arguments of its exception.
///
/// A full partition refuses call after call alike, and what says so is most of what a refusal is
/// made of.
struct Refusal {
    full: Full,
    arguments: Py<PyTuple>,
}

impl BulkheadPartition {
    fn new(partition: Partition) -> Self {
        Self {
            inner: ArcSwap::from_pointee(partition),
            counts: Arc::default(),
            refusal: Mutex::default(),
        }
    }

    pub(crate) fn partition(&self) -> Partition {
        Partition::clone(&self.inner.load())
    }

    fn replace(&self, fresh: Partition) {
        // Forgotten, not dropped: a lock inside may be held by a thread of the parent.
        std::mem::forget(self.inner.swap(Arc::new(fresh)));
        self.counts.clear();
    }

    fn permit(&self, permit: OwnedPermit) -> BulkheadPermit {
        BulkheadPermit::new(Slot::new(permit), &self.counts)
    }

    fn take_free(&self) -> Option<Slot> {
        let inner = self.inner.load();
        let taken = inner.take_free().map(Permit::into_owned);
        taken.map(Slot::new)
    }

    fn queue(
        &self,
        py: Python<'_>,
        priority: Option<u8>,
        timeout: Option<f64>,
    ) -> PyResult<Waiting> {
        let admission = Self::admission(priority, timeout);
        let admission = admission.map_err(|error| config::raise(py, &error, None))?;
        let waiting = attached(py, || self.inner.load().enqueue(admission));
        waiting.map_err(|full| self.refuse(py, full))
    }

    fn refuse(&self, py: Python<'_>, full: Full) -> PyErr {
        let known = lock(&self.refusal)
            .as_ref()
            .filter(|newest| newest.full == full)
            .map(|newest| newest.arguments.clone_ref(py));
        let made = known.map_or_else(
            || {
                let arguments = full_arguments(py, &full)?;
                let newest = Refusal {
                    full,
                    arguments: arguments.clone().unbind(),
                };
                let before = lock(&self.refusal).replace(newest);
                drop(before);
                Ok(arguments)
            },
            |known| Ok(known.into_bound(py)),
        );
        raise_with(py, made)
    }

    fn admission(priority: Option<u8>, timeout: Option<f64>) -> Result<Admission, ConfigError> {
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Admission {
            priority: priority.map(Priority::new).transpose()?,
            timeout: timeout.map(seconds),
        })
    }
}

#[pymethods]
impl BulkheadPartition {
    #[new]
    #[pyo3(signature = (settings, clock=None))]
    fn alone(settings: &Bound<'_, PyAny>, clock: Option<&ManualClock>) -> PyResult<Self> {
        let partition = Partition::with_clock(read_config(settings)?, runtime::clock(clock));
        partition
            .map(Self::new)
            .map_err(|error| config::raise(settings.py(), &error, None))
    }

    /// Changes the configuration live.
    fn reconfigure(&self, settings: &Bound<'_, PyAny>) -> PyResult<()> {
        let config = read_config(settings)?;
        let changed = attached(settings.py(), || self.inner.load().reconfigure(config));
        changed.map_err(|error| config::raise(settings.py(), &error, None))
    }

    /// In a forked child: a new partition like this one, with nobody inside.
    fn rebuild(&self) {
        let config = self.inner.load().config();
        self.replace(Partition::new(config).expect("it was valid in the parent"));
    }

    #[getter]
    fn name(&self) -> String {
        self.inner.load().name().to_owned()
    }

    /// The configuration now, by field.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.inner.load().config();
        config_to_dict(py, &config)
    }

    /// Takes a free slot, if there is one and nobody waits for it.
    fn take(&self) -> Option<BulkheadPermit> {
        let slot = self.take_free()?;
        Some(BulkheadPermit::new(slot, &self.counts))
    }

    /// Takes a free slot, or says why there is none.
    fn acquire(&self, py: Python<'_>) -> PyResult<BulkheadPermit> {
        let taken = self.inner.load().try_acquire_owned();
        taken
            .map(|permit| self.permit(permit))
            .map_err(|full| self.refuse(py, full))
    }

    /// Takes a slot or a place in the queue.
    fn enqueue(
        &self,
        py: Python<'_>,
        priority: Option<u8>,
        timeout: Option<f64>,
    ) -> PyResult<BulkheadWaiting> {
        let waiting = self.queue(py, priority, timeout)?;
        Ok(BulkheadWaiting::new(waiting, Arc::clone(&self.counts)))
    }

    /// Takes a slot, for which this thread waits.
    fn wait(
        &self,
        py: Python<'_>,
        priority: Option<u8>,
        timeout: Option<f64>,
    ) -> PyResult<BulkheadPermit> {
        let waiting = self.queue(py, priority, timeout)?;
        waiting::wait(py, waiting).map(|permit| self.permit(permit))
    }

    /// Takes a free slot, calls an async function in it, with `owner` as the current partition, and
    /// makes its first step. Answers its result if it ended by that, else a BulkheadCall; a
    /// BulkheadWaiting if no slot was free, and a call without a permit if the function is not async.
    fn begin<'py>(
        &self,
        owner: &Bound<'py, PyAny>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        priority: Option<Bound<'py, PyAny>>,
        timeout: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = owner.py();
        if priority.is_some() || timeout.is_some() {
            static CHECK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let check = CHECK.import(py, PYTHON, "_check_admission")?;
            check.call1((&priority, &timeout))?;
        }
        if !call::is_async(function)? {
            return Bound::new(py, BulkheadCall::not_begun(py)).map(Bound::into_any);
        }
        if let Some(slot) = self.take_free() {
            return call::begin(slot, &self.counts, owner, function, args, kwargs);
        }
        let priority = priority.map(|priority| priority.extract()).transpose()?;
        let timeout = timeout.map(|timeout| timeout.extract()).transpose()?;
        let waiting = self.enqueue(py, priority, timeout)?;
        Bound::new(py, waiting).map(Bound::into_any)
    }

    /// Has `callback(events)` called on the courier's thread until the partition is gone.
    fn listen(&self, callback: Py<PyAny>) -> PyResult<()> {
        event::listen(self.inner.load().subscribe(), callback)
    }

    /// Counts a call whose timeout was over while it ran; the exception for it.
    fn time_out(&self, timeout: f64) -> PyErr {
        let timeout = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::MAX);
        let timed_out = self.inner.load().time_out(timeout);
        PyTimeoutError::new_err(timed_out.to_string())
    }

    /// Counts a call whose timeout was over before it started; the exception for it.
    fn expire(&self, py: Python<'_>) -> PyErr {
        raise_full(py, &self.inner.load().expire())
    }

    /// Counts a call that no thread could be started for; the exception for it.
    fn without_thread(&self, py: Python<'_>) -> PyErr {
        raise_full(py, &self.inner.load().without_thread())
    }

    /// What the partition is doing and has done so far, by name.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seen = self.inner.load().snapshot();
        let counts = &self.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let dict = PyDict::new(py);
        dict.set_item("active", seen.active)?;
        dict.set_item("queued", seen.queued)?;
        dict.set_item("limit", seen.limit)?;
        dict.set_item("is_closed", seen.is_closed)?;
        dict.set_item("run", seen.run)?;
        dict.set_item("refused", seen.refused)?;
        dict.set_item("evicted", seen.evicted)?;
        dict.set_item("expired", seen.expired)?;
        dict.set_item("timed_out", seen.timed_out)?;
        dict.set_item("peak_active", seen.peak_active)?;
        dict.set_item("wait_p50", seen.wait_p50.as_secs_f64())?;
        dict.set_item("wait_p99", seen.wait_p99.as_secs_f64())?;
        dict.set_item("run_p50", seen.run_p50.as_secs_f64())?;
        dict.set_item("run_p99", seen.run_p99.as_secs_f64())?;
        dict.set_item("succeeded", count(&counts.succeeded))?;
        dict.set_item("failed", count(&counts.failed))?;
        dict.set_item(
            "avg_execution_time",
            self.inner.load().runs().mean().as_secs_f64(),
        )?;
        let longest = Duration::from_nanos(count(&counts.longest));
        dict.set_item("max_execution_time", longest.as_secs_f64())?;
        Ok(dict)
    }

    /// Whether it admits nobody any more.
    fn is_closed(&self) -> bool {
        self.inner.load().snapshot().is_closed
    }

    /// Admits nobody any more; returns how many waiters were turned away.
    fn close(&self, py: Python<'_>) -> usize {
        attached(py, || self.inner.load().close())
    }

    /// A future of how many calls still hold a slot of the closed partition: 0 as soon as none does,
    /// or what there are after so many seconds.
    fn drained<'py>(&self, py: Python<'py>, within: f64) -> PyResult<Bound<'py, PyAny>> {
        let within = Duration::try_from_secs_f64(within).unwrap_or(Duration::MAX);
        let partition = self.partition();
        let work = async move {
            // Late is late: what is left is answered.
            let _ = tokio::time::timeout(within, partition.drained()).await;
            partition.snapshot().active
        };
        promise(py, work, |py, left| {
            Ok(left.into_pyobject(py)?.into_any().unbind())
        })
    }
}

/// A slot of the process that took it; dropped, it is given back.
struct Slot {
    // `None` once it was given back.
    permit: Option<OwnedPermit>,
    generation: u64,
}

impl Slot {
    fn new(permit: OwnedPermit) -> Self {
        Self {
            permit: Some(permit.timed()),
            generation: runtime::generation(),
        }
    }

    fn own(&mut self) -> Option<OwnedPermit> {
        let permit = self.permit.take()?;
        if self.generation != runtime::generation() {
            // Taken before a fork: the slot is the parent's.
            std::mem::forget(permit);
            return None;
        }
        Some(permit)
    }

    /// Gives it back; how long it was held. None if it is the parent's.
    fn give_back(mut self, py: Python<'_>) -> Option<Option<Duration>> {
        let permit = self.own()?;
        Some(attached(py, || permit.end()))
    }

    /// Gives it back, and counts the call by how it ended.
    fn done(self, py: Python<'_>, counts: &Counts, succeeded: bool) {
        if let Some(ran) = self.give_back(py) {
            counts.count(succeeded, ran);
        }
    }

    /// For how many seconds it has been held.
    fn ran(&self) -> f64 {
        let ran = self.permit.as_ref().and_then(OwnedPermit::ran);
        ran.unwrap_or_default().as_secs_f64()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.own());
    }
}

/// A slot; collected by Python, it is given back.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadPermit {
    slot: Mutex<Option<Slot>>,
    counts: Arc<Counts>,
}

impl BulkheadPermit {
    fn new(slot: Slot, counts: &Arc<Counts>) -> Self {
        Self {
            slot: Mutex::new(Some(slot)),
            counts: Arc::clone(counts),
        }
    }

    fn slot(&self) -> Option<Slot> {
        lock(&self.slot).take()
    }
}

#[pymethods]
impl BulkheadPermit {
    /// Gives the slot back, and counts the call by how it ended.
    fn done(&self, py: Python<'_>, succeeded: bool) {
        if let Some(slot) = self.slot() {
            slot.done(py, &self.counts, succeeded);
        }
    }

    /// Gives the slot back.
    fn release(&self, py: Python<'_>) {
        if let Some(ran) = self.slot().and_then(|slot| slot.give_back(py)) {
            self.counts.time(ran);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn raise_full(py: Python<'_>, full: &Full) -> PyErr {
    raise_with(py, full_arguments(py, full))
}

fn full_arguments<'py>(py: Python<'py>, full: &Full) -> PyResult<Bound<'py, PyTuple>> {
    let parts = (
        full.to_string(),
        &*full.partition,
        full.active,
        full.queued,
        full.reason.as_str(),
    );
    parts.into_pyobject(py)
}

fn raise_with(py: Python<'_>, arguments: PyResult<Bound<'_, PyTuple>>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, PYTHON, "BulkheadFullError");
    let exception = class.and_then(|class| class.call1(arguments?));
    exception.map_or_else(|failed| failed, PyErr::from_value)
}

fn read_config(settings: &Bound<'_, PyAny>) -> PyResult<PartitionConfig> {
    let object = settings;
    let build = |settings: &Settings<'_, '_>| {
        let partition_type: PartitionType = settings
            .text("_type_word")?
            .parse()
            .map_err(|error: kailash::ConfigError| PyValueError::new_err(error.to_string()))?;
        Ok(PartitionConfig {
            max_concurrent_operations: settings.whole("max_concurrent_operations")?,
            queue_size: settings.whole("queue_size")?,
            timeout: settings.optional_seconds("timeout")?,
            priority: u8::try_from(settings.whole("priority")?).unwrap_or(u8::MAX),
            max_threads: settings.optional_whole("max_threads")?,
            max_connections: settings.optional_whole("max_connections")?,
            evict_lower_priority: settings.flag("evict_lower_priority")?,
            queue_order: settings.text("queue_order")?.parse().map_err(
                |error: kailash::ConfigError| {
                    let given = object.getattr(error.field).ok();
                    config::raise(object.py(), &error, given)
                },
            )?,
            reject_hopeless: settings.flag("reject_hopeless")?,
            ..PartitionConfig::new(settings.text("name")?, partition_type)
        })
    };
    config::read(settings, build, |config| config.validate().map(drop))
}

fn config_to_dict<'py>(py: Python<'py>, config: &PartitionConfig) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &config.name)?;
    dict.set_item("partition_type", config.partition_type.as_str())?;
    dict.set_item(
        "max_concurrent_operations",
        config.max_concurrent_operations,
    )?;
    dict.set_item("max_threads", config.max_threads)?;
    dict.set_item("max_connections", config.max_connections)?;
    dict.set_item(
        "timeout",
        config.timeout.map(|timeout| timeout.as_secs_f64()),
    )?;
    dict.set_item("priority", config.priority)?;
    dict.set_item("queue_size", config.queue_size)?;
    dict.set_item("evict_lower_priority", config.evict_lower_priority)?;
    dict.set_item("queue_order", config.queue_order.as_str())?;
    dict.set_item("reject_hopeless", config.reject_hopeless)?;
    Ok(dict)
}

/// Checks the settings of a partition.
#[pyfunction]
pub(crate) fn check_partition_config(settings: &Bound<'_, PyAny>) -> PyResult<()> {
    read_config(settings).map(drop)
}

/// The defaults of a partition type, by field.
#[pyfunction]
pub(crate) fn partition_defaults<'py>(
    py: Python<'py>,
    partition_type: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let partition_type: PartitionType = partition_type
        .parse()
        .map_err(|error: kailash::ConfigError| config::raise(py, &error, None))?;
    config_to_dict(py, &PartitionConfig::new("any", partition_type))
}
