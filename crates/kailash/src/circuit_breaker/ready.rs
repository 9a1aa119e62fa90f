//! Waiting for a breaker.

use super::{CircuitBreaker, State};
use kailash_core::time::Timestamp;

impl CircuitBreaker {
    /// Waits until the breaker may admit a call: at once while it is closed, else until the wait of
    /// an opening is over, a probe's slot is free, or somebody closes it. One that is forced open
    /// may be waited for without end.
    ///
    /// It is a hint, and takes nothing: admission decides, so that of many who wait no more than
    /// `half_open_requests` get through as probes. Who is refused may wait again. Dropping the
    /// future leaves nothing behind. On a manual clock it waits for the hand.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
    /// use kailash::circuit_breaker::{CircuitBreaker, Config, State};
    /// use kailash::clock::Clock;
    ///
    /// let config = Config { failure_threshold: 1, ..Config::default() };
    /// let breaker = CircuitBreaker::with_clock("api", config, Clock::tokio())?;
    /// breaker.record_failure();
    /// assert_eq!(breaker.state(), State::Open);
    /// breaker.ready().await;
    /// assert_eq!(breaker.state(), State::HalfOpen);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// On a ramp, where chance decides about each call, it does not wait: try once, and let a refusal
    /// be one.
    ///
    /// # Panics
    /// Outside a tokio runtime with time, when it must wait and the clock is not a manual one.
    pub async fn ready(&self) {
        if self.0.machine.admit().is_some() {
            return;
        }
        let may_admit = || self.0.machine.may_admit(self.settled());
        self.wait_until(may_admit, || self.next_due()).await;
    }

    /// Waits until calls pass freely: until the breaker is closed, disabled or metrics-only.
    ///
    /// It makes no call of its own: somebody's probes must succeed, or somebody must close it.
    /// Dropping the future leaves nothing behind.
    pub async fn wait_until_closed(&self) {
        let is_closed = || !matches!(self.state(), State::Open | State::HalfOpen);
        self.wait_until(is_closed, || Timestamp::NEVER).await;
    }

    /// Waits until `is_reached`, which is asked after each change of the breaker and when time may
    /// have brought it about.
    async fn wait_until(&self, is_reached: impl Fn() -> bool, due: impl Fn() -> Timestamp) {
        let waiters = &self.audience().waiters;
        loop {
            // Made before the look, so that no change falls between the two.
            let changed = waiters.notified();
            if is_reached() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = self.clock().sleep_until(due()) => {}
            }
        }
    }
}
