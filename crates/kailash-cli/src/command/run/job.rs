//! The items of a run: each row goes through the graph once, and what the outbox keeps is sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use kailash::bulkhead::Partition;
use kailash::circuit_breaker::CircuitBreaker;
use kailash_workflow::outbox::Ended;
use kailash_workflow::rows::{Row, Rows};
use kailash_workflow::{Inputs, Items, LocalRuntime, Map, NodeResult, Prepared, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::input::{self, Parcel};
use super::mail::Mail;
use crate::output::{Counts, Log};
use crate::run_file::RunFile;

/// How many failures of one kind are shown.
const SHOWN: u64 = 3;

/// What all rows share.
pub(crate) struct Job {
    pub(crate) log: Log,
    pub(super) file: RunFile,
    pub(super) runtime: LocalRuntime,
    pub(super) workflow: Prepared,
    pub(super) mail: Option<Mail>,
    pub(super) values: Map,
    pub(super) stopped: watch::Sender<bool>,
    pub(super) read: AtomicU64,
    pub(super) rejected_lines: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Rows that are stored, or done where there is no outbox.
    pub(super) stored: AtomicU64,
    /// Of those stored, the rows that earlier runs stored.
    pub(super) stored_before: AtomicU64,
    /// Rows that were sent before this run.
    pub(super) sent_before: AtomicU64,
    /// Whether the input was read to its end.
    pub(super) all_read: AtomicBool,
    /// Rows that were not begun, or given up while they waited to be stored.
    pub(super) left: AtomicBool,
    pub(super) newest_stored: Mutex<Instant>,
    pub(super) failures: Mutex<HashMap<String, u64>>,
    /// Keys that the relay sent, which a row read later would count again.
    pub(super) relayed: Mutex<HashSet<String>>,
    /// What became of each node, where there is no input.
    pub(super) outcome: Mutex<Map>,
}

impl Job {
    pub(super) fn new(
        file: RunFile,
        runtime: LocalRuntime,
        workflow: Prepared,
        mail: Option<Mail>,
        values: Map,
        log: Log,
    ) -> Self {
        Self {
            log,
            file,
            runtime,
            workflow,
            mail,
            values,
            stopped: watch::Sender::new(false),
            read: AtomicU64::new(0),
            rejected_lines: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            stored_before: AtomicU64::new(0),
            sent_before: AtomicU64::new(0),
            outcome: Mutex::default(),
            all_read: AtomicBool::new(false),
            left: AtomicBool::new(false),
            newest_stored: Mutex::new(Instant::now()),
            failures: Mutex::default(),
            relayed: Mutex::default(),
        }
    }

    /// Admits no more rows; what is in flight ends as it would.
    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
        if let Some(mail) = &self.mail {
            mail.relay.stop();
        }
    }

    /// The breakers of the file.
    pub(crate) fn breakers(&self) -> Vec<CircuitBreaker> {
        let names = self.file.breakers.iter();
        let breakers = names.filter_map(|(name, _)| self.runtime.breakers().get(name));
        breakers.collect()
    }

    /// The partitions that the file sets up, then the others that its nodes name.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let mut names: Vec<&str> = self.file.partitions.iter().map(|it| &*it.name).collect();
        for node in &self.file.nodes {
            let name = node.config.get("partition").and_then(Value::as_text);
            names.extend(name.filter(|name| !names.contains(name)));
        }
        let partitions = names.into_iter();
        let partitions = partitions.filter_map(|name| self.runtime.partitions().get(name).ok());
        partitions.collect()
    }

    /// The input's name for people.
    pub(crate) fn name(&self) -> String {
        let path = match &self.file.input {
            Some(input) => &input.csv,
            None => &self.file.path,
        };
        path.display().to_string()
    }

    /// Where the lines are kept that do not fit, if there are any.
    pub(super) fn rejects(&self) -> Option<PathBuf> {
        let count = self.rejected_lines.load(Ordering::Relaxed);
        (count > 0).then(|| self.rejects_path())
    }

    fn rejects_path(&self) -> PathBuf {
        let csv = self.file.input.as_ref().map(|input| input.csv.clone());
        csv.unwrap_or_default().with_extension("rejects.csv")
    }

    /// What became of each node, where there is no input.
    pub(super) fn outcome(&self) -> Option<Map> {
        let outcome = self
            .file
            .input
            .is_none()
            .then(|| lock(&self.outcome).clone());
        outcome.filter(|outcome| !outcome.is_empty())
    }

    /// The longest time from storing a row to its announcement.
    pub(super) fn longest_wait(&self) -> Option<Duration> {
        let mail = self.mail.as_ref()?;
        Some(mail.relay.snapshot().longest_wait)
    }

    /// How far it is, without asking the database.
    pub(crate) fn counts_so_far(&self) -> Counts {
        let stored = self.stored.load(Ordering::Relaxed);
        let sent = self
            .mail
            .as_ref()
            .map_or(0, |mail| mail.relay.snapshot().sent);
        let announced = self.sent_before.load(Ordering::Relaxed) + sent;
        Counts {
            read: self.read.load(Ordering::Relaxed),
            stored,
            stored_before: self.stored_before.load(Ordering::Relaxed),
            announced,
            rejected_lines: self.rejected_lines.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            pending: match &self.mail {
                None => 0,
                Some(_) => stored.saturating_sub(announced),
            },
            is_left: self.left.load(Ordering::Relaxed),
        }
    }

    /// How far it came.
    pub(super) async fn counts(&self) -> Counts {
        let mut counts = self.counts_so_far();
        if let Some(mail) = &self.mail {
            match mail.outbox.count_unsent().await {
                Ok(unsent) => {
                    // A mark whose answer was lost counts here only.
                    let marked = counts.stored.saturating_sub(unsent);
                    counts.announced = counts.announced.max(marked).min(counts.stored);
                    counts.pending = unsent;
                }
                Err(error) => self.log.note(format_args!("database: {error}")),
            }
        }
        counts
    }

    pub(super) fn inputs(&self, row: &Row) -> Inputs {
        let mut values = self.values.clone();
        values.insert("row".to_owned(), Value::Map(row.values.clone()));
        Inputs::new(values)
    }

    /// Notes a failure: the first of each kind is shown.
    pub(super) fn fail(&self, what: &str, error: &str) {
        let mut failures = lock(&self.failures);
        let count = failures.entry(what.to_owned()).or_default();
        *count += 1;
        if *count <= SHOWN {
            self.log.note(format_args!("{what}: {error}"));
        }
        if *count == SHOWN {
            self.log.note(format_args!(
                "{what}: further failures are counted, not shown"
            ));
        }
    }

    async fn item(&self, row: Row) {
        match &self.mail {
            None => self.run_once(&row).await,
            Some(mail) => self.store_and_send(mail, row).await,
        }
    }

    async fn run_once(&self, row: &Row) {
        let run = self.workflow.run(&self.inputs(row)).await;
        let mut is_failed = false;
        for (id, result) in &run.results {
            if let NodeResult::Failed(error) = result {
                is_failed = true;
                let place = match row.line {
                    0 => String::new(),
                    line => format!("line {line}: "),
                };
                self.fail(&format!("node {id}"), &format!("{place}{error}"));
            }
        }
        if self.file.input.is_none() {
            let results = run.results.iter();
            let results = results.map(|(id, result)| (id.clone(), Value::Map(result.to_map())));
            *lock(&self.outcome) = results.collect();
        }
        match (is_failed, &self.file.input) {
            (true, _) => self.failed.fetch_add(1, Ordering::Relaxed),
            (false, Some(_)) => self.stored.fetch_add(1, Ordering::Relaxed),
            (false, None) => return,
        };
    }

    /// The rows of a parcel that are new.
    async fn receive(&self, parcel: Parcel) -> VecDeque<Row> {
        match parcel {
            Parcel::Rows(rows) => {
                self.read.fetch_add(rows.len() as u64, Ordering::Relaxed);
                self.new_rows(rows).await
            }
            Parcel::Rejected => {
                self.read.fetch_add(1, Ordering::Relaxed);
                self.rejected_lines.fetch_add(1, Ordering::Relaxed);
                VecDeque::new()
            }
            Parcel::Broken => {
                self.left.store(true, Ordering::Relaxed);
                VecDeque::new()
            }
        }
    }

    /// Returns once the run is stopped.
    pub(super) async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives as long as this.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

