//! What a response says about the dependency.

use crate::circuit_breaker::{Outcome, outcome_of};

/// Says how a call ended.
///
/// Closures over `&Result<T, E>` are classifiers; they must name the types of their argument.
pub trait Classify<T, E> {
    /// How a call with this result ended.
    ///
    /// It is also asked about an error that came while the service was getting ready.
    fn classify(&self, result: &Result<T, E>) -> Outcome;
}

impl<F, T, E> Classify<T, E> for F
where
    F: Fn(&Result<T, E>) -> Outcome,
{
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        self(result)
    }
}

/// An `Err` is a failure, any response a success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrIsFailure;

impl<T, E> Classify<T, E> for ErrIsFailure {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        outcome_of(result)
    }
}
