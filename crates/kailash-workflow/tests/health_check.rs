//! The health-check node on real servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::sync::Arc;
use std::time::Duration;

use kailash::health::checks::Custom;
use kailash_workflow::nodes::HealthCheck;
use kailash_workflow::nodes::health_check::Service;
use kailash_workflow::{Map, Node, Value};
use serde_json::json;
use test_servers::{Postgres, Redis};

async fn outputs(node: &HealthCheck) -> serde_json::Value {
    Value::Map(node.run(Map::new()).await.unwrap()).to_json()
}

#[tokio::test]
async fn services_are_asked_and_the_critical_ones_decide() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let services = json!([
        {"name": "database", "type": "database", "connection_string": postgres.url(), "critical": true},
        {"name": "cache", "type": "redis", "redis_config": {"host": "127.0.0.1", "port": redis.port()}, "critical": false},
    ]);
    let node = HealthCheck::read(&Value::from(services)).unwrap();
    let all = outputs(&node).await;
    assert_eq!(all["overall_status"], "healthy", "{all}");
    assert_eq!(
        (&all["healthy_count"], &all["unhealthy_count"]),
        (&json!(2), &json!(0))
    );
    assert!(all["services"]["cache"]["latency"].is_f64() && all["total_latency"].is_f64());
    assert!(all["timestamp"].as_str().unwrap().ends_with("+00:00"));

    redis.kill();
    let all = outputs(&node).await;
    assert_eq!(all["overall_status"], "degraded", "{all}");
    assert_eq!(all["services"]["cache"]["status"], "unhealthy");
    assert!(all["services"]["cache"]["error"].is_string(), "{all}");

    postgres.kill();
    let all = outputs(&node).await;
    assert_eq!(all["overall_status"], "unhealthy", "{all}");
    assert_eq!(
        (&all["healthy_count"], &all["unhealthy_count"]),
        (&json!(0), &json!(2))
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_is_unhealthy_after_its_timeout() {
    let check = Arc::new(Custom::new(std::future::pending::<bool>));
    let service = Service {
        name: "x".to_owned(),
        critical: true,
        timeout: Duration::from_secs(2),
        check,
    };
    let all = outputs(&HealthCheck::new(vec![service])).await;
    assert_eq!(all["overall_status"], "unhealthy");
}

#[tokio::test]
async fn services_may_come_as_an_input() {
    let services =
        json!([{"name": "d", "type": "database", "connection_string": "sqlite::memory:"}]);
    let inputs = Map::from_iter([("services".to_owned(), Value::from(services))]);
    let all = HealthCheck::default().run(inputs).await.unwrap();
    assert_eq!(all["overall_status"], Value::from("healthy"));
    let all = HealthCheck::default().run(Map::new()).await.unwrap();
    assert_eq!(all["overall_status"], Value::from("unknown"));
}

#[test]
fn a_wrong_service_is_named() {
    for (services, error) in [
        (
            json!({}),
            "services: a map is not allowed, a list of maps is",
        ),
        (
            json!([1]),
            "services[0]: an integer is not allowed, a map is",
        ),
        (json!([{"type": "redis"}]), "services[0].name: is missing"),
        (
            json!([{"name": "a", "type": "redis", "redis_config": {"prot": 1}}]),
            "services[0].redis_config.prot: unknown key",
        ),
        (
            json!([{"name": "a", "type": "redis", "redis_config": {"port": 70000}}]),
            "services[0].port: an integer is not allowed, a whole number in range is",
        ),
        (
            json!([{"name": "a", "type": "database"}]),
            "services[0].connection_string: is missing",
        ),
        (
            json!([{"name": "a", "type": "http", "url": "http://a/", "critical": 1}]),
            "services[0].critical: an integer is not allowed, true or false is",
        ),
        (
            json!([{"name": "a", "type": "redis"}, {"name": "a", "type": "redis"}]),
            "services[1].name: \"a\" is the name of two services",
        ),
    ] {
        assert_eq!(
            HealthCheck::read(&Value::from(services))
                .unwrap_err()
                .to_string(),
            error
        );
    }
    let secret =
        json!([{"name": "a", "type": "database", "connection_string": "oracle://u:hunter2@h/d"}]);
    let error = HealthCheck::read(&Value::from(secret)).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}
