//! What a partition is for, in numbers: quick calls beside clients that drown it in slow reports.
//!
//! Each row makes the same quick calls, one after the other: alone, beside reports in a partition of their
//! own, and beside the same reports in one partition for all. It runs for a few seconds:
//! `cargo run --release --package kailash --example bulkhead_isolation`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use kailash::bulkhead::{Partition, PartitionConfig, PartitionType, RunError};

const QUICK_CALLS: usize = 100;
/// Each asks for the next report as soon as it has one.
const CLIENTS: u32 = 60;
/// How long a report keeps its thread.
const REPORT: Duration = Duration::from_millis(20);

/// What the quick calls of one row met.
pub(crate) struct Row {
    /// What they ran beside.
    pub(crate) beside: &'static str,
    /// How long each took, the shortest first.
    pub(crate) took: Vec<Duration>,
    /// How many calls of their partition had to wait.
    pub(crate) waited: u64,
}

/// Makes all calls, beside reports that take this long each, and leaves nothing behind.
pub(crate) async fn measure(report: Duration) -> Result<[Row; 3], Box<dyn Error>> {
    let alone = partition("api", 10)?;
    let (api, reports) = (partition("api", 10)?, partition("reports", 10)?);
    let shared = partition("all", 20)?;
    Ok([
        quick_calls("nothing", &alone, None, report).await?,
        quick_calls(
            "reports in a partition of their own",
            &api,
            Some(&reports),
            report,
        )
        .await?,
        quick_calls(
            "reports in the same partition",
            &shared,
            Some(&shared),
            report,
        )
        .await?,
    ])
}

fn partition(name: &str, slots: u32) -> Result<Partition, Box<dyn Error>> {
    Ok(Partition::new(PartitionConfig {
        max_concurrent_operations: slots,
        queue_size: CLIENTS + 1,
        timeout: None,
        ..PartitionConfig::new(name, PartitionType::Custom)
    })?)
}

async fn quick_calls(
    beside: &'static str,
    partition: &Partition,
    reports: Option<&Partition>,
    report: Duration,
) -> Result<Row, RunError> {
    let is_over = AtomicBool::new(false);
    let clients = (0..reports.map_or(0, |_| CLIENTS)).map(|_| async {
        while let Some(reports) = reports
            && !is_over.load(Ordering::Relaxed)
        {
            reports.run_blocking(move || thread::sleep(report)).await?;
        }
        Ok::<_, RunError>(())
    });
    let calls = async {
        let mut took = Vec::with_capacity(QUICK_CALLS);
        for _ in 0..QUICK_CALLS {
            let began = Instant::now();
            partition.run_blocking(|| ()).await?;
            took.push(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        took.sort_unstable();
        Ok::<_, RunError>(took)
    };
    // The clients are there first.
    let (_, took) = tokio::try_join!(biased; try_join_all(clients), calls)?;
    Ok(Row {
        beside,
        took,
        waited: partition.waits().count(),
    })
}

/// The duration that this share of them did not exceed.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{QUICK_CALLS} quick calls, while {CLIENTS} clients want reports of {REPORT:?}");
    let head = ["beside", "p50", "p99", "longest", "waited"];
    let [beside, p50, p99, longest, waited] = head;
    println!("{beside:36} {p50:>10} {p99:>10} {longest:>10} {waited:>7}");
    for row in measure(REPORT).await? {
        let ms = |share| format!("{:.2} ms", quantile(&row.took, share).as_secs_f64() * 1e3);
        let [p50, p99, longest] = [0.5, 0.99, 1.0].map(ms);
        let Row { beside, waited, .. } = row;
        println!("{beside:36} {p50:>10} {p99:>10} {longest:>10} {waited:>7}");
    }
    Ok(())
}
