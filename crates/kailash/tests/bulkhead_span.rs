//! The caller's tracing span travels to a partition's threads.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::sync::Mutex;
use std::thread;

use kailash::bulkhead::{Partition, PartitionConfig, PartitionType};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;

/// Knows one span, and notes which threads are in it.
#[derive(Default)]
struct OneSpan {
    metadata: Mutex<Option<&'static Metadata<'static>>>,
    inside: Mutex<Vec<thread::ThreadId>>,
}

static ENTERED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Subscriber for OneSpan {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.name() == "order"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        *self.metadata.lock().unwrap() = Some(span.metadata());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {
        self.inside.lock().unwrap().push(thread::current().id());
        let name = thread::current().name().unwrap_or_default().to_owned();
        ENTERED.lock().unwrap().push(name);
    }

    fn exit(&self, _: &Id) {
        let own = thread::current().id();
        self.inside.lock().unwrap().retain(|other| *other != own);
    }

    fn current_span(&self) -> Current {
        let own = thread::current().id();
        match *self.metadata.lock().unwrap() {
            Some(metadata) if self.inside.lock().unwrap().contains(&own) => {
                Current::new(Id::from_u64(1), metadata)
            }
            _ => Current::none(),
        }
    }
}

#[tokio::test]
async fn blocking_work_runs_in_the_span_of_its_caller() {
    tracing::subscriber::set_global_default(OneSpan::default()).unwrap();
    let config = PartitionConfig::new("reports", PartitionType::Background);
    let reports = Partition::new(config).unwrap();
    let name = || tracing::Span::current().metadata().map(|span| span.name());

    let call = async { reports.run_blocking(name).await.unwrap() };
    let within = tracing::Instrument::instrument(call, tracing::info_span!("order")).await;
    assert_eq!(within, Some("order"));
    assert!(ENTERED.lock().unwrap().contains(&"reports-1".to_owned()));
    assert_eq!(reports.run_blocking(name).await.unwrap(), None);
}
