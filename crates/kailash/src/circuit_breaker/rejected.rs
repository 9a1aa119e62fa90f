//! What comes of a call that a breaker refused.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kailash_core::circuit_breaker as machine;

use super::{Cause, State};
use crate::Name;
use crate::refusal::{NeverMade, source_behind};

/// Why a breaker refused a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The breaker's name.
    pub name: Name,
    /// [`State::Open`]; or [`State::HalfOpen`] when all probes are in flight, or chance decided so on
    /// the ramp.
    pub state: State,
    /// Whether it was forced open: no probes until it is told otherwise.
    pub forced: bool,
    /// How long until a probe may pass; `None` where only another event decides.
    pub retry_after: Option<Duration>,
    /// Why the breaker opened.
    pub cause: Cause,
}

/// What a [`Rejected`] is made of, once the refusal was counted and told.
///
/// It is small enough to be taken apart by whoever is refused, who writes the `Rejected` to where it stays. One
/// that is written in parts and moved at once must be all in memory before it can be read in larger parts: that
/// takes as long as to refuse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    retry_after: Option<Duration>,
    // Not two fields that a move would read as one.
    by: By,
    cause: Cause,
}

/// What refuses calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Opening,
    Force,
    HalfOpen,
}

impl From<machine::Rejected> for Refused {
    #[inline]
    fn from(rejected: machine::Rejected) -> Self {
        let by = match rejected.state {
            State::HalfOpen => By::HalfOpen,
            _ if rejected.forced => By::Force,
            _ => By::Opening,
        };
        Self {
            retry_after: rejected.retry_after,
            by,
            cause: rejected.cause,
        }
    }
}

impl Refused {
    /// The refusal of the breaker with this name.
    #[inline]
    pub(super) fn by(self, name: Name) -> Rejected {
        let state = match self.by {
            By::HalfOpen => State::HalfOpen,
            By::Opening | By::Force => State::Open,
        };
        Rejected {
            name,
            state,
            forced: self.by == By::Force,
            retry_after: self.retry_after,
            cause: self.cause,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (self.state, self.forced, self.retry_after) {
            (State::HalfOpen, ..) => {
                write!(
                    f,
                    "circuit breaker \"{name}\" is half-open: only a few calls pass"
                )
            }
            (_, true, _) => write!(f, "circuit breaker \"{name}\" is forced open"),
            (_, _, Some(wait)) => {
                let (cause, seconds) = (self.cause, wait.as_secs_f64());
                write!(
                    f,
                    "circuit breaker \"{name}\" is open ({cause}), retry in {seconds:.3} s"
                )
            }
            (_, _, None) => write!(f, "circuit breaker \"{name}\" is open ({})", self.cause),
        }
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&NeverMade)
    }
}

/// What can come of a call behind a breaker, beside its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError<E> {
    /// The breaker refused the call: it was never made.
    Rejected(Rejected),
    /// The call's own error.
    Inner(E),
}

impl<E: Into<Box<dyn Error + Send + Sync>>> CallError<E> {
    /// The refusal, or the call's own error, as what it is and nothing around it.
    ///
    /// For callers that box all their errors, as stacks of tower layers do: the box downcasts to
    /// [`Rejected`], or to whatever the call's own error is.
    #[must_use]
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        match self {
            Self::Rejected(rejected) => rejected.into(),
            Self::Inner(error) => error.into(),
        }
    }
}

/// What [`CallError::into_boxed`] answers, where it is.
impl<E> AsRef<dyn Error + Send + Sync> for CallError<E>
where
    E: AsRef<dyn Error + Send + Sync>,
{
    fn as_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Rejected(rejected) => rejected,
            Self::Inner(error) => error.as_ref(),
        }
    }
}

impl<E> From<Rejected> for CallError<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(rejected) => rejected.source(),
            Self::Inner(error) => source_behind(error),
        }
    }
}
