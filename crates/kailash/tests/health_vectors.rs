//! The health vectors, driven through a monitor.

#![expect(
    clippy::unwrap_used,
    reason = "a vector that cannot be read is a failed test"
)]

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kailash::health::checks::Custom;
use kailash::health::{Alert, CheckConfig, Config, Monitor, Status};

use vector::{Told, Vector};

#[path = "../../kailash-core/tests/health_vectors/vector.rs"]
mod vector;

/// The next piece of news that the callback heard.
fn heard(alerts: &Receiver<Alert>) -> Told {
    let alert = alerts.recv_timeout(Duration::from_secs(60)).unwrap();
    let (news, level) = match alert.is_resolved() {
        true => ("resolved", None),
        false => ("raised", Some(alert.level.to_string())),
    };
    Told {
        check: alert.check,
        news: news.to_owned(),
        level,
    }
}

async fn run(vector: &Vector) {
    let monitor = Monitor::new(Config {
        alert_threshold: vector.monitor.alert_threshold,
        ..Config::default()
    });
    let monitor = monitor.unwrap();
    let (tell, alerts) = channel();
    monitor.on_alert(move |alert| tell.send(alert.clone()).unwrap());
    let results: Arc<Mutex<BTreeMap<String, Status>>> = Arc::default();
    for (name, check) in &vector.checks {
        let config = CheckConfig {
            critical: check.critical,
            alert_threshold: check.alert_threshold,
            ..CheckConfig::default()
        };
        let (results, of) = (Arc::clone(&results), name.clone());
        let custom = Custom::new(move || {
            let status = results.lock().unwrap()[&of];
            async move { status }
        });
        monitor.register(name, config, custom).unwrap();
    }
    for (number, step) in vector.steps.iter().enumerate() {
        for (name, result) in &step.results {
            let status = Status::from_word(result).unwrap();
            results.lock().unwrap().insert(name.clone(), status);
        }
        for name in step.results.keys() {
            monitor.check_now(name).await.unwrap();
        }
        let told: Vec<_> = step.news.iter().map(|_| heard(&alerts)).collect();
        assert_eq!(told, step.news, "step {number}");
        assert_eq!(
            monitor.overall().await.as_str(),
            step.overall,
            "step {number}"
        );
    }
    drop(monitor);
    assert!(alerts.recv().is_err(), "no more news than the vector tells");
}

#[tokio::test]
async fn every_vector_holds() {
    for vector in vector::all() {
        run(&vector).await;
    }
}
