//! SQL on real servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::HashSet;
use std::sync::LazyLock;

use chrono::{DateTime, NaiveDate};
use kailash::bulkhead::{Manager, Partition, PartitionConfig, PartitionType};
use kailash_workflow::nodes::SqlDatabase;
use kailash_workflow::nodes::sql::{Rows, Statement};
use kailash_workflow::{Map, Node, NodeError, Value};
use serde_json::json;
use test_servers::{MariaDb, Postgres};
use uuid::Uuid;

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static MARIADB: LazyLock<MariaDb> = LazyLock::new(MariaDb::start);

struct Databases {
    all: Vec<(&'static str, SqlDatabase)>,
    _directory: tempfile::TempDir,
}

/// A fresh database on each driver.
fn databases(name: &str) -> Databases {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let sqlite = format!("sqlite://{}", path.display());
    let urls = [
        ("postgres", POSTGRES.database(name)),
        ("mariadb", MARIADB.database(name)),
        ("sqlite", sqlite),
    ];
    let all = urls.map(|(driver, url)| (driver, SqlDatabase::new(&url).unwrap()));
    Databases {
        all: all.into(),
        _directory: directory,
    }
}

fn postgres(name: &str) -> SqlDatabase {
    SqlDatabase::new(&POSTGRES.database(name)).unwrap()
}

fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value::List(values.into_iter().collect())
}

fn decimal(text: &str) -> Value {
    Value::Decimal(text.parse().unwrap())
}

fn datetime() -> chrono::NaiveDateTime {
    NaiveDate::from_ymd_opt(2026, 2, 3)
        .unwrap()
        .and_hms_micro_opt(4, 5, 6, 789_000)
        .unwrap()
}

#[tokio::test]
async fn every_placeholder_style_reaches_every_driver() {
    for (driver, database) in databases("styles").all {
        database
            .execute("CREATE TABLE t (a INTEGER, b VARCHAR(20))", ())
            .await
            .unwrap();
        let positional = list([Value::Int(1), Value::from("x")]);
        let named = Value::from(json!({"a": 1, "b": "x"}));
        for (values, parameters) in [
            ("%s, %s", &positional),
            ("?, ?", &positional),
            ("$1, $2", &positional),
            (":a, :b", &named),
            ("%(a)s, %(b)s", &named),
        ] {
            let query = format!("INSERT INTO t (a, b) VALUES ({values}) -- ? %s :a $1");
            let rows = database.execute(&query, parameters.clone()).await.unwrap();
            assert_eq!(
                (rows.row_count, rows.data.len()),
                (1, 0),
                "{driver} {values}"
            );
        }
        let rows = database
            .execute("SELECT a, b FROM t WHERE b = 'x' OR b = '?'", ())
            .await;
        let rows = rows.unwrap();
        assert_eq!(rows.row_count, 5, "{driver}");
        assert_eq!(rows.columns, ["a", "b"], "{driver}");
        assert_eq!(
            Value::Map(rows.data[4].clone()).to_json(),
            json!({"a": 1, "b": "x"})
        );
    }
}

#[tokio::test]
async fn a_statement_without_rows_says_how_many_it_affected_and_an_empty_answer_its_columns() {
    for (driver, database) in databases("counts").all {
        database
            .execute("CREATE TABLE t (a INTEGER PRIMARY KEY)", ())
            .await
            .unwrap();
        let inserted = database
            .execute("INSERT INTO t VALUES (1), (2), (3)", ())
            .await
            .unwrap();
        assert_eq!(inserted.row_count, 3, "{driver}");
        let updated = database.execute("UPDATE t SET a = a + 10 WHERE a > ?", list([1.into()]));
        assert_eq!(updated.await.unwrap().row_count, 2, "{driver}");
        let empty = database
            .execute("SELECT a FROM t WHERE a > 100", ())
            .await
            .unwrap();
        assert_eq!(
            (empty.row_count, empty.columns),
            (0, vec!["a".to_owned()]),
            "{driver}"
        );
        let returned = database
            .execute("INSERT INTO t VALUES (7) RETURNING a", ())
            .await
            .unwrap();
        assert_eq!(
            (returned.row_count, &returned.data[0]["a"]),
            (1, &Value::Int(7)),
            "{driver}"
        );
    }
}

