//! The example, run as users run it: nothing is lost, and every order is accepted once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kailash_workflow::Value;
use kailash_workflow::nodes::{HttpRequest, SqlDatabase};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use test_servers::{MariaDb, Postgres};

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static MARIADB: LazyLock<MariaDb> = LazyLock::new(MariaDb::start);

/// How long anything may take before the test gives up on it.
const LIMIT: Duration = Duration::from_secs(120);

/// The example with an input, a database and faults of the test's own.
struct Orders {
    folder: TempDir,
    database: String,
    sets: Vec<String>,
}

impl Orders {
    fn new(count: usize) -> Self {
        let mut csv = "id,customer,email,item,quantity,amount,placed_at\n".to_owned();
        for id in 1..=count {
            writeln!(
                csv,
                "{id},Ada,ada{id}@example.com,\"cup, blue\",2,{id}.50,2026-04-01T06:00:03"
            )
            .unwrap();
        }
        Self::with_csv(&csv)
    }

    fn with_csv(csv: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.csv");
        std::fs::write(&path, csv).unwrap();
        let database = format!("sqlite://{}", folder.path().join("orders.db").display());
        let sets = vec![format!("input.csv={}", path.display())];
        let orders = Self {
            folder,
            database,
            sets,
        };
        orders
            .set("breakers.notify.recovery_timeout", "50ms")
            .set("breakers.notify.max_recovery_timeout", "100ms")
    }

    fn set(mut self, key: &str, value: &str) -> Self {
        self.sets.push(format!("{key}={value}"));
        self
    }

    fn on(mut self, database: String) -> Self {
        self.database = database;
        self
    }

    /// Faults that come early and pass soon.
    fn with_short_faults(self) -> Self {
        self.set("sandbox.faults.0.after_requests", "20")
            .set("sandbox.faults.0.lasts", "300ms")
            .set("sandbox.faults.1.after_requests", "60")
            .set("sandbox.faults.1.lasts", "300ms")
            .set("sandbox.faults.2.after_requests", "100")
            .set("sandbox.faults.2.lasts", "300ms")
            .set("nodes.announce.timeout", "400ms")
            .set("sandbox.faults.2.delay", "300ms")
    }

    fn without_faults(self) -> Self {
        self.set("sandbox.faults", "[]")
    }

    fn command(&self, command: &str) -> Command {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/orders.toml");
        let mut kailash = Command::new(env!("CARGO_BIN_EXE_kailash"));
        kailash.arg(command).arg(example);
        kailash.args(["--set", &format!("database.url={}", self.database)]);
        for set in &self.sets {
            kailash.args(["--set", set]);
        }
        kailash.stdin(Stdio::null());
        kailash.stdout(Stdio::piped());
        kailash.stderr(Stdio::piped());
        kailash
    }

    fn run(&self) -> Output {
        self.command("run").arg("--json").output().unwrap()
    }

