//! What the word of a partition's slots counts, and what it answers at its edges.

use std::sync::Arc;
use std::time::Duration;

use kailash_core::bulkhead::{
    Entry, Member, Occupancy, PartitionConfig, PartitionType, Priority, Queue, QueueOrder, Queues,
    Released, Slots,
};
use kailash_core::time::Timestamp;

fn queue() -> Queue<u32> {
    Queue::new(&PartitionConfig::new("p", PartitionType::Custom))
}

#[test]
fn every_start_and_every_refusal_is_counted() {
    let slots = Slots::new(3);
    for call in 1..=100 {
        slots.try_acquire().unwrap();
        assert_eq!(slots.started(), call);
        assert_eq!(slots.release(), Released::Free);
    }
    for refusal in 1..=3 {
        slots.count_refusal();
        assert_eq!(slots.refused(), refusal);
    }
    assert_eq!(slots.peak(), 1);
    for _ in 0..3 {
        slots.try_acquire().unwrap();
    }
    assert_eq!((slots.peak(), slots.started()), (3, 103));
}

#[test]
fn work_that_goes_on_is_held_beside_the_call_that_gave_up() {
    let slots = Slots::new(1);
    slots.try_acquire().unwrap();
    assert!(slots.take_over());
    let both = Occupancy {
        active: 2,
        queued: 0,
        limit: 1,
        is_closed: false,
    };
    assert_eq!(slots.occupancy(), both);
    assert_eq!(slots.release(), Released::Free);
    assert_eq!(slots.try_acquire().unwrap_err().active, 1);
    assert_eq!(slots.release(), Released::Free);
    assert_eq!(slots.occupancy().active, 0);
}

#[test]
fn no_more_is_taken_over_than_can_be_counted() {
    let slots = Slots::new(1);
    let most = (1 << 20) - 1;
    assert!((0..most).all(|_| slots.take_over()));
    assert!(!slots.take_over());
    let full = slots.occupancy();
    assert_eq!((full.active, full.queued, full.limit), (most, 0, 1));
}

#[test]
fn the_last_slot_of_a_closed_partition_is_told() {
    let slots = Slots::new(2);
    for _ in 0..2 {
        slots.try_acquire().unwrap();
    }
    assert!(queue().close(&slots).is_empty(), "nobody waits");
    let refused = slots.try_acquire().unwrap_err();
    assert!(refused.is_closed);
    assert_eq!(slots.release(), Released::Free);
    assert_eq!(slots.release(), Released::Last);
}

#[test]
fn a_ceiling_that_denies_a_slot_leaves_the_partition_as_it_was() {
    let (slots, ceiling) = (Slots::new(3), Slots::new(1));
    assert!(slots.try_acquire_under(&ceiling).is_ok());
    assert_eq!(
        (slots.occupancy().active, ceiling.occupancy().active),
        (1, 1)
    );
    let denied = slots.try_acquire_under(&ceiling).unwrap_err();
    assert_eq!(
        (denied.occupancy.active, denied.released),
        (1, Released::Free)
    );
    assert_eq!(
        (slots.occupancy().active, ceiling.occupancy().active),
        (1, 1)
    );
    assert_eq!((slots.started(), ceiling.started()), (1, 1));

    let full = Slots::new(0);
    let denied = full.try_acquire_under(&ceiling).unwrap_err();
    assert_eq!(
        (denied.occupancy.active, denied.released),
        (0, Released::Free)
    );
}

#[test]
fn orders_of_a_queue_read_as_they_are_written() {
    for order in QueueOrder::ALL {
        assert_eq!(order.to_string().parse::<QueueOrder>().unwrap(), order);
    }
    assert!("lifo".parse::<QueueOrder>().is_err());
}

type Partition = (Arc<Slots>, Member);

/// Two partitions of one slot each under a ceiling of one.
fn under_a_ceiling() -> (Slots, Queues<u32>, [Partition; 2]) {
    let mut queues = Queues::new();
    let members = [1, 1].map(|limit| {
        let slots = Arc::new(Slots::new(limit));
        let config = PartitionConfig::new("p", PartitionType::Custom);
        let member = queues.join(Arc::clone(&slots), &config);
        (slots, member)
    });
    (Slots::new(1), queues, members)
}

#[test]
fn a_call_that_steps_back_is_the_last_only_of_a_closed_partition() {
    let (ceiling, mut queues, [(slots, member), _]) = under_a_ceiling();
    let mut decided = Vec::new();
    slots.try_acquire().unwrap();
    assert!(!queues.step_back(&ceiling, member, Timestamp::ZERO, &mut decided));
    slots.try_acquire().unwrap();
    queues.close(&ceiling, member, Timestamp::ZERO, &mut decided);
    assert!(queues.step_back(&ceiling, member, Timestamp::ZERO, &mut decided));
    assert!(decided.is_empty());
}

#[test]
fn a_partition_that_is_removed_takes_nobody_and_holds_nobody_up() {
    let (_, mut queues, [(_, gone), (_, other)]) = under_a_ceiling();
    queues.remove(gone);
    assert!(!queues.has_place(gone, Priority::default()));
    assert!(queues.has_place(other, Priority::default()));
    assert!(!queues.is_hopeless(gone, Timestamp::ZERO, Timestamp::ZERO));
}

#[test]
fn without_the_setting_no_wait_is_hopeless() {
    let (_, queues, [(_, member), _]) = under_a_ceiling();
    assert!(!queues.is_hopeless(member, Timestamp::ZERO, Timestamp::ZERO));
}

#[test]
fn with_it_a_wait_for_less_time_than_calls_take_is_hopeless() {
    let mut queues: Queues<u32> = Queues::new();
    let config = PartitionConfig {
        reject_hopeless: true,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    let slots = Arc::new(Slots::new(1));
    let member = queues.join(Arc::clone(&slots), &config);
    let now = Timestamp::ZERO;
    for _ in 0..8 {
        slots.runs().record(Duration::from_secs(2), now);
    }
    let is_hopeless = |secs| queues.is_hopeless(member, now, now + Duration::from_secs(secs));
    assert!(is_hopeless(1));
    assert!(!is_hopeless(2));
}

#[test]
fn a_full_queue_has_a_place_only_for_whoever_is_more_urgent_than_one_in_it() {
    let config = PartitionConfig {
        queue_size: 1,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    let (slots, mut queue) = (Slots::new(1), Queue::new(&config));
    slots.try_acquire().unwrap();
    let (now, never) = (Timestamp::ZERO, Timestamp::NEVER);
    let middle = Priority::default();
    assert!(queue.has_place(middle));
    assert!(matches!(
        queue.enter(&slots, middle, now, never, 1),
        Entry::Waiting { .. }
    ));
    assert!(!queue.has_place(middle));
    assert!(queue.has_place(Priority::MOST_URGENT));
}
