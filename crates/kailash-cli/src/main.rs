//! The command line of Kailash Resilience.

mod args;
mod command;
mod output;
mod process;
#[expect(dead_code, reason = "what the run command does with it follows")]
mod run_file;
#[expect(dead_code, reason = "what the run command does with it follows")]
mod sandbox;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command, Config};

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(run) => command::run::run(&run),
        Command::Config(Config::Check(file)) => command::config::check(&file),
        Command::Sandbox(file) => command::sandbox::run(&file),
    }
}
