//! One writer per SQLite file, which commits what came together at once.
//!
//! SQLite has one writer at a time and pays per commit. So all writes of a process to a file go through
//! one connection: what waits when it is free runs as one transaction. Nothing is told before the
//! commit. When any of them fails, the transaction is rolled back and each runs in one of its own, so
//! that each result is its own.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::pool::{Driver as _, Statement};
use super::{Failure, Rows};

/// The most jobs of one transaction.
const MOST: usize = 256;

/// The way to the one writer of a SQLite file; clones lead to the same one.
#[derive(Clone)]
pub(super) struct Writer {
    options: Arc<SqliteConnectOptions>,
    jobs: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
}

struct Job {
    statements: Vec<Statement>,
    answer: oneshot::Sender<Result<Vec<Rows>, Failure>>,
}

impl Writer {
    pub(super) fn new(options: Arc<SqliteConnectOptions>) -> Self {
        Self {
            options,
            jobs: Arc::default(),
        }
    }

    /// Runs these statements in one transaction, shared with others that wait; answers after its
    /// commit. Cancelled before its turn, nothing of it runs.
    pub(super) async fn run(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, Failure> {
        let (answer, answered) = oneshot::channel();
        // A full queue waits here. A writer whose runtime ended is replaced.
        let sent = self.jobs().send(Job { statements, answer }).await;
        if let Err(mpsc::error::SendError(job)) = sent {
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let resent = self.jobs().send(job).await;
            resent.map_err(|_| Failure::Statement("the writer has ended".to_owned()))?;
        }
        answered
            .await
            .map_err(|_| Failure::Statement("the writer has ended".to_owned()))?
    }

    fn jobs(&self) -> mpsc::Sender<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = jobs.as_ref().filter(|jobs| !jobs.is_closed()) {
            return jobs.clone();
        }
        let (sender, receiver) = mpsc::channel(MOST);
        tokio::spawn(write(Arc::clone(&self.options), receiver));
        *jobs = Some(sender.clone());
        sender
    }
}

async fn write(options: Arc<SqliteConnectOptions>, mut jobs: mpsc::Receiver<Job>) {
    let mut connection = None;
    let mut group = Vec::new();
    while jobs.recv_many(&mut group, MOST).await > 0 {
        // Whose caller is gone before its turn must not happen.
        group.retain(|job| !job.answer.is_closed());
        if group.is_empty() {
            continue;
        }
        let mut open = match connection.take() {
            Some(open) => open,
            None => match SqliteConnection::open(&options).await {
                Ok(open) => open,
                Err(error) => {
                    answer_all(&mut group, error);
                    continue;
                }
            },
        };
        if write_all(&mut open, &mut group).await {
            connection = Some(open);
        }
    }
}

/// Runs and answers all jobs; false when the connection may be inside a broken transaction.
async fn write_all(connection: &mut SqliteConnection, group: &mut Vec<Job>) -> bool {
    if group.len() > 1 {
        if let Err(error) = connection.command(SqliteConnection::BEGIN).await {
            answer_all(group, error);
            return false;
        }
        if let Some(results) = write_together(connection, group).await {
            for (job, rows) in group.drain(..).zip(results) {
                let _ = job.answer.send(Ok(rows));
            }
            return true;
        }
        // SQLite may have rolled back by itself already.
        let _ = connection.command("ROLLBACK").await;
    }
    let mut is_sound = true;
    for job in group.drain(..) {
        let result = connection.run(&job.statements).await;
        is_sound &= result.is_ok() || job.statements.len() == 1;
        let _ = job.answer.send(result);
    }
    is_sound
}

/// The results of all jobs once they are committed, `None` when one of them or the commit failed.
async fn write_together(
    connection: &mut SqliteConnection,
    group: &[Job],
) -> Option<Vec<Vec<Rows>>> {
    let mut results = Vec::with_capacity(group.len());
    for job in group {
        results.push(connection.run_each(&job.statements).await.ok()?);
    }
    connection.command("COMMIT").await.ok()?;
    Some(results)
}

fn answer_all(group: &mut Vec<Job>, error: sqlx::Error) {
    let error = Arc::new(error);
    for job in group.drain(..) {
        let _ = job.answer.send(Err(Failure::Shared(Arc::clone(&error))));
    }
}
