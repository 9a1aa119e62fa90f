//! The way from half-open to closed in stages, each of which lets a larger share of the calls pass.
//!
//! A stage is a generation with a window of its own, judged by the rules of a closed breaker. It ends
//! when `min_calls_before_evaluation` of its calls have ended, or in a time window when one ends after
//! `window_duration`: at a breach the breaker opens, else the next stage begins, and after the last
//! one the breaker closes.

use super::call::Verdict;
use super::state::{Phase, Word};
use super::{Machine, recovered};
use crate::time::Timestamp;

/// The share of calls that each stage admits.
const SHARES: [f64; 3] = [0.05, 0.25, 0.5];

/// The share of calls that a stage admits.
pub(super) fn share(stage: u32) -> f64 {
    SHARES.get(stage as usize).copied().unwrap_or(1.0)
}

/// Whether a stage admits a call, where `draw` is chance from 0 up to 1.
pub(super) fn admits(stage: u32, draw: f64) -> bool {
    draw < share(stage)
}

/// What follows on the probes' success.
pub(super) fn after_probes(ramps: bool) -> Phase {
    if ramps {
        Phase::Ramp { stage: 0 }
    } else {
        Phase::Closed
    }
}

impl Machine {
    /// Goes on to the next stage if this one has seen enough calls.
    pub(super) fn climb(
        &self,
        bits: u64,
        word: Word,
        stage: u32,
        now: Option<Timestamp>,
    ) -> Verdict {
        let extent = self.extent(now);
        let window = self.window(word.generation);
        let seen = window.tally(word.generation, extent).calls;
        // Calls that come too slowly for the rates pass as they would in a closed breaker: a window
        // of time that is all this stage's has seen what it will ever see.
        if seen < extent.required && !window.spans_its_time(word.generation, extent.tick) {
            return Verdict::Unchanged;
        }
        let stage = stage + 1;
        let next = if stage as usize == SHARES.len() {
            Phase::Closed
        } else {
            Phase::Ramp { stage }
        };
        if self.enter(bits, word, next, now) {
            recovered(next, now)
        } else {
            // Another call has brought the change about.
            Verdict::Unchanged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_admits_its_share_of_all_draws_and_no_more() {
        for (stage, share) in [(0, 0.05), (1, 0.25), (2, 0.5)] {
            assert!(admits(stage, 0.0));
            assert!(admits(stage, share - 0.001), "{stage}");
            assert!(!admits(stage, share), "{stage}");
        }
    }
}
