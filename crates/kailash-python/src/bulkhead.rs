//! Partitions for asyncio and threads: slots and queue are Rust's, waiting and threads Python's.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kailash::bulkhead::{
    Admission, Full, Manager, OwnedPermit, Partition, PartitionConfig, PartitionType, Priority,
    Waiting,
};
use kailash_core::time::nanos;
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use crate::config::{self, Settings};
use crate::runtime::{self, ManualClock, attached, deliver};

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

    /// In a forked child: new partitions like these, with nobody inside.
    fn rebuild(&self, partitions: Vec<Py<BulkheadPartition>>) {
        let manager = Manager::with_defaults();
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

#[derive(Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Counts {
    fn count(&self, began: Instant, succeeded: bool) {
        let took = nanos(began.elapsed());
        let which = if succeeded {
            &self.succeeded
        } else {
            &self.failed
        };
        which.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took, Ordering::Relaxed);
        self.longest.fetch_max(took, Ordering::Relaxed);
    }

    fn clear(&self) {
        for count in [&self.succeeded, &self.failed, &self.nanos, &self.longest] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// One partition.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadPartition {
    inner: ArcSwap<Partition>,
    counts: Arc<Counts>,
}

impl BulkheadPartition {
    fn new(partition: Partition) -> Self {
        Self {
            inner: ArcSwap::from_pointee(partition),
            counts: Arc::default(),
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
        BulkheadPermit {
            permit: Mutex::new(Some(permit)),
            counts: Arc::clone(&self.counts),
            began: Instant::now(),
            generation: runtime::generation(),
        }
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
        let inner = self.inner.load();
        let occupied = inner.try_acquire_owned().ok();
        occupied.map(|permit| self.permit(permit))
    }

    /// Takes a free slot, or says why there is none.
    fn acquire(&self, py: Python<'_>) -> PyResult<BulkheadPermit> {
        let taken = self.inner.load().try_acquire_owned();
        taken
            .map(|permit| self.permit(permit))
            .map_err(|full| raise_full(py, &full))
    }

    /// Takes a slot or a place in the queue; `on_decided` is called on `event_loop` when it has one.
    fn enqueue(
        &self,
        py: Python<'_>,
        priority: Option<u8>,
        timeout: Option<f64>,
        event_loop: Py<PyAny>,
        on_decided: Py<PyAny>,
    ) -> PyResult<BulkheadWaiting> {
        let priority = priority.map(Priority::new).transpose();
        let priority = priority.map_err(|error| config::raise(py, &error, None))?;
        let timeout =
            timeout.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        let waiting = attached(py, || {
            self.inner.load().enqueue(Admission { priority, timeout })
        });
        let waiting = waiting.map_err(|full| raise_full(py, &full))?;
        Ok(BulkheadWaiting {
            waiting: Mutex::new(Some(waiting)),
            waker: Waker::from(Arc::new(LoopWaker {
                event_loop,
                on_decided,
            })),
            generation: runtime::generation(),
        })
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
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        let (succeeded, failed) = (count(&counts.succeeded), count(&counts.failed));
        let ended = succeeded + failed;
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
        dict.set_item("succeeded", succeeded)?;
        dict.set_item("failed", failed)?;
        dict.set_item(
            "avg_execution_time",
            seconds(count(&counts.nanos) / ended.max(1)),
        )?;
        dict.set_item("max_execution_time", seconds(count(&counts.longest)))?;
        Ok(dict)
    }

    /// Admits nobody any more; returns how many waiters were turned away.
    fn close(&self, py: Python<'_>) -> usize {
        attached(py, || self.inner.load().close())
    }
}

/// A slot; collected by Python, it is given back.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadPermit {
    permit: Mutex<Option<OwnedPermit>>,
    counts: Arc<Counts>,
    began: Instant,
    generation: u64,
}

impl BulkheadPermit {
    fn give_back(&self, py: Python<'_>) -> bool {
        let permit = lock(&self.permit).take();
        let was_held = permit.is_some();
        if self.generation == runtime::generation() {
            attached(py, || drop(permit));
        } else {
            // Taken before a fork: the slot is the parent's.
            std::mem::forget(permit);
        }
        was_held
    }
}

#[pymethods]
impl BulkheadPermit {
    /// Gives the slot back, and counts the call by how it ended.
    fn done(&self, py: Python<'_>, succeeded: bool) {
        if self.give_back(py) {
            self.counts.count(self.began, succeeded);
        }
    }

    /// Gives the slot back.
    fn release(&self, py: Python<'_>) {
        self.give_back(py);
    }
}

impl Drop for BulkheadPermit {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            std::mem::forget(lock(&self.permit).take());
        }
    }
}

/// A place in a queue.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct BulkheadWaiting {
    waiting: Mutex<Option<Waiting>>,
    waker: Waker,
    generation: u64,
}

#[pymethods]
impl BulkheadWaiting {
    /// The slot, once it is there; None as long as the call must wait.
    fn poll(
        &self,
        py: Python<'_>,
        partition: &BulkheadPartition,
    ) -> PyResult<Option<BulkheadPermit>> {
        let mut place = lock(&self.waiting);
        let Some(waiting) = place.as_mut() else {
            return Err(PyRuntimeError::new_err(
                "the place in the queue was given up",
            ));
        };
        match Pin::new(waiting).poll(&mut Context::from_waker(&self.waker)) {
            Poll::Pending => Ok(None),
            Poll::Ready(verdict) => {
                *place = None;
                drop(place);
                match verdict {
                    Ok(permit) => Ok(Some(partition.permit(permit))),
                    Err(full) => Err(raise_full(py, &full)),
                }
            }
        }
    }

    /// Leaves the queue, or gives back the slot that was handed over meanwhile.
    fn leave(&self, py: Python<'_>) {
        let waiting = lock(&self.waiting).take();
        if self.generation == runtime::generation() {
            attached(py, || drop(waiting));
        } else {
            std::mem::forget(waiting);
        }
    }

    /// Leaves the queue because the call's time is over; the exception for it, unless it has left.
    fn expire(&self, py: Python<'_>) -> Option<PyErr> {
        let waiting = lock(&self.waiting).take()?;
        let full = attached(py, || waiting.expire());
        Some(raise_full(py, &full))
    }
}

impl Drop for BulkheadWaiting {
    fn drop(&mut self) {
        if self.generation != runtime::generation() {
            std::mem::forget(lock(&self.waiting).take());
        }
    }
}

struct LoopWaker {
    event_loop: Py<PyAny>,
    on_decided: Py<PyAny>,
}

impl Wake for LoopWaker {
    fn wake(self: Arc<Self>) {
        deliver(move |py| {
            let told =
                self.event_loop
                    .call_method1(py, "call_soon_threadsafe", (&self.on_decided,));
            // A loop that has closed has nobody waiting on it; the place is given up with its owner.
            drop(told);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn raise_full(py: Python<'_>, full: &Full) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "kailash.core.resilience.bulkhead", "BulkheadFullError");
    let parts = (
        full.to_string(),
        &*full.partition,
        full.active,
        full.queued,
        full.reason.as_str(),
    );
    let exception = class.and_then(|class| class.call1(parts));
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
