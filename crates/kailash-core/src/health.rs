//! What a health monitor decides: when a check runs next, when failures become an alert, and how the
//! whole is.
//!
//! ```text
//!            failure                 failure, alert_threshold in a row: Raised
//!   ┌───┐ ───────────► ┌─────────┐ ──────────────────────────────────────────► ┌──────────┐
//!   │ ok│              │ failing │                                             │ alerting │
//!   └───┘ ◄─────────── └─────────┘                                             └──────────┘
//!     ▲      success                        success: Resolved                       │
//!     └─────────────────────────────────────────────────────────────────────────────┘
//! ```

mod aggregate;
mod alert;
mod config;
mod status;

pub use aggregate::overall;
pub use alert::{AlertLevel, Incident, News};
pub use config::{CheckConfig, Config, JITTER, is_due, next_start};
pub use status::Status;
