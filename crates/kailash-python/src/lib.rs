//! The Python face: what `kailash._native` holds.
//!
//! asyncio is a shell as tokio is. No Python coroutine runs on a tokio thread, no tokio thread ever
//! takes Python's lock, and Python's lock is never held while Rust waits.

#![expect(
    dead_code,
    reason = "the checks and nodes that come next use the rest of the runtime"
)]

use pyo3::prelude::*;

mod bulkhead;
mod circuit_breaker;
mod config;
mod runtime;

/// The compiled half of the package; its surface is listed here once.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::bulkhead::{
        BulkheadManager, BulkheadPartition, BulkheadPermit, BulkheadWaiting,
        check_partition_config, partition_defaults,
    };
    #[pymodule_export]
    use crate::circuit_breaker::{
        CircuitBreaker, CircuitBreakerManager, CircuitBreakerPermit, check_circuit_breaker_config,
    };
    #[pymodule_export]
    use crate::runtime::{Courier, after_fork_in_child, shut_down};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
