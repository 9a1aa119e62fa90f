//! The features as tower layers (feature `tower`).
//!
//! A stack of layers reads from outside in. Retries go outside a circuit breaker, so that each
//! attempt is a call of its own; timeouts go inside it, so that it sees them as errors; whatever
//! makes callers wait goes inside it, so that nobody waits for a dependency that is down.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! use kailash::circuit_breaker::{CallError, CircuitBreaker, Config};
//! use kailash::layer::circuit_breaker::CircuitBreakerLayer;
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
//!
//! async fn query(id: u32) -> Result<String, BoxError> {
//!     Ok(format!("row {id}"))
//! }
//!
//! let breaker = CircuitBreaker::new("database", Config::default())?;
//! let mut service = ServiceBuilder::new()
//!     .map_err(CallError::into_boxed)
//!     .layer(CircuitBreakerLayer::new(breaker.clone()))
//!     .concurrency_limit(20)
//!     .service_fn(query);
//! assert_eq!(service.ready().await?.call(7).await?, "row 7");
//! assert_eq!(breaker.snapshot().calls, 1);
//! # Ok::<(), BoxError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

pub mod bulkhead;
pub mod circuit_breaker;
