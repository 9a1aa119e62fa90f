//! Runs `vectors/bulkhead/*.json` on the core.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::BTreeMap;

use kailash_core::bulkhead::*;
use kailash_core::time::Timestamp;

use vector::{Action, News, Shell, Step, check_all, duration};

#[path = "bulkhead_vectors/vector.rs"]
mod vector;

/// The smallest shell: no threads, and timers that fire when time is said to have passed.
struct Core {
    slots: Slots,
    queue: Queue<String>,
    config: PartitionConfig,
    waiting: BTreeMap<String, (Ticket, Timestamp)>,
    running: BTreeMap<String, Timestamp>,
    now: Timestamp,
    news: News,
}

impl Shell for Core {
    fn new(config: PartitionConfig) -> Result<Self, &'static str> {
        config.validate().map_err(|error| error.field)?;
        Ok(Self {
            slots: Slots::new(config.max_concurrent_operations),
            queue: Queue::new(&config),
            config,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            now: Timestamp::ZERO,
            news: News::new(),
        })
    }

    fn step(&mut self, step: &Step) -> News {
        if let Some(at) = step.at {
            self.pass(Timestamp::ZERO + duration(at));
        }
        let call = step.call.as_str();
        match step.action {
            Action::Acquire => self.acquire(call, step.priority, step.timeout),
            Action::TryAcquire => self.try_acquire(call),
            Action::Release => {
                let started = self.running.remove(call).unwrap();
                let ran = self.now.since(started);
                self.slots.runs().record(ran, self.now);
                if self.slots.release() == Released::Wanted {
                    self.hand_over();
                }
            }
            Action::Cancel => {
                let (ticket, _) = self.waiting.remove(call).unwrap();
                assert_eq!(self.queue.leave(&self.slots, ticket).as_deref(), Some(call));
            }
            Action::Configure => {
                self.config = step.config.clone().unwrap().partition();
                self.queue.reconfigure(&self.slots, &self.config);
                while self.queue.take_for_waiter(&self.slots) {
                    self.hand_over();
                }
            }
            Action::Close => {
                for call in self.queue.close(&self.slots) {
                    self.learns(&call, "closed");
                }
            }
            Action::Wait => {}
        }
        std::mem::take(&mut self.news)
    }

    fn occupancy(&self) -> (u32, u32) {
        let occupancy = self.slots.occupancy();
        (occupancy.active, occupancy.queued)
    }
}

impl Core {
    fn learns(&mut self, call: &str, what: &str) {
        if what != "waiting" {
            self.waiting.remove(call);
        }
        if what == "started" {
            self.running.insert(call.to_owned(), self.now);
        }
        let earlier = self.news.insert(call.to_owned(), what.to_owned());
        assert_eq!(earlier, None, "{call} learns two things at once");
    }

    fn pass(&mut self, now: Timestamp) {
        assert!(now >= self.now);
        self.now = now;
        let is_over = |(_, (_, deadline)): &(&String, &(_, Timestamp))| *deadline <= now;
        let over = self.waiting.iter().filter(is_over);
        let over: Vec<_> = over
            .map(|(call, (ticket, _))| (call.clone(), *ticket))
            .collect();
        for (call, ticket) in over {
            assert_eq!(self.queue.leave(&self.slots, ticket), Some(call.clone()));
            self.learns(&call, "waited");
        }
    }

    fn acquire(&mut self, call: &str, priority: Option<u8>, timeout: Option<f64>) {
        if timeout == Some(0.0) {
            return self.try_acquire(call);
        }
        let priority = Priority::new(priority.unwrap_or(self.config.priority)).unwrap();
        let timeout = timeout.map(duration).or(self.config.timeout);
        let deadline = timeout.map_or(Timestamp::NEVER, |timeout| self.now + timeout);
        let token = call.to_owned();
        match self
            .queue
            .enter(&self.slots, priority, self.now, deadline, token)
        {
            Entry::Started => self.learns(call, "started"),
            Entry::Waiting { ticket, evicted } => {
                if let Some(evicted) = evicted {
                    self.learns(&evicted, "evicted");
                }
                self.waiting.insert(call.to_owned(), (ticket, deadline));
                self.learns(call, "waiting");
            }
            Entry::Refused(Occupancy {
                is_closed: true, ..
            }) => self.learns(call, "closed"),
            Entry::Hopeless(_) => self.learns(call, "hopeless"),
            Entry::Refused(_) if self.config.queue_size == 0 => self.learns(call, "busy"),
            Entry::Refused(_) => self.learns(call, "queue_full"),
        }
    }

    fn try_acquire(&mut self, call: &str) {
        match self.slots.try_acquire() {
            Ok(()) => self.learns(call, "started"),
            Err(occupancy) if occupancy.is_closed => self.learns(call, "closed"),
            Err(_) => self.learns(call, "busy"),
        }
    }

    fn hand_over(&mut self) {
        loop {
            match self.queue.hand_over(&self.slots, self.now) {
                HandOver::Start(call) => return self.learns(&call, "started"),
                HandOver::Expired(call) => self.learns(&call, "waited"),
                HandOver::Hopeless(call) => self.learns(&call, "hopeless"),
                HandOver::Free { .. } => return,
            }
        }
    }
}

#[test]
fn every_vector_holds() {
    check_all::<Core>();
}
