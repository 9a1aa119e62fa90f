//! Waiting for a breaker.

use kailash_core::time::Timestamp;

use super::{CircuitBreaker, State};
use crate::foreign::woken_alone;

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
        woken_alone(self.wait_until(may_admit, || self.next_due())).await;
    }

    /// Waits until calls pass freely: until the breaker is closed, disabled or metrics-only.
    ///
    /// It makes no call of its own: somebody's probes must succeed, or somebody must close it.
    /// Dropping the future leaves nothing behind.
    pub async fn wait_until_closed(&self) {
        let is_closed = || !matches!(self.state(), State::Open | State::HalfOpen);
        woken_alone(self.wait_until(is_closed, || Timestamp::NEVER)).await;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use super::super::{Config, Outcome};
    use super::*;
    use crate::clock::Clock;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    // One round may miss a fault, since two threads must meet for it to show.
    #[test]
    fn whoever_waits_while_a_probe_is_being_admitted_is_woken_when_its_lease_is_over() {
        for _ in 0..100 {
            wait_while_a_probe_is_admitted();
        }
    }

    fn wait_while_a_probe_is_admitted() {
        let config = |max_wait_duration_in_half_open| Config {
            half_open_requests: 1,
            initial_state: State::HalfOpen,
            max_wait_duration_in_half_open,
            ..Config::default()
        };
        let (clock, hand) = Clock::manual();
        let breaker = CircuitBreaker::with_clock("test", config(Duration::ZERO), clock);
        let breaker = breaker.expect("the config is right");
        let minute = Duration::from_secs(60);
        let wakes = Arc::new(Wakes::default());
        let (looked, has_looked) = mpsc::channel();
        // It has no limit, so that time changes nothing while it is in flight.
        let first = breaker.0.machine.try_acquire(Timestamp::ZERO, 0.5).0;
        let first = first.expect("a slot is free");
        std::thread::scope(|scope| {
            let waiting = breaker.change(|machine, now, draw, _| {
                let waiting = scope.spawn(|| {
                    let waker = Waker::from(Arc::clone(&wakes));
                    let may_admit = || {
                        let may = breaker.0.machine.may_admit(breaker.clock().now());
                        looked.send(may).expect("somebody listens");
                        may
                    };
                    let mut ready = Box::pin(breaker.wait_until(may_admit, || breaker.next_due()));
                    let context = &mut Context::from_waker(&waker);
                    assert!(ready.as_mut().poll(context).is_pending());
                    ready
                });
                // To who looks, a probe between its place and its lease is one without a limit.
                assert_eq!(has_looked.recv(), Ok(false));
                let limited = machine.reconfigure(&config(minute), now);
                limited.expect("the config is right");
                let _ = machine.record(first, Outcome::Ignored, Some(now));
                assert!(machine.try_acquire(now, draw).0.is_ok());
                waiting
            });
            let _ready = waiting.join().expect("it did not panic");
            hand.advance(minute);
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        });
    }
}
