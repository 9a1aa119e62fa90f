//! A workflow once per row, on a real database and a real service.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures_util::stream;
use kailash::bulkhead::{self, PartitionConfig, PartitionType};
use kailash::circuit_breaker;
use kailash_workflow::nodes::SqlDatabase;
use kailash_workflow::{Inputs, Items, LocalRuntime, Value, WorkflowBuilder};
use serde_json::json;
use test_servers::Postgres;

/// A service that counts what it accepts, and fails for every 7th key.
async fn service(accepted: Arc<AtomicU64>) -> String {
    let order = move |headers: HeaderMap| {
        let accepted = Arc::clone(&accepted);
        async move {
            let key: u64 = headers["idempotency-key"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            if key.is_multiple_of(7) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            accepted.fetch_add(1, Ordering::SeqCst);
            StatusCode::CREATED
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    let router = Router::new().route("/orders", post(order));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn runtime() -> LocalRuntime {
    let partitions = bulkhead::Manager::new();
    for (name, slots) in [("database", 20), ("api", 32)] {
        let config = PartitionConfig {
            max_concurrent_operations: slots,
            max_connections: Some(4),
            ..PartitionConfig::new(name, PartitionType::Custom)
        };
        partitions.configure(config).unwrap();
    }
    LocalRuntime::new(circuit_breaker::Manager::new(), partitions)
}

async fn store_and_announce(database: &str, rows: u64) {
    let orders = SqlDatabase::new(database).unwrap();
    for table in [
        "orders (id BIGINT PRIMARY KEY, customer VARCHAR(50))",
        "outbox (id BIGINT PRIMARY KEY)",
    ] {
        orders
            .execute(&format!("CREATE TABLE {table}"), ())
            .await
            .unwrap();
    }
    let accepted = Arc::new(AtomicU64::new(0));
    let url = service(Arc::clone(&accepted)).await;
    let mut builder = WorkflowBuilder::new();
    let store = json!({
        "connection_string": database,
        "partition": "database",
        "statements": [
            {
                "query": "INSERT INTO orders VALUES (:id, :customer)",
                "parameters": {"id": "${row.id}", "customer": "${row.customer}"},
            },
            {"query": "INSERT INTO outbox VALUES (?)", "parameters": ["${row.id}"]},
        ],
    });
    builder.add_node("SQLDatabaseNode", "store", store).unwrap();
    let announce = json!({
        "url": url,
        "method": "POST",
        "headers": {"Idempotency-Key": "${row.id}"},
        "json": "${row}",
        "partition": "api",
    });
    builder
        .add_node("HTTPRequestNode", "announce", announce)
        .unwrap();
    builder.add_order("store", "announce").unwrap();
    let workflow = runtime().prepare(&builder.build().unwrap()).unwrap();

    let items = (1..=rows).map(|id| {
        (
            id,
            Inputs::from(json!({"row": {"id": id, "customer": "Ada"}})),
        )
    });
    let mut runs = Items::run(&workflow, stream::iter(items), 64).unwrap();
    let mut done = 0;
    while let Some((id, run)) = runs.next().await {
        assert!(run.is_success(), "{id}: {:?}", run.results);
        let status = &run.results["announce"].outputs().unwrap()["status_code"];
        assert_eq!(status, &Value::Int(if id % 7 == 0 { 503 } else { 201 }));
        done += 1;
    }
    assert_eq!(done, rows);
    assert_eq!(runs.control().progress().finished, rows);
    assert_eq!(accepted.load(Ordering::SeqCst), rows - rows / 7);
    for table in ["orders", "outbox"] {
        let count = orders
            .execute(&format!("SELECT count(*) AS n FROM {table}"), ())
            .await
            .unwrap();
        assert_eq!(count.data[0]["n"], Value::from(rows));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_stored_and_announced_once_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", directory.path().join("shop.db").display());
    store_and_announce(&database, 5000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_stored_and_announced_once_on_postgres() {
    let server = Postgres::start();
    store_and_announce(&server.url(), 500).await;
}
