//! `kailash run`.

use std::process::ExitCode;

use crate::args::Run;
use crate::output;
use crate::run_file::RunFile;

/// Runs a workflow once per row of its input.
pub(crate) fn run(run: &Run) -> ExitCode {
    let _file = match RunFile::load(&run.file.path, &run.file.overrides) {
        Ok(file) => file,
        Err(error) => return output::could_not_run(error),
    };
    ExitCode::SUCCESS
}
