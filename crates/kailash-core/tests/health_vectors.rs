//! The health vectors, driven through the machines.

#![expect(
    clippy::unwrap_used,
    reason = "a vector that cannot be read is a failed test"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use kailash_core::health::{CheckConfig, Config, Incident, News, Status, overall};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    #[serde(rename = "about")]
    _about: String,
    monitor: Monitor,
    checks: BTreeMap<String, Check>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitor {
    alert_threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    critical: bool,
    alert_threshold: Option<u32>,
}

/// One result of every check, what it changes, and how the whole is afterwards.
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

fn run(vector: &Vector) {
    let config = Config {
        alert_threshold: vector.monitor.alert_threshold,
        ..Config::default()
    };
    config.validate().unwrap();
    let mut checks = BTreeMap::new();
    for (name, check) in &vector.checks {
        let config = CheckConfig {
            critical: check.critical,
            alert_threshold: check.alert_threshold,
            ..CheckConfig::default()
        };
        config.validate().unwrap();
        checks.insert(name, (config, Incident::new(config.critical)));
    }
    for (number, step) in vector.steps.iter().enumerate() {
        assert_eq!(step.results.len(), checks.len(), "step {number}");
        let mut told = Vec::new();
        let mut parts = Vec::new();
        for (name, result) in &step.results {
            let status = Status::from_word(result).unwrap();
            let (check, incident) = checks.get_mut(name).unwrap();
            let threshold = check.alert_threshold.unwrap_or(config.alert_threshold);
            let news = incident.record(status, threshold);
            told.extend(news.map(|news| Told {
                check: name.clone(),
                news: match news {
                    News::Raised(_) => "raised".to_owned(),
                    News::Resolved => "resolved".to_owned(),
                },
                level: match news {
                    News::Raised(level) => Some(level.to_string()),
                    News::Resolved => None,
                },
            }));
            parts.push((status, check.critical));
        }
        assert_eq!(told, step.news, "step {number}");
        assert_eq!(overall(parts).as_str(), step.overall, "step {number}");
    }
}

#[test]
fn every_vector_holds() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../vectors/health");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        let text = std::fs::read_to_string(&path).unwrap();
        run(&serde_json::from_str(&text).unwrap());
        files += 1;
    }
    assert!(files > 0, "there are vectors");
}
