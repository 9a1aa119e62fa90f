//! The checks against real servers that are healthy, killed, stopped, silent, or refuse who asks.

#![cfg(all(feature = "sql", feature = "redis", feature = "http"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use kailash::ConfigError;
use kailash::health::checks::{Http, HttpConfig, Redis, RedisConfig, Sql, SqlConfig};
use kailash::health::{
    Check, CheckConfig, Config, ErrorClass, Finished, Monitor, Outcome, Report, Status, run_once,
};
use test_servers::{MariaDb, Postgres};

/// For what must answer, however slow the machine is.
const GENEROUS: Duration = Duration::from_secs(60);
/// For what never answers.
const SHORT: Duration = Duration::from_secs(2);

fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

fn mariadb() -> &'static MariaDb {
    static SERVER: OnceLock<MariaDb> = OnceLock::new();
    SERVER.get_or_init(MariaDb::start)
}

fn sql(url: &str) -> Arc<Sql> {
    let url = url.to_owned();
    let config = SqlConfig { url, query: None };
    Arc::new(Sql::new(config).unwrap())
}

fn redis(url: &str) -> Arc<Redis> {
    let config = RedisConfig {
        url: Some(url.to_owned()),
        ..RedisConfig::default()
    };
    Arc::new(Redis::new(config).unwrap())
}

fn http(url: &str) -> Arc<Http> {
    let config = HttpConfig {
        url: url.to_owned(),
        ..HttpConfig::default()
    };
    Arc::new(Http::new(config).unwrap())
}

async fn healthy<C: Check>(check: &Arc<C>) {
    let finished = run_once(Arc::clone(check) as _, GENEROUS).await;
    assert_eq!(finished.outcome.status, Status::Healthy, "{finished:?}");
}

#[track_caller]
fn is(finished: &Finished, class: ErrorClass) {
    let Outcome {
        status,
        class: found,
        message,
        ..
    } = &finished.outcome;
    assert_eq!(*found, Some(class), "{finished:?}");
    let expected = match class {
        ErrorClass::Saturated => Status::Degraded,
        _ => Status::Unhealthy,
    };
    assert_eq!(*status, expected);
    assert!(message.starts_with(class.as_str()), "{message}");
    let text = format!("{finished:?}");
    for secret in ["s3cret", Postgres::PASSWORD, MariaDb::PASSWORD] {
        assert!(!text.contains(secret), "{text}");
    }
}

async fn fails<C: Check>(check: &Arc<C>, class: ErrorClass) {
    is(&run_once(Arc::clone(check) as _, GENEROUS).await, class);
}

async fn times_out<C: Check>(check: &Arc<C>, class: ErrorClass) {
    let finished = run_once(Arc::clone(check) as _, SHORT).await;
    is(&finished, class);
    assert!(finished.response_time >= SHORT);
}

/// A server through all its faults: with a kept connection, and with a new one.
async fn goes_through_faults<C: Check>(
    check: impl Fn() -> Arc<C>,
    kill: impl Fn(),
    stop: impl Fn(),
    cont: impl Fn(),
    restart: impl Fn(),
) {
    let kept = check();
    healthy(&kept).await;
    healthy(&kept).await;
    stop();
    times_out(&kept, ErrorClass::TimeoutAnswer).await;
    times_out(&check(), ErrorClass::TimeoutAnswer).await;
    cont();
    healthy(&kept).await;
    kill();
    fails(&kept, ErrorClass::Refused).await;
    fails(&check(), ErrorClass::Refused).await;
    restart();
    healthy(&kept).await;
    // Its connection is one of the server before.
    restart();
    healthy(&kept).await;
}

#[tokio::test]
async fn postgres_goes_through_faults() {
    let server = Postgres::start();
    goes_through_faults(
        || sql(&server.url()),
        || server.kill(),
        || server.stop(),
        || server.cont(),
        || server.restart(),
    )
    .await;
}

#[tokio::test]
async fn mariadb_goes_through_faults() {
    let server = MariaDb::start();
    goes_through_faults(
        || sql(&server.url()),
        || server.kill(),
        || server.stop(),
        || server.cont(),
        || server.restart(),
    )
    .await;
}

