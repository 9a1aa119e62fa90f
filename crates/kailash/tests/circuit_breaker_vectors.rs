//! Runs `vectors/circuit_breaker/*.json` on the shell.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::time::Duration;

use kailash::circuit_breaker::{CircuitBreaker, Config, Outcome, OwnedPermit, Snapshot};
use kailash::clock::{Clock, ManualClock};

use script::{Breaker, Order, check_all};

#[path = "../../kailash-core/tests/circuit_breaker_vectors/script.rs"]
mod script;

struct Shell {
    breaker: CircuitBreaker,
    hand: ManualClock,
}

impl Breaker for Shell {
    type Permit = OwnedPermit;

    fn new(config: Config) -> Self {
        let (clock, hand) = Clock::manual();
        let breaker = CircuitBreaker::with_clock("vector", config, clock).unwrap();
        Self { breaker, hand }
    }

    fn pass(&mut self, time: Duration) {
        self.hand.advance(time);
    }

    fn acquire(&mut self) -> Result<OwnedPermit, String> {
        let result = self.breaker.try_acquire_owned();
        let result = result.and_then(OwnedPermit::watched);
        result.map_err(|rejected| rejected.to_string())
    }

    fn end(&mut self, permit: OwnedPermit, outcome: Outcome) {
        match outcome {
            // As callers cancel.
            Outcome::Cancelled => drop(permit),
            outcome => drop(permit.record(outcome)),
        }
    }

    fn record(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.breaker.record_success(),
            Outcome::Failure => self.breaker.record_failure(),
            other => panic!("nobody records {other:?} by hand"),
        }
    }

    fn tell(&mut self, order: Order) {
        match order {
            Order::ForceOpen => self.breaker.force_open(),
            Order::ForceClose => self.breaker.force_close(),
            Order::Reset => self.breaker.reset(),
            Order::Disable => self.breaker.disable(),
            Order::MetricsOnly => self.breaker.metrics_only(),
            Order::Enable => self.breaker.enable(),
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        self.breaker.snapshot()
    }
}

#[test]
fn every_vector_holds() {
    check_all::<Shell>();
}
