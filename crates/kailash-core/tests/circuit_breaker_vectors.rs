//! Runs `vectors/circuit_breaker/*.json` on the machine.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::time::Duration;

use kailash_core::circuit_breaker::{Config, Machine, Outcome, Permit, Snapshot, Verdict};
use kailash_core::time::Timestamp;

use script::{Breaker, Order, check_all};

#[path = "circuit_breaker_vectors/script.rs"]
mod script;

const DRAW: f64 = 0.5;

struct Core {
    machine: Machine,
    now: Timestamp,
    acquired: u32,
}

impl Breaker for Core {
    type Permit = Permit;

    fn new(config: Config) -> Self {
        Self {
            machine: Machine::new(&config).unwrap(),
            now: Timestamp::ZERO,
            acquired: 0,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn acquire(&mut self) -> Result<Permit, String> {
        // Steps of the golden ratio visit every share of the way from 0 to 1.
        self.acquired += 1;
        let draw = (f64::from(self.acquired) * 0.618_033_988_749_895).fract();
        let acquire = || self.machine.try_acquire(self.now, draw).0;
        let result = acquire().and_then(|permit| {
            if !self.machine.watches() {
                return Ok(permit);
            }
            match self.machine.watch(permit) {
                (permit, Verdict::Unchanged) => Ok(permit),
                (_, verdict) => {
                    self.carry_out(verdict);
                    acquire()
                }
            }
        });
        result.map_err(|rejected| format!("{rejected:?}"))
    }

    fn end(&mut self, permit: Permit, outcome: Outcome) {
        let verdict = self.machine.record(permit, outcome, Some(self.now));
        self.carry_out(verdict);
    }

    fn record(&mut self, outcome: Outcome) {
        let (verdict, _) = self.machine.record_manual(outcome, self.now, DRAW);
        self.carry_out(verdict);
    }

    fn tell(&mut self, order: Order) {
        let _ = match order {
            Order::ForceOpen => self.machine.force_open(self.now),
            Order::ForceClose => self.machine.force_close(self.now),
            Order::Reset => self.machine.reset(self.now),
            Order::Disable => self.machine.disable(self.now),
            Order::MetricsOnly => self.machine.metrics_only(self.now),
            Order::Enable => self.machine.enable(self.now),
        };
    }

    fn snapshot(&mut self) -> Snapshot {
        self.machine.settle(self.now, DRAW);
        self.machine.snapshot(self.now)
    }
}

impl Core {
    fn carry_out(&self, verdict: Verdict) {
        if let Verdict::Trip(trip) = verdict {
            self.machine.trip(trip, self.now, DRAW);
        }
    }
}

#[test]
fn every_vector_holds() {
    check_all::<Core>();
}
