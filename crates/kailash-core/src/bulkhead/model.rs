//! Slots and queue against a model that keeps everything in plain lists.

use core::time::Duration;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::{
    Entry, HandOver, PartitionConfig, PartitionType, Priority, Queue, QueueOrder, Released, Slots,
    Ticket,
};
use crate::time::Timestamp;

pub(super) type Call = usize;

#[derive(Clone, Debug)]
enum Step {
    TryAcquire,
    Enter { priority: u8, timeout: Option<u8> },
    Release(prop::sample::Index),
    Leave(prop::sample::Index),
    Pass(u64),
    Reconfigure(Figures),
    Close,
}

/// A partition's settings as the models keep them, that under a ceiling too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) limit: usize,
    pub(super) size: usize,
    pub(super) evicts: bool,
    pub(super) is_lifo: bool,
    pub(super) rejects_hopeless: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Started(Call),
    Waits(Call),
    Refused(Call),
    Evicted(Call),
    Expired(Call),
    Hopeless(Call),
    Closed(Call),
}

struct Real {
    slots: Slots,
    queue: Queue<Call>,
    tickets: BTreeMap<Call, Ticket>,
}

struct Model {
    figures: Figures,
    is_closed: bool,
    /// Each with its start.
    running: Vec<(Call, u64)>,
    waiting: Vec<Waiter>,
    /// When each call ended, and how long it ran.
    ended: Vec<(u64, u64)>,
    starts: usize,
    busy_since: u64,
    now: u64,
}

#[derive(Clone)]
struct Waiter {
    call: Call,
    priority: u8,
    deadline: u64,
}

/// What all times are counted in.
const TICK: Duration = Duration::from_millis(50);
const NEVER: u64 = u64::MAX;

impl Figures {
    pub(super) fn config(self) -> PartitionConfig {
        let order = [QueueOrder::Fifo, QueueOrder::AdaptiveLifo];
        PartitionConfig {
            max_concurrent_operations: self.limit.try_into().expect("small"),
            queue_size: self.size.try_into().expect("small"),
            evict_lower_priority: self.evicts,
            queue_order: order[usize::from(self.is_lifo)],
            reject_hopeless: self.rejects_hopeless,
            ..PartitionConfig::new("p", PartitionType::Custom)
        }
    }
}

fn at(ticks: u64) -> Timestamp {
    if ticks == NEVER {
        return Timestamp::NEVER;
    }
    Timestamp::ZERO + TICK * u32::try_from(ticks).expect("small")
}

impl Real {
    fn enter(&mut self, call: Call, priority: u8, now: u64, deadline: u64) -> Vec<News> {
        let priority = Priority::new(priority).expect("1 to 10");
        let had_place = self.queue.has_place(priority);
        let (now, deadline) = (at(now), at(deadline));
        match self.queue.enter(&self.slots, priority, now, deadline, call) {
            Entry::Started => [News::Started(call)].into(),
            Entry::Refused(_) => [News::Refused(call)].into(),
            Entry::Hopeless(_) => [News::Hopeless(call)].into(),
            Entry::Waiting { ticket, evicted } => {
                assert!(had_place);
                self.tickets.insert(call, ticket);
                let evicted = evicted.map(News::Evicted);
                evicted.into_iter().chain([News::Waits(call)]).collect()
            }
        }
    }