#[tokio::test]
async fn values_come_back_as_they_were_stored() {
    let uuid = Uuid::from_u128(7);
    let databases = databases("types");
    for (driver, database) in &databases.all {
        let (bytes, stamp, id) = match *driver {
            "postgres" => ("BYTEA", "TIMESTAMPTZ", "UUID"),
            "mariadb" => ("BLOB", "TIMESTAMP(6)", "UUID"),
            _ => ("BLOB", "DATETIME", "TEXT"),
        };
        let naive = if *driver == "mariadb" {
            "DATETIME(6)"
        } else {
            "TIMESTAMP"
        };
        let time = if *driver == "mariadb" {
            "TIME(6)"
        } else {
            "TIME"
        };
        let float = if *driver == "postgres" {
            "DOUBLE PRECISION"
        } else {
            "DOUBLE"
        };
        let create = format!(
            "CREATE TABLE t (i BIGINT, f {float}, d DECIMAL(20, 2), t VARCHAR(50), b {bytes}, \
             dt DATE, tm {time}, n {naive}, o {stamp}, u {id}, flag BOOLEAN)"
        );
        database.execute(&create, ()).await.unwrap();
        let values = [
            Value::Int(-9_007_199_254_740_993),
            Value::Float(0.1),
            decimal("123456789012345678.10"),
            Value::from("käse 'n' ? %s"),
            Value::Bytes(vec![0, 255, 39]),
            Value::Date(datetime().date()),
            Value::Time(datetime().time()),
            Value::DateTime(datetime()),
            Value::OffsetDateTime(datetime().and_utc().fixed_offset()),
            Value::Uuid(uuid),
            Value::Bool(true),
        ];
        let insert = "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        database
            .execute(insert, list(values.clone()))
            .await
            .unwrap();
        let nulls = vec![Value::Null; values.len()];
        database.execute(insert, list(nulls.clone())).await.unwrap();
        let rows = database
            .execute("SELECT * FROM t ORDER BY i IS NULL", ())
            .await
            .unwrap();
        let mut expected = Vec::from(values);
        match *driver {
            "mariadb" => {
                expected[9] = Value::from(uuid.to_string());
                expected[10] = Value::Int(1);
            }
            // SQLite has no decimals, only numbers of 64 bits, and no UUIDs.
            "sqlite" => {
                expected[2] = Value::Int(123_456_789_012_345_680);
                expected[9] = Value::from(uuid.to_string());
            }
            _ => {}
        }
        let read: Vec<_> = rows.data[0].values().cloned().collect();
        assert_eq!(read, expected, "{driver}");
        let read: Vec<_> = rows.data[1].values().cloned().collect();
        assert_eq!(read, nulls, "{driver}");
    }
}

