//! Whole calls in a partition, which may fail.

use std::error::Error;
use std::fmt;

use futures_util::FutureExt;
use futures_util::future::lazy;

use super::{Admission, Closed, Full, Partition, RunError, TimedOut};
use crate::refusal::source_behind;

impl Partition {
    /// Makes a call in a slot, with the partition's priority and timeout.
    ///
    /// What comes of it is one result, so that a circuit breaker around it sees the call's own failure, which
    /// [`Partition::run`] answers within an `Ok`. A refusal says nothing about the dependency; see
    /// [`refusal_is_ignored`](crate::circuit_breaker::refusal_is_ignored).
    ///
    /// Dropping the returned future drops the call's, then gives the slot back.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
    /// use kailash::circuit_breaker::{CircuitBreaker, Config, refusal_is_ignored};
    ///
    /// async fn query() -> Result<u32, std::io::Error> {
    ///     Err(std::io::ErrorKind::ConnectionReset.into())
    /// }
    ///
    /// let breaker = CircuitBreaker::new("database", Config::default())?;
    /// let partition = Partition::new(PartitionConfig::new("database", PartitionType::Database))?;
    ///
    /// // A breaker around a partition: while it is open nobody waits for a slot.
    /// let call = || partition.call(query);
    /// assert!(breaker.call_with(refusal_is_ignored, call).await.is_err());
    /// assert_eq!(breaker.snapshot().failures, 1);
    ///
    /// // A partition around a breaker: waiting for a slot is no part of what the breaker sees.
    /// let call = || breaker.call(query);
    /// assert!(partition.call(call).await.is_err());
    /// assert_eq!(breaker.snapshot().failures, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When no slot could be had, the timeout passes, or the partition closes while the call waits;
    /// [`CallError::Inner`] with the call's own error.
    pub fn call<F, T, E>(
        &self,
        call: impl FnOnce() -> F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(Admission::default(), call)
    }

    /// Makes a call in a slot.
    ///
    /// # Errors
    /// As [`Partition::call`].
    pub fn call_with<F, T, E>(
        &self,
        admission: Admission,
        call: impl FnOnce() -> F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let made_in_its_slot = lazy(|_| call()).flatten();
        let run = self.run_with(admission, made_in_its_slot);
        run.map(|ran| ran?.map_err(CallError::Inner))
    }

    /// Makes a blocking call in a slot and one of the partition's threads, with the partition's priority and
    /// timeout.
    ///
    /// It is to [`Partition::run_blocking`] as [`Partition::call`] is to [`Partition::run`].
    ///
    /// # Errors
    /// As [`Partition::call`].
    ///
    /// # Panics
    /// With the call's own panic.
    pub async fn call_blocking<C, T, E>(&self, call: C) -> Result<T, CallError<E>>
    where
        C: FnOnce() -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.call_blocking_with(Admission::default(), call).await
    }

    /// Makes a blocking call in a slot and one of the partition's threads.
    ///
    /// # Errors
    /// As [`Partition::call`].
    ///
    /// # Panics
    /// With the call's own panic.
    pub async fn call_blocking_with<C, T, E>(
        &self,
        admission: Admission,
        call: C,
    ) -> Result<T, CallError<E>>
    where
        C: FnOnce() -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let result = self.run_blocking_with(admission, call).await?;
        result.map_err(CallError::Inner)
    }
}

/// What can come of a call in a partition, beside its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError<E> {
    /// The call got no slot, and never started.
    Full(Full),
    /// The call started, and its timeout was over before it ended.
    TimedOut(TimedOut),
    /// The partition was closed before the call could start.
    Closed(Closed),
    /// The call's own error.
    Inner(E),
}

impl<E: Into<Box<dyn Error + Send + Sync>>> CallError<E> {
    /// The partition's reason, or the call's own error, as what it is and nothing around it.
    ///
    /// For callers that box all their errors, as stacks of tower layers do: the box downcasts to [`Full`],
    /// [`TimedOut`], [`Closed`], or to whatever the call's own error is.
    #[must_use]
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        match self {
            Self::Full(full) => full.into(),
            Self::TimedOut(timed_out) => timed_out.into(),
            Self::Closed(closed) => closed.into(),
            Self::Inner(error) => error.into(),
        }
    }
}

/// What [`CallError::into_boxed`] answers, where it is.
impl<E> AsRef<dyn Error + Send + Sync> for CallError<E>
where
    E: AsRef<dyn Error + Send + Sync>,
{
    fn as_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Full(full) => full,
            Self::TimedOut(timed_out) => timed_out,
            Self::Closed(closed) => closed,
            Self::Inner(error) => error.as_ref(),
        }
    }
}

impl<E> From<RunError> for CallError<E> {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Full(full) => Self::Full(full),
            RunError::TimedOut(timed_out) => Self::TimedOut(timed_out),
            RunError::Closed(closed) => Self::Closed(closed),
        }
    }
}

impl<E> From<Full> for CallError<E> {
    fn from(full: Full) -> Self {
        RunError::from(full).into()
    }
}

impl<E> From<TimedOut> for CallError<E> {
    fn from(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(full) => full.fmt(f),
            Self::TimedOut(timed_out) => timed_out.fmt(f),
            Self::Closed(closed) => closed.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Full(full) => full.source(),
            Self::TimedOut(timed_out) => timed_out.source(),
            Self::Closed(closed) => closed.source(),
            Self::Inner(error) => source_behind(error),
        }
    }
}