    /// Runs to the end, which must be a good one.
    #[track_caller]
    fn summary(&self) -> Json {
        let output = self.run();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}\n{stderr}", output.status);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn query(&self, query: &str) -> Vec<Value> {
        block_on(async {
            let database = SqlDatabase::new(&self.database).unwrap();
            let rows = database.execute(query, ()).await.unwrap();
            rows.data.into_iter().map(|row| row[0].clone()).collect()
        })
    }

    /// How many orders are stored, and how many of them wait to be announced.
    fn stored(&self) -> (i64, i64) {
        let count = |query| self.query(query)[0].as_int().unwrap();
        let orders = count("SELECT COUNT(*) FROM orders");
        assert_eq!(count("SELECT COUNT(*) FROM outbox"), orders);
        let lost = "SELECT COUNT(*) FROM orders WHERE CAST(id AS CHAR(20)) NOT IN (SELECT item_key FROM outbox)";
        assert_eq!(count(lost), 0);
        (
            orders,
            count("SELECT COUNT(*) FROM outbox WHERE sent_at IS NULL"),
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// A sandbox in a process of its own.
struct Service {
    process: Child,
    url: String,
}

impl Service {
    fn start(orders: &Orders) -> Self {
        let mut process = orders.command("sandbox").spawn().unwrap();
        let mut url = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        Self { process, url }
    }

    fn stats(&self) -> Json {
        let inputs = Value::from(json!({"url": format!("{}/stats", self.url)}));
        let Value::Map(inputs) = inputs else {
            panic!("an object is a map")
        };
        let outputs = block_on(HttpRequest::new().execute(inputs)).unwrap();
        outputs["response"].field("content").unwrap().to_json()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[track_caller]
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_there() {
        assert!(Instant::now() < deadline, "no {what}");
        sleep(Duration::from_millis(5));
    }
}

fn signal(process: &Child, signal: &str) {
    let pid = process.id().to_string();
    let status = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(status.success());
}

fn end(mut process: Child) -> (ExitStatus, String, String) {
    wait_for("end of the process", || {
        process.try_wait().unwrap().is_some()
    });
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

#[track_caller]
fn every_order_is_stored_and_accepted_once(orders: &Orders) {
    let count = 400;
    let summary = orders.summary();
    let items = json!({
        "read": count, "stored": count, "announced": count, "rejected_lines": 0, "pending": 0,
    });
    assert_eq!(summary["items"], items);
    assert_eq!(summary["sandbox"]["accepted"], count);
    assert!(summary["sandbox"]["failed"].as_u64().unwrap() > 0);
    assert!(summary["sandbox"]["repeats"].as_u64().unwrap() > 0);
    assert!(summary["outage_s"].as_f64().unwrap() >= 0.9);
    let notify = &summary["breakers"][1];
    assert_eq!(notify["name"], "notify");
    assert!(notify["openings"].as_u64().unwrap() >= 2, "{notify}");
    assert!(notify["rejections"].as_u64().unwrap() > 0, "{notify}");
    assert_eq!(orders.stored(), (count, 0));
    let amount = orders.query("SELECT amount FROM orders WHERE id = 7");
    assert_eq!(amount[0].to_string().trim_end_matches('0'), "7.5");
}

#[test]
fn every_order_is_stored_and_accepted_once_on_sqlite() {
    every_order_is_stored_and_accepted_once(&Orders::new(400).with_short_faults());
}

#[test]
fn every_order_is_stored_and_accepted_once_on_postgres() {
    let orders = Orders::new(400).with_short_faults();
    every_order_is_stored_and_accepted_once(&orders.on(POSTGRES.database("orders")));
}

#[test]
fn every_order_is_stored_and_accepted_once_on_mariadb() {
    let orders = Orders::new(400).with_short_faults();
    every_order_is_stored_and_accepted_once(&orders.on(MARIADB.database("orders")));
}

#[test]
fn the_document_has_this_shape() {
    let summary = Orders::new(3).without_faults().summary();
    let keys = |value: &Json| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let all = [
        "items",
        "breakers",
        "partitions",
        "sandbox",
        "duration_s",
        "outage_s",
    ];
    assert_eq!(keys(&summary), all);
    let items = ["read", "stored", "announced", "rejected_lines", "pending"];
    assert_eq!(keys(&summary["items"]), items);
    let breaker = [
        "name",
        "calls",
        "failures",
        "rejections",
        "openings",
        "state",
    ];
    assert_eq!(keys(&summary["breakers"][0]), breaker);
    let partition = [
        "name",
        "run",
        "refused",
        "timed_out",
        "peak_active",
        "wait_p99_ms",
    ];
    assert_eq!(keys(&summary["partitions"][0]), partition);
    assert_eq!(keys(&summary["sandbox"]), ["accepted", "repeats", "failed"]);
    assert_eq!(summary["breakers"][0]["name"], "orders_db");
    assert_eq!(summary["breakers"][0]["state"], "closed");
    assert_eq!(summary["breakers"][0]["calls"], 3);
    assert_eq!(summary["partitions"][1]["name"], "api");
    assert_eq!(summary["outage_s"], 0.0);
}

#[test]
fn without_json_there_are_tables_on_stdout_and_plain_lines_on_stderr() {
    let orders = Orders::new(3).without_faults();
    let output = orders.command("run").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    for word in ["announced", "orders_db", "database", "accepted", "wait p99"] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("read 3, stored 3, announced 3, pending 0"),
        "{stderr}"
    );
    assert!(!stderr.contains('\u{1b}'), "{stderr}");
}

#[test]
fn a_second_run_on_the_same_database_goes_on_where_the_first_stopped() {
    let orders = Orders::new(100).without_faults();
    let first = orders.summary();
    assert_eq!(first["sandbox"]["accepted"], 100);
    let more: String = (101..=120)
        .map(|id| format!("{id},A,a@b.c,cup,1,1,2026-04-01T06:00:03\n"))
        .collect();
    let csv = std::fs::read_to_string(orders.path("orders.csv")).unwrap() + &more;
    std::fs::write(orders.path("orders.csv"), csv).unwrap();
    let second = orders.summary();
    assert_eq!(second["items"]["stored"], 120);
    assert_eq!(second["items"]["announced"], 120);
    // Only what is new was stored and announced.
    assert_eq!(second["breakers"][0]["calls"], 20);
    assert_eq!(
        second["sandbox"],
        json!({"accepted": 20, "repeats": 0, "failed": 0})
    );
    let third = orders.command("run").output().unwrap();
    let stdout = String::from_utf8(third.stdout).unwrap();
    let before = "120 of these were stored by earlier runs, in sqlite://";
    assert!(stdout.contains(before), "{stdout}");
}

#[test]
fn two_runs_at_once_share_the_work_and_nothing_is_accepted_twice() {
    let orders = Orders::new(300).without_faults();
    let service = Service::start(&orders);
    let orders = orders.set("sandbox.url", &service.url);
    let runs = [(); 2].map(|()| orders.command("run").arg("--json").spawn().unwrap());
    for (status, stdout, stderr) in runs.map(end) {
        assert!(status.success(), "{status}\n{stderr}");
        let summary: Json = serde_json::from_str(&stdout).unwrap();
        assert_eq!(summary["items"]["announced"], 300, "{stderr}");
        assert_eq!(summary["breakers"][0]["failures"], 0, "{stderr}");
    }
    assert_eq!(orders.stored(), (300, 0));
    assert_eq!(service.stats()["accepted"], 300);
}

/// Kills the process at times drawn from `seed` until it comes to its end by itself.
fn killed_at_random(seed: u64, orders: Orders) {
    let count = 600;
    let service = Service::start(&orders);
    let orders = orders.set("sandbox.url", &service.url);
    let mut state = seed;
    let mut kills = 0;
    loop {
        // Knuth's generator: the high bits are good enough for times.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut process = orders.command("run").arg("--json").spawn().unwrap();
        let patience = Duration::from_millis(60 + (state >> 33) % 600) * (1 + kills / 6);
        let killed_at = Instant::now() + patience;
        let is_done = loop {
            if process.try_wait().unwrap().is_some() {
                break true;
            }
            if Instant::now() >= killed_at {
                break false;
            }
            sleep(Duration::from_millis(1));
        };
        if is_done {
            let (status, stdout, stderr) = end(process);
            assert!(status.success(), "seed {seed}: {status}\n{stderr}");
            let summary: Json = serde_json::from_str(&stdout).unwrap();
            assert_eq!(summary["items"]["stored"], count);
            assert_eq!(summary["items"]["announced"], count);
            break;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 2, "seed {seed}: killed {kills} times only");
    assert_eq!(orders.stored(), (count, 0), "seed {seed}");
    let stats = service.stats();
    assert_eq!(stats["accepted"], count, "seed {seed}: {stats}");
}

#[test]
fn nothing_is_lost_and_nothing_accepted_twice_when_the_process_is_killed() {
    for seed in [1, 2, 3] {
        killed_at_random(seed, Orders::new(600).with_short_faults());
    }
}

#[test]
fn nothing_is_lost_on_postgres_when_the_process_is_killed() {
    let orders = Orders::new(600).with_short_faults();
    killed_at_random(4, orders.on(POSTGRES.database("killed")));
}

#[test]
fn nothing_is_lost_on_mariadb_when_the_process_is_killed() {
    let orders = Orders::new(600).with_short_faults();
    killed_at_random(5, orders.on(MARIADB.database("killed")));
}

#[test]
fn a_database_that_restarts_in_the_middle_loses_nothing() {
    let postgres = Postgres::start();
    let orders = Orders::new(1500).with_short_faults();
    // The test server answers commits before they are written unless it is told otherwise.
    let url = format!(
        "{}?options[synchronous_commit]=on",
        postgres.database("restarted")
    );
    let orders = orders.on(url);
    let orders = orders.set("breakers.orders_db.recovery_timeout", "100ms");
    let process = orders.command("run").arg("--json").spawn().unwrap();
    wait_until_stored(&orders, 100);
    postgres.restart();
    let (status, stdout, stderr) = end(process);
    assert!(status.success(), "{status}\n{stderr}");
    let summary: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!(summary["items"]["announced"], 1500, "{stderr}");
    assert_eq!(orders.stored(), (1500, 0));
    assert_eq!(summary["sandbox"]["accepted"], 1500, "{stderr}");
}

/// A service that answers nothing but errors.
fn down(orders: Orders) -> Orders {
    orders
        .set(
            "sandbox.faults",
            "[{kind=\"errors\", after_requests=0, lasts=\"1h\"}]",
        )
        .set("outbox.give_up_after", "1h")
}

fn wait_until_stored(orders: &Orders, count: i64) {
    let url = orders.database.clone();
    wait_for("stored orders", || {
        let rows = block_on(async {
            let database = SqlDatabase::new(&url).unwrap();
            database
                .execute("SELECT COUNT(*) AS n FROM orders", ())
                .await
        });
        rows.is_ok_and(|rows| rows.data[0]["n"].as_int().unwrap() >= count)
    });
}

#[test]
fn while_the_service_fails_orders_are_stored_and_an_interrupt_ends_in_order() {
    for name in ["-INT", "-TERM"] {
        let orders = down(Orders::new(50));
        let process = orders.command("run").arg("--json").spawn().unwrap();
        wait_until_stored(&orders, 50);
        signal(&process, name);
        let (status, stdout, stderr) = end(process);
        assert_eq!(status.code(), Some(1), "{stderr}");
        let summary: Json = serde_json::from_str(&stdout).unwrap();
        let items = json!({
            "read": 50, "stored": 50, "announced": 0, "rejected_lines": 0, "pending": 50,
        });
        assert_eq!(summary["items"], items);
        assert!(stderr.contains("stopping"), "{stderr}");
        // The next run announces what this one left.
        let orders = orders.without_faults();
        let summary = orders.summary();
        assert_eq!(summary["items"]["announced"], 50);
        assert_eq!(
            summary["sandbox"],
            json!({"accepted": 50, "repeats": 0, "failed": 0})
        );
        assert_eq!(orders.stored(), (50, 0));
    }
}

#[test]
fn an_interrupt_leaves_the_rest_of_the_input_to_the_next_run() {
    let orders = Orders::new(4000).without_faults();
    let process = orders.command("run").spawn().unwrap();
    wait_until_stored(&orders, 20);
    signal(&process, "-INT");
    let (status, stdout, stderr) = end(process);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stdout.contains("some of the input is left"), "{stdout}");
    let (stored, _) = orders.stored();
    assert!((20..4000).contains(&stored), "{stored}");
    let summary = orders.summary();
    assert_eq!(summary["items"]["announced"], 4000);
    assert_eq!(summary["breakers"][0]["calls"], 4000 - stored);
}

#[test]
fn a_second_interrupt_quits_at_once() {
    let faults = "[{kind=\"silence\", after_requests=0, lasts=\"1h\"}]";
    let orders = Orders::new(5).set("sandbox.faults", faults);
    let orders = orders
        .set("nodes.announce.timeout", "1h")
        .set("partitions.api.timeout", "off");
    let mut process = orders.command("run").spawn().unwrap();
    wait_until_stored(&orders, 5);
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    signal(&process, "-INT");
    lines
        .find(|line| line.as_ref().unwrap().contains("stopping"))
        .unwrap()
        .unwrap();
    assert!(
        process.try_wait().unwrap().is_none(),
        "it waits for what is in flight"
    );
    signal(&process, "-INT");
    let (status, stdout, _) = end(process);
    assert_eq!((status.code(), &*stdout), (Some(130), ""));
}

#[test]
fn what_cannot_be_announced_in_time_is_left_for_the_next_run() {
    let orders = down(Orders::new(20)).set("outbox.give_up_after", "2s");
    let orders = orders.set("checks.service.check_interval", "20ms");
    let output = orders.run();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("node announce: gave up after 2 s"),
        "{stderr}"
    );
    let alert = "alert: check \"service\": unhealthy 2 times in a row: status: ";
    assert!(stderr.contains(alert), "{stderr}");
    assert_eq!(orders.stored(), (20, 20));
}

#[test]
fn an_order_that_the_service_refuses_is_named_and_the_others_go_on() {
    // Without a key the sandbox answers 400.
    let orders = Orders::new(10).without_faults();
    let header = "${row.id == 7 ? 'wrong\\nheader' : string(row.id)}";
    let orders = orders.set("nodes.announce.headers.Idempotency-Key", header);
    let output = orders.run();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("node announce: 7 was refused"), "{stderr}");
    let summary: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["items"]["announced"], 9, "{stderr}");
    assert_eq!(summary["items"]["pending"], 1);
    assert_eq!(
        orders.query("SELECT item_key FROM outbox WHERE sent_at IS NULL")[0],
        Value::from("7")
    );
}

