//! What is wrong with a run file, as the user reads it.

use std::fmt::Write as _;
use std::ops::Range;

use kailash::near_miss::near_miss;
use kailash::redact::redact;

use super::source::{Place, Source};

/// One mistake in a run file.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Where it is, in bytes of the source.
    pub(crate) span: Range<usize>,
    /// The key, its value and why that is wrong, in one line.
    pub(crate) message: String,
    /// What is allowed instead.
    pub(crate) allowed: Option<String>,
    /// The name that was probably meant.
    pub(crate) near_miss: Option<String>,
}

impl Problem {
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            allowed: None,
            near_miss: None,
        }
    }

    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    /// Lists the names that would have been right, and the one that is nearest to `given`.
    pub(crate) fn one_of<'n>(
        mut self,
        given: &str,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        let names: Vec<&str> = names.into_iter().collect();
        self.near_miss = near_miss(given, names.iter().copied()).map(str::to_owned);
        if !names.is_empty() {
            self.allowed = Some(names.join(", "));
        }
        self
    }

    fn render(&self, source: &Source, out: &mut String) {
        let place = source.place(self.span.start);
        let given = source.text().get(self.span.clone()).unwrap_or_default();
        let given = redact(given.lines().next().unwrap_or_default());
        let width = given.chars().count();
        let (at, label, text, column) = match place {
            Place::Line { line, column, text } => {
                let at = format!("{}:{line}", source.file());
                (at, line.to_string(), text, column)
            }
            Place::Override { text, column } => {
                let at = format!("--set {text}");
                (at, "--set".into(), text, column)
            }
        };
        let text = redact(text);
        let room = text.chars().count().saturating_sub(column - 1);
        let carets = "^".repeat(width.min(room).max(1));
        let gutter = " ".repeat(label.len());
        let indent = " ".repeat(column - 1);
        let Self {
            message,
            allowed,
            near_miss,
            ..
        } = self;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "error: {}: {}", redact(&at), redact(message));
        let _ = writeln!(out, "{gutter} |");
        let _ = writeln!(out, "{label} | {text}");
        let _ = writeln!(out, "{gutter} | {indent}{carets}");
        if let Some(allowed) = allowed {
            let _ = writeln!(out, "{gutter} = allowed: {allowed}");
        }
        if let Some(name) = near_miss {
            let _ = writeln!(out, "{gutter} = did you mean `{name}`?");
        }
    }
}

/// All mistakes of a run file, in the order of the text.
pub(crate) fn render(mut problems: Vec<Problem>, source: &Source) -> String {
    problems.sort_by_key(|problem| problem.span.start);
    let mut out = String::new();
    for problem in &problems {
        problem.render(source, &mut out);
        out.push('\n');
    }
    out.push_str(match problems.len() {
        1 => "1 mistake, nothing was started",
        _ => "",
    });
    if problems.len() > 1 {
        let _ = write!(out, "{} mistakes, nothing was started", problems.len());
    }
    out
}
