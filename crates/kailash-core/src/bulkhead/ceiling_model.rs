//! Partitions under a ceiling against a model that keeps everything in plain lists.

use alloc::sync::Arc;
use core::time::Duration;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::model::{Call, Figures, News, figures};
use super::{Decided, Entry, Member, Priority, Queues, Released, Slots, Ticket};
use crate::time::Timestamp;

const PARTITIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    TryAcquire(usize),
    Enter {
        partition: usize,
        priority: u8,
        timeout: Option<u8>,
    },
    Release(prop::sample::Index),
    /// What the call does goes on without it.
    TakeOver(prop::sample::Index),
    Leave(prop::sample::Index),
    Pass(u8),
    Reconfigure {
        partition: usize,
        figures: Figures,
    },
    SetCeiling(u8),
    Close(usize),
}

const AT_FIRST: Figures = Figures {
    limit: 2,
    size: 3,
    evicts: true,
    is_lifo: false,
    rejects_hopeless: true,
};

struct Real {
    ceiling: Slots,
    queues: Queues<Call>,
    members: Vec<(Member, Arc<Slots>)>,
    tickets: BTreeMap<Call, Ticket>,
}

#[derive(Default)]
struct Model {
    ceiling: usize,
    partitions: [Partition; PARTITIONS],
    running: Vec<Running>,
    starts: usize,
    now: u64,
}

#[derive(Clone, Copy)]
struct Running {
    partition: usize,
    since: u64,
}

struct Partition {
    figures: Figures,
    is_closed: bool,
    waiting: Vec<Waiter>,
    busy_since: u64,
    starts: usize,
    /// When each call ended, and how long it ran.
    ended: Vec<(u64, u64)>,
}

struct Waiter {
    call: Call,
    priority: u8,
    since: u64,
    deadline: u64,
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            figures: AT_FIRST,
            is_closed: false,
            waiting: Vec::new(),
            busy_since: 0,
            starts: 0,
            ended: Vec::new(),
        }
    }
}

fn at(secs: u64) -> Timestamp {
    if secs == u64::MAX {
        return Timestamp::NEVER;
    }
    Timestamp::ZERO + Duration::from_secs(secs)
}

impl Real {
    fn try_acquire(&mut self, partition: usize, now: u64) -> bool {
        let (member, slots) = &self.members[partition];
        let Err(denied) = slots.try_acquire_under(&self.ceiling) else {
            return true;
        };
        if denied.released == Released::Wanted {
            let mut decided = Vec::new();
            self.queues
                .step_back(&self.ceiling, *member, at(now), &mut decided);
            assert!(decided.is_empty(), "alone, nobody is in the way");
        }
        false
    }

    fn enter(
        &mut self,
        call: Call,
        (partition, priority): (usize, u8),
        now: u64,
        deadline: u64,
    ) -> Vec<News> {
        let (member, _) = self.members[partition];
        let priority = Priority::new(priority).expect("1 to 10");
        let mut decided = Vec::new();
        let entry = self.queues.enter(
            &self.ceiling,
            member,
            priority,
            at(now),
            at(deadline),
            call,
            &mut decided,
        );
        assert!(decided.is_empty(), "whoever waits could not start");
        match entry {
            Entry::Started => [News::Started(call)].into(),
            Entry::Refused(_) => [News::Refused(call)].into(),
            Entry::Hopeless(_) => [News::Hopeless(call)].into(),
            Entry::Waiting { ticket, evicted } => {
                self.tickets.insert(call, ticket);
                let evicted = evicted.map(News::Evicted);
                evicted.into_iter().chain([News::Waits(call)]).collect()
            }
        }
    }

    fn end(&mut self, Running { partition, since }: Running, now: u64) -> Vec<News> {
        let (_, slots) = &self.members[partition];
        slots.runs().record(at(now).since(at(since)), at(now));
        self.release(partition, now)
    }

    fn take_over(&mut self, partition: usize, now: u64) -> Vec<News> {
        let (_, slots) = &self.members[partition];
        assert!(slots.take_over() && self.ceiling.take_over());
        self.release(partition, now)
    }

