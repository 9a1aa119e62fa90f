//! The Python face: what `kailash._native` holds.
//!
//! asyncio is a shell as tokio is. No Python coroutine runs on a tokio thread, no tokio thread ever
//! takes Python's lock, and Python's lock is never held while Rust waits.
//!
//! It serves one interpreter of a process. What it keeps for the process, such as the class of its
//! errors, is that interpreter's.

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

mod bulkhead;
mod calling;
mod circuit_breaker;
mod config;
mod deadline;
mod health;
mod histogram;
mod runtime;
mod threads;
mod workflow;

/// Refuses every interpreter but the first that loaded this; CPython itself does so from 3.12 on.
fn stay_in_one_interpreter(py: Python<'_>) -> PyResult<()> {
    static HOME: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    // Each interpreter has its own.
    let sys = py.import("sys")?;
    if HOME.get_or_init(py, || sys.clone().unbind()).is(&sys) {
        return Ok(());
    }
    let message = "kailash is loaded in another interpreter of this process, and works in one only";
    Err(PyImportError::new_err(message))
}

/// The compiled half of the package; its surface is listed here once.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::bulkhead::{
        BulkheadCall, BulkheadManager, BulkheadPartition, BulkheadPermit, BulkheadWaiting,
        check_partition_config, partition_defaults,
    };
    #[pymodule_export]
    use crate::circuit_breaker::{
        CircuitBreaker, CircuitBreakerManager, CircuitBreakerPermit, CircuitBreakerSubscription,
        CircuitBreakerWaiting, KeyedCircuitBreakers, check_circuit_breaker_config,
        check_keyed_config, guard, rejection_message,
    };
    #[pymodule_export]
    use crate::deadline::BulkheadDeadline;
    #[pymodule_export]
    use crate::health::{
        HealthChecker, HealthJob, HealthMonitor, check_health_check_config,
        check_health_monitor_config, http_check, memory_check, python_check, redis_check,
        run_check, sql_check,
    };
    #[pymodule_export]
    use crate::histogram::HistogramSnapshot;
    #[pymodule_export]
    use crate::runtime::{Courier, ManualClock, after_fork_in_child, shut_down};
    #[pymodule_export]
    use crate::threads::JobQueue;

    #[pymodule_export]
    use crate::workflow::{
        CheckedWorkflow, NodeJob, PlannedWorkflowNode, WorkflowPlan, forget_connections,
        node_types, process_generation, split_policies,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::stay_in_one_interpreter(module.py())?;
        crate::circuit_breaker::add_types(module)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
