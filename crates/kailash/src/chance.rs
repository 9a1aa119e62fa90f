//! The only place that draws a random number.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of draws for jitter: fast, and no secret.
#[derive(Debug)]
pub(crate) struct Chance(AtomicU64);

impl Chance {
    /// A source that differs in every process.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(RandomState::new().hash_one("chance")))
    }

    /// A number from 0 up to 1.
    pub(crate) fn draw(&self) -> f64 {
        let mut bits = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        // SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_lie_between_0_and_1_and_cover_it_evenly() {
        let chance = Chance::new();
        let mut tenths = [0; 10];
        for _ in 0..100_000 {
            let draw = chance.draw();
            assert!((0.0..1.0).contains(&draw));
            tenths[(draw * 10.0) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|&n| (9_000..11_000).contains(&n)),
            "{tenths:?}"
        );
    }
}