#[tokio::test]
async fn redis_goes_through_faults() {
    let server = test_servers::Redis::with_password("s3cret");
    goes_through_faults(
        || redis(&server.url()),
        || server.kill(),
        || server.stop(),
        || server.cont(),
        || server.restart(),
    )
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_told_as_auth_and_comes_out_nowhere() {
    let port = postgres().port();
    let wrong = format!(
        "postgres://{}:s3cret@127.0.0.1:{port}/postgres",
        Postgres::USER
    );
    fails(&sql(&wrong), ErrorClass::Auth).await;
    let port = mariadb().port();
    let wrong = format!("mysql://{}:s3cret@127.0.0.1:{port}/test", MariaDb::USER);
    fails(&sql(&wrong), ErrorClass::Auth).await;
    let server = test_servers::Redis::with_password("right");
    let port = server.port();
    fails(
        &redis(&format!("redis://:s3cret@127.0.0.1:{port}")),
        ErrorClass::Auth,
    )
    .await;
    fails(
        &redis(&format!("redis://127.0.0.1:{port}")),
        ErrorClass::Auth,
    )
    .await;
}

#[tokio::test]
async fn a_redis_server_is_named_by_its_parts_too() {
    let server = test_servers::Redis::with_password("s3cret");
    let config = RedisConfig {
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        db: 3,
        password: Some("s3cret".to_owned()),
        ..RedisConfig::default()
    };
    assert!(!format!("{config:?}").contains("s3cret"));
    healthy(&Arc::new(Redis::new(config).unwrap())).await;
}

#[tokio::test]
async fn what_a_database_answers_is_told_by_its_kind() {
    let url = postgres().url();
    let nowhere = |url: &str| format!("{}/nowhere", url.rsplit_once('/').unwrap().0);
    let missing = nowhere(&url);
    fails(&sql(&missing), ErrorClass::Missing).await;
    let missing = nowhere(&mariadb().url());
    fails(&sql(&missing), ErrorClass::Missing).await;
    let ask = |query: &str| {
        let query = Some(query.to_owned());
        let url = url.clone();
        Arc::new(Sql::new(SqlConfig { url, query }).unwrap())
    };
    healthy(&ask("SELECT count(*) FROM pg_class; SELECT 2")).await;
    fails(&ask("SELECT * FROM nowhere"), ErrorClass::Missing).await;
    fails(&ask("SELECT 1/0"), ErrorClass::Server).await;
    let read_only = ask("BEGIN READ ONLY; CREATE TABLE t()");
    fails(&read_only, ErrorClass::ReadOnly).await;
    // A role without a place is what everybody meets on a full server.
    healthy(&ask(
        "CREATE ROLE full_up LOGIN PASSWORD 's3cret' CONNECTION LIMIT 0",
    ))
    .await;
    let full = format!(
        "postgres://full_up:s3cret@127.0.0.1:{}/postgres",
        postgres().port()
    );
    fails(&sql(&full), ErrorClass::Saturated).await;
}

#[tokio::test]
async fn a_connection_is_kept_from_run_to_run_and_replaced_when_the_server_ends_it() {
    let url = format!("{}?application_name=kept", postgres().url());
    let check = sql(&url);
    let options: sqlx::postgres::PgConnectOptions = postgres().url().parse().unwrap();
    let mut other = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let mut before = None;
    for _ in 0..3 {
        healthy(&check).await;
        let kept = "SELECT pid FROM pg_stat_activity WHERE application_name = 'kept'";
        let kept: Vec<i32> = sqlx::query_scalar(kept)
            .fetch_all(&mut other)
            .await
            .unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(*before.get_or_insert(kept[0]), kept[0]);
    }
    let end = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'kept'";
    sqlx::query(end).execute(&mut other).await.unwrap();
    healthy(&check).await;
}

/// A way to a server that forgets its connections when told to, as a firewall does: what is sent on
/// them is lost, and nobody hears of it. New ones are let through.
fn forgetful(server: u16) -> (u16, Arc<AtomicUsize>) {
    let forgotten = Arc::new(AtomicUsize::new(0));
    let times = Arc::clone(&forgotten);
    let (port, _) = serve(move |mut client| {
        let mut server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        let known_since = times.load(Ordering::SeqCst);
        let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let mut sent = [0; 4096];
        while let Ok(length @ 1..) = client.read(&mut sent) {
            if times.load(Ordering::SeqCst) == known_since {
                server.write_all(&sent[..length]).unwrap();
            }
        }
    });
    (port, forgotten)
}

#[tokio::test]
async fn a_connection_that_a_firewall_forgot_is_replaced_within_the_run() {
    let (port, forgotten) = forgetful(postgres().port());
    let url = postgres().url();
    let database = sql(&url.replace(&format!(":{}/", postgres().port()), &format!(":{port}/")));
    let server = test_servers::Redis::start();
    let (port, also_forgotten) = forgetful(server.port());
    let cache = redis(&format!("redis://127.0.0.1:{port}"));
    for _ in 0..2 {
        let (database, cache) = (Arc::clone(&database), Arc::clone(&cache));
        let limit = SHORT * 3;
        let found = tokio::join!(run_once(database, limit), run_once(cache, limit));
        assert_eq!(found.0.outcome.status, Status::Healthy, "{found:?}");
        assert_eq!(found.1.outcome.status, Status::Healthy, "{found:?}");
        forgotten.fetch_add(1, Ordering::SeqCst);
        also_forgotten.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_query_that_is_only_slow_is_healthy_on_a_kept_connection_too() {
    let config = SqlConfig {
        url: postgres().url(),
        query: Some("SELECT pg_sleep(2.5)".to_owned()),
    };
    let check = Arc::new(Sql::new(config).unwrap());
    for _ in 0..2 {
        // More than half of the timeout, and less than the whole.
        let finished = run_once(Arc::clone(&check) as _, SHORT * 2).await;
        assert_eq!(finished.outcome.status, Status::Healthy, "{finished:?}");
    }
}

#[tokio::test]
async fn a_sqlite_file_must_be_there_and_be_a_database_and_is_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a file.db");
    let url = format!("sqlite://{}", path.display());
    let check = sql(&url);
    fails(&check, ErrorClass::Missing).await;
    assert!(!Path::new(&path).exists());
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::query("CREATE TABLE orders (id)")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    healthy(&check).await;
    healthy(&check).await;
    std::fs::remove_file(&path).unwrap();
    fails(&check, ErrorClass::Missing).await;
    std::fs::write(
        &path,
        "not a database, but long enough for the header of one. ".repeat(50),
    )
    .unwrap();
    fails(&check, ErrorClass::Mismatch).await;
    healthy(&sql("sqlite::memory:")).await;
}

/// A listener that accepts and stays silent.
fn silent() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).unwrap()
}

