//! Health monitoring: checks on schedules of their own, alerts when they fail in a row.
//!
//! ```
//! use std::time::Duration;
//! use kailash::health::{CheckConfig, Config, Monitor, Status, checks::Custom};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let monitor = Monitor::new(Config {
//!     check_interval: Duration::from_secs(10),
//!     ..Config::default()
//! })?;
//! monitor.register("queue", CheckConfig::default(), Custom::new(|| async { true }))?;
//! monitor.on_alert(|alert| eprintln!("{}: {}", alert.level, alert.message));
//! monitor.start();
//!
//! assert_eq!(monitor.status("queue").await?.status, Status::Healthy);
//! assert_eq!(monitor.overall().await, Status::Healthy);
//! # Ok(())
//! # }
//! ```

mod alert;
mod check;
pub mod checks;
mod monitor;
mod threads;

pub use alert::Alert;
pub use check::{BoxFuture, Check, ErrorClass, Finished, Outcome, Phase, Run, run_once};
pub use kailash_core::health::{AlertLevel, CheckConfig, Config, Status, overall};
pub use monitor::{Monitor, Report, Totals, UnknownCheck};