#[tokio::test]
async fn postgres_takes_what_psycopg_takes() {
    let database = postgres("psycopg");
    database
        .execute(
            "CREATE TYPE mood AS ENUM ('ok', 'bad'); CREATE DOMAIN price AS NUMERIC(9, 2); \
             CREATE TABLE t (n NUMERIC, u UUID, ts TIMESTAMP, tz TIMESTAMPTZ, d DATE, i INTEGER, \
             s SMALLINT, b BIGINT, f DOUBLE PRECISION, bo BOOLEAN, j JSONB, ia INTEGER[], \
             ta TEXT[], m mood, p price, iv INTERVAL, ip INET, by BYTEA, tx TEXT)",
            (),
        )
        .await
        .unwrap();
    let cases = [
        ("n", Value::from("12.50"), "12.50"),
        ("n", Value::Int(3), "3"),
        ("n", Value::Float(1.5), "1.5"),
        (
            "u",
            Value::from("00000000-0000-0000-0000-000000000007"),
            "00000000-0000-0000-0000-000000000007",
        ),
        ("ts", Value::from("2026-02-03 04:05"), "2026-02-03 04:05:00"),
        ("ts", Value::Date(datetime().date()), "2026-02-03 00:00:00"),
        (
            "tz",
            Value::from("2026-02-03T04:05:00+02:00"),
            "2026-02-03 02:05:00+00",
        ),
        (
            "tz",
            Value::DateTime(datetime()),
            "2026-02-03 04:05:06.789+00",
        ),
        ("d", Value::from("2026-02-03"), "2026-02-03"),
        ("i", Value::from("42"), "42"),
        ("i", Value::Float(2.0), "2"),
        ("i", decimal("7"), "7"),
        ("s", Value::Int(5), "5"),
        ("b", Value::Int(5_000_000_000), "5000000000"),
        ("f", Value::Int(2), "2"),
        ("f", decimal("2.5"), "2.5"),
        ("bo", Value::from("yes"), "true"),
        (
            "j",
            Value::from(json!({"a": [1, null]})),
            r#"{"a": [1, null]}"#,
        ),
        ("j", Value::from(json!([1, 2])), "[1, 2]"),
        ("j", Value::from(r#"{"k": 1}"#), r#"{"k": 1}"#),
        ("ia", Value::from(json!([1, null, 3])), "{1,NULL,3}"),
        ("ia", Value::from(json!([[1, 2], [3, 4]])), "{{1,2},{3,4}}"),
        (
            "ta",
            Value::from(json!(["a,b", "c\"d", null])),
            r#"{"a,b","c\"d",NULL}"#,
        ),
        ("m", Value::from("bad"), "bad"),
        ("p", Value::from("3"), "3.00"),
        ("p", Value::Int(3), "3.00"),
        ("iv", Value::from("1 day"), "1 day"),
        ("ip", Value::from("10.0.0.1"), "10.0.0.1/32"),
        ("by", Value::Bytes(vec![1, 255]), "\\x01ff"),
        ("tx", Value::Int(5), "5"),
        (
            "tx",
            Value::Uuid(Uuid::nil()),
            "00000000-0000-0000-0000-000000000000",
        ),
    ];
    for (column, value, text) in cases {
        let query = format!("INSERT INTO t ({column}) VALUES (%s) RETURNING {column}::text AS v");
        let rows = database.execute(&query, list([value.clone()])).await;
        let rows = rows.unwrap_or_else(|error| panic!("{column} {value:?}: {error}"));
        assert_eq!(rows.data[0]["v"], Value::from(text), "{column} {value:?}");
    }
    for column in ["n", "u", "ts", "j", "ia", "m", "p", "iv", "tx"] {
        let query = format!("INSERT INTO t ({column}) VALUES (%s) RETURNING {column}::text AS v");
        let rows = database.execute(&query, list([Value::Null])).await.unwrap();
        assert_eq!(rows.data[0]["v"], Value::Null);
    }
}

#[tokio::test]
async fn postgres_infers_what_has_no_type_from_the_value() {
    let database = postgres("inferred");
    let cases = [
        ("SELECT ? AS v", Value::Int(5), Value::Int(5)),
        ("SELECT ? AS v", Value::from("x"), Value::from("x")),
        ("SELECT ? IS NULL AS v", Value::Null, Value::Bool(true)),
        ("SELECT ? IS NULL AS v", Value::Int(1), Value::Bool(false)),
        (
            "SELECT jsonb_build_object('a', ?) AS v",
            Value::Int(1),
            Value::from(json!({"a": 1})),
        ),
        (
            "SELECT 1 + ? AS v",
            Value::Int(5_000_000_000),
            Value::Int(5_000_000_001),
        ),
        (
            "SELECT ?::int[] AS v",
            Value::from(json!([1, null])),
            Value::from(json!([1, null])),
        ),
        (
            "SELECT 2 = ANY(?) AS v",
            Value::from(json!([1, 2])),
            Value::Bool(true),
        ),
        (
            "SELECT ? AS v",
            Value::from(json!([1, 2])),
            Value::from(json!([1, 2])),
        ),
        ("SELECT ? AS v", decimal("1.10"), decimal("1.10")),
        ("SELECT ? || 'b' AS v", Value::from("a"), Value::from("ab")),
        (
            "SELECT '{\"k\": 1}'::jsonb ?? ? AS v",
            Value::from("k"),
            Value::Bool(true),
        ),
    ];
    for (query, parameter, expected) in cases {
        let rows = database.execute(query, list([parameter.clone()])).await;
        let rows = rows.unwrap_or_else(|error| panic!("{query} {parameter:?}: {error}"));
        assert_eq!(rows.data[0]["v"], expected, "{query} {parameter:?}");
    }
    let both = Value::from(json!({"a": "2026-02-03"}));
    let rows = database
        .execute("SELECT :a::date AS d, :a::text AS t", both)
        .await
        .unwrap();
    assert_eq!(rows.data[0]["t"], Value::from("2026-02-03"));
}

#[tokio::test]
async fn postgres_types_arrive_as_values() {
    let database = postgres("arrive");
    let at = Value::OffsetDateTime(DateTime::parse_from_rfc3339("2026-02-03T02:05:00Z").unwrap());
    let cases = [
        ("1.10::numeric", decimal("1.10")),
        ("0.000::numeric(9, 3)", decimal("0.000")),
        ("-123456.789::numeric", decimal("-123456.789")),
        ("1e20::numeric", decimal("100000000000000000000")),
        ("0.1::real", Value::Float(0.1)),
        ("'2026-02-03 04:05+02'::timestamptz", at.clone()),
        (
            "ARRAY['2026-02-03 04:05+02'::timestamptz, NULL]",
            list([at, Value::Null]),
        ),
        (
            "'{{1,2},{3,4}}'::int[]",
            Value::from(json!([[1, 2], [3, 4]])),
        ),
        ("'{}'::text[]", Value::from(json!([]))),
        ("'{\"a\": [1.5]}'::json", Value::from(json!({"a": [1.5]}))),
        ("E'\\\\xff'::bytea", Value::Bytes(vec![255])),
        ("'x'::char(3)", Value::from("x  ")),
        ("pg_sleep(0)", Value::Null),
    ];
    for (expression, expected) in cases {
        let rows = database
            .execute(&format!("SELECT {expression} AS v"), ())
            .await;
        let rows = rows.unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(rows.data[0]["v"], expected, "{expression}");
    }
}

#[tokio::test]
async fn a_type_without_a_value_is_an_error_that_names_the_column_before_anything_happens() {
    let database = postgres("unreadable");
    database
        .execute("CREATE TABLE t (a INTEGER, i INTERVAL)", ())
        .await
        .unwrap();
    let insert = "INSERT INTO t VALUES (1, '1 day') RETURNING i";
    let error = database.execute(insert, ()).await.unwrap_err().to_string();
    assert!(
        error.contains("column \"i\" is of type INTERVAL"),
        "{error}"
    );
    let rows = database.execute("SELECT a FROM t", ()).await.unwrap();
    assert_eq!(rows.row_count, 0);
    let error = database
        .execute("SELECT 'NaN'::numeric AS x", ())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("column \"x\""), "{error}");
}

#[tokio::test]
async fn a_transaction_happens_as_a_whole_or_not_at_all() {
    for (driver, database) in databases("atomic").all {
        database
            .execute("CREATE TABLE t (a INTEGER PRIMARY KEY)", ())
            .await
            .unwrap();
        let insert = |a: i64| Statement::new("INSERT INTO t VALUES (?)", list([a.into()]));
        let error = database
            .transaction(vec![insert(1), insert(2), insert(1)])
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("statement 3: "),
            "{driver}: {error}"
        );
        let count = Statement::new("SELECT count(*) AS n FROM t", ());
        let rows = database
            .transaction(vec![insert(1), insert(2), count])
            .await
            .unwrap();
        assert_eq!(rows[2].data[0]["n"], Value::Int(2), "{driver}");
    }
}

