//! Refusals are known wherever they are, and breakers around other layers count them for nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::error::Error;
use std::fmt;
use std::future::{pending, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use kailash::bulkhead::{self, Admission, Partition, PartitionConfig, PartitionType, RunError};
use kailash::circuit_breaker::{
    self, CircuitBreaker, Config, State, boxed_refusal_is_ignored, refusal_is_ignored,
};
use kailash::clock::Clock;
use kailash::refusal::{NeverMade, is_refusal};

type Boxed = Box<dyn Error + Send + Sync>;

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new("b", Config::default()).unwrap()
}

fn forced_open() -> CircuitBreaker {
    let breaker = breaker();
    breaker.force_open();
    breaker
}

/// One slot and no queue.
fn partition() -> Partition {
    let config = PartitionConfig {
        max_concurrent_operations: 1,
        queue_size: 0,
        timeout: None,
        ..PartitionConfig::new("p", PartitionType::Custom)
    };
    Partition::with_clock(config, Clock::tokio()).unwrap()
}

fn down() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

async fn fails() -> Result<u32, io::Error> {
    Err(down())
}

/// An error of a caller's own around another.
#[derive(Debug)]
struct Wrapped<E>(E);

impl<E> fmt::Display for Wrapped<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl<E: Error + 'static> Error for Wrapped<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn each_refusal_is_known_and_nothing_else_is_one() {
    let rejected = forced_open().try_acquire().unwrap_err();
    let partition = partition();
    let slot = partition.try_acquire().unwrap();
    let full = partition.try_acquire().unwrap_err();
    drop(slot);
    let timed_out = partition.time_out(Duration::from_secs(1));
    partition.close();
    let closed = partition.run(ready(())).await.unwrap_err();
    assert!(matches!(closed, RunError::Closed(_)));

    type Call<E> = circuit_breaker::CallError<E>;
    type InPartition<E> = bulkhead::CallError<E>;
    let within: Call<InPartition<io::Error>> = Call::Inner(full.clone().into());
    let refusals: [Boxed; 14] = [
        rejected.clone().into(),
        full.clone().into(),
        closed.clone().into(),
        RunError::Full(full.clone()).into(),
        Call::<io::Error>::Rejected(rejected.clone()).into(),
        InPartition::<io::Error>::from(closed).into(),
        within.into(),
        InPartition::Inner(Call::<io::Error>::Rejected(rejected.clone())).into(),
        Call::Inner(Wrapped(rejected.clone())).into(),
        io::Error::other(Wrapped(Arc::new(full))).into(),
        NeverMade.into(),
        Call::Inner(NeverMade).into(),
        InPartition::Inner(NeverMade).into(),
        Call::Inner(InPartition::Inner(NeverMade)).into(),
    ];
    for error in refusals {
        assert!(is_refusal(error.as_ref()), "{error:?}");
    }
    let others: [Boxed; 6] = [
        "no answer".into(),
        down().into(),
        timed_out.clone().into(),
        RunError::TimedOut(timed_out.clone()).into(),
        Call::Inner(InPartition::<io::Error>::TimedOut(timed_out)).into(),
        Wrapped(InPartition::Inner(Call::Inner(down()))).into(),
    ];
    for error in others {
        assert!(!is_refusal(error.as_ref()), "{error:?}");
    }
}

