//! The state word: everything that one transition changes, in one atomic.

use core::fmt;

/// What a circuit breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass as probes.
    HalfOpen,
    /// All calls pass, nothing is counted.
    Disabled,
    /// All calls pass and are counted, and none is ever refused.
    MetricsOnly,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::Disabled,
        Self::MetricsOnly,
    ];

    /// The state's name as it is written in JSON, TOML and on screen, e.g. `half_open`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Disabled => "disabled",
            Self::MetricsOnly => "metrics_only",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a breaker left its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// `failure_threshold` calls in a row failed.
    ConsecutiveFailures,
    /// The share of failed calls in the window reached `error_rate_threshold`.
    ErrorRate,
    /// The share of slow calls in the window reached `slow_call_rate_threshold`.
    SlowCallRate,
    /// A probe failed.
    ProbeFailed,
    /// A probe was slow.
    ProbeSlow,
    /// A probe did not end within `max_wait_duration_in_half_open`.
    ProbeLapsed,
    /// The wait of an open breaker was over.
    WaitOver,
    /// `success_threshold` probes succeeded.
    ProbesSucceeded,
    /// Someone told it to.
    Told,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 9] = [
        Self::ConsecutiveFailures,
        Self::ErrorRate,
        Self::SlowCallRate,
        Self::ProbeFailed,
        Self::ProbeSlow,
        Self::ProbeLapsed,
        Self::WaitOver,
        Self::ProbesSucceeded,
        Self::Told,
    ];

    /// The cause's name as it is written in JSON and on screen, e.g. `error_rate`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::ErrorRate => "error_rate",
            Self::SlowCallRate => "slow_call_rate",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeSlow => "probe_slow",
            Self::ProbeLapsed => "probe_lapsed",
            Self::WaitOver => "wait_over",
            Self::ProbesSucceeded => "probes_succeeded",
            Self::Told => "told",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Generation 32 bits, phase 3 bits, details 28 bits; one bit is spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Counts transitions, wrapping after 2^32.
    pub(super) generation: u32,
    pub(super) phase: Phase,
}

/// A state with the details that its transitions need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Open(Opening),
    HalfOpen {
        in_flight: u32,
        successes: u32,
    },
    /// Reads half-open too: a share of the calls pass, from 0 the first stage.
    Ramp {
        stage: u32,
    },
    ForcedOpen,
    Disabled,
    MetricsOnly,
}

impl Phase {
    /// Whether outcomes go into a window and are judged by its rules.
    pub(super) fn has_window(self) -> bool {
        matches!(self, Self::Closed | Self::MetricsOnly | Self::Ramp { .. })
    }

    /// The state as it was told, whatever time has brought since.
    pub(super) fn state(self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open(_) | Self::ForcedOpen => State::Open,
            Self::HalfOpen { .. } | Self::Ramp { .. } => State::HalfOpen,
            Self::Disabled => State::Disabled,
            Self::MetricsOnly => State::MetricsOnly,
        }
    }
}

/// One opening: which, the how manieth in a row, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// Tells this opening's deadline from the one before.
    pub(super) tag: u32,
    /// From 1; stays at its largest value.
    pub(super) in_a_row: u32,
    pub(super) cause: Cause,
}

const DETAIL_BITS: u32 = 28;
const HALF_DETAIL_BITS: u32 = DETAIL_BITS / 2;
const HALF_DETAIL_MASK: u64 = (1 << HALF_DETAIL_BITS) - 1;
pub(super) const TAG_BITS: u32 = 12;
const TAG_MASK: u32 = (1 << TAG_BITS) - 1;
const IN_A_ROW_BITS: u32 = 12;
const IN_A_ROW_MAX: u32 = (1 << IN_A_ROW_BITS) - 1;
const CAUSE_BITS: u32 = DETAIL_BITS - TAG_BITS - IN_A_ROW_BITS;

impl Opening {
    /// The one that a breaker may start with.
    pub(super) const FIRST: Self = Self {
        tag: 1,
        in_a_row: 1,
        cause: Cause::Told,
    };

    pub(super) fn new(tag: u32, in_a_row: u32, cause: Cause) -> Self {
        Self {
            tag: tag & TAG_MASK,
            in_a_row: in_a_row.min(IN_A_ROW_MAX),
            cause,
        }
    }

    pub(super) fn pack(self) -> u32 {
        let row_and_cause = (self.in_a_row << CAUSE_BITS) | self.cause as u32;
        (self.tag << (IN_A_ROW_BITS + CAUSE_BITS)) | row_and_cause
    }

