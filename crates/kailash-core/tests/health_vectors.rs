//! The health vectors, driven through the machines.

#![expect(
    clippy::unwrap_used,
    reason = "a vector that cannot be read is a failed test"
)]

use std::collections::BTreeMap;

use kailash_core::health::{CheckConfig, Config, Incident, News, Status, overall};

use vector::{Told, Vector};

#[path = "health_vectors/vector.rs"]
mod vector;

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
    for vector in vector::all() {
        run(&vector);
    }
}