#[test]
fn lines_that_do_not_fit_are_reported_and_kept_and_the_rest_goes_on() {
    let csv = "id,customer,email,item,quantity,amount,placed_at\n\
               1,Ada,a@b.c,cup,1,1.50,2026-04-01T06:00:03\n\
               2,Ada,a@b.c,cup,one,1.50,2026-04-01T06:00:03\n\
               3,Ada,a@b.c\n\
               4,Ada,a@b.c,cup,1,1.50,2026-04-01T06:00:03\n";
    let orders = Orders::with_csv(csv).without_faults();
    let output = orders.run();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("orders.csv:3: quantity: \"one\" is not a whole number"),
        "{stderr}"
    );
    assert!(
        stderr.contains("orders.csv:4: 3 fields, the first line has 7"),
        "{stderr}"
    );
    let summary: Json = serde_json::from_slice(&output.stdout).unwrap();
    let items = json!({
        "read": 4, "stored": 2, "announced": 2, "rejected_lines": 2, "pending": 0,
    });
    assert_eq!(summary["items"], items);
    let kept = std::fs::read_to_string(orders.path("orders.rejects.csv")).unwrap();
    assert_eq!(
        kept,
        "line,reason,text\n\
         3,\"quantity: \"\"one\"\" is not a whole number\",\"2,Ada,a@b.c,cup,one,1.50,2026-04-01T06:00:03\"\n\
         4,\"3 fields, the first line has 7\",\"3,Ada,a@b.c\"\n"
    );
    let orders = orders.set("input.concurrency", "1");
    let output = orders.command("run").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("orders.rejects.csv"), "{stdout}");
}

