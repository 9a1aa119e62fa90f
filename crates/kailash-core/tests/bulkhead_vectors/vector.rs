//! What `vectors/bulkhead/*.json` say, and what a shell must do to run them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kailash_core::bulkhead::{PartitionConfig, PartitionType};
use serde::Deserialize;

/// Something that runs the steps of a vector.
pub(crate) trait Shell {
    /// A partition of this configuration, or the field that is out of its range.
    fn new(config: PartitionConfig) -> Result<Self, &'static str>
    where
        Self: Sized;

    /// Takes one step; what each call has learnt by it.
    fn step(&mut self, step: &Step) -> News;

    /// How many calls run, and how many wait.
    fn occupancy(&self) -> (u32, u32);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vector {
    pub(crate) promise: String,
    #[serde(default)]
    pub(crate) config: Config,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) name: Option<String>,
    pub(crate) max_concurrent_operations: Option<u32>,
    pub(crate) queue_size: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) timeout: Option<Option<f64>>,
    pub(crate) priority: Option<u8>,
    pub(crate) max_threads: Option<u32>,
    pub(crate) max_connections: Option<u32>,
    pub(crate) evict_lower_priority: Option<bool>,
    pub(crate) queue_order: Option<String>,
    pub(crate) reject_hopeless: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    pub(crate) config: Config,
    pub(crate) field: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(rename = "do")]
    pub(crate) action: Action,
    pub(crate) at: Option<f64>,
    #[serde(default)]
    pub(crate) call: String,
    pub(crate) priority: Option<u8>,
    pub(crate) timeout: Option<f64>,
    pub(crate) config: Option<Config>,
    #[serde(default)]
    pub(crate) then: News,
    pub(crate) active: Option<u32>,
    pub(crate) queued: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    Acquire,
    TryAcquire,
    Release,
    Cancel,
    Configure,
    Close,
    Wait,
}

/// What each call learnt.
pub(crate) type News = BTreeMap<String, String>;

/// A field that may be `null`, as opposed to missing.
fn given<'de, D: serde::Deserializer<'de>>(field: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(field).map(Some)
}

pub(crate) fn duration(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap()
}

impl Config {
    pub(crate) fn partition(self) -> PartitionConfig {
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
            queue_order: self
                .queue_order
                .map_or(own.queue_order, |order| order.parse().unwrap()),
            reject_hopeless: self.reject_hopeless.unwrap_or(own.reject_hopeless),
            ..own
        }
    }
}

/// Runs every vector.
pub(crate) fn check_all<S: Shell>() {
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
        check::<S>(&name, vector);
        count += 1;
    }
    assert!(count >= 26, "only {count} vectors were found");
}

fn check<S: Shell>(name: &str, vector: Vector) {
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
        assert_eq!(
            S::new(config.partition()).err(),
            Some(field.as_str()),
            "{name}"
        );
    }
    let mut shell = S::new(config.partition()).unwrap_or_else(|field| panic!("{name}: {field}"));
    for (number, step) in steps.iter().enumerate() {
        let place = format!("{name}, step {}", number + 1);
        assert_eq!(shell.step(step), step.then, "{place}");
        let (active, queued) = shell.occupancy();
        assert_eq!(step.active.unwrap_or(active), active, "{place}");
        assert_eq!(step.queued.unwrap_or(queued), queued, "{place}");
    }
}
