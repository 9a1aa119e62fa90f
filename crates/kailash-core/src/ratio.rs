//! A share of a whole.

/// A share above 0 and up to 1, as a threshold for a rate.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// The ratio, if it is above 0 and at most 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        // A NaN fails both comparisons.
        (share > 0.0 && share <= 1.0).then_some(Self(share))
    }

    /// The share as a number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether `part` of `whole` is at least this share.
    ///
    /// ```
    /// use kailash_core::ratio::Ratio;
    ///
    /// let half = Ratio::new(0.5).unwrap();
    /// assert!(half.is_reached(5, 10));
    /// assert!(!half.is_reached(4, 10));
    /// assert!(!half.is_reached(0, 0));
    /// ```
    #[must_use]
    pub fn is_reached(self, part: u32, whole: u32) -> bool {
        // A quotient is rounded as the threshold was when it was written: equal shares stay equal. And
        // nothing of nothing is no number.
        f64::from(part) / f64::from(whole) >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shares_of_a_whole_are_ratios() {
        for wrong in [0.0, -0.5, 1.000_1, f64::NAN, f64::INFINITY] {
            assert_eq!(Ratio::new(wrong), None, "{wrong}");
        }
        assert_eq!(Ratio::new(1.0).map(Ratio::get), Some(1.0));
    }

    #[test]
    fn a_share_that_equals_the_threshold_reaches_it_and_one_part_less_does_not() {
        for whole in 1..=500 {
            for part in 1..=whole {
                // As it would be written: 0.07 for 7 of 100.
                let share: f64 = std::format!("{}", f64::from(part) / f64::from(whole))
                    .parse()
                    .unwrap();
                let ratio = Ratio::new(share).unwrap();
                assert!(ratio.is_reached(part, whole), "{part} of {whole}");
                assert!(!ratio.is_reached(part - 1, whole), "{part} of {whole}");
            }
        }
        let percent = |percent: u32| std::format!("0.{percent:02}").parse().unwrap();
        for part in 1..100 {
            let ratio = Ratio::new(percent(part)).unwrap();
            assert!(ratio.is_reached(part, 100), "{part} %");
            assert!(ratio.is_reached(10 * part, 1000), "{part} %");
            assert!(!ratio.is_reached(10 * part - 1, 1000), "{part} %");
        }
    }
}
