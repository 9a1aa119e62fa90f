//! What a result says about the dependency.

use std::error::Error;

use super::Outcome;
use crate::refusal::is_refusal;

pub(crate) fn outcome_of<T, E>(result: &Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Failure,
    }
}

/// How a call ended that may have met other layers on its way: a [refusal](crate::refusal) from within says
/// nothing about the dependency, any other `Err` is a failure.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
/// use kailash::circuit_breaker::{CircuitBreaker, Config, refusal_is_ignored};
///
/// async fn query() -> Result<u32, std::io::Error> {
///     Ok(1)
/// }
///
/// let breaker = CircuitBreaker::new("database", Config::default())?;
/// let partition = Partition::new(PartitionConfig::new("database", PartitionType::Database))?;
/// let call = || breaker.call_with(refusal_is_ignored, || partition.call(query));
/// assert_eq!(call().await?, 1);
///
/// partition.close();
/// for _ in 0..100 {
///     assert!(call().await.is_err());
/// }
/// assert_eq!(breaker.snapshot().failures, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn refusal_is_ignored<T, E: Error + 'static>(result: &Result<T, E>) -> Outcome {
    match result {
        Err(error) if is_refusal(error) => Outcome::Ignored,
        other => outcome_of(other),
    }
}

/// As [`refusal_is_ignored`], for errors in a box: `Box<dyn Error + Send + Sync>`, what `anyhow` and `eyre` make,
/// and the errors of layers around such.
///
/// ```
/// use std::error::Error;
///
/// use kailash::circuit_breaker::{CircuitBreaker, Config, boxed_refusal_is_ignored};
///
/// let outer = CircuitBreaker::new("all databases", Config::default())?;
/// let inner = CircuitBreaker::new("database", Config::default())?;
/// inner.force_open();
/// for _ in 0..100 {
///     let query = || -> Result<u32, Box<dyn Error + Send + Sync>> {
///         Ok(inner.call_sync(|| Ok::<_, std::io::Error>(1))?)
///     };
///     assert!(outer.call_sync_with(boxed_refusal_is_ignored, query).is_err());
/// }
/// assert_eq!(outer.snapshot().failures, 0);
/// # Ok::<(), Box<dyn Error>>(())
/// ```
pub fn boxed_refusal_is_ignored<T, E>(result: &Result<T, E>) -> Outcome
where
    E: AsRef<dyn Error + Send + Sync>,
{
    match result {
        Err(error) if is_refusal(error.as_ref()) => Outcome::Ignored,
        other => outcome_of(other),
    }
}
