//! The only place that prints.

mod log;
mod progress;
mod summary;

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use kailash::redact::redact;

pub(crate) use log::Log;
pub(crate) use progress::Progress;
pub(crate) use summary::{Counts, Summary};

/// Nothing was run.
const COULD_NOT_RUN: u8 = 2;

/// What a command has to say, on stdout.
pub(crate) fn line(line: impl fmt::Display) {
    // Whoever closed the pipe does not want to hear more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Says on stderr why nothing was run.
pub(crate) fn could_not_run(error: impl fmt::Display) -> ExitCode {
    let error = error.to_string();
    let _ = writeln!(std::io::stderr().lock(), "{}", redact(&error));
    ExitCode::from(COULD_NOT_RUN)
}
