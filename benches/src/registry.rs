//! Breakers by name.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, RwLock};

use kailash::circuit_breaker::Manager;

use crate::measure::{
    Suite, Table,
    Whose::{Floor, Ours},
};

/// As many names as a large service has dependencies.
const NAMES: usize = 1000;

pub fn add(suite: &mut Suite) {
    look_ups(&mut suite.table("registry, look-up by name, 1 thread"));
    look_ups(&mut suite.table_of_two("registry, look-up by name, 2 threads"));
}

fn look_ups(table: &mut Table<'_>) {
    let names: Vec<String> = (0..NAMES).map(|n| format!("dependency-{n}")).collect();
    let looked_up = names[NAMES / 2].clone();

    let map: HashMap<String, Arc<u64>> = names.iter().cloned().zip((0..).map(Arc::new)).collect();
    let (map, name) = (RwLock::new(map), looked_up.clone());
    table.case(
        Floor,
        "RwLock<HashMap<String, Arc>>, get and clone",
        move |calls| {
            for _ in 0..calls {
                let map = map.read().expect("nobody panics");
                black_box(map.get(black_box(name.as_str())).cloned());
            }
        },
    );

    let breakers = Manager::new();
    for name in &names {
        breakers
            .get_or_create(name, None)
            .expect("the defaults are right");
    }
    let name = looked_up;
    table.case(Ours, "Manager::get", move |calls| {
        for _ in 0..calls {
            black_box(breakers.get(black_box(&name)));
        }
    });
}
