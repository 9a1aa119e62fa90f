//! Slots and queue against a model that keeps everything in plain lists.

use core::time::Duration;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::{
    Entry, HandOver, PartitionConfig, PartitionType, Priority, Queue, Released, Slots, Ticket,
};
use crate::time::Timestamp;

type Call = usize;

#[derive(Clone, Debug)]
enum Step {
    TryAcquire,
    Enter { priority: u8, timeout: Option<u8> },
    Release(prop::sample::Index),
    Leave(prop::sample::Index),
    Pass(u8),
    Reconfigure { limit: u32, size: u32, evicts: bool },
    Close,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Started(Call),
    Waits(Call),
    Refused(Call),
    Evicted(Call),
    Expired(Call),
    Closed(Call),
}

struct Real {
    slots: Slots,
    queue: Queue<Call>,
    tickets: BTreeMap<Call, Ticket>,
}

#[derive(Default)]
struct Model {
    limit: usize,
    size: usize,
    evicts: bool,
    is_closed: bool,
    running: Vec<Call>,
    waiting: Vec<Waiter>,
    starts: usize,
    now: u64,
}

#[derive(Clone)]
struct Waiter {
    call: Call,
    priority: u8,
    deadline: u64,
}

fn config(limit: u32, queue_size: u32, evict_lower_priority: bool) -> PartitionConfig {
    PartitionConfig {
        max_concurrent_operations: limit,
        queue_size,
        evict_lower_priority,
        ..PartitionConfig::new("p", PartitionType::Custom)
    }
}

fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(secs)
}

impl Real {
    fn enter(&mut self, call: Call, priority: u8, now: u64, deadline: u64) -> Vec<News> {
        let priority = Priority::new(priority).expect("1 to 10");
        let had_place = self.queue.has_place(priority);
        let deadline = if deadline == u64::MAX {
            Timestamp::NEVER
        } else {
            at(deadline)
        };
        match self
            .queue
            .enter(&self.slots, priority, at(now), deadline, call)
        {
            Entry::Started => [News::Started(call)].into(),
            Entry::Refused(_) => [News::Refused(call)].into(),
            Entry::Waiting { ticket, evicted } => {
                assert!(had_place);
                self.tickets.insert(call, ticket);
                let evicted = evicted.map(News::Evicted);
                evicted.into_iter().chain([News::Waits(call)]).collect()
            }
        }
    }

    fn release(&mut self, now: u64) -> Vec<News> {
        match self.slots.release() {
            Released::Free | Released::Last => Vec::new(),
            Released::Wanted => self.hand_over(now),
        }
    }

    fn hand_over(&mut self, now: u64) -> Vec<News> {
        let mut news = Vec::new();
        loop {
            match self.queue.hand_over(&self.slots, at(now)) {
                HandOver::Expired(call) => news.push(News::Expired(call)),
                HandOver::Start(call) => {
                    news.push(News::Started(call));
                    return news;
                }
                HandOver::Free { .. } => return news,
            }
        }
    }

    fn reconfigure(&mut self, config: &PartitionConfig, now: u64) -> Vec<News> {
        self.queue.reconfigure(&self.slots, config);
        let mut news = Vec::new();
        while self.queue.take_for_waiter(&self.slots) {
            news.extend(self.hand_over(now));
        }
        news
    }
}

impl Model {
    fn enter(&mut self, call: Call, priority: u8, deadline: u64) -> Vec<News> {
        if self.is_closed {
            return [News::Refused(call)].into();
        }
        if self.waiting.is_empty() && self.running.len() < self.limit {
            self.running.push(call);
            return [News::Started(call)].into();
        }
        let mut news = Vec::new();
        if self.waiting.len() >= self.size {
            // The last of the largest is the newest of the least urgent.
            let last = self
                .waiting
                .iter()
                .enumerate()
                .max_by_key(|(_, w)| w.priority);
            match last {
                Some((position, w)) if self.evicts && w.priority > priority => {
                    news.push(News::Evicted(self.waiting.remove(position).call));
                }
                _ => return [News::Refused(call)].into(),
            }
        }
        news.push(News::Waits(call));
        self.waiting.push(Waiter {
            call,
            priority,
            deadline,
        });
        news
    }

    fn fill(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        while !self.waiting.is_empty() && self.running.len() < self.limit {
            let first = self
                .waiting
                .iter()
                .enumerate()
                .min_by_key(|(_, w)| w.priority);
            let position = if (self.starts + 1).is_multiple_of(20) {
                0
            } else {
                first.expect("somebody waits").0
            };
            let waiter = self.waiting.remove(position);
            if waiter.deadline <= self.now {
                news.push(News::Expired(waiter.call));
                continue;
            }
            self.starts += 1;
            self.running.push(waiter.call);
            news.push(News::Started(waiter.call));
        }
        news
    }
}