    fn release(&mut self, partition: usize, now: u64) -> Vec<News> {
        let (member, slots) = &self.members[partition];
        let mut decided = Vec::new();
        if slots.release() == Released::Wanted {
            let (ceiling, queues) = (&self.ceiling, &mut self.queues);
            queues.give_back(ceiling, *member, at(now), &mut decided);
        } else if self.ceiling.release() == Released::Wanted {
            self.queues.pass_on(&self.ceiling, at(now), &mut decided);
        }
        news(decided)
    }
}

fn news(decided: Vec<Decided<Call>>) -> Vec<News> {
    let news = decided.into_iter().map(|decided| match decided {
        Decided::Start(call) => News::Started(call),
        Decided::Expired(call) => News::Expired(call),
        Decided::Hopeless(call) => News::Hopeless(call),
    });
    news.collect()
}

impl Partition {
    fn is_lifo(&self, now: u64) -> bool {
        self.figures.is_lifo && at(now).since(at(self.busy_since)) >= Duration::from_millis(100)
    }

    fn is_hopeless(&self, deadline: u64, now: u64) -> bool {
        let newest = self.ended.iter().rev().take(32);
        let recent = newest.filter(|(ended, _)| ended + 60 >= now);
        let mut ran: Vec<_> = recent.map(|(_, ran)| *ran).collect();
        ran.sort_unstable();
        if !self.figures.rejects_hopeless || deadline == u64::MAX || ran.len() < 8 {
            return false;
        }
        let p50 = ran[(ran.len() - 1) / 2];
        let left = deadline.saturating_sub(now);
        // No call takes no time.
        left < p50 || left == 0
    }

    /// The waiter with the least time left, if that is too little.
    fn without_hope(&self, now: u64) -> Option<usize> {
        let all = self.waiting.iter().enumerate();
        let (position, waiter) = all.min_by_key(|(_, w)| (w.deadline, w.priority))?;
        self.is_hopeless(waiter.deadline, now).then_some(position)
    }

    /// Of the waiters of one priority, the one that starts first or last.
    fn one_of(&self, priority: Option<u8>, is_last_come: bool) -> Option<usize> {
        let all = 0..self.waiting.len();
        let mut of_it = all.filter(|position| Some(self.waiting[*position].priority) == priority);
        if is_last_come {
            of_it.next_back()
        } else {
            of_it.next()
        }
    }
}

impl Model {
    fn active(&self, partition: usize) -> usize {
        let running = self.running.iter();
        running.filter(|call| call.partition == partition).count()
    }

    fn start(&mut self, partition: usize) {
        let since = self.now;
        self.running.push(Running { partition, since });
    }

    fn end(&mut self, which: usize) -> Running {
        let call = self.running.remove(which);
        let ran = self.now - call.since;
        self.partitions[call.partition].ended.push((self.now, ran));
        call
    }

    fn has_room(&self, partition: usize) -> bool {
        self.active(partition) < self.partitions[partition].figures.limit
    }

    fn is_held_up(&self, partition: usize) -> bool {
        !self.partitions[partition].waiting.is_empty() && self.has_room(partition)
    }

    fn is_free(&self, partition: usize) -> bool {
        let own = &self.partitions[partition];
        let nobody = (0..PARTITIONS).all(|p| !self.is_held_up(p));
        let has_room = self.has_room(partition) && self.running.len() < self.ceiling;
        !own.is_closed && own.waiting.is_empty() && nobody && has_room
    }

