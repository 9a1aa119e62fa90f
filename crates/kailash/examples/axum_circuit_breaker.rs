//! A server whose routes that need the warehouse sit behind a circuit breaker.
//!
//! While the warehouse is down, three requests fail, the rest are answered at once with 503 and
//! `Retry-After`, and the routes that can do without it go on. The example is its own client, and
//! ends by itself:
//!
//! ```sh
//! cargo run -p kailash --features http,tower --example axum_circuit_breaker
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use kailash::circuit_breaker::{CallError, CircuitBreaker, Config};
use kailash::layer::circuit_breaker::{CircuitBreakerLayer, HttpStatus};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// After three failures the warehouse is left alone for two seconds, then probed.
pub(crate) fn config() -> Config {
    Config {
        failure_threshold: 3,
        success_threshold: 2,
        recovery_timeout: Duration::from_secs(2),
        jitter_enabled: false,
        ..Config::default()
    }
}

fn routes(breaker: CircuitBreaker, warehouse: Arc<AtomicBool>) -> Router {
    let behind_the_breaker = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(refuse))
        .layer(CircuitBreakerLayer::with_classifier(breaker, HttpStatus));
    let stock = Router::new()
        .route("/stock", get(stock))
        .with_state(warehouse)
        .layer(behind_the_breaker);
    let version = Router::new().route("/version", get(async || "1.0"));
    stock.merge(version)
}

async fn stock(State(warehouse): State<Arc<AtomicBool>>) -> Result<&'static str, StatusCode> {
    let is_up = warehouse.load(Ordering::Relaxed);
    is_up.then_some("7 left").ok_or(StatusCode::BAD_GATEWAY)
}

async fn refuse(error: CallError<Infallible>) -> Response {
    match error {
        CallError::Rejected(rejected) => rejected.to_http_response(),
        CallError::Inner(never) => match never {},
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let breaker = CircuitBreaker::new("warehouse", config())?;
    show(breaker, tokio::time::sleep, &mut io::stdout()).await
}

/// An outage from its first failure to the recovery. A test waits by moving a clock.
pub(crate) async fn show(
    breaker: CircuitBreaker,
    wait: impl AsyncFn(Duration),
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let warehouse = Arc::new(AtomicBool::new(true));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let routes = routes(breaker.clone(), Arc::clone(&warehouse));
    tokio::spawn(async move { axum::serve(listener, routes).await });

    // reqwest has no provider of its own where another crate chose that for it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut ask = async |path: &str| {
        let answer = client.get(format!("{server}{path}")).send().await?;
        let status = answer.status();
        let wait = answer.headers().get(header::RETRY_AFTER);
        let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
        let state = breaker.state();
        match wait {
            None => writeln!(out, "GET {path}: {status} (breaker {state})")?,
            Some(wait) => writeln!(
                out,
                "GET {path}: {status}, retry after {wait} s (breaker {state})"
            )?,
        }
        Ok::<_, Box<dyn Error>>(wait.map(Duration::from_secs))
    };

    ask("/stock").await?;
    warehouse.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        ask("/stock").await?;
    }
    let retry_after = ask("/stock").await?;
    ask("/version").await?;

    warehouse.store(true, Ordering::Relaxed);
    wait(retry_after.ok_or("the breaker did not open")?).await;
    for _ in 0..3 {
        ask("/stock").await?;
    }
    Ok(())
}
