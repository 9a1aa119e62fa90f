//! Metric series for a group of keys: few, however many keys there are.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::{Counts, Keyed, State};

/// What a group of keys shows as metrics: one series for each of a few keys, one for all others.
///
/// All counters only grow, and `listed` and `other` always add up to `total`, also where a key that
/// was among the others gets a series of its own, loses it, or is forgotten. One that comes back after
/// that begins a series anew.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Series {
    /// What all keys have counted.
    pub total: Counts,
    /// The keys with the most refusals and failures, the worst first.
    pub listed: Vec<KeyCounts>,
    /// What is not in the series of a listed key.
    pub other: Counts,
}

/// One key's series.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCounts {
    /// The breaker's name, `GROUP/KEY`.
    pub breaker: Arc<str>,
    /// Its state by time.
    pub state: State,
    /// What it has counted since it was made.
    pub counts: Counts,
    /// What it has counted since it got its series; the rest is in [`Series::other`]. This is for
    /// counters of metrics.
    pub since_listed: Counts,
}

/// The keys that have a series, and what each had counted before.
#[derive(Default)]
pub(super) struct Listed(HashMap<Arc<str>, Counts>);

impl Keyed {
    /// The group as metrics: at most [`series`](super::KeyedConfig::series) keys, and one series for
    /// all others. It looks at each key.
    #[must_use]
    pub fn series(&self) -> Series {
        let most = self.config().series as usize;
        let listed = self.0.listed.lock();
        let mut listed = listed.unwrap_or_else(PoisonError::into_inner);
        let now = self.0.context.clock.now();
        let mut total = Counts::default();
        let mut worst: Vec<KeyCounts> = Vec::new();
        for shard in &self.0.shards {
            let entries = shard.read();
            total = total + entries.forgotten_counts;
            for entry in &entries.entries {
                let counts = entry.breaker.counts();
                total = total + counts;
                if trouble(&counts) > 0 {
                    worst.push(KeyCounts {
                        breaker: Arc::clone(entry.breaker.name()),
                        state: entry.breaker.0.machine.state(now),
                        counts,
                        since_listed: Counts::default(),
                    });
                }
            }
            drop(entries);
            // After each shard, so that what is held stays small.
            keep_worst(&mut worst, most, &listed.0);
        }
        let before = std::mem::take(&mut listed.0);
        let mut other = total;
        for key in &mut worst {
            let baseline = before.get(&key.breaker).copied().unwrap_or(key.counts);
            // It was forgotten and made anew, and has counted from nothing since.
            let is_new = baseline - key.counts != Counts::default();
            let baseline = if is_new { Counts::default() } else { baseline };
            key.since_listed = key.counts - baseline;
            other = other - key.since_listed;
            listed.0.insert(Arc::clone(&key.breaker), baseline);
        }
        Series {
            total,
            listed: worst,
            other,
        }
    }
}

fn trouble(counts: &Counts) -> u64 {
    counts.rejections + counts.failures
}

/// The worst first; of two that are equally bad, the one that has a series keeps it.
fn keep_worst(keys: &mut Vec<KeyCounts>, most: usize, listed: &HashMap<Arc<str>, Counts>) {
    let rank = |key: &KeyCounts| {
        let is_new = !listed.contains_key(&key.breaker);
        (std::cmp::Reverse(trouble(&key.counts)), is_new)
    };
    keys.sort_unstable_by(|a, b| {
        rank(a)
            .cmp(&rank(b))
            .then_with(|| a.breaker.cmp(&b.breaker))
    });
    keys.truncate(most);
}
