//! `kailash config check`.

use std::process::ExitCode;

use crate::args::File;
use crate::output;
use crate::run_file::RunFile;

/// Says whether a run file is right.
pub(crate) fn check(file: &File) -> ExitCode {
    match RunFile::load(&file.path, &file.overrides) {
        Ok(_) => {
            output::line(format_args!("{}: all right", file.path.display()));
            ExitCode::SUCCESS
        }
        Err(error) => output::could_not_run(error),
    }
}
