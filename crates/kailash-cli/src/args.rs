//! What the command line takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs workflows behind circuit breakers, partitions and health checks.
#[derive(Debug, Parser)]
#[command(name = "kailash", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a workflow, once per row of its input.
    ///
    /// Exits with 0 when everything is done, 1 when some items failed or are left for the next run,
    /// 2 when it could not run.
    Run(Run),
    /// Look at run files without running them.
    #[command(subcommand)]
    Config(Config),
    /// Run the sandbox of a run file alone, until it is interrupted.
    ///
    /// It prints its URL, which `kailash run FILE --set sandbox.url=URL` takes. GET /stats tells what
    /// it has seen.
    Sandbox(File),
}

/// What `run` takes.
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) file: File,
    /// Print one JSON document on stdout when done.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The commands about run files.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check a run file, and start nothing.
    Check(File),
}

/// A run file and what is put over it.
#[derive(Args, Debug)]
pub(crate) struct File {
    /// The run file.
    #[arg(value_name = "FILE.toml")]
    pub(crate) path: PathBuf,
    /// Put a value over the file's, as in `--set input.concurrency=8`; may be repeated.
    ///
    /// The key is dotted; an element of an array goes by its id, its name or its index, as in
    /// `nodes.announce.timeout`. The value is TOML, or a text without quotes; a path is relative to
    /// the run file.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}