    fn enter(&mut self, call: Call, partition: usize, priority: u8, deadline: u64) -> Vec<News> {
        if self.is_free(partition) {
            self.start(partition);
            return [News::Started(call)].into();
        }
        let since = self.now;
        let own = &mut self.partitions[partition];
        if own.is_closed {
            return [News::Refused(call)].into();
        }
        if own.is_hopeless(deadline, since) {
            return [News::Hopeless(call)].into();
        }
        let was_empty = own.waiting.is_empty();
        let mut news = Vec::new();
        if own.waiting.len() >= own.figures.size {
            let least = own.waiting.iter().map(|w| w.priority).max();
            match own.one_of(least, !own.is_lifo(since)) {
                Some(position)
                    if own.figures.evicts && own.waiting[position].priority > priority =>
                {
                    news.push(News::Evicted(own.waiting.remove(position).call));
                }
                _ => return [News::Refused(call)].into(),
            }
        }
        if was_empty {
            own.busy_since = since;
        }
        news.push(News::Waits(call));
        own.waiting.push(Waiter {
            call,
            priority,
            since,
            deadline,
        });
        news
    }

    fn fill(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        while self.running.len() < self.ceiling {
            let held_up = (0..PARTITIONS).filter(|partition| self.is_held_up(*partition));
            let is_turn_of_the_oldest = (self.starts + 1).is_multiple_of(20);
            let next = if is_turn_of_the_oldest {
                held_up.min_by_key(|p| self.partitions[*p].waiting[0].since)
            } else {
                held_up.min_by_key(|p| {
                    let waiting = self.partitions[*p].waiting.iter();
                    waiting.map(|w| (w.priority, w.since)).min()
                })
            };
            let Some(partition) = next else { break };
            let own = &mut self.partitions[partition];
            while !own.waiting.is_empty() {
                let without_hope = own.without_hope(self.now);
                let most = own.waiting.iter().map(|w| w.priority).min();
                let position = if without_hope.is_some() {
                    without_hope
                } else if is_turn_of_the_oldest || (own.starts + 1).is_multiple_of(20) {
                    Some(0)
                } else {
                    own.one_of(most, own.is_lifo(self.now))
                };
                let waiter = own.waiting.remove(position.expect("somebody waits"));
                if waiter.deadline <= self.now {
                    news.push(News::Expired(waiter.call));
                } else if without_hope.is_some() {
                    news.push(News::Hopeless(waiter.call));
                } else {
                    own.starts += 1;
                    self.starts += 1;
                    self.start(partition);
                    news.push(News::Started(waiter.call));
                    break;
                }
            }
        }
        news
    }
}

fn step() -> impl Strategy<Value = Step> {
    let timeout = prop::option::of(0..20_u8);
    let partition = 0..PARTITIONS;
    let figures = (0..PARTITIONS, figures());
    prop_oneof![
        2 => (0..PARTITIONS).prop_map(Step::TryAcquire),
        30 => (partition, 1..=10_u8, timeout).prop_map(|(partition, priority, timeout)| {
            Step::Enter { partition, priority, timeout }
        }),
        25 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => any::<prop::sample::Index>().prop_map(Step::TakeOver),
        4 => any::<prop::sample::Index>().prop_map(Step::Leave),
        5 => (0..5_u8).prop_map(Step::Pass),
        1 => figures.prop_map(|(partition, figures)| Step::Reconfigure { partition, figures }),
        1 => (1..8_u8).prop_map(Step::SetCeiling),
        1 => (0..PARTITIONS * 20).prop_map(|n| match n {
            closed @ 0..PARTITIONS => Step::Close(closed),
            _ => Step::Pass(1),
        }),
    ]
}