fn step() -> impl Strategy<Value = Step> {
    let timeout = prop::option::of(0..20_u8);
    let sizes = (1..5_u32, 0..6_u32, any::<bool>());
    prop_oneof![
        2 => Just(Step::TryAcquire),
        12 => (1..=10_u8, timeout).prop_map(|(priority, timeout)| Step::Enter { priority, timeout }),
        10 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => any::<prop::sample::Index>().prop_map(Step::Leave),
        2 => (0..5_u8).prop_map(Step::Pass),
        1 => sizes.prop_map(|(limit, size, evicts)| Step::Reconfigure { limit, size, evicts }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = prop::option::weighted(0.2, Just(Step::Close));
    let parts = (prop::collection::vec(step(), 1..200), ends);
    parts.prop_flat_map(|(mut steps, close)| {
        steps.extend(close);
        // What comes after an end, too.
        prop::collection::vec(step(), 0..10).prop_map(move |after| {
            let mut steps = steps.clone();
            steps.extend(after);
            steps
        })
    })
}

proptest! {
    #[test]
    fn slots_and_queue_do_what_plain_lists_would(steps in steps()) {
        let first = config(2, 3, true);
        let mut real = Real {
            slots: Slots::new(2),
            queue: Queue::new(&first),
            tickets: BTreeMap::new(),
        };
        let mut model = Model { limit: 2, size: 3, evicts: true, ..Model::default() };
        let mut peak = 0;
        for (call, step) in steps.into_iter().enumerate() {
            let (news, expected) = match step {
                Step::TryAcquire => {
                    let is_free = !model.is_closed
                        && model.waiting.is_empty()
                        && model.running.len() < model.limit;
                    prop_assert_eq!(real.slots.try_acquire().is_ok(), is_free);
                    if is_free {
                        model.running.push(call);
                    }
                    (Vec::new(), Vec::new())
                }
                Step::Enter { priority, timeout } => {
                    let deadline = timeout.map_or(u64::MAX, |t| model.now + u64::from(t));
                    let expected = model.enter(call, priority, deadline);
                    (real.enter(call, priority, model.now, deadline), expected)
                }
                Step::Release(which) if !model.running.is_empty() => {
                    model.running.remove(which.index(model.running.len()));
                    (real.release(model.now), model.fill())
                }
                Step::Leave(which) if !model.waiting.is_empty() => {
                    let waiter = model.waiting.remove(which.index(model.waiting.len()));
                    let ticket = real.tickets[&waiter.call];
                    prop_assert_eq!(real.queue.leave(&real.slots, ticket), Some(waiter.call));
                    prop_assert_eq!(real.queue.leave(&real.slots, ticket), None);
                    (Vec::new(), Vec::new())
                }
                Step::Pass(secs) => {
                    model.now += u64::from(secs);
                    (Vec::new(), Vec::new())
                }
                Step::Reconfigure { limit, size, evicts } => {
                    (model.limit, model.size) = (limit as usize, size as usize);
                    model.evicts = evicts;
                    let news = real.reconfigure(&config(limit, size, evicts), model.now);
                    (news, model.fill())
                }
                Step::Close => {
                    model.is_closed = true;
                    let mut waiting = core::mem::take(&mut model.waiting);
                    waiting.sort_by_key(|w| w.priority);
                    let expected = waiting.iter().map(|w| News::Closed(w.call)).collect();
                    let closed = real.queue.close(&real.slots);
                    (closed.into_iter().map(News::Closed).collect(), expected)
                }
                Step::Release(_) | Step::Leave(_) => continue,
            };
            prop_assert_eq!(news, expected);
            let occupancy = real.slots.occupancy();
            prop_assert_eq!(occupancy.active as usize, model.running.len());
            prop_assert_eq!(occupancy.queued as usize, model.waiting.len());
            prop_assert_eq!(occupancy.limit as usize, model.limit);
            peak = peak.max(model.running.len());
        }
        prop_assert_eq!(real.slots.peak() as usize, peak);
        while !model.running.is_empty() {
            model.running.pop();
            prop_assert_eq!(real.release(model.now), model.fill());
        }
        let occupancy = real.slots.occupancy();
        prop_assert_eq!((occupancy.active, occupancy.queued), (0, 0));
    }
}
