//! The examples do what they say.

#![expect(clippy::unwrap_used, reason = "a test")]

use kailash::circuit_breaker::{CircuitBreaker, Config};
use kailash::clock::{Clock, ManualClock};

#[path = "../examples/axum_circuit_breaker.rs"]
#[expect(dead_code, reason = "its main waits on a real clock")]
mod axum_circuit_breaker;

#[path = "../examples/reqwest_circuit_breaker.rs"]
#[expect(dead_code, reason = "its main waits on a real clock")]
mod reqwest_circuit_breaker;

fn breaker(name: &str, config: Config) -> (CircuitBreaker, ManualClock) {
    let (clock, hand) = Clock::manual();
    let breaker = CircuitBreaker::with_clock(name, config, clock);
    (breaker.unwrap(), hand)
}

fn check(printed: Vec<u8>, expected: &str) {
    assert_eq!(String::from_utf8(printed).unwrap(), expected);
}

#[tokio::test]
async fn a_server_refuses_at_once_while_its_dependency_is_down_and_recovers() {
    let (breaker, hand) = breaker("warehouse", axum_circuit_breaker::config());
    let mut printed = Vec::new();
    let wait = async |time| hand.advance(time);
    let shown = axum_circuit_breaker::show(breaker, wait, &mut printed);
    shown.await.unwrap();
    check(
        printed,
        "\
GET /stock: 200 OK (breaker closed)
GET /stock: 502 Bad Gateway (breaker closed)
GET /stock: 502 Bad Gateway (breaker closed)
GET /stock: 502 Bad Gateway (breaker open)
GET /stock: 503 Service Unavailable, retry after 2 s (breaker open)
GET /version: 200 OK (breaker open)
GET /stock: 200 OK (breaker half_open)
GET /stock: 200 OK (breaker closed)
GET /stock: 200 OK (breaker closed)
",
    );
}

#[tokio::test]
async fn a_client_sends_nothing_to_a_server_that_fails_until_it_has_recovered() {
    let (breaker, hand) = breaker("server", reqwest_circuit_breaker::config());
    let mut printed = Vec::new();
    let wait = async |time| hand.advance(time);
    let shown = reqwest_circuit_breaker::show(breaker, wait, &mut printed);
    shown.await.unwrap();
    check(
        printed,
        "\
call 1: 200 OK (breaker closed)
call 2: 200 OK (breaker closed)
call 3: 500 Internal Server Error (breaker closed)
call 4: 500 Internal Server Error (breaker closed)
call 5: 500 Internal Server Error (breaker open)
call 6: not sent: circuit breaker \"server\" is open (consecutive_failures), retry in 1.000 s
call 7: 200 OK (breaker half_open)
call 8: 200 OK (breaker closed)
8 calls, 7 requests reached the server
",
    );
}