/// Runs every row, and sends what the outbox keeps, until all is done or the run is stopped.
pub(super) async fn run(job: &Arc<Job>, rows: Option<Rows>) {
    let relay = job.mail.as_ref().map(|mail| {
        if mail.unsent_before > 0 {
            let count = mail.unsent_before;
            job.log.note(format_args!(
                "{count} stored by an earlier run are still to be announced"
            ));
        }
        let job = Arc::clone(job);
        let relay = mail.relay.clone();
        tokio::spawn(async move {
            let send = |row| {
                let job = Arc::clone(&job);
                async move { job.send_again(row).await }
            };
            relay.run(send).await
        })
    });
    match rows {
        Some(rows) => run_rows(job, rows).await,
        None => {
            let row = Row {
                line: 0,
                key: String::new(),
                values: Map::new(),
            };
            job.item(row).await;
        }
    }
    let (Some(mail), Some(relay)) = (&job.mail, relay) else {
        return;
    };
    mail.relay.finish();
    match relay.await {
        Ok(Ended::GaveUp) => {
            let seconds = mail.give_up_after.as_secs_f64();
            let send = &mail.send;
            job.log.note(format_args!(
                "node {send}: gave up after {seconds} s without one success, the rest is left for the next run"
            ));
        }
        Ok(Ended::Done | Ended::Stopped) => {}
        Err(error) => job.log.note(format_args!("the relay failed: {error}")),
    }
}

async fn run_rows(job: &Arc<Job>, rows: Rows) {
    let Some(input) = &job.file.input else { return };
    let parcels = input::read(rows, input.csv.clone(), job.rejects_path(), job.log.clone());
    let source = (Arc::clone(job), parcels, VecDeque::new());
    let rows = stream::unfold(source, async |(job, mut parcels, mut rows)| {
        while rows.is_empty() {
            let Some(parcel) = parcels.recv().await else {
                job.all_read.store(true, Ordering::Relaxed);
                return None;
            };
            rows = job.receive(parcel).await;
        }
        Some((rows.pop_front()?, (job, parcels, rows)))
    });
    let work = {
        let job = Arc::clone(job);
        move |row| {
            let job = Arc::clone(&job);
            async move { job.item(row).await }
        }
    };
    let items = Items::new(rows, input.concurrency, work);
    let mut items = items.expect("the concurrency was checked with the file");
    let control = items.control().clone();
    let stopper = async {
        job.stopped().await;
        control.stop();
    };
    tokio::pin!(stopper);
    let mut is_stopped = false;
    loop {
        tokio::select! {
            done = items.next() => if done.is_none() { break },
            () = &mut stopper, if !is_stopped => is_stopped = true,
        }
    }
    if is_stopped && !job.all_read.load(Ordering::Relaxed) {
        job.left.store(true, Ordering::Relaxed);
    }
}

/// A panic elsewhere leaves what is counted here as right as it was.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