#[tokio::test]
async fn concurrent_writers_on_sqlite_share_commits_and_keep_their_own_results() {
    let Databases { all, _directory } = databases("writers");
    let (_, database) = all.into_iter().next_back().unwrap();
    database
        .execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)", ())
        .await
        .unwrap();
    let writes = (0..500_i64).map(|index| {
        let database = database.clone();
        tokio::spawn(async move {
            // Every fifth comes twice: exactly one of the two is refused, whole.
            let key = if index % 5 == 4 { index - 1 } else { index };
            let both = vec![
                Statement::new("INSERT INTO t VALUES (?, 1)", list([(key + 1000).into()])),
                Statement::new("INSERT INTO t VALUES (?, 0)", list([key.into()])),
            ];
            database.transaction(both).await.is_ok()
        })
    });
    let mut stored = 0;
    for write in futures_util::future::join_all(writes).await {
        stored += i64::from(write.unwrap());
    }
    assert_eq!(stored, 400);
    let rows = database
        .execute("SELECT count(*) AS n, sum(b) AS s FROM t", ())
        .await
        .unwrap();
    assert_eq!(rows.data[0]["n"], Value::Int(800));
    assert_eq!(rows.data[0]["s"], Value::Int(400));
}

#[tokio::test]
async fn a_cancelled_call_does_not_spoil_a_connection() {
    let database = postgres("cancelled");
    for _ in 0..15 {
        let sleep = database.execute("SELECT pg_sleep(60)", ());
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), sleep).await;
        assert!(waited.is_err());
    }
    let rows = database.execute("SELECT 1 AS a", ()).await.unwrap();
    assert_eq!(rows.data[0]["a"], Value::Int(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_works_again() {
    let (postgres, mariadb) = (Postgres::start(), MariaDb::start());
    let servers: [(SqlDatabase, &(dyn Fn() + Sync)); 2] = [
        (SqlDatabase::new(&postgres.url()).unwrap(), &|| {
            postgres.restart()
        }),
        (SqlDatabase::new(&mariadb.url()).unwrap(), &|| {
            mariadb.restart()
        }),
    ];
    for (database, restart) in servers {
        let select = || database.execute("SELECT 1 AS a", ());
        for result in futures_util::future::join_all((0..8).map(|_| select())).await {
            result.unwrap();
        }
        tokio::task::block_in_place(restart);
        // One call may meet the connection that nobody knew to be lost; it shows the others.
        let _ = select().await;
        for _ in 0..8 {
            select().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_at_once_and_without_its_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for scheme in ["postgres", "mysql"] {
        let url = format!("{scheme}://app:hunter2@127.0.0.1:{free}/orders");
        let error = SqlDatabase::new(&url)
            .unwrap()
            .execute("SELECT 1", ())
            .await
            .unwrap_err();
        assert_eq!(error.error_type(), "NodeExecutionError");
        let error = format!("{error} {error:?}");
        assert!(
            error.contains("refused") && error.contains("127.0.0.1"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn a_refused_statement_says_what_the_database_said() {
    for (driver, database) in databases("refused").all {
        let error = database
            .execute("SELECT * FROM nowhere", ())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("nowhere"), "{driver}: {error}");
        let error = database.execute("BEGIN", ()).await.unwrap_err().to_string();
        assert!(error.starts_with("BEGIN by itself"), "{driver}: {error}");
        let rows = database
            .execute("SELECT 1 AS a; SELECT 2 AS b", ())
            .await
            .unwrap();
        assert_eq!(rows.columns, ["b"], "{driver}");
    }
}

#[tokio::test]
async fn one_database_in_memory_is_shared_by_all_its_connections() {
    let database = SqlDatabase::new("sqlite::memory:").unwrap();
    database
        .execute("CREATE TABLE t (a INTEGER)", ())
        .await
        .unwrap();
    let inserts =
        (0..50_i64).map(|a| database.execute("INSERT INTO t VALUES (?)", list([a.into()])));
    for result in futures_util::future::join_all(inserts).await {
        result.unwrap();
    }
    assert!(
        database
            .execute("INSERT INTO t VALUES (1, 2)", ())
            .await
            .is_err()
    );
    let rows = database
        .execute("SELECT count(*) AS n FROM t", ())
        .await
        .unwrap();
    assert_eq!(rows.data[0]["n"], Value::Int(50));
}

#[tokio::test]
async fn the_node_takes_params_and_parameters_and_refuses_other_keys() {
    let database = SqlDatabase::new("sqlite::memory:").unwrap();
    let run = async |inputs: serde_json::Value| {
        let Value::Map(inputs) = Value::from(inputs) else {
            unreachable!()
        };
        Node::run(&database, inputs).await
    };
    for key in ["params", "parameters"] {
        let outputs = run(json!({"query": "SELECT ? AS a", key: [1]}))
            .await
            .unwrap();
        let names: Vec<_> = outputs.keys().collect();
        assert_eq!(names, ["data", "row_count", "columns", "execution_time"]);
        assert_eq!(outputs["data"], Value::from(json!([{"a": 1}])));
    }
    let outputs = run(json!({"statements": [
        "CREATE TABLE t (a INTEGER)",
        {"query": "INSERT INTO t VALUES (:a)", "parameters": {"a": 5}},
        {"query": "SELECT a FROM t"},
    ]}));
    let outputs: Map = outputs.await.unwrap();
    assert_eq!(outputs["data"], Value::from(json!([{"a": 5}])));
    assert_eq!(outputs["results"].as_list().unwrap().len(), 3);
    for (inputs, error) in [
        (json!({}), "query is missing"),
        (json!({"query": 1}), "query is an integer, allowed is text"),
        (
            json!({"query": "SELECT 1", "parms": []}),
            "unknown key \"parms\"",
        ),
        (
            json!({"query": "SELECT 1", "statements": []}),
            "query and statements exclude each other",
        ),
        (
            json!({"statements": [{"query": 1}]}),
            "statements[0]: query is an integer, allowed is text",
        ),
        (
            json!({"query": "SELECT ?", "params": [1, 2]}),
            "parameter 2 has no placeholder (1 needed, 2 given)",
        ),
    ] {
        let found = run(inputs).await.unwrap_err();
        assert!(matches!(found, NodeError::Input(_)));
        assert_eq!(found.to_string(), error);
    }
}

#[tokio::test]
async fn a_partition_has_a_pool_of_its_own_as_large_as_its_max_connections() {
    let database = postgres("partitioned");
    let partitions = Manager::new();
    let configure = |max_connections| {
        let config = PartitionConfig {
            max_concurrent_operations: 8,
            max_connections: Some(max_connections),
            ..PartitionConfig::new("p", PartitionType::Database)
        };
        partitions.configure(config).unwrap()
    };
    let used = async |partition: Partition| {
        let query = "SELECT pg_backend_pid() AS pid, pg_sleep(0.05)";
        let runs = (0..8).map(|_| partition.run(database.execute(query, ())));
        let rows = futures_util::future::join_all(runs).await;
        let pid = |rows: Result<Result<Rows, _>, _>| rows.unwrap().unwrap().data[0]["pid"].as_int();
        rows.into_iter().map(pid).collect::<HashSet<_>>()
    };
    let inside = used(configure(2)).await;
    assert_eq!(inside.len(), 2);
    let outside = database
        .execute("SELECT pg_backend_pid() AS pid", ())
        .await
        .unwrap();
    assert!(!inside.contains(&outside.data[0]["pid"].as_int()));
    // Changed live, it counts from the next statement on.
    assert_eq!(used(configure(3)).await.len(), 3);
}

#[tokio::test]
async fn a_statement_works_again_after_its_table_changed() {
    for (driver, database) in databases("changed").all {
        database
            .execute("CREATE TABLE t (a INTEGER)", ())
            .await
            .unwrap();
        database
            .execute("INSERT INTO t VALUES (1)", ())
            .await
            .unwrap();
        for (index, columns) in [vec!["a"], vec!["a", "b"]].into_iter().enumerate() {
            if index == 1 {
                database
                    .execute("ALTER TABLE t ADD COLUMN b INTEGER", ())
                    .await
                    .unwrap();
            }
            let selected = database.execute("SELECT * FROM t WHERE a > ?", list([0.into()]));
            assert_eq!(selected.await.unwrap().columns, columns, "{driver}");
            let both = vec![
                Statement::new("UPDATE t SET a = a + 1", ()),
                Statement::new("SELECT * FROM t", ()),
            ];
            let rows = database.transaction(both).await.unwrap();
            assert_eq!(rows[1].columns, columns, "{driver}");
        }
    }
}

#[tokio::test]
async fn a_script_that_leaves_a_transaction_open_is_undone() {
    for (driver, database) in databases("left_open").all {
        database
            .execute("CREATE TABLE t (a INTEGER)", ())
            .await
            .unwrap();
        let script = match driver {
            "mariadb" => "START TRANSACTION; INSERT INTO t VALUES (1)",
            _ => "BEGIN; INSERT INTO t VALUES (1)",
        };
        database.execute(script, ()).await.unwrap();
        let rows = database
            .execute("INSERT INTO t VALUES (2)", ())
            .await
            .unwrap();
        assert_eq!(rows.row_count, 1, "{driver}");
        let rows = database.execute("SELECT a FROM t", ()).await.unwrap();
        assert_eq!(rows.data[0]["a"], Value::Int(2), "{driver}");
    }
}

#[tokio::test]
async fn no_text_about_a_database_shows_its_password() {
    let database = SqlDatabase::new("postgres://app:hunter2@127.0.0.1:1/orders").unwrap();
    assert_eq!(
        format!("{database:?}"),
        "SqlDatabase(DatabaseUrl(postgres://app@127.0.0.1:1/orders))"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_who_open_a_new_sqlite_file_at_once_get_to_it() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let url = format!("sqlite://{}/{round}.db", directory.path().display());
        let opened = (0..4).map(|_| {
            // Pools of its own, as another process has.
            let database = SqlDatabase::new(&url).unwrap();
            tokio::spawn(async move {
                let table = "CREATE TABLE IF NOT EXISTS t (a INTEGER)";
                database.execute(table, ()).await.map(drop)
            })
        });
        for opened in opened.collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
    }
}
