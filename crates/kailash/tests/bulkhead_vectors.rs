//! Runs `vectors/bulkhead/*.json` on the partition, with waiters that are polled by hand.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use kailash::bulkhead::*;
use kailash::clock::{Clock, ManualClock};

use vector::{Action, News, Shell, Step, check_all, duration};

#[path = "../../kailash-core/tests/bulkhead_vectors/vector.rs"]
mod vector;

struct Polled {
    partition: Partition,
    hand: ManualClock,
    now: Duration,
    running: BTreeMap<String, OwnedPermit>,
    waiting: BTreeMap<String, Waiting>,
    news: News,
}

impl Shell for Polled {
    fn new(config: PartitionConfig) -> Result<Self, &'static str> {
        let (clock, hand) = Clock::manual();
        let partition = Partition::with_clock(config, clock).map_err(|error| error.field)?;
        Ok(Self {
            partition,
            hand,
            now: Duration::ZERO,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            news: News::new(),
        })
    }

    fn step(&mut self, step: &Step) -> News {
        if let Some(at) = step.at {
            self.pass(duration(at));
        }
        match step.action {
            Action::Acquire => self.acquire(step),
            Action::TryAcquire => {
                let result = self.partition.try_acquire_owned();
                self.learns(&step.call, result);
            }
            Action::Release => drop(self.running.remove(&step.call).unwrap()),
            Action::Cancel => drop(self.waiting.remove(&step.call).unwrap()),
            Action::Configure => {
                let config = step.config.clone().unwrap().partition();
                self.partition.reconfigure(config).unwrap();
            }
            Action::Close => drop(self.partition.close()),
            Action::Wait => {}
        }
        let calls: Vec<_> = self.waiting.keys().cloned().collect();
        for call in calls {
            if let Some(result) = self.waiting.get_mut(&call).unwrap().now_or_never() {
                self.waiting.remove(&call);
                self.learns(&call, result);
            }
        }
        std::mem::take(&mut self.news)
    }

    fn occupancy(&self) -> (u32, u32) {
        let snapshot = self.partition.snapshot();
        (snapshot.active, snapshot.queued)
    }
}

impl Polled {
    fn pass(&mut self, now: Duration) {
        self.hand.advance(now - self.now);
        self.now = now;
        let is_over =
            |_: &String, waiting: &mut Waiting| waiting.time_left() == Some(Duration::ZERO);
        let over: Vec<_> = self.waiting.extract_if(.., is_over).collect();
        for (call, waiting) in over {
            self.learns(&call, Err(waiting.expire()));
        }
    }

    fn acquire(&mut self, step: &Step) {
        let admission = Admission {
            priority: step
                .priority
                .map(|priority| Priority::new(priority).unwrap()),
            timeout: step.timeout.map(duration),
        };
        let mut waiting = match self.partition.enqueue(admission) {
            Ok(waiting) => waiting,
            Err(full) => return self.learns(&step.call, Err(full)),
        };
        if let Some(result) = (&mut waiting).now_or_never() {
            return self.learns(&step.call, result);
        }
        self.news.insert(step.call.clone(), "waiting".to_owned());
        self.waiting.insert(step.call.clone(), waiting);
    }

    fn learns(&mut self, call: &str, result: Result<OwnedPermit, Full>) {
        let what = match result {
            Ok(permit) => {
                self.running.insert(call.to_owned(), permit);
                "started"
            }
            Err(full) => full.reason.as_str(),
        };
        let earlier = self.news.insert(call.to_owned(), what.to_owned());
        assert_eq!(earlier, None, "{call} learns two things at once");
    }
}

#[test]
fn every_vector_holds() {
    check_all::<Polled>();
}