/// A server whose every connection is served by a function on a thread of its own, and the number of
/// connections it had.
fn serve(connection: impl Fn(TcpStream) + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = silent();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let connection = Arc::new(connection);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let connection = Arc::clone(&connection);
            thread::spawn(move || connection(stream));
        }
    });
    (port, connections)
}

/// Reads a request up to its empty line; `None` at the end of the connection.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&request).into_owned())
}

/// An HTTP server that gives every request the same answer.
fn answers(answer: &'static str) -> (String, Arc<AtomicUsize>) {
    let (port, connections) = serve(move |mut stream| {
        while request(&mut stream).is_some() {
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (format!("http://127.0.0.1:{port}/health"), connections)
}

#[tokio::test]
async fn whoever_accepts_and_stays_silent_is_connected_without_an_answer() {
    let listener = silent();
    let port = listener.local_addr().unwrap().port();
    let (postgres, mysql, redis, http, https) = (
        sql(&format!("postgres://a:s3cret@127.0.0.1:{port}/x")),
        sql(&format!("mysql://a:s3cret@127.0.0.1:{port}/x")),
        redis(&format!("redis://:s3cret@127.0.0.1:{port}")),
        http(&format!("http://a:s3cret@127.0.0.1:{port}/?token=s3cret")),
        http(&format!("https://a:s3cret@localhost:{port}/")),
    );
    tokio::join!(
        times_out(&postgres, ErrorClass::TimeoutAnswer),
        times_out(&mysql, ErrorClass::TimeoutAnswer),
        times_out(&redis, ErrorClass::TimeoutAnswer),
        times_out(&http, ErrorClass::TimeoutAnswer),
        times_out(&https, ErrorClass::TimeoutAnswer),
    );
}

#[tokio::test]
async fn whoever_does_not_even_accept_is_a_timeout_of_connecting() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Connections that nobody takes fill the listener's queue, until another one waits.
    let mut queue = Vec::new();
    let patience = Duration::from_millis(500);
    while let Ok(stream) =
        tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await
    {
        queue.push(stream.unwrap());
    }
    let port = address.port();
    let (postgres, http) = (
        sql(&format!("postgres://a:s3cret@127.0.0.1:{port}/x")),
        http(&format!("http://127.0.0.1:{port}/")),
    );
    tokio::join!(
        times_out(&postgres, ErrorClass::TimeoutConnect),
        times_out(&http, ErrorClass::TimeoutConnect),
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_told_as_dns() {
    let (postgres, redis, http) = (
        sql("postgres://a:s3cret@no-such-host.invalid/x"),
        redis("redis://:s3cret@no-such-host.invalid"),
        http("http://no-such-host.invalid/"),
    );
    tokio::join!(
        fails(&postgres, ErrorClass::Dns),
        fails(&redis, ErrorClass::Dns),
        fails(&http, ErrorClass::Dns),
    );
}

#[tokio::test]
async fn an_http_service_is_as_its_status_is_expected() {
    let (no_content, _) = answers("HTTP/1.1 204 No Content\r\n\r\n");
    healthy(&http(&no_content)).await;
    let (unavailable, _) =
        answers("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
    fails(&http(&unavailable), ErrorClass::Status).await;
    let config = HttpConfig {
        url: unavailable.clone(),
        expected_status: vec![200..=200, 503..=503],
        ..HttpConfig::default()
    };
    let check = Arc::new(Http::new(config).unwrap());
    healthy(&check).await;
    let (moved, connections) =
        answers("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n");
    fails(&http(&moved), ErrorClass::Status).await;
    assert_eq!(
        connections.load(Ordering::SeqCst),
        1,
        "redirects are not followed"
    );
}

#[tokio::test]
async fn an_http_connection_is_kept_and_replaced_when_the_server_closes_it() {
    let (url, connections) = answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let check = http(&url);
    for _ in 0..3 {
        healthy(&check).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let (port, connections) = serve(|mut stream| {
        if request(&mut stream).is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).unwrap();
        }
    });
    let check = http(&format!("http://127.0.0.1:{port}/"));
    for runs in 1..=10 {
        healthy(&check).await;
        assert_eq!(connections.load(Ordering::SeqCst), runs);
    }
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_a_timeout_of_its_body() {
    let (port, _) = serve(|mut stream| {
        request(&mut stream);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning";
        stream.write_all(head).unwrap();
        // Until the check goes away.
        let _ = stream.read(&mut [0]);
    });
    let check = http(&format!("http://127.0.0.1:{port}/"));
    times_out(&check, ErrorClass::TimeoutBody).await;
}

#[tokio::test]
async fn of_an_answer_without_an_end_only_a_part_is_read() {
    let (port, _) = serve(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 65_536]).is_ok() {}
    });
    healthy(&http(&format!("http://127.0.0.1:{port}/"))).await;
}

#[tokio::test]
async fn headers_and_the_user_of_the_url_are_sent() {
    let (port, _) = serve(|mut stream| {
        while let Some(request) = request(&mut stream) {
            let request = request.to_ascii_lowercase();
            let sent = request.contains("authorization: basic ytpzm2nyzxq=")
                && request.contains("x-probe: yes");
            let status = if sent { "200 OK" } else { "401 Unauthorized" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let url = format!("http://a:s3cret@127.0.0.1:{port}/");
    fails(&http(&url), ErrorClass::Status).await;
    let config = HttpConfig {
        url,
        headers: vec![("X-Probe".to_owned(), "yes".to_owned())],
        ..HttpConfig::default()
    };
    healthy(&Arc::new(Http::new(config).unwrap())).await;
}

#[tokio::test]
async fn who_speaks_another_protocol_is_told_as_such() {
    let (port, _) = serve(|mut stream| {
        let _ = stream.write_all(b"220 mail\r\n");
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"what?\r\n");
    });
    fails(
        &http(&format!("http://127.0.0.1:{port}/")),
        ErrorClass::Mismatch,
    )
    .await;
    fails(
        &sql(&format!("postgres://a:s3cret@127.0.0.1:{port}/x")),
        ErrorClass::Mismatch,
    )
    .await;
    fails(
        &http(&format!("https://localhost:{port}/")),
        ErrorClass::Tls,
    )
    .await;
}

#[tokio::test]
async fn a_certificate_that_nobody_trusts_is_told_as_tls() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/certificate.pem"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.unwrap()], key)
        .unwrap();
    let config = Arc::new(config);
    let (port, _) = serve(move |mut stream| {
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut stream);
        let _ = stream.read(&mut [0]);
    });
    let url = format!("https://localhost:{port}/?token=s3cret");
    let finished = run_once(http(&url) as _, GENEROUS).await;
    is(&finished, ErrorClass::Tls);
    let expected = format!("tls: unknown issuer: https://localhost:{port}/");
    assert_eq!(finished.outcome.message, expected);
}

#[tokio::test]
async fn what_a_redis_server_answers_is_told_by_its_kind() {
    for (answer, class) in [
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            ErrorClass::Starting,
        ),
        (
            "-READONLY You can't write against a read only replica.\r\n",
            ErrorClass::ReadOnly,
        ),
        ("-MISCONF Errors writing to disk\r\n", ErrorClass::ReadOnly),
        ("-NOAUTH Authentication required.\r\n", ErrorClass::Auth),
        (
            "-ERR max number of clients reached\r\n",
            ErrorClass::Saturated,
        ),
        ("-ERR unknown command s3cret\r\n", ErrorClass::Server),
        ("+HELLO\r\n", ErrorClass::Mismatch),
    ] {
        let (port, _) = serve(move |mut stream| {
            let mut received = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut received) {
                // One answer for each command that came.
                let commands = received[..length]
                    .iter()
                    .filter(|&&byte| byte == b'*')
                    .count();
                let _ = stream.write_all(answer.repeat(commands).as_bytes());
            }
        });
        fails(&redis(&format!("redis://127.0.0.1:{port}")), class).await;
    }
}

#[test]
fn a_config_that_cannot_be_used_names_the_field_and_no_secret() {
    fn field<T>(result: Result<T, ConfigError>) -> &'static str {
        let error = result.err().unwrap();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error.field
    }
    let url = || "oracle://a:s3cret@db/x".to_owned();
    assert_eq!(
        field(Sql::new(SqlConfig {
            url: url(),
            query: None
        })),
        "url"
    );
    let config = RedisConfig {
        url: Some(url()),
        ..RedisConfig::default()
    };
    assert_eq!(field(Redis::new(config)), "url");
    let config = |url: &str| HttpConfig {
        url: url.to_owned(),
        ..HttpConfig::default()
    };
    assert_eq!(field(Http::new(config("ftp://a:s3cret@host/"))), "url");
    let mut wrong = config("http://host/");
    wrong.expected_status = vec![600..=700];
    assert_eq!(field(Http::new(wrong)), "expected_status");
    let mut wrong = config("http://host/");
    wrong.expected_status.clear();
    assert_eq!(field(Http::new(wrong)), "expected_status");
    let mut wrong = config("http://host/");
    wrong.headers = vec![("a name".to_owned(), "s3cret".to_owned())];
    assert_eq!(field(Http::new(wrong)), "headers");
}

