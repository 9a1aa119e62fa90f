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
        part > 0 && f64::from(part) >= self.0 * f64::from(whole)
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
}
