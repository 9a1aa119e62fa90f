//! The only place that prints.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// Nothing was run.
const COULD_NOT_RUN: u8 = 2;

/// One line on stdout.
pub(crate) fn line(line: impl fmt::Display) {
    // Whoever closed the pipe does not want to hear more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// One line on stderr.
pub(crate) fn note(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Says why nothing was run.
pub(crate) fn could_not_run(error: impl fmt::Display) -> ExitCode {
    note(error);
    ExitCode::from(COULD_NOT_RUN)
}