/// Polls a condition of the monitor, and says how long it took to hold.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < GENEROUS, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_monitor_tells_of_a_killed_and_a_stopped_server_and_of_its_return() {
    let server = Postgres::start();
    let config = Config {
        check_interval: Duration::from_millis(100),
        alert_threshold: 3,
    };
    let monitor = Monitor::new(config).unwrap();
    let check = CheckConfig {
        timeout: SHORT,
        ..CheckConfig::default()
    };
    monitor
        .register("database", check, sql(&server.url()))
        .unwrap();
    monitor.start();
    let reads = |wanted: fn(&Report) -> bool| {
        let monitor = monitor.clone();
        move || {
            let monitor = monitor.clone();
            async move { wanted(&monitor.status("database").await.unwrap()) }
        }
    };
    let is_healthy = |report: &Report| report.status == Status::Healthy;
    let first = until("healthy at first", reads(is_healthy)).await;
    server.kill();
    let refused = |report: &Report| report.class == Some(ErrorClass::Refused);
    let killed = until("refused", reads(refused)).await;
    let is_alert = || {
        let monitor = monitor.clone();
        async move { monitor.alerts(Some(false)).len() == 1 }
    };
    let alerted = until("an alert", is_alert).await;
    server.restart();
    let back = until("healthy again", reads(is_healthy)).await;
    server.stop();
    let silent = |report: &Report| report.class == Some(ErrorClass::TimeoutAnswer);
    let stopped = until("no answer", reads(silent)).await;
    server.cont();
    until("healthy in the end", reads(is_healthy)).await;
    let resolved = || {
        let monitor = monitor.clone();
        async move { monitor.alerts(Some(false)).is_empty() }
    };
    until("resolved", resolved).await;
    assert!(!format!("{:?}", monitor.alerts(None)).contains(Postgres::PASSWORD));
    println!(
        "healthy after {first:?}; from kill -9 to refused {killed:?}, to the alert {:?}; \
         from restart to healthy {back:?}; from SIGSTOP to no answer {stopped:?}",
        killed + alerted
    );
}
