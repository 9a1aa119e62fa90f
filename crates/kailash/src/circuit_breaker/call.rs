//! Whole calls behind a breaker.

use super::{CallError, CircuitBreaker, Outcome, Rejected};

impl CircuitBreaker {
    /// Runs a call behind the breaker: an `Err` counts as a failure.
    ///
    /// So does one that says nothing about the dependency, such as the refusal of a partition or of
    /// another breaker within: [`CircuitBreaker::call_with`] tells them apart.
    ///
    /// Dropping the future while it runs is a cancelled call.
    ///
    /// # Errors
    /// [`CallError::Rejected`] if the breaker refuses the call, which is then never made;
    /// [`CallError::Inner`] with the call's own error.
    pub async fn call<F, T, E>(&self, call: impl FnOnce() -> F) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(outcome_of, call).await
    }

    /// Runs a call behind the breaker, where `classify` says how it ended.
    ///
    /// A classifier that panics counts as a failure, and the panic goes on.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub async fn call_with<F, T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> F,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut permit = self.try_acquire()?;
        permit.watch()?;
        let result = call().await;
        // A panic in the classifier drops the permit, which counts it as a failure.
        let outcome = classify(&result);
        permit.end(outcome);
        result.map_err(CallError::Inner)
    }

    /// Runs a call behind the breaker, or `fallback` where the breaker refuses it.
    ///
    /// The call's own error is no reason to fall back: it counts as a failure and is answered. The
    /// fallback runs outside the breaker, so that what comes of it counts for nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// use kailash::circuit_breaker::{CircuitBreaker, Config, Rejected};
    ///
    /// let breaker = CircuitBreaker::new("prices", Config::default())?;
    /// let ask = || async { Ok::<_, std::io::Error>(12) };
    /// let cached = async |_: Rejected| Ok(11);
    ///
    /// assert_eq!(breaker.call_or(cached, ask).await?, 12);
    /// breaker.force_open();
    /// assert_eq!(breaker.call_or(cached, ask).await?, 11);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The call's own error, or the fallback's.
    pub async fn call_or<F, G, T, E>(
        &self,
        fallback: impl FnOnce(Rejected) -> G,
        call: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        G: Future<Output = Result<T, E>>,
    {
        match self.call(call).await {
            Ok(value) => Ok(value),
            Err(CallError::Inner(error)) => Err(error),
            Err(CallError::Rejected(rejected)) => fallback(rejected).await,
        }
    }

    /// Runs a blocking call behind the breaker, or `fallback` where the breaker refuses it, as
    /// [`CircuitBreaker::call_or`] does.
    ///
    /// # Errors
    /// The call's own error, or the fallback's.
    pub fn call_sync_or<T, E>(
        &self,
        fallback: impl FnOnce(Rejected) -> Result<T, E>,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.call_sync(call) {
            Ok(value) => Ok(value),
            Err(CallError::Inner(error)) => Err(error),
            Err(CallError::Rejected(rejected)) => fallback(rejected),
        }
    }

    /// Runs a blocking call behind the breaker: an `Err` counts as a failure, so does a panic.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync<T, E>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, CallError<E>> {
        self.call_sync_with(outcome_of, call)
    }

    /// Runs a blocking call behind the breaker, where `classify` says how it ended.
    ///
    /// # Errors
    /// As [`CircuitBreaker::call`].
    pub fn call_sync_with<T, E>(
        &self,
        classify: impl FnOnce(&Result<T, E>) -> Outcome,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let mut permit = self.try_acquire()?;
        permit.watch()?;
        let result = call();
        let outcome = classify(&result);
        permit.end(outcome);
        result.map_err(CallError::Inner)
    }
}

pub(crate) fn outcome_of<T, E>(result: &Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Failure,
    }
}