proptest! {
    #[test]
    fn partitions_under_a_ceiling_do_what_plain_lists_would(
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut real = Real {
            ceiling: Slots::new(3),
            queues: Queues::new(),
            members: Vec::new(),
            tickets: BTreeMap::new(),
        };
        let mut model = Model { ceiling: 3, ..Model::default() };
        for own in &model.partitions {
            let config = own.figures.config();
            let slots = Arc::new(Slots::new(config.max_concurrent_operations));
            let member = real.queues.join(Arc::clone(&slots), &config);
            real.members.push((member, slots));
        }
        for (call, step) in steps.into_iter().enumerate() {
            let now = model.now;
            let mut decided = Vec::new();
            let (told, expected) = match step {
                Step::TryAcquire(partition) => {
                    let is_free = model.is_free(partition);
                    prop_assert_eq!(real.try_acquire(partition, now), is_free);
                    if is_free {
                        model.start(partition);
                    }
                    (Vec::new(), Vec::new())
                }
                Step::Enter { partition, priority, timeout } => {
                    let deadline = timeout.map_or(u64::MAX, |t| now + u64::from(t));
                    let expected = model.enter(call, partition, priority, deadline);
                    (real.enter(call, (partition, priority), now, deadline), expected)
                }
                Step::Release(which) if !model.running.is_empty() => {
                    let ended = model.end(which.index(model.running.len()));
                    (real.end(ended, now), model.fill())
                }
                Step::TakeOver(which) if !model.running.is_empty() => {
                    let Running { partition, .. } = *which.get(&model.running);
                    (real.take_over(partition, now), Vec::new())
                }
                Step::Leave(which) => {
                    let calls = model.partitions.iter().enumerate();
                    let calls: Vec<_> = calls
                        .flat_map(|(p, own)| own.waiting.iter().map(move |w| (p, w.call)))
                        .collect();
                    if calls.is_empty() {
                        continue;
                    }
                    let (partition, gone) = calls[which.index(calls.len())];
                    model.partitions[partition].waiting.retain(|w| w.call != gone);
                    let (member, ticket) = (real.members[partition].0, real.tickets[&gone]);
                    let mut leave = || {
                        real.queues.leave(&real.ceiling, member, ticket, at(now), &mut decided)
                    };
                    prop_assert_eq!(leave(), Some(gone));
                    prop_assert_eq!(leave(), None);
                    (news(decided), model.fill())
                }
                Step::Pass(secs) => {
                    model.now += u64::from(secs);
                    (Vec::new(), Vec::new())
                }
                Step::Reconfigure { partition, figures } => {
                    model.partitions[partition].figures = figures;
                    let (member, config) = (real.members[partition].0, figures.config());
                    real.queues.reconfigure(&real.ceiling, member, &config, at(now), &mut decided);
                    (news(decided), model.fill())
                }
                Step::SetCeiling(limit) => {
                    model.ceiling = limit.into();
                    let limit = limit.into();
                    real.queues.set_ceiling(&real.ceiling, limit, at(now), &mut decided);
                    (news(decided), model.fill())
                }
                Step::Close(partition) => {
                    let own = &mut model.partitions[partition];
                    own.is_closed = true;
                    let mut waiting = core::mem::take(&mut own.waiting);
                    waiting.sort_by_key(|w| w.priority);
                    let mut expected: Vec<_> =
                        waiting.iter().map(|w| News::Closed(w.call)).collect();
                    expected.extend(model.fill());
                    let member = real.members[partition].0;
                    let closed = real.queues.close(&real.ceiling, member, at(now), &mut decided);
                    let closed = closed.into_iter().map(News::Closed);
                    (closed.chain(news(decided)).collect(), expected)
                }
                Step::Release(_) | Step::TakeOver(_) => continue,
            };
            prop_assert_eq!(told, expected);
            let ceiling = real.ceiling.occupancy();
            prop_assert_eq!(ceiling.active as usize, model.running.len());
            let held_up = (0..PARTITIONS).filter(|partition| model.is_held_up(*partition));
            prop_assert_eq!(ceiling.queued as usize, held_up.count());
            for (partition, (_, slots)) in real.members.iter().enumerate() {
                let occupancy = slots.occupancy();
                prop_assert_eq!(occupancy.active as usize, model.active(partition));
                let waiting = model.partitions[partition].waiting.len();
                prop_assert_eq!(occupancy.queued as usize, waiting);
            }
        }
        while let Some(last) = model.running.len().checked_sub(1) {
            let ended = model.end(last);
            prop_assert_eq!(real.end(ended, model.now), model.fill());
        }
        let all = real.members.iter().map(|(_, slots)| slots.occupancy());
        for occupancy in all.chain([real.ceiling.occupancy()]) {
            prop_assert_eq!((occupancy.active, occupancy.queued), (0, 0));
        }
    }
}
