//! What comes of a call that a breaker refused.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Cause, State};

/// Why a breaker refused a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The breaker's name.
    pub name: Arc<str>,
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

impl Error for Rejected {}

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
            Self::Rejected(_) => None,
            Self::Inner(error) => error.source(),
        }
    }
}
