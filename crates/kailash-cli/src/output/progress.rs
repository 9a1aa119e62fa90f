//! How a run is going: a live view on a terminal, a few lines without one.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kailash::bulkhead::Partition;
use kailash::circuit_breaker::{CircuitBreaker, EventKind, Events, State};
use kailash::health::Monitor;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Counts, Log};
use crate::command::run::Job;

/// How often the live view is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line is written without one.
const LINE: Duration = Duration::from_secs(2);

/// Shows a run until it is told that it is over.
pub(crate) struct Progress {
    over: watch::Sender<bool>,
    shower: JoinHandle<()>,
}

impl Progress {
    /// Starts to show the run.
    pub(crate) fn start(job: Arc<Job>, monitor: Option<Monitor>) -> Self {
        let (over, is_over) = watch::channel(false);
        let shower = tokio::spawn(show(job, monitor, is_over));
        Self { over, shower }
    }

    /// Shows the end, and stops.
    pub(crate) async fn finish(self) {
        self.over.send_replace(true);
        // Showing less is no reason to fail.
        let _ = self.shower.await;
    }
}

async fn show(job: Arc<Job>, monitor: Option<Monitor>, mut is_over: watch::Receiver<bool>) {
    let log = job.log.clone();
    let mut watchers = JoinSet::new();
    for breaker in job.breakers() {
        watchers.spawn(tell(breaker.subscribe_transitions(), log.clone()));
    }
    if let Some(monitor) = &monitor {
        let log = log.clone();
        monitor.on_alert(move |alert| {
            let what = if alert.is_resolved() {
                "resolved"
            } else {
                "alert"
            };
            log.note(format_args!("{what}: {}", alert.message));
        });
        monitor.start();
    }
    let view = log.bars.is_some().then(|| View::new(&job, &log));
    if view.is_none() {
        log.note(format_args!("{} started", job.name()));
    }
    let mut ticks = tokio::time::interval(if view.is_some() { FRAME } else { LINE });
    ticks.tick().await;
    let mut shown = Counts::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = is_over.wait_for(|is_over| *is_over) => break,
        }
        let counts = job.counts_so_far();
        match &view {
            Some(view) => view.draw(&counts),
            None if counts != shown => log.note(describe(&counts)),
            None => {}
        }
        shown = counts;
    }
    let counts = job.counts_so_far();
    match view {
        Some(view) => view.end(),
        None => log.note(describe(&counts)),
    }
}

/// Tells the transitions of a breaker.
async fn tell(mut events: Events, log: Log) {
    while let Some(event) = events.recv().await {
        let EventKind::Transition(transition) = event.kind else {
            continue;
        };
        let (name, to, cause) = (event.breaker, transition.to, transition.cause);
        match transition.wait {
            Some(wait) => {
                let seconds = wait.as_secs_f64();
                log.note(format_args!(
                    "breaker {name}: {to} ({cause}), next try in {seconds:.1} s"
                ));
            }
            None => log.note(format_args!("breaker {name}: {to} ({cause})")),
        }
    }
}

fn describe(counts: &Counts) -> String {
    let Counts {
        read,
        stored,
        announced,
        pending,
        rejected_lines,
        failed,
        ..
    } = counts;
    let mut text =
        format!("read {read}, stored {stored}, announced {announced}, pending {pending}");
    if *rejected_lines > 0 {
        text.push_str(&format!(", lines that do not fit {rejected_lines}"));
    }
    if *failed > 0 {
        text.push_str(&format!(", failed {failed}"));
    }
    text
}

/// The lines of the live view.
struct View {
    items: ProgressBar,
    breakers: Vec<(CircuitBreaker, ProgressBar)>,
    partitions: Vec<(Partition, ProgressBar)>,
}

impl View {
    fn new(job: &Job, log: &Log) -> Self {
        let add = |template: &str| {
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::no_length().with_style(style.progress_chars("=> "));
            match &log.bars {
                Some(bars) => bars.add(bar),
                None => bar,
            }
        };
        let all = add("{elapsed:>5} [{bar:30}] {pos}/{len} {msg}");
        let breakers = job.breakers().into_iter();
        let partitions = job.partitions().into_iter();
        Self {
            breakers: breakers.map(|breaker| (breaker, add("{msg}"))).collect(),
            partitions: partitions
                .map(|partition| (partition, add("{msg}")))
                .collect(),
            items: all,
        }
    }

    fn draw(&self, counts: &Counts) {
        self.items.set_length(counts.read);
        self.items.set_position(
            counts
                .announced
                .max(counts.stored.saturating_sub(counts.pending)),
        );
        self.items.set_message(describe(counts));
        for (breaker, line) in &self.breakers {
            let it = breaker.snapshot();
            let state = match (it.state, it.retry_after) {
                (State::Open, Some(wait)) => {
                    format!("OPEN, next try in {:.1} s", wait.as_secs_f64())
                }
                (state, _) => state.to_string(),
            };
            let (calls, failures, rejections) = (it.calls, it.failures, it.rejections);
            line.set_message(format!(
                "breaker {:<14} {state:<26} {calls} calls, {failures} failures, {rejections} rejections",
                breaker.name()
            ));
        }
        for (partition, line) in &self.partitions {
            let it = partition.snapshot();
            let (active, limit, queued) = (it.active, it.limit, it.queued);
            line.set_message(format!(
                "partition {:<12} {active}/{limit} in use, {queued} queued",
                it.name
            ));
        }
    }

    fn end(self) {
        let lines = self.breakers.iter().map(|(_, line)| line);
        let lines = lines.chain(self.partitions.iter().map(|(_, line)| line));
        for line in lines.chain([&self.items]) {
            line.finish_and_clear();
        }
    }
}