#[track_caller]
fn could_not_run(orders: &Orders, expected: &str) {
    let output = orders.run();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains(expected), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
    assert!(!orders.path("orders.db").exists(), "something was started");
}

#[test]
fn an_input_that_is_missing_is_named() {
    let orders = Orders::new(1).set("input.csv", "/none/orders.csv");
    could_not_run(
        &orders,
        "error: input.csv: /none/orders.csv: No such file or directory",
    );
}

#[test]
fn a_database_that_cannot_be_reached_is_named_without_its_password() {
    let orders = Orders::new(1).on("postgres://me:hunter2@127.0.0.1:1/shop".to_owned());
    could_not_run(&orders, "error: database: postgres://me@127.0.0.1:1/shop: ");
    let orders = Orders::new(1).on("mysql://me:hunter2@127.0.0.1:1/shop".to_owned());
    could_not_run(&orders, "error: database: mysql://me@127.0.0.1:1/shop: ");
    let orders = Orders::new(1).on("sqlite:///none/orders.db".to_owned());
    could_not_run(&orders, "error: database: sqlite:///none/orders.db: ");
}

#[test]
fn a_wrong_password_is_not_shown() {
    let url = MARIADB
        .database("secret")
        .replacen("://", "://nobody:hunter2@", 1);
    let (scheme, rest) = url.split_once("nobody:hunter2@").unwrap();
    let rest = rest.rsplit('@').next().unwrap();
    let orders = Orders::new(1).on(format!("{scheme}nobody:hunter2@{rest}"));
    could_not_run(&orders, "error: database: mysql://nobody@");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let orders = Orders::new(1).set("sandbox.listen", &address);
    could_not_run(
        &orders,
        &format!("error: sandbox: cannot listen at {address}: Address already in use"),
    );
}

