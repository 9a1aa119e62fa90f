//! The rows of the input, read on a thread of their own, and what of it does not fit.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use kailash_workflow::rows::{Reject, Row, Rows};
use tokio::sync::mpsc;

use crate::output::Log;

/// How many lines are handed over at once, and how many such parcels may wait.
const PARCEL: usize = 128;
const PARCELS: usize = 4;
/// How many lines that do not fit are shown; all of them are kept.
const SHOWN: u64 = 10;

/// What was read.
pub(super) enum Parcel {
    Rows(Vec<Row>),
    /// A line that does not fit, kept in the file of rejects.
    Rejected,
    /// Reading went wrong: no more comes.
    Broken,
}

/// Reads the rows in the background.
pub(super) fn read(rows: Rows, csv: PathBuf, rejects: PathBuf, log: Log) -> mpsc::Receiver<Parcel> {
    let (parcels, receiver) = mpsc::channel(PARCELS);
    tokio::task::spawn_blocking(move || {
        let mut rejects = Rejects::new(rejects, log.clone());
        let mut full = Vec::with_capacity(PARCEL);
        for row in rows {
            let parcel = match row {
                Ok(Ok(row)) => {
                    full.push(row);
                    if full.len() < PARCEL {
                        continue;
                    }
                    Parcel::Rows(std::mem::take(&mut full))
                }
                Ok(Err(reject)) => {
                    if rejects.count < SHOWN {
                        let (file, Reject { line, reason, .. }) = (csv.display(), &reject);
                        log.note(format_args!("{file}:{line}: {reason}"));
                    }
                    match rejects.keep(&reject) {
                        true => Parcel::Rejected,
                        false => Parcel::Broken,
                    }
                }
                Err(error) => {
                    log.note(format_args!("input.csv: {error}"));
                    Parcel::Broken
                }
            };
            let is_broken = matches!(parcel, Parcel::Broken);
            // Whoever stopped listening has stopped the run.
            if parcels.blocking_send(parcel).is_err() || is_broken {
                return;
            }
        }
        let _ = parcels.blocking_send(Parcel::Rows(full));
    });
    receiver
}

/// The file that lines are kept in which do not fit; made with the first of them.
struct Rejects {
    path: PathBuf,
    log: Log,
    file: Option<csv::Writer<File>>,
    count: u64,
}

impl Rejects {
    fn new(path: PathBuf, log: Log) -> Self {
        Self {
            path,
            log,
            file: None,
            count: 0,
        }
    }

    /// Whether the line is kept.
    fn keep(&mut self, reject: &Reject) -> bool {
        self.count += 1;
        let written = self.write(reject);
        if let Err(error) = &written {
            let path = self.path.display();
            self.log
                .note(format_args!("{path}: cannot be written: {error}"));
        }
        written.is_ok()
    }

    fn write(&mut self, reject: &Reject) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = csv::Writer::from_writer(File::create(&self.path)?);
                file.write_record(["line", "reason", "text"])?;
                self.file.insert(file)
            }
        };
        let Reject { line, reason, text } = reject;
        file.write_record([&line.to_string(), reason, text])?;
        file.flush()
    }
}
