//! `kailash sandbox`.

use std::process::ExitCode;

use crate::args::File;
use crate::output;
use crate::process::{self, Interrupts};
use crate::run_file::Schedule;
use crate::sandbox::Sandbox;

/// Runs a sandbox until the process is interrupted.
pub(crate) fn run(file: &File) -> ExitCode {
    let schedule = match Schedule::load(&file.path, &file.overrides) {
        Ok(schedule) => schedule,
        Err(error) => return output::could_not_run(error),
    };
    let runtime = match process::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return output::could_not_run(format_args!("error: {error}")),
    };
    runtime.block_on(async {
        let mut interrupts = match Interrupts::listen() {
            Ok(interrupts) => interrupts,
            Err(error) => return output::could_not_run(format_args!("error: {error}")),
        };
        match Sandbox::start(schedule).await {
            Ok(sandbox) => {
                output::line(sandbox.url());
                interrupts.next().await;
                ExitCode::SUCCESS
            }
            Err(error) => output::could_not_run(format_args!("error: {error}")),
        }
    })
}