#[test]
fn what_a_refusal_says_last_is_that_the_call_was_never_made() {
    let rejected = forced_open().try_acquire().unwrap_err();
    let mut said = vec![rejected.to_string()];
    let mut source = rejected.source();
    while let Some(error) = source {
        said.push(error.to_string());
        source = error.source();
    }
    let expected = [
        "circuit breaker \"b\" is forced open",
        "the call was never made",
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_refusal_of_an_inner_breaker_is_neutral_to_the_outer_one() {
    let (outer, inner) = (breaker(), forced_open());
    for _ in 0..5 {
        let call = || inner.call(fails);
        assert!(outer.call_with(refusal_is_ignored, call).await.is_err());
        let call = || inner.call_sync(|| Err::<u32, _>(down()));
        assert!(outer.call_sync_with(refusal_is_ignored, call).is_err());
        let call = async || -> Result<u32, Boxed> { Ok(inner.call(fails).await?) };
        let result = outer.call_with(boxed_refusal_is_ignored, call).await;
        assert!(result.is_err());
        // The leaf is a box, and the refusal is not.
        let call = || inner.call(async || Err::<u32, Boxed>("down".into()));
        let result = outer.call_with(boxed_refusal_is_ignored, call).await;
        assert!(result.is_err());
    }
    let seen = outer.snapshot();
    assert_eq!(
        (seen.state, seen.calls, seen.failures),
        (State::Closed, 0, 0)
    );

    inner.force_close();
    let call = || inner.call(async || Ok::<_, io::Error>(1));
    assert_eq!(outer.call_with(refusal_is_ignored, call).await.unwrap(), 1);
    for _ in 0..5 {
        let call = || inner.call(fails);
        assert!(outer.call_with(refusal_is_ignored, call).await.is_err());
    }
    assert_eq!(outer.state(), State::Open, "what fails still counts");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_around_a_partition_counts_what_fails_in_it_and_not_that_it_is_full() {
    let (breaker, partition) = (breaker(), partition());
    let call = || breaker.call_with(refusal_is_ignored, || partition.call(fails));
    let slot = partition.try_acquire().unwrap();
    for _ in 0..50 {
        assert!(call().await.is_err());
    }
    assert_eq!(breaker.snapshot().failures, 0);
    drop(slot);
    for _ in 0..5 {
        assert!(call().await.is_err());
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(partition.snapshot().run, 6, "the held slot's and five");
}

#[tokio::test(start_paused = true)]
async fn breakers_on_both_sides_of_a_partition_count_what_is_theirs() {
    let (outer, inner, partition) = (breaker(), breaker(), partition());
    let call = || {
        let within = || partition.call(|| inner.call(fails));
        outer.call_with(refusal_is_ignored, within)
    };
    for _ in 0..4 {
        assert!(call().await.is_err());
    }
    inner.force_open();
    for _ in 0..50 {
        assert!(call().await.is_err());
    }
    let failures = [&outer, &inner].map(|breaker| breaker.snapshot().failures);
    assert_eq!((outer.state(), failures), (State::Closed, [4, 4]));
}

#[tokio::test(start_paused = true)]
async fn a_call_in_a_partition_is_one_result() {
    use bulkhead::CallError;
    let partition = partition();
    let soon = Admission {
        timeout: Some(Duration::from_secs(1)),
        ..Admission::default()
    };
    let good = partition.call(async || Ok::<_, io::Error>(1));
    assert_eq!(good.await.unwrap(), 1);
    let bad = partition.call(fails).await;
    assert!(matches!(bad, Err(CallError::Inner(error)) if error.kind() == down().kind()));
    let hangs = partition.call_with(soon, pending::<Result<u32, io::Error>>);
    assert!(matches!(hangs.await, Err(CallError::TimedOut(_))));

    let good = partition.call_blocking(|| Ok::<_, io::Error>(1));
    assert_eq!(good.await.unwrap(), 1);
    let bad = partition.call_blocking_with(Admission::default(), || Err::<u32, _>(down()));
    assert!(matches!(bad.await, Err(CallError::Inner(_))));

    let slot = partition.try_acquire().unwrap();
    let is_made = std::cell::Cell::new(false);
    let full = partition.call(|| {
        is_made.set(true);
        fails()
    });
    assert!(matches!(full.await, Err(CallError::Full(_))));
    assert!(!is_made.get());
    let full = partition.call_blocking(|| Ok::<_, io::Error>(1)).await;
    assert!(matches!(full, Err(CallError::Full(_))));
    drop(slot);
    partition.close();
    let closed = partition.call(fails).await;
    assert!(matches!(closed, Err(CallError::Closed(_))));
    let closed = partition.call_blocking(|| Ok::<_, io::Error>(1)).await;
    assert!(matches!(closed, Err(CallError::Closed(_))));
}

#[cfg(feature = "http")]
#[tokio::test]
async fn a_request_that_cannot_be_built_counts_for_nothing_wherever_the_breaker_stands() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let send = || client.get("no url").send();
    let (outer, inner) = (breaker(), breaker());
    let partition = partition();
    for _ in 0..5 {
        let call = || partition.call(send);
        assert!(outer.call_with(refusal_is_ignored, call).await.is_err());
        let call = || partition.call(|| inner.call_with(refusal_is_ignored, send));
        assert!(outer.call_with(refusal_is_ignored, call).await.is_err());
    }
    assert_eq!(
        [&outer, &inner].map(|breaker| breaker.snapshot().calls),
        [0; 2]
    );

    let error = partition.call(send).await.unwrap_err();
    let mut last: &dyn Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    assert_eq!(last.to_string(), "relative URL without a base");
}

#[cfg(feature = "http")]
#[tokio::test]
async fn a_redirect_to_another_scheme_is_an_answer() {
    use std::io::{Read, Write};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        let answer =
            "HTTP/1.1 302 Found\r\nLocation: ftp://example.org/\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let breaker = breaker();
    let send = || client.get(&url).send();
    let call = breaker.call_with(refusal_is_ignored, send).await;
    assert!(call.unwrap_err().to_string().contains("ftp://example.org/"));
    assert_eq!(breaker.snapshot().failures, 1);
    server.join().unwrap();
}
