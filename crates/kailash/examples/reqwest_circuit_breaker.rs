//! A reqwest client behind a circuit breaker that counts server errors.
//!
//! The server fails for a while, on a schedule of the example's own; the breaker opens, refuses
//! calls without sending them, and recovers. The example ends by itself:
//!
//! ```sh
//! cargo run -p kailash --features http,tower --example reqwest_circuit_breaker
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use kailash::circuit_breaker::{CallError, CircuitBreaker, Config};
use kailash::layer::circuit_breaker::{CircuitBreakerLayer, HttpStatus, RefusalIsIgnored};
use reqwest::{Client, Request};
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt};

/// After three failures the server is left alone for one second, then probed.
pub(crate) fn config() -> Config {
    Config {
        failure_threshold: 3,
        success_threshold: 2,
        recovery_timeout: Duration::from_secs(1),
        jitter_enabled: false,
        ..Config::default()
    }
}

/// Which requests the server answers with 500, by their number.
const FAULTS: std::ops::RangeInclusive<u32> = 3..=5;

async fn serve(State(requests): State<Arc<AtomicU32>>) -> Result<&'static str, StatusCode> {
    let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
    if FAULTS.contains(&number) {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    Ok("ok")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let breaker = CircuitBreaker::new("server", config())?;
    show(breaker, tokio::time::sleep, &mut io::stdout()).await
}

/// An outage from its first failure to the recovery. A test waits by moving a clock.
pub(crate) async fn show(
    breaker: CircuitBreaker,
    wait: impl AsyncFn(Duration),
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let requests = Arc::new(AtomicU32::new(0));
    let routes = Router::new()
        .route("/", get(serve))
        .with_state(Arc::clone(&requests));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = reqwest::Url::parse(&format!("http://{}", listener.local_addr()?))?;
    tokio::spawn(async move { axum::serve(listener, routes).await });

    // reqwest has no provider of its own where another crate chose that for it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::with_classifier(
            breaker.clone(),
            // A request that cannot be built is the caller's mistake.
            RefusalIsIgnored(HttpStatus),
        ))
        .service(Client::builder().no_proxy().build()?);

    for call in 1..=8 {
        let request = Request::new(reqwest::Method::GET, url.clone());
        let answer = client.ready().await?.call(request).await;
        let state = breaker.state();
        match answer {
            Ok(answer) => writeln!(out, "call {call}: {} (breaker {state})", answer.status())?,
            Err(CallError::Inner(error)) => {
                writeln!(out, "call {call}: no answer: {error} (breaker {state})")?;
            }
            Err(CallError::Rejected(rejected)) => {
                writeln!(out, "call {call}: not sent: {rejected}")?;
                wait(rejected.retry_after.unwrap_or_default()).await;
            }
        }
    }
    let sent = requests.load(Ordering::Relaxed);
    writeln!(out, "8 calls, {sent} requests reached the server")?;
    Ok(())
}
