//! `kailash run`: everything is set up first, then the rows go through, then comes the summary.

mod input;
mod job;
mod mail;
mod setup;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kailash::sql::DatabaseUrl;

use crate::args::Run;
use crate::output::{self, Progress, Summary};
use crate::process::{self, Interrupts};
use crate::run_file::RunFile;

pub(crate) use self::job::Job;
use self::setup::{StartError, Started};

/// How long blocking work may take to end after the run.
const LAST_WORK: Duration = Duration::from_millis(200);
/// What a shell reports of a process that an interrupt ended.
const INTERRUPTED: i32 = 128;

/// Runs a workflow, once per row of its input.
pub(crate) fn run(arguments: &Run) -> ExitCode {
    let file = match RunFile::load(&arguments.file.path, &arguments.file.overrides) {
        Ok(file) => file,
        Err(error) => return output::could_not_run(error),
    };
    let runtime = match process::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return output::could_not_run(format_args!("error: {error}")),
    };
    let summary = runtime.block_on(execute(file));
    runtime.shutdown_timeout(LAST_WORK);
    match summary {
        Ok(summary) => {
            match arguments.json {
                true => output::line(summary.json()),
                false => output::line(&summary),
            }
            ExitCode::from(u8::from(!summary.is_complete()))
        }
        Err(error) => output::could_not_run(format_args!("error: {error}")),
    }
}

async fn execute(file: RunFile) -> Result<Summary, StartError> {
    let mut interrupts = Interrupts::listen().map_err(StartError::new)?;
    let database = DatabaseUrl::parse(&file.database.url).map_err(StartError::new)?;
    let started = tokio::select! {
        started = setup::start(file) => started?,
        _ = interrupts.next() => return Err(StartError::new("interrupted before it started")),
    };
    let Started {
        job,
        rows,
        monitor,
        sandbox,
    } = started;
    let job = Arc::new(job);
    let begun = Instant::now();
    let progress = Progress::start(Arc::clone(&job), monitor.clone());
    let stopper = {
        let job = Arc::clone(&job);
        tokio::spawn(async move {
            interrupts.next().await;
            job.log
                .note("stopping: what is in flight is finished, another interrupt quits at once");
            job.stop();
            let signal = interrupts.next().await;
            std::process::exit(INTERRUPTED + signal);
        })
    };
    job::run(&job, rows).await;
    progress.finish().await;
    if let Some(monitor) = &monitor {
        monitor.stop();
    }
    let summary = summary(&job, database, sandbox, begun).await;
    stopper.abort();
    Ok(summary)
}

async fn summary(
    job: &Job,
    database: DatabaseUrl,
    sandbox: Option<setup::Sandbox>,
    begun: Instant,
) -> Summary {
    let duration = begun.elapsed();
    let counts = job.counts().await;
    let stats = match &sandbox {
        None => None,
        Some(sandbox) => match sandbox.stats().await {
            Ok(stats) => Some(stats),
            Err(error) => {
                job.log.note(error);
                None
            }
        },
    };
    Summary {
        counts,
        database,
        breakers: job
            .breakers()
            .iter()
            .map(|breaker| (breaker.name().to_string(), breaker.snapshot()))
            .collect(),
        partitions: job
            .partitions()
            .iter()
            .map(|partition| partition.snapshot())
            .collect(),
        sandbox: stats,
        longest_wait: job.longest_wait(),
        rejects: job.rejects(),
        outcome: job.outcome(),
        duration,
    }
}