    #[inline]
    pub(super) fn unpack(bits: u64) -> Self {
        let bits = (bits & ((1 << DETAIL_BITS) - 1)) as u32;
        let cause = (bits & ((1 << CAUSE_BITS) - 1)) as usize;
        Self {
            tag: bits >> (IN_A_ROW_BITS + CAUSE_BITS),
            in_a_row: (bits >> CAUSE_BITS) & IN_A_ROW_MAX,
            // No word holds another number.
            cause: Cause::ALL.get(cause).copied().unwrap_or(Cause::Told),
        }
    }
}

impl Word {
    /// A breaker that has just been made.
    pub(super) fn start(state: State) -> Self {
        let phase = match state {
            State::Closed => Phase::Closed,
            State::Open => Phase::Open(Opening::FIRST),
            State::HalfOpen => Phase::HalfOpen {
                in_flight: 0,
                successes: 0,
            },
            State::Disabled => Phase::Disabled,
            State::MetricsOnly => Phase::MetricsOnly,
        };
        Self {
            generation: 0,
            phase,
        }
    }

    pub(super) fn next(self, phase: Phase) -> Self {
        Self {
            generation: self.generation.wrapping_add(1),
            phase,
        }
    }

    pub(super) fn pack(self) -> u64 {
        let (phase, details) = match self.phase {
            Phase::Closed => (0, 0),
            Phase::MetricsOnly => (1, 0),
            Phase::Disabled => (2, 0),
            Phase::HalfOpen {
                in_flight,
                successes,
            } => (3, (in_flight << HALF_DETAIL_BITS) | successes),
            Phase::Open(opening) => (4, opening.pack()),
            Phase::ForcedOpen => (5, 0),
            Phase::Ramp { stage } => (6, stage),
        };
        in_generation(self.generation, (phase << DETAIL_BITS) | details)
    }

    #[inline]
    pub(super) fn unpack(bits: u64) -> Self {
        let phase = match (bits >> DETAIL_BITS) & 7 {
            0 => Phase::Closed,
            1 => Phase::MetricsOnly,
            2 => Phase::Disabled,
            3 => Phase::HalfOpen {
                in_flight: ((bits >> HALF_DETAIL_BITS) & HALF_DETAIL_MASK) as u32,
                successes: (bits & HALF_DETAIL_MASK) as u32,
            },
            4 => Phase::Open(Opening::unpack(bits)),
            6 => Phase::Ramp {
                stage: (bits & HALF_DETAIL_MASK) as u32,
            },
            _ => Phase::ForcedOpen,
        };
        Self {
            generation: generation(bits),
            phase,
        }
    }
}

/// Packs a number under its generation: generation 32 bits, number 32.
pub(super) fn in_generation(generation: u32, number: u32) -> u64 {
    (u64::from(generation) << 32) | u64::from(number)
}

/// The generation of a packed word.
#[inline]
pub(super) fn generation(bits: u64) -> u32 {
    (bits >> 32) as u32
}

/// Whether `a` comes before `b`, where generations wrap.
pub(super) fn precedes(a: u32, b: u32) -> bool {
    b.wrapping_sub(a).cast_signed() > 0
}

/// Whether a packed word lets every call pass: closed, metrics-only or disabled.
#[inline]
pub(super) fn passes_all(bits: u64) -> bool {
    (bits >> DETAIL_BITS) & 7 <= 2
}

/// Whether a packed word counts outcomes in a window: closed or metrics-only.
#[inline]
pub(super) fn counts(bits: u64) -> bool {
    (bits >> DETAIL_BITS) & 7 <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_unpacks_to_what_was_packed() {
        let phases = [
            Phase::Closed,
            Phase::MetricsOnly,
            Phase::Disabled,
            Phase::ForcedOpen,
            Phase::HalfOpen {
                in_flight: 1024,
                successes: 9999,
            },
            Phase::HalfOpen {
                in_flight: 0,
                successes: 0,
            },
            Phase::Ramp { stage: 2 },
        ];
        let openings = Cause::ALL.map(|cause| Phase::Open(Opening::new(4095, 4095, cause)));
        for phase in phases.into_iter().chain(openings) {
            let word = Word {
                generation: u32::MAX,
                phase,
            };
            assert_eq!(Word::unpack(word.pack()), word);
            assert_eq!(word.next(phase).generation, 0, "generations wrap");
        }
    }

    #[test]
    fn an_openings_numbers_are_kept_as_far_as_their_bits_reach() {
        let kept = |tag, in_a_row| {
            let opening = Opening::new(tag, in_a_row, Cause::ErrorRate);
            assert_eq!(Opening::unpack(opening.pack().into()), opening);
            (opening.tag, opening.in_a_row)
        };
        assert_eq!(kept(2742, 1371), (2742, 1371));
        assert_eq!(kept(4095, 4095), (4095, 4095));
        assert_eq!(kept(4096, 4096), (0, 4095), "tags wrap, rows stay");
    }
}
