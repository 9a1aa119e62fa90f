//! Runs `vectors/bulkhead/*.json` on the core.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kailash_core::bulkhead::*;
use kailash_core::time::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    promise: String,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default)]
    refused: Vec<Refused>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    name: Option<String>,
    max_concurrent_operations: Option<u32>,
    queue_size: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<Option<f64>>,
    priority: Option<u8>,
    max_threads: Option<u32>,
    max_connections: Option<u32>,
    evict_lower_priority: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    config: Config,
    field: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(rename = "do")]
    action: Action,
    at: Option<f64>,
    #[serde(default)]
    call: String,
    priority: Option<u8>,
    timeout: Option<f64>,
    config: Option<Config>,
    #[serde(default)]
    then: News,
    active: Option<u32>,
    queued: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Acquire,
    TryAcquire,
    Release,
    Cancel,
    Configure,
    Close,
    Wait,
}

/// What each call learnt.
type News = BTreeMap<String, String>;

/// A field that may be `null`, as opposed to missing.
fn given<'de, D: serde::Deserializer<'de>>(field: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(field).map(Some)
}

fn duration(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap()
}

impl Config {
    fn partition(self) -> PartitionConfig {
        let name = self.name.unwrap_or_else(|| "vector".to_owned());
        let own = PartitionConfig::new(name, PartitionType::Custom);
        PartitionConfig {
            max_concurrent_operations: self
                .max_concurrent_operations
                .unwrap_or(own.max_concurrent_operations),
            queue_size: self.queue_size.unwrap_or(own.queue_size),
            timeout: self.timeout.map_or(own.timeout, |t| t.map(duration)),
            priority: self.priority.unwrap_or(own.priority),
            max_threads: self.max_threads,
            max_connections: self.max_connections,
            evict_lower_priority: self
                .evict_lower_priority
                .unwrap_or(own.evict_lower_priority),
            ..own
        }
    }
}

/// The smallest shell: no threads, and timers that fire when time is said to have passed.
struct Shell {
    slots: Slots,
    queue: Queue<String>,
    config: PartitionConfig,
    waiting: BTreeMap<String, (Ticket, Timestamp)>,
    now: Timestamp,
    news: News,
}

impl Shell {
    fn new(config: PartitionConfig) -> Self {
        config.validate().unwrap();
        Self {
            slots: Slots::new(config.max_concurrent_operations),
            queue: Queue::new(&config),
            config,
            waiting: BTreeMap::new(),
            now: Timestamp::ZERO,
            news: News::new(),
        }
    }

    fn learns(&mut self, call: &str, what: &str) {
        if what != "waiting" {
            self.waiting.remove(call);
        }
        let earlier = self.news.insert(call.to_owned(), what.to_owned());
        assert_eq!(earlier, None, "{call} learns two things at once");
    }

    fn step(&mut self, step: &Step) {
        if let Some(at) = step.at {
            self.pass(Timestamp::ZERO + duration(at));
        }
        let call = step.call.as_str();
        match step.action {
            Action::Acquire => self.acquire(call, step.priority, step.timeout),
            Action::TryAcquire => self.try_acquire(call),
            Action::Release => {
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
                HandOver::Free { .. } => return,
            }
        }
    }
}

#[test]
fn every_vector_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/bulkhead");
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = file.file_stem().unwrap().to_string_lossy();
        let vector: Vector = serde_json::from_slice(&fs::read(&file).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        check(&name, vector);
        count += 1;
    }
    assert!(count >= 18, "only {count} vectors were found");
}

fn check(name: &str, vector: Vector) {
    let Vector {
        promise,
        config,
        steps,
        refused,
    } = vector;
    assert!(
        !promise.is_empty() && steps.len() + refused.len() > 0,
        "{name}"
    );
    for Refused { config, field } in refused {
        let error = config.partition().validate().unwrap_err();
        assert_eq!(error.field, field, "{name}: {error}");
    }
    let mut shell = Shell::new(config.partition());
    for (number, step) in steps.iter().enumerate() {
        let place = format!("{name}, step {}", number + 1);
        shell.step(step);
        assert_eq!(std::mem::take(&mut shell.news), step.then, "{place}");
        let occupancy = shell.slots.occupancy();
        assert_eq!(
            step.active.unwrap_or(occupancy.active),
            occupancy.active,
            "{place}"
        );
        assert_eq!(
            step.queued.unwrap_or(occupancy.queued),
            occupancy.queued,
            "{place}"
        );
    }
}
