//! The health vectors, driven through a monitor.

#![expect(
    clippy::unwrap_used,
    reason = "a vector that cannot be read is a failed test"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kailash::health::checks::Custom;
use kailash::health::{Alert, CheckConfig, Config, Monitor, Status};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    #[serde(rename = "about")]
    _about: String,
    monitor: Settings,
    checks: BTreeMap<String, Check>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    alert_threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    critical: bool,
    alert_threshold: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    results: BTreeMap<String, String>,
    news: Vec<Told>,
    overall: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Told {
    check: String,
    news: String,
    level: Option<String>,
}

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
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../vectors/health");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        let text = std::fs::read_to_string(&path).unwrap();
        run(&serde_json::from_str(&text).unwrap()).await;
        files += 1;
    }
    assert!(files > 0, "there are vectors");
}