#[test]
fn a_sandbox_that_is_none_is_named() {
    let orders = Orders::new(1).set("sandbox.url", "http://127.0.0.1:1");
    could_not_run(&orders, "error: sandbox: GET http://127.0.0.1:1/stats: ");
}

#[test]
fn a_disk_that_is_full_is_said_and_leaves_nothing_half_written() {
    let orders = Orders::new(2000)
        .without_faults()
        .set("outbox.give_up_after", "200ms")
        .set("nodes.store.retries", "0")
        .set("breakers.orders_db.recovery_timeout", "50ms");
    let command = orders.command("run");
    let mut limited = Command::new("bash");
    // What grows beyond the limit fails to be written, as on a full disk.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\""]);
    limited.arg(command.get_program()).args(command.get_args());
    let output = limited.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let file = orders.path("orders.db");
    assert!(
        stderr.contains(&format!("sqlite://{}: ", file.display())),
        "{stderr}"
    );
    assert!(
        stderr.contains("node store: gave up after 0.2 s"),
        "{stderr}"
    );
    let (stored, _) = orders.stored();
    assert!(0 < stored && stored < 2000, "{stored}");
    // With room again, a run ends the work.
    let summary = orders.summary();
    assert_eq!(summary["items"]["announced"], 2000);
    assert_eq!(orders.stored(), (2000, 0));
}
