//! HTTP: which answers are failures, and what a refusal answers.

use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use super::Classify;
use crate::circuit_breaker::{Outcome, Rejected};
use crate::clock;

/// How a call with this HTTP answer ended: a status from 500 is a failure, any other a success.
///
/// A 503 or 429 that says `Retry-After` is a failure too, and if it opens the breaker then for as
/// long, up to `max_recovery_timeout`. The header may be seconds or a date; a date is measured
/// from the answer's own `Date` where it has one, so that the clocks need not agree. A header that
/// is neither is as if it were not there.
#[must_use]
pub fn http_outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    let may_wait = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    if may_wait && let Some(wait) = retry_after(headers) {
        return Outcome::RetryAfter(wait);
    }
    if status.is_server_error() {
        Outcome::Failure
    } else {
        Outcome::Success
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim_ascii();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than there are is as long as can be.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let since = date(headers).unwrap_or_else(clock::wall_time);
    // A date that is over asks for no wait.
    Some(until.duration_since(since).unwrap_or(Duration::ZERO))
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let text = headers.get(DATE)?.to_str().ok()?;
    httpdate::parse_http_date(text).ok()
}

/// An `Err` is a failure, and an answer what [`http_outcome`] says of it.
///
/// Any `Err`: around other layers and around a `reqwest::Client` it is
/// [`RefusalIsIgnored`](super::RefusalIsIgnored)`(HttpStatus)`, which counts neither refusals nor requests that
/// could not be built; see [`is_refusal`](crate::refusal::is_refusal).
///
/// For services that answer `http::Response`, and, with the feature `http`, for a
/// `reqwest::Client`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpStatus;

impl<B, E> Classify<Response<B>, E> for HttpStatus {
    fn classify(&self, result: &Result<Response<B>, E>) -> Outcome {
        match result {
            Ok(answer) => http_outcome(answer.status(), answer.headers()),
            Err(_) => Outcome::Failure,
        }
    }
}

#[cfg(feature = "http")]
impl<E> Classify<reqwest::Response, E> for HttpStatus {
    fn classify(&self, result: &Result<reqwest::Response, E>) -> Outcome {
        match result {
            Ok(answer) => http_outcome(answer.status(), answer.headers()),
            Err(_) => Outcome::Failure,
        }
    }
}

impl Rejected {
    /// What a server answers to a request that it refused because of this: 503 with an empty body,
    /// and `Retry-After` in whole seconds, rounded up, where the wait is known.
    #[must_use]
    pub fn to_http_response<B: Default>(&self) -> Response<B> {
        let mut answer = Response::new(B::default());
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        if let Some(wait) = self.retry_after {
            let partial = u64::from(wait.subsec_nanos() > 0);
            let seconds = wait.as_secs().saturating_add(partial);
            let headers = answer.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}
