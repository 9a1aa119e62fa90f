//! What a response says about the dependency.

use std::error::Error;

use crate::circuit_breaker::{Outcome, outcome_of};
use crate::refusal::is_refusal;

/// Says how a call ended.
///
/// Closures over `&Result<T, E>` are classifiers; they must name the types of their argument.
pub trait Classify<T, E> {
    /// How a call with this result ended.
    ///
    /// It is also asked about an error that came while the service was getting ready.
    fn classify(&self, result: &Result<T, E>) -> Outcome;
}

impl<F, T, E> Classify<T, E> for F
where
    F: Fn(&Result<T, E>) -> Outcome,
{
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        self(result)
    }
}

/// An `Err` is a failure, any response a success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrIsFailure;

impl<T, E> Classify<T, E> for ErrIsFailure {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        outcome_of(result)
    }
}

/// Tells a circuit breaker around other layers how a call ended: a [refusal](crate::refusal) from within, by
/// another breaker or a full partition, says nothing about the dependency; of all else the classifier within
/// decides.
///
/// By default a timeout and the call's own error are failures. Around HTTP services it is
/// `RefusalIsIgnored(HttpStatus)`, with which answers of 5xx are failures too, and a request that reqwest could
/// not build is none.
///
/// It is for services whose error is an `Error`: [`BoxedRefusalIsIgnored`] is for those whose error is a box.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
/// use kailash::circuit_breaker::{CircuitBreaker, Config};
/// use kailash::layer::bulkhead::BulkheadLayer;
/// use kailash::layer::circuit_breaker::{CircuitBreakerLayer, ErrIsFailure, RefusalIsIgnored};
/// use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
///
/// let breaker = CircuitBreaker::new("database", Config::default())?;
/// let partition = Partition::new(PartitionConfig::new("database", PartitionType::Database))?;
/// let mut service = ServiceBuilder::new()
///     .layer(CircuitBreakerLayer::with_classifier(
///         breaker.clone(),
///         RefusalIsIgnored(ErrIsFailure),
///     ))
///     .layer(BulkheadLayer::new(partition.clone()))
///     .service_fn(async |id: u32| Ok::<_, std::io::Error>(id));
/// partition.close();
/// for _ in 0..100 {
///     assert!(service.ready().await?.call(7).await.is_err());
/// }
/// assert_eq!(breaker.snapshot().failures, 0);
/// # Ok::<(), BoxError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusalIsIgnored<C = ErrIsFailure>(pub C);

impl<C, T, E> Classify<T, E> for RefusalIsIgnored<C>
where
    C: Classify<T, E>,
    E: Error + 'static,
{
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        match result {
            Err(error) if is_refusal(error) => Outcome::Ignored,
            other => self.0.classify(other),
        }
    }
}

/// As [`RefusalIsIgnored`], for services whose error is a box: tower's `BoxError`, what `anyhow` and `eyre` make,
/// and the errors of this library's layers around such.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
/// use kailash::circuit_breaker::{CircuitBreaker, Config};
/// use kailash::layer::bulkhead::BulkheadLayer;
/// use kailash::layer::circuit_breaker::{
///     BoxedRefusalIsIgnored, CircuitBreakerLayer, ErrIsFailure,
/// };
/// use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
///
/// let breaker = CircuitBreaker::new("database", Config::default())?;
/// let partition = Partition::new(PartitionConfig::new("database", PartitionType::Database))?;
/// let mut service = ServiceBuilder::new()
///     .layer(CircuitBreakerLayer::with_classifier(
///         breaker.clone(),
///         BoxedRefusalIsIgnored(ErrIsFailure),
///     ))
///     .layer(BulkheadLayer::new(partition.clone()))
///     .service_fn(async |id: u32| Ok::<_, BoxError>(id));
/// partition.close();
/// for _ in 0..100 {
///     assert!(service.ready().await.is_ok());
///     assert!(service.call(7).await.is_err());
/// }
/// assert_eq!(breaker.snapshot().failures, 0);
/// # Ok::<(), BoxError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoxedRefusalIsIgnored<C = ErrIsFailure>(pub C);

impl<C, T, E> Classify<T, E> for BoxedRefusalIsIgnored<C>
where
    C: Classify<T, E>,
    E: AsRef<dyn Error + Send + Sync>,
{
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        match result {
            Err(error) if is_refusal(error.as_ref()) => Outcome::Ignored,
            other => self.0.classify(other),
        }
    }
}
