//! What the machine asks for the least that would do.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::measure::{Suite, Table, Whose::Floor};

pub fn add(suite: &mut Suite) {
    atomics(&mut suite.table("floors, 1 thread"));
    atomics(&mut suite.table_of_two("floors, 2 threads"));
}

fn atomics(table: &mut Table<'_>) {
    let word = AtomicU64::new(0);
    table.case(Floor, "relaxed load", move |calls| {
        for _ in 0..calls {
            black_box(word.load(Ordering::Relaxed));
        }
    });
    fetch_add(table);
    fetch_add_and_two_reads(table);
    let word = AtomicU64::new(0);
    table.case(Floor, "fetch_add, 2 reads of std's Instant", move |calls| {
        for _ in 0..calls {
            let began = Instant::now();
            black_box(word.fetch_add(1, Ordering::Relaxed));
            black_box(began.elapsed());
        }
    });
}

/// What a call costs at least that is counted.
pub fn fetch_add(table: &mut Table<'_>) {
    let word = AtomicU64::new(0);
    table.case(Floor, "fetch_add", move |calls| {
        for _ in 0..calls {
            black_box(word.fetch_add(1, Ordering::Relaxed));
        }
    });
}

/// What a call costs at least that is counted and timed.
pub fn fetch_add_and_two_reads(table: &mut Table<'_>) {
    let (word, clock) = (AtomicU64::new(0), quanta::Clock::new());
    table.case(
        Floor,
        "fetch_add, 2 reads of quanta's clock",
        move |calls| {
            for _ in 0..calls {
                let began = clock.raw();
                black_box(word.fetch_add(1, Ordering::Relaxed));
                black_box(clock.delta_as_nanos(began, clock.raw()));
            }
        },
    );
}

/// What a call costs at least that is refused until a certain time.
pub fn read(table: &mut Table<'_>) {
    let (word, clock) = (AtomicU64::new(0), quanta::Clock::new());
    table.case(Floor, "load, 1 read of quanta's clock", move |calls| {
        for _ in 0..calls {
            black_box(word.load(Ordering::Acquire));
            black_box(clock.raw());
        }
    });
}
