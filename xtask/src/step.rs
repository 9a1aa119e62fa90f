//! Steps that say what they run, how it went and how long it took.

use std::error::Error;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome;

/// The steps so far.
#[derive(Default)]
pub(crate) struct Steps(Vec<(&'static str, bool, Duration)>);

impl Steps {
    /// Runs a command; its output goes through.
    pub(crate) fn run(&mut self, name: &'static str, mut call: Call) -> Outcome {
        self.check(name, || call.run())
    }

    /// Runs a check of our own.
    pub(crate) fn check(&mut self, name: &'static str, check: impl FnOnce() -> Outcome) -> Outcome {
        println!("\n== {name}");
        let began = Instant::now();
        let outcome = check();
        self.0.push((name, outcome.is_ok(), began.elapsed()));
        outcome.map_err(|error| format!("{name}: {error}").into())
    }

    pub(crate) fn print_table(&self) {
        if self.0.is_empty() {
            return;
        }
        println!();
        for (name, passed, took) in &self.0 {
            let verdict = if *passed { "ok" } else { "FAILED" };
            println!("{name:<16} {verdict:<7} {:>7.1} s", took.as_secs_f64());
        }
    }
}

/// A command in the making.
pub(crate) struct Call(Command);

/// A command of cargo's, the one that runs this.
pub(crate) fn cargo(subcommand: &str) -> Call {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args([subcommand])
}

pub(crate) fn command(program: impl AsRef<OsStr>) -> Call {
    Call(Command::new(program))
}

impl Call {
    pub(crate) fn args(mut self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.0.current_dir(folder);
        self
    }

    pub(crate) fn run(&mut self) -> Outcome {
        let shown = self.shown();
        let status = self
            .0
            .status()
            .map_err(|error| format!("{shown}: {error}"))?;
        if status.success() {
            return Ok(());
        }
        Err(format!("{shown}: {status}").into())
    }

    /// What the command prints.
    pub(crate) fn output(&mut self) -> Result<String, Box<dyn Error>> {
        let shown = self.shown();
        let output = self
            .0
            .output()
            .map_err(|error| format!("{shown}: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{shown}: {}\n{said}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn shown(&self) -> String {
        let program = Path::new(self.0.get_program())
            .file_name()
            .unwrap_or_default();
        let words = self
            .0
            .get_args()
            .map(|word| word.to_string_lossy().into_owned());
        let words: Vec<String> = words.collect();
        format!("{} {}", program.to_string_lossy(), words.join(" "))
    }
}