    fn release(&mut self, started: u64, now: u64) -> Vec<News> {
        let ran = at(now).since(at(started));
        self.slots.runs().record(ran, at(now));
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
                HandOver::Hopeless(call) => news.push(News::Hopeless(call)),
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
        if self.waiting.is_empty() && self.running.len() < self.figures.limit {
            self.running.push((call, self.now));
            return [News::Started(call)].into();
        }
        if self.is_hopeless(deadline) {
            return [News::Hopeless(call)].into();
        }
        let was_empty = self.waiting.is_empty();
        let mut news = Vec::new();
        if self.waiting.len() >= self.figures.size {
            let least = self.waiting.iter().map(|w| w.priority).max();
            let mut of_it = (0..self.waiting.len())
                .filter(|position| Some(self.waiting[*position].priority) == least);
            let last = if self.is_lifo() {
                of_it.next()
            } else {
                of_it.next_back()
            };
            match last {
                Some(position)
                    if self.figures.evicts && self.waiting[position].priority > priority =>
                {
                    news.push(News::Evicted(self.waiting.remove(position).call));
                }
                _ => return [News::Refused(call)].into(),
            }
        }
        if was_empty {
            self.busy_since = self.now;
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
        while !self.waiting.is_empty() && self.running.len() < self.figures.limit {
            let soonest = (0..self.waiting.len()).min_by_key(|position| {
                let waiter = &self.waiting[*position];
                (waiter.deadline, waiter.priority)
            });
            let soonest = soonest.expect("somebody waits");
            if self.is_hopeless(self.waiting[soonest].deadline) {
                let waiter = self.waiting.remove(soonest);
                let is_over = waiter.deadline <= self.now;
                let left = if is_over {
                    News::Expired
                } else {
                    News::Hopeless
                };
                news.push(left(waiter.call));
                continue;
            }
            let most = self.waiting.iter().map(|w| w.priority).min();
            let mut of_it = (0..self.waiting.len())
                .filter(|position| Some(self.waiting[*position].priority) == most);
            let position = if (self.starts + 1).is_multiple_of(20) {
                Some(0)
            } else if self.is_lifo() {
                of_it.next_back()
            } else {
                of_it.next()
            };
            let waiter = self.waiting.remove(position.expect("somebody waits"));
            if waiter.deadline <= self.now {
                news.push(News::Expired(waiter.call));
            } else {
                self.starts += 1;
                self.running.push((waiter.call, self.now));
                news.push(News::Started(waiter.call));
            }
        }
        news
    }

    fn is_lifo(&self) -> bool {
        self.figures.is_lifo
            && at(self.now).since(at(self.busy_since)) >= Duration::from_millis(100)
    }

    fn is_hopeless(&self, deadline: u64) -> bool {
        let newest = self.ended.iter().rev().take(32);
        let second = |ticks: u64| ticks / 20;
        let recent = newest.filter(|(ended, _)| second(*ended) + 60 >= second(self.now));
        let mut ran: Vec<_> = recent.map(|(_, ran)| at(*ran).since(at(0))).collect();
        ran.sort_unstable();
        if !self.figures.rejects_hopeless || deadline == NEVER || ran.len() < 8 {
            return false;
        }
        let p50 = ran[(ran.len() - 1) / 2].max(Duration::from_micros(1));
        let left = deadline.saturating_sub(self.now);
        TICK * u32::try_from(left).expect("small") < p50
    }
}

pub(super) fn figures() -> impl Strategy<Value = Figures> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (1..5_usize, 0..6_usize, flags).prop_map(|(limit, size, flags)| Figures {
        limit,
        size,
        evicts: flags.0,
        is_lifo: flags.1,
        rejects_hopeless: flags.2,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let timeout = prop::option::of(0..20_u8);
    prop_oneof![
        2 => Just(Step::TryAcquire),
        12 => (1..=10_u8, timeout).prop_map(|(priority, timeout)| Step::Enter { priority, timeout }),
        10 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => any::<prop::sample::Index>().prop_map(Step::Leave),
        4 => (0..5_u64).prop_map(Step::Pass),
        1 => (1_000..1_300_u64).prop_map(Step::Pass),
        1 => figures().prop_map(Step::Reconfigure),
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
        let figures = Figures {
            limit: 2,
            size: 3,
            evicts: true,
            is_lifo: true,
            rejects_hopeless: true,
        };
        let mut real = Real {
            slots: Slots::new(2),
            queue: Queue::new(&figures.config()),
            tickets: BTreeMap::new(),
        };
        let mut model = Model {
            figures,
            is_closed: false,
            running: Vec::new(),
            waiting: Vec::new(),
            ended: Vec::new(),
            starts: 0,
            busy_since: 0,
            now: 0,
        };
        let (mut peak, mut started) = (0, 0);
        for (call, step) in steps.into_iter().enumerate() {
            let (news, expected) = match step {
                Step::TryAcquire => {
                    let is_free = !model.is_closed
                        && model.waiting.is_empty()
                        && model.running.len() < model.figures.limit;
                    prop_assert_eq!(real.slots.try_acquire().is_ok(), is_free);
                    if is_free {
                        model.running.push((call, model.now));
                        started += 1;
                    }
                    (Vec::new(), Vec::new())
                }
                Step::Enter { priority, timeout } => {
                    let deadline = timeout.map_or(NEVER, |t| model.now + u64::from(t));
                    let expected = model.enter(call, priority, deadline);
                    (real.enter(call, priority, model.now, deadline), expected)
                }
                Step::Release(which) if !model.running.is_empty() => {
                    let ends = which.index(model.running.len());
                    let (_, started) = model.running.remove(ends);
                    model.ended.push((model.now, model.now - started));
                    (real.release(started, model.now), model.fill())
                }
                Step::Leave(which) if !model.waiting.is_empty() => {
                    let waiter = model.waiting.remove(which.index(model.waiting.len()));
                    let ticket = real.tickets[&waiter.call];
                    prop_assert_eq!(real.queue.leave(&real.slots, ticket), Some(waiter.call));
                    prop_assert_eq!(real.queue.leave(&real.slots, ticket), None);
                    (Vec::new(), Vec::new())
                }
                Step::Pass(ticks) => {
                    model.now += ticks;
                    (Vec::new(), Vec::new())
                }
                Step::Reconfigure(figures) => {
                    model.figures = figures;
                    let news = real.reconfigure(&figures.config(), model.now);
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
            let starts = expected.iter().filter(|news| matches!(news, News::Started(_)));
            started += starts.count() as u64;
            prop_assert_eq!(news, expected);
            let occupancy = real.slots.occupancy();
            prop_assert_eq!(occupancy.active as usize, model.running.len());
            prop_assert_eq!(occupancy.queued as usize, model.waiting.len());
            prop_assert_eq!(occupancy.limit as usize, model.figures.limit);
            peak = peak.max(model.running.len());
        }
        prop_assert_eq!(real.slots.peak() as usize, peak);
        prop_assert_eq!(real.slots.started(), started);
        while let Some((_, started)) = model.running.pop() {
            model.ended.push((model.now, model.now - started));
            prop_assert_eq!(real.release(started, model.now), model.fill());
        }
        let occupancy = real.slots.occupancy();
        prop_assert_eq!((occupancy.active, occupancy.queued), (0, 0));
    }
}
