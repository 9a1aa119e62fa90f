//! Partitions under a ceiling against a model that keeps everything in plain lists.

use alloc::sync::Arc;
use core::time::Duration;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::{
    Decided, Entry, Member, PartitionConfig, PartitionType, Priority, Queues, Released, Slots,
    Ticket,
};
use crate::time::Timestamp;

type Call = usize;

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
    Leave(prop::sample::Index),
    Pass(u8),
    Reconfigure {
        partition: usize,
        limit: u8,
        size: u8,
    },
    SetCeiling(u8),
    Close(usize),
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
    ceiling: Slots,
    queues: Queues<Call>,
    members: Vec<(Member, Arc<Slots>)>,
    tickets: BTreeMap<Call, Ticket>,
}

#[derive(Default)]
struct Model {
    ceiling: usize,
    partitions: [Partition; PARTITIONS],
    /// Each with its partition.
    running: Vec<(Call, usize)>,
    starts: usize,
    now: u64,
}

#[derive(Default)]
struct Partition {
    limit: usize,
    size: usize,
    is_closed: bool,
    waiting: Vec<Waiter>,
    starts: usize,
}

struct Waiter {
    call: Call,
    priority: u8,
    since: u64,
    deadline: u64,
}

fn config(limit: u8, size: u8) -> PartitionConfig {
    PartitionConfig {
        max_concurrent_operations: limit.into(),
        queue_size: size.into(),
        ..PartitionConfig::new("p", PartitionType::Custom)
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
            Entry::Hopeless(_) => panic!("nobody rejects the hopeless here"),
            Entry::Waiting { ticket, evicted } => {
                self.tickets.insert(call, ticket);
                let evicted = evicted.map(News::Evicted);
                evicted.into_iter().chain([News::Waits(call)]).collect()
            }
        }
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
        Decided::Hopeless(_) => panic!("nobody rejects the hopeless here"),
    });
    news.collect()
}

impl Model {
    fn active(&self, partition: usize) -> usize {
        self.running.iter().filter(|(_, p)| *p == partition).count()
    }

    fn has_room(&self, partition: usize) -> bool {
        self.active(partition) < self.partitions[partition].limit
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
            self.running.push((call, partition));
            return [News::Started(call)].into();
        }
        let since = self.now;
        let own = &mut self.partitions[partition];
        if own.is_closed {
            return [News::Refused(call)].into();
        }
        let mut news = Vec::new();
        if own.waiting.len() >= own.size {
            // The last of the largest is the newest of the least urgent.
            let last = own.waiting.iter().enumerate();
            match last.max_by_key(|(_, w)| w.priority) {
                Some((position, w)) if w.priority > priority => {
                    news.push(News::Evicted(own.waiting.remove(position).call));
                }
                _ => return [News::Refused(call)].into(),
            }
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
                let waiting = own.waiting.iter().enumerate();
                let first = waiting.min_by_key(|(_, w)| w.priority);
                let position = match first {
                    Some((position, _))
                        if !is_turn_of_the_oldest && !(own.starts + 1).is_multiple_of(20) =>
                    {
                        position
                    }
                    _ => 0,
                };
                let waiter = own.waiting.remove(position);
                if waiter.deadline <= self.now {
                    news.push(News::Expired(waiter.call));
                    continue;
                }
                own.starts += 1;
                self.starts += 1;
                self.running.push((waiter.call, partition));
                news.push(News::Started(waiter.call));
                break;
            }
        }
        news
    }
}

fn step() -> impl Strategy<Value = Step> {
    let timeout = prop::option::of(0..20_u8);
    let partition = 0..PARTITIONS;
    let figures = (0..PARTITIONS, 1..5_u8, 0..6_u8);
    prop_oneof![
        2 => (0..PARTITIONS).prop_map(Step::TryAcquire),
        30 => (partition, 1..=10_u8, timeout).prop_map(|(partition, priority, timeout)| {
            Step::Enter { partition, priority, timeout }
        }),
        25 => any::<prop::sample::Index>().prop_map(Step::Release),
        4 => any::<prop::sample::Index>().prop_map(Step::Leave),
        5 => (0..5_u8).prop_map(Step::Pass),
        1 => figures.prop_map(|(partition, limit, size)| Step::Reconfigure { partition, limit, size }),
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
        for own in &mut model.partitions {
            (own.limit, own.size) = (2, 3);
            let slots = Arc::new(Slots::new(2));
            let member = real.queues.join(Arc::clone(&slots), &config(2, 3));
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
                        model.running.push((call, partition));
                    }
                    (Vec::new(), Vec::new())
                }
                Step::Enter { partition, priority, timeout } => {
                    let deadline = timeout.map_or(u64::MAX, |t| now + u64::from(t));
                    let expected = model.enter(call, partition, priority, deadline);
                    (real.enter(call, (partition, priority), now, deadline), expected)
                }
                Step::Release(which) if !model.running.is_empty() => {
                    let (_, partition) = model.running.remove(which.index(model.running.len()));
                    (real.release(partition, now), model.fill())
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
                Step::Reconfigure { partition, limit, size } => {
                    let own = &mut model.partitions[partition];
                    (own.limit, own.size) = (limit.into(), size.into());
                    let (member, config) = (real.members[partition].0, config(limit, size));
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
                Step::Release(_) => continue,
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
        while let Some((_, partition)) = model.running.pop() {
            prop_assert_eq!(real.release(partition, model.now), model.fill());
        }
        let all = real.members.iter().map(|(_, slots)| slots.occupancy());
        for occupancy in all.chain([real.ceiling.occupancy()]) {
            prop_assert_eq!((occupancy.active, occupancy.queued), (0, 0));
        }
    }
}
