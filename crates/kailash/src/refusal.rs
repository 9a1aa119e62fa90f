//! Refusals: errors that say a call was never made.
//!
//! A breaker that is open, a partition that is full: nothing was tried, so nothing was learnt about the
//! dependency. Whatever stands around such a layer should count its refusals neither as failures nor as
//! successes, and should not try them again at once.
//!
//! They are known by their sources: the chain of [`Error::source`] of a refusal ends in [`NeverMade`]. So they are
//! found within the errors of layers around, within boxes, and within an error of one's own that hands its
//! source on. An error of one's own may be a refusal too:
//!
//! ```
//! use std::error::Error;
//! use std::fmt;
//!
//! use kailash::refusal::{NeverMade, is_refusal};
//!
//! #[derive(Debug)]
//! struct QuotaIsSpent;
//!
//! impl fmt::Display for QuotaIsSpent {
//!     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
//!         f.write_str("the quota of this hour is spent")
//!     }
//! }
//!
//! impl Error for QuotaIsSpent {
//!     fn source(&self) -> Option<&(dyn Error + 'static)> {
//!         Some(&NeverMade)
//!     }
//! }
//!
//! let boxed: Box<dyn Error + Send + Sync> = QuotaIsSpent.into();
//! assert!(is_refusal(boxed.as_ref()));
//! assert!(!is_refusal(&fmt::Error));
//! ```
//!
//! A breaker takes heed of them by a classifier:
//! [`refusal_is_ignored`](crate::circuit_breaker::refusal_is_ignored), and among tower layers
//! `layer::circuit_breaker::RefusalIsIgnored`.

use std::error::Error;
use std::fmt;

/// Where the sources of a refusal end: the call was never made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeverMade;

impl fmt::Display for NeverMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call was never made")
    }
}

impl Error for NeverMade {}

/// Whether an error, or what it came from, says that the call was never made.
///
/// So says every refusal of a breaker or a partition, but no timeout of a call that had begun. With the
/// feature `http` also a request that reqwest could not build, such as one for no URL: that is the caller's
/// mistake. A URL of another scheme than `http` and `https` is none: reqwest says the same of one that the caller
/// asked for and of one that the dependency redirected to, which is an answer.
#[must_use]
pub fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    says_so_itself(error) || error.source().is_some_and(is_refusal)
}

/// The source of what stands for an error of the call's own, and shows it as itself.
///
/// It is the error's source, so that no text comes twice; but the error where that says by itself that the call
/// was never made, which nobody would find out otherwise.
pub(crate) fn source_behind<'e>(
    error: &'e (dyn Error + 'static),
) -> Option<&'e (dyn Error + 'static)> {
    if says_so_itself(error) {
        return Some(error);
    }
    error.source()
}

fn says_so_itself(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "http")]
    if let Some(error) = error.downcast_ref::<reqwest::Error>()
        && error.is_builder()
    {
        let is_http = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https");
        return error.url().is_none_or(is_http);
    }
    error.is::<NeverMade>()
}
