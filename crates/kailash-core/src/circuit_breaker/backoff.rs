//! How long an opening lasts.

use core::time::Duration;

/// The wait of the `opening`-th opening in a row (from 1): the base times the multiplier to the
/// power of the openings before it, moved by up to the jitter's share either way, at most `longest`.
///
/// `draw` is chance: a number from 0 up to 1.
pub(super) fn wait(
    base: Duration,
    multiplier: f64,
    opening: u32,
    jitter: f64,
    longest: Duration,
    draw: f64,
) -> Duration {
    let most = longest.as_secs_f64();
    let mut seconds = base.as_secs_f64();
    if multiplier > 1.0 {
        for _ in 1..opening {
            if seconds >= most {
                break;
            }
            seconds *= multiplier;
        }
    }
    seconds *= 1.0 + jitter * (2.0 * draw - 1.0);
    // An exact base stays exact: seconds as a float round to some nanoseconds.
    if opening == 1 && jitter == 0.0 {
        return base.min(longest);
    }
    if seconds >= most {
        return longest;
    }
    Duration::try_from_secs_f64(seconds).unwrap_or(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn each_opening_in_a_row_waits_longer_up_to_the_longest() {
        let waits = |n| wait(S(60), 2.0, n, 0.0, S(600), 0.5);
        let seconds: alloc::vec::Vec<u64> = (1..=6).map(|n| waits(n).as_secs()).collect();
        assert_eq!(seconds, [60, 120, 240, 480, 600, 600]);
        assert_eq!(waits(u32::MAX), S(600));
    }

    #[test]
    fn jitter_moves_the_wait_either_way_within_its_share() {
        let drawn = |draw| wait(S(100), 1.0, 1, 0.1, S(600), draw).as_secs_f64();
        assert!((drawn(0.0) - 90.0).abs() < 1e-6);
        assert!((drawn(0.5) - 100.0).abs() < 1e-6);
        assert!((drawn(0.999_999_999) - 110.0).abs() < 1e-6);
        assert_eq!(
            wait(S(600), 2.0, 9, 0.1, S(600), 0.9),
            S(600),
            "the longest holds"
        );
    }

    #[test]
    fn the_largest_durations_do_not_overflow() {
        let longest = wait(Duration::MAX, 1000.0, u32::MAX, 1.0, Duration::MAX, 0.999);
        assert_eq!(longest, Duration::MAX);
        assert_eq!(wait(S(1), 1.0, u32::MAX, 0.0, S(9), 0.0), S(1));
    }
}
