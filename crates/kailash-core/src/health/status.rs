//! How something is.

use core::fmt;

/// How a checked thing is, or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Status {
    /// It works.
    Healthy,
    /// It works, but not as it should.
    Degraded,
    /// It does not work.
    Unhealthy,
    /// Nobody can say.
    #[default]
    Unknown,
}

impl Status {
    /// The word for it, the same everywhere: `healthy`, `degraded`, `unhealthy`, `unknown`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
        }
    }

    /// The status that a word names, in any case.
    ///
    /// ```
    /// use kailash_core::health::Status;
    ///
    /// assert_eq!(Status::from_word("HEALTHY"), Some(Status::Healthy));
    /// assert_eq!(Status::from_word("fine"), None);
    /// ```
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [
            Self::Healthy,
            Self::Degraded,
            Self::Unhealthy,
            Self::Unknown,
        ];
        let named = |status: &Self| status.as_str().eq_ignore_ascii_case(word);
        all.into_iter().find(named)
    }

    /// Whether it works: healthy or degraded.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_status_reads_as_it_is_written() {
        for (status, word) in [
            (Status::Healthy, "healthy"),
            (Status::Degraded, "degraded"),
            (Status::Unhealthy, "unhealthy"),
            (Status::Unknown, "unknown"),
        ] {
            assert_eq!(status.to_string(), word);
            assert_eq!(Status::from_word(word), Some(status));
            assert_eq!(Status::from_word(&word.to_uppercase()), Some(status));
        }
        assert_eq!(Status::from_word("well"), None);
    }
}
