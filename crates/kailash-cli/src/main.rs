//! The command line of Kailash Resilience.

mod args;
mod command;
mod output;
mod process;
mod run_file;
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
