//! Carries what happens to a partition to Python.

use std::sync::Arc;

use kailash::bulkhead::{Event, EventKind, Events};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::sync::oneshot;

use crate::runtime::{self, Carried, deliver};

// As many events at most are told at once.
const BATCH: usize = 256;

/// Has `callback(events)` called on the courier's thread until the partition is gone.
///
/// The next events are taken once the last were told, so that a subscriber that is too slow loses
/// the oldest and is told how many, and nothing piles up.
pub(super) fn listen(mut events: Events, callback: Py<PyAny>) -> PyResult<()> {
    let callback = Arc::new(Carried::new(callback));
    runtime::handle()?.spawn(async move {
        while let Some(first) = events.recv().await {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Some(event) = events.try_recv()
            {
                batch.push(event);
            }
            let (tell, told) = oneshot::channel();
            let callback = Arc::clone(&callback);
            deliver(move |py| {
                let called =
                    to_python(py, &batch).and_then(|batch| callback.get().call1(py, (batch,)));
                if let Err(error) = called {
                    error.write_unraisable(py, None);
                }
                // Gone with the runtime: nobody waits any more.
                let _ = tell.send(());
            });
            if told.await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn to_python<'py>(py: Python<'py>, events: &[Event]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for event in events {
        let dict = PyDict::new(py);
        dict.set_item("partition", &*event.partition)?;
        let kind = match event.kind {
            EventKind::Rejected(reason) => {
                dict.set_item("reason", reason.as_str())?;
                "rejected"
            }
            EventKind::Queued => "queued",
            EventKind::Started => "started",
            EventKind::Ended { ran } => {
                dict.set_item("ran", ran.as_secs_f64())?;
                "ended"
            }
            EventKind::TimedOut => "timed_out",
            EventKind::LimitChanged { from, to } => {
                dict.set_item("limit", to)?;
                dict.set_item("limit_before", from)?;
                "limit_changed"
            }
            EventKind::Closed => "closed",
            EventKind::Lost(lost) => {
                dict.set_item("lost", lost)?;
                "lost"
            }
            // Told of once this list has a word for it.
            _ => continue,
        };
        dict.set_item("kind", kind)?;
        list.append(dict)?;
    }
    Ok(list)
}
