//! What happens during a run, one line each on stderr.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use indicatif::MultiProgress;
use kailash::redact::redact;

/// Writes lines with the time since the start of the run; clones write to the same place.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    begun: Instant,
    /// The live view, above which lines go; `None` where there is no terminal.
    pub(super) bars: Option<MultiProgress>,
}

impl Log {
    pub(crate) fn new() -> Self {
        let is_live = std::io::stderr().is_terminal();
        Self {
            begun: Instant::now(),
            bars: is_live.then(MultiProgress::new),
        }
    }

    /// One line.
    pub(crate) fn note(&self, line: impl fmt::Display) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let line = line.to_string();
        let line = format!("{seconds:7.2} s  {}", redact(&line));
        // Nobody reads a stderr that is closed.
        let _ = match &self.bars {
            Some(bars) => bars.println(line),
            None => writeln!(std::io::stderr().lock(), "{line}"),
        };
    }
}
