//! How the whole is.

use super::Status;

/// The status of a whole from those of its parts, each with whether it is critical.
///
/// - `Unhealthy` if a critical part is
/// - `Degraded` if any other part is unhealthy, or any part degraded
/// - `Unknown` if any part is, or there is none
/// - `Healthy` otherwise
///
/// ```
/// use kailash_core::health::{Status, overall};
///
/// let parts = [(Status::Healthy, true), (Status::Unhealthy, false)];
/// assert_eq!(overall(parts), Status::Degraded);
/// assert_eq!(overall([]), Status::Unknown);
/// ```
#[must_use]
pub fn overall(parts: impl IntoIterator<Item = (Status, bool)>) -> Status {
    let mut worst = None;
    for (status, critical) in parts {
        let rank = match (status, critical) {
            (Status::Healthy, _) => 0,
            (Status::Unknown, _) => 1,
            (Status::Degraded, _) | (Status::Unhealthy, false) => 2,
            (Status::Unhealthy, true) => 3,
        };
        worst = worst.max(Some(rank));
    }
    match worst {
        None | Some(1) => Status::Unknown,
        Some(0) => Status::Healthy,
        Some(2) => Status::Degraded,
        Some(_) => Status::Unhealthy,
    }
}
