//! Alerts: a bounded list of incidents, told to callbacks on threads of their own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::SystemTime;

use kailash_core::health::AlertLevel;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::threads::lock;
use crate::clock::wall_time;

/// How many resolved alerts are remembered.
const REMEMBERED: usize = 1_000;
/// How many alerts may wait for one slow callback.
const WAITING: usize = 1_024;

/// One incident: a check that failed too often in a row, until it succeeds again.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The same from raised to resolved.
    pub id: Uuid,
    /// The name of the check.
    pub check: String,
    /// `Critical` for a critical check, `Warning` for another; a callback hears of the end with
    /// `Info`, since a recovery is no emergency.
    pub level: AlertLevel,
    /// What happened, without secrets.
    pub message: String,
    /// The details of the result that raised it.
    pub details: Map<String, Value>,
    /// Failures in a row when it was raised.
    pub failures: u32,
    /// When it was raised, by the wall clock.
    pub raised_at: SystemTime,
    /// When it was resolved, by the wall clock.
    pub resolved_at: Option<SystemTime>,
}

impl Alert {
    /// Whether the incident is over.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.resolved_at.is_some()
    }
}

/// The alerts of one monitor.
#[derive(Default)]
pub(super) struct Alerts(Mutex<Book>);

#[derive(Default)]
struct Book {
    alerts: VecDeque<Alert>,
    callbacks: Vec<SyncSender<Alert>>,
}

impl Alerts {
    /// The alerts, oldest first: all, the resolved, or the unresolved ones.
    pub(super) fn list(&self, resolved: Option<bool>) -> Vec<Alert> {
        let book = lock(&self.0);
        let wanted = |alert: &&Alert| resolved.is_none_or(|only| only == alert.is_resolved());
        book.alerts.iter().filter(wanted).cloned().collect()
    }

    /// Calls back with each alert from now on, on a thread that ends with these alerts.
    pub(super) fn call_back(&self, callback: impl Fn(&Alert) + Send + 'static) {
        let (sender, receiver) = sync_channel::<Alert>(WAITING);
        let thread = thread::Builder::new().name("kailash-alerts".to_owned());
        let spawned = thread.spawn(move || {
            for alert in receiver {
                if catch_unwind(AssertUnwindSafe(|| callback(&alert))).is_err() {
                    tracing::error!(check = %alert.check, "an alert callback panicked");
                }
            }
        });
        spawned.expect("the system can start a thread");
        lock(&self.0).callbacks.push(sender);
    }

    /// Adds an alert and queues it for every callback.
    pub(super) fn raise(&self, alert: Alert) -> Told {
        let mut book = lock(&self.0);
        let lost = book.tell(&alert);
        book.alerts.push_back(alert.clone());
        Told { alert, lost }
    }

    /// Ends the incident of this check; the message is what its callbacks hear.
    pub(super) fn resolve(&self, check: &str, message: String) -> Option<Told> {
        let mut book = lock(&self.0);
        let mut open = book.alerts.iter_mut().rev();
        let alert = open.find(|alert| alert.check == check && !alert.is_resolved())?;
        alert.resolved_at = Some(wall_time());
        let alert = Alert {
            level: AlertLevel::Info,
            message,
            ..alert.clone()
        };
        let lost = book.tell(&alert);
        book.forget();
        Some(Told { alert, lost })
    }
}

/// News to be logged once no lock is held: whoever collects the log is a stranger.
#[must_use]
pub(super) struct Told {
    alert: Alert,
    lost: usize,
}

impl Told {
    pub(super) fn log(&self) {
        let Alert {
            check,
            level,
            message,
            ..
        } = &self.alert;
        if self.alert.is_resolved() {
            tracing::info!(%check, "alert resolved: {message}");
        } else {
            tracing::warn!(%check, %level, "alert raised: {message}");
        }
        if self.lost > 0 {
            let lost = self.lost;
            tracing::error!(%check, "{lost} callbacks hang: this alert is lost to them");
        }
    }
}

impl Book {
    /// Queues the alert for every callback; how many of them have no room for it.
    fn tell(&mut self, alert: &Alert) -> usize {
        let mut lost = 0;
        self.callbacks
            .retain(|callback| match callback.try_send(alert.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    lost += 1;
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            });
        lost
    }

    /// Forgets the oldest resolved alerts; an open one is never forgotten.
    fn forget(&mut self) {
        let resolved = self.alerts.iter().filter(|alert| alert.is_resolved());
        if resolved.count() > REMEMBERED {
            let oldest = self.alerts.iter().position(Alert::is_resolved);
            oldest.and_then(|at| self.alerts.remove(at));
        }
    }
}
