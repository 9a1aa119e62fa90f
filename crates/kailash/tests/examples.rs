//! The examples do what they say.

#![expect(clippy::unwrap_used, reason = "a test")]

use kailash::circuit_breaker::{CircuitBreaker, Config};
use kailash::clock::{Clock, ManualClock};

#[path = "../examples/axum_circuit_breaker.rs"]
#[expect(dead_code, reason = "its main waits on a real clock")]
mod axum_circuit_breaker;

#[path = "../examples/circuit_breaker_metrics.rs"]
#[expect(dead_code, reason = "its main waits on a real clock")]
mod circuit_breaker_metrics;

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

#[test]
fn metrics_have_series_for_each_breaker_by_name_and_few_for_all_keys_of_a_group() {
    let (clock, hand) = Clock::manual();
    let mut printed = Vec::new();
    circuit_breaker_metrics::show(clock, |time| hand.advance(time), &mut printed).unwrap();
    let printed = String::from_utf8(printed).unwrap();
    let of = |name: &str| -> Vec<&str> {
        let lines = printed.lines();
        lines.filter(|line| line.starts_with(name)).collect()
    };
    assert_eq!(
        of("circuit_breaker_calls_total"),
        [
            "circuit_breaker_calls_total{breaker=\"database\"} 3",
            "circuit_breaker_calls_total{group=\"host\",breaker=\"host/10.0.0.7\"} 0",
            "circuit_breaker_calls_total{group=\"host\"} 10",
        ]
    );
    assert_eq!(of("circuit_breaker_state").len(), 10);
    let open = "circuit_breaker_state{group=\"host\",breaker=\"host/10.0.0.7\",state=\"open\"} 1";
    assert!(of("circuit_breaker_state").contains(&open));
    let buckets = of("circuit_breaker_call_duration_seconds_bucket{breaker=\"database\"");
    assert_eq!(buckets.len(), 32);
    for (bound, count) in [("0.002097152", 0), ("0.004194304", 1), ("0.008388608", 2)] {
        let end = format!("le=\"{bound}\"}} {count}");
        assert!(buckets.iter().any(|line| line.ends_with(&end)), "{end}");
    }
    assert!(buckets[31].ends_with("le=\"+Inf\"} 3"));
    let sum = "circuit_breaker_call_duration_seconds_sum{breaker=\"database\"} 0.048";
    assert!(of("circuit_breaker_call_duration_seconds_sum").contains(&sum));
}
