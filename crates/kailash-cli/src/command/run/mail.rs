//! Items that are stored by one node and announced by another, with an outbox between them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use kailash_workflow::outbox::{Delivery, Outbox, Relay, Unsent};
use kailash_workflow::rows::Row;
use kailash_workflow::{Map, NodeError, NodeResult, Prepared, Value};
use tokio::time::{Instant, sleep};

use super::job::{Job, lock};

/// How long a row waits for a breaker or a partition that does not say how long.
const LOOK: Duration = Duration::from_millis(50);

/// The outbox and its ends.
pub(super) struct Mail {
    pub(super) outbox: Outbox,
    pub(super) relay: Relay,
    pub(super) store: String,
    pub(super) send: String,
    pub(super) sending: Prepared,
    pub(super) give_up_after: Duration,
    pub(super) unsent_before: u64,
    /// Whether no row was ever stored, so that none needs to be looked up.
    pub(super) is_new: bool,
}

impl Job {
    /// Takes a row through the graph, until it is stored or failed.
    pub(super) async fn store_and_send(&self, mail: &Mail, row: Row) {
        let held = mail.relay.hold(&row.key);
        let mut inputs = self.inputs(&row);
        let store_inputs = Map::from_iter([
            ("item_key".to_owned(), Value::from(row.key.as_str())),
            ("payload".to_owned(), Value::from(row.to_json())),
        ]);
        inputs.nodes.insert(mail.store.clone(), store_inputs);
        loop {
            let begun_at = SystemTime::now();
            let mut run = self.workflow.run(&inputs).await;
            let error = match run.results.swap_remove(&mail.store) {
                Some(NodeResult::Done {
                    instead_of: None, ..
                }) => {
                    self.stored.fetch_add(1, Ordering::Relaxed);
                    *lock(&self.newest_stored) = Instant::now();
                    match run.results.get(&mail.send).map(delivery) {
                        Some(Delivery::Sent) => {
                            held.sent(begun_at).await;
                        }
                        Some(Delivery::Refused) => {
                            self.refused(&row.key, run.results.get(&mail.send));
                            held.refused();
                        }
                        Some(Delivery::Failed) | None => {
                            self.unsent(&row.key, run.results.get(&mail.send));
                        }
                    }
                    return;
                }
                Some(
                    NodeResult::Done {
                        instead_of: Some(error),
                        ..
                    }
                    | NodeResult::Failed(error),
                ) => error,
                Some(NodeResult::Skipped { because }) => {
                    NodeError::execution(format!("skipped because of {because}"))
                }
                None => NodeError::execution("it is not part of the graph"),
            };
            if let Some(wait) = refused_for(&error) {
                if lock(&self.newest_stored).elapsed() > mail.give_up_after {
                    self.left.store(true, Ordering::Relaxed);
                    if !self.stopped.send_replace(true) {
                        mail.relay.stop();
                        let (store, seconds) = (&mail.store, mail.give_up_after.as_secs_f64());
                        self.log.note(format_args!(
                            "node {store}: gave up after {seconds} s without one success: {error}"
                        ));
                    }
                    return;
                }
                tokio::select! {
                    () = sleep(wait) => continue,
                    () = self.stopped() => {
                        self.left.store(true, Ordering::Relaxed);
                        return;
                    }
                }
            }
            // It may have been stored all the same: by another process, or before the answer was lost.
            let found = mail.outbox.find(std::slice::from_ref(&row.key)).await;
            if found.is_ok_and(|found| found.contains_key(&row.key)) {
                self.stored.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.failed.fetch_add(1, Ordering::Relaxed);
            let what = format!("node {}", mail.store);
            self.fail(&what, &format!("line {}: {error}", row.line));
            return;
        }
    }

    /// Sends a row that is stored already.
    pub(super) async fn send_again(&self, unsent: Unsent) -> Delivery {
        let (Some(mail), Some(input)) = (&self.mail, &self.file.input) else {
            return Delivery::Refused;
        };
        let Some(row) = input.columns.from_json(&unsent.payload) else {
            let error = "its payload does not fit [input.columns]";
            self.fail(&format!("outbox row {}", unsent.key), error);
            return Delivery::Refused;
        };
        let run = mail.sending.run(&self.inputs(&row)).await;
        let result = run.results.get(&mail.send);
        let delivery = result.map_or(Delivery::Failed, delivery);
        match delivery {
            Delivery::Refused => self.refused(&unsent.key, result),
            Delivery::Sent => {
                lock(&self.relayed).insert(unsent.key);
            }
            Delivery::Failed => self.unsent(&unsent.key, result),
        }
        delivery
    }

    /// Notes why a row was not sent, unless nothing was tried.
    fn unsent(&self, key: &str, result: Option<&NodeResult>) {
        let is_tried = match result {
            Some(NodeResult::Failed(error)) => !error.is_rejection(),
            Some(NodeResult::Done { .. }) => true,
            _ => false,
        };
        if is_tried {
            self.fail(&self.sender(), &format!("{key}: {}", why(result)));
        }
    }

    fn sender(&self) -> String {
        let send = self.mail.as_ref().map_or("", |mail| &mail.send);
        format!("node {send}")
    }

    fn refused(&self, key: &str, result: Option<&NodeResult>) {
        let error = format!("{key} was refused: {}", why(result));
        self.fail(&self.sender(), &error);
    }

    /// Leaves out the rows that earlier runs stored.
    pub(super) async fn new_rows(&self, rows: Vec<Row>) -> VecDeque<Row> {
        let Some(mail) = self.mail.as_ref().filter(|mail| !mail.is_new) else {
            return rows.into();
        };
        let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
        // Where the look-up fails, storing fails too, and looks again.
        let found = mail.outbox.find(&keys).await.unwrap_or_default();
        let relayed = lock(&self.relayed);
        let (mut stored, mut sent) = (0, 0);
        let rows = rows.into_iter().filter(|row| match found.get(&row.key) {
            None => true,
            Some(is_sent) => {
                stored += 1;
                sent += u64::from(*is_sent && !relayed.contains(&row.key));
                false
            }
        });
        let rows = rows.collect();
        self.stored.fetch_add(stored, Ordering::Relaxed);
        self.stored_before.fetch_add(stored, Ordering::Relaxed);
        self.sent_before.fetch_add(sent, Ordering::Relaxed);
        rows
    }
}

/// Why a row was not taken.
fn why(result: Option<&NodeResult>) -> String {
    match result {
        Some(
            NodeResult::Done {
                instead_of: Some(error),
                ..
            }
            | NodeResult::Failed(error),
        ) => error.to_string(),
        Some(NodeResult::Done { outputs, .. }) => match outputs.get("status_code") {
            Some(status) => format!("status {status}"),
            None => "no status".to_owned(),
        },
        _ => "it was skipped".to_owned(),
    }
}

/// What came of sending, by the result of the node that sends.
fn delivery(result: &NodeResult) -> Delivery {
    let NodeResult::Done {
        outputs,
        instead_of: None,
    } = result
    else {
        return match result {
            NodeResult::Failed(NodeError::Input(_)) => Delivery::Refused,
            _ => Delivery::Failed,
        };
    };
    match outputs.get("status_code").and_then(Value::as_int) {
        Some(200..300) => Delivery::Sent,
        // Too slow or too many: what is right now may be taken later.
        Some(408 | 425 | 429 | 500..) | None => Delivery::Failed,
        Some(_) => Delivery::Refused,
    }
}

/// How long to wait before another try, when nothing was tried.
fn refused_for(error: &NodeError) -> Option<Duration> {
    match error {
        NodeError::Rejected(rejected) => Some(rejected.retry_after.unwrap_or(LOOK).max(LOOK)),
        NodeError::Full(_) => Some(LOOK),
        _ => None,
    }
}
