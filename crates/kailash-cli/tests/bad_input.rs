//! What is wrong with a run file is said with file, line, key, value and what is allowed, and
//! nothing is started.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};

/// A run file that is right; the tests break one thing in it.
const FILE: &str = r#"
[input]
csv = "rows.csv"
key = "id"
columns = { id = "int", name = "text" }

[database]
url = "sqlite://shop.db"

[breakers.notify]
failure_threshold = 5
recovery_timeout = "1s"

[partitions.api]
partition_type = "api"

[[nodes]]
id = "store"
type = "SQLDatabaseNode"
query = "INSERT INTO rows (id, name) VALUES (:id, :name)"

[[nodes]]
id = "announce"
type = "HTTPRequestNode"
breaker = "notify"
partition = "api"
url = "${sandbox.url}/rows"

[[connections]]
from = "store"
to = "announce"

[outbox]
table = "outbox"
store = "store"
send = "announce"

[sandbox]
listen = "127.0.0.1:0"

[[sandbox.faults]]
kind = "errors"
after_requests = 10
lasts = "3s"
"#;

fn kailash(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kailash"));
    let command = command.current_dir(folder).args(arguments);
    command.output().expect("the binary can be started")
}

#[track_caller]
fn refused(text: &str, sets: &[&str], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.toml"), text).unwrap();
    let mut arguments = vec!["run", "shop.toml"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let output = kailash(folder.path(), &arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.trim_end(), expected.trim(), "\n{stderr}");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "something was started: {left:?}");
}

/// The file with one text in it replaced.
fn with(from: &str, to: &str) -> String {
    assert_eq!(FILE.matches(from).count(), 1, "{from}");
    FILE.replace(from, to)
}

#[test]
fn the_file_that_the_tests_break_is_right() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.toml"), FILE).unwrap();
    let output = kailash(folder.path(), &["config", "check", "shop.toml"]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.stdout, b"shop.toml: all right\n");
    assert!(output.status.success());
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_that_is_known() {
    refused(
        &with("csv = ", "cvs = "),
        &[],
        "
error: shop.toml:3: unknown key `cvs` in input
  |
3 | cvs = \"rows.csv\"
  | ^^^
  = allowed: csv, key, concurrency, columns
  = did you mean `csv`?

1 mistake, nothing was started",
    );
}

#[test]
fn an_unknown_section_is_named() {
    refused(
        &with("[input]", "[inptu]"),
        &["outbox.store=store"],
        "
error: shop.toml:2: unknown section `inptu`
  |
2 | [inptu]
  |  ^^^^^
  = allowed: ceiling, input, database, breakers, partitions, checks, nodes, connections, outbox, sandbox
  = did you mean `input`?

error: shop.toml:33: outbox: an outbox needs the rows of an [input]
   |
33 | [outbox]
   | ^^^^^^^^

2 mistakes, nothing was started",
    );
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    refused(
        &with("failure_threshold = 5", "failure_threshold = \"five\""),
        &[],
        "
error: shop.toml:11: breakers.notify.failure_threshold = \"five\" is not allowed
   |
11 | failure_threshold = \"five\"
   |                     ^^^^^^
   = allowed: a whole number

1 mistake, nothing was started",
    );
}

#[test]
fn a_value_out_of_range_is_named_with_the_range() {
    refused(
        &with("failure_threshold = 5", "failure_threshold = 0"),
        &[],
        "
error: shop.toml:11: breakers.notify.failure_threshold = 0 is not allowed
   |
11 | failure_threshold = 0
   |                     ^
   = allowed: 1 to 1000000

1 mistake, nothing was started",
    );
}

#[test]
fn an_unknown_base_of_a_breaker_is_named_with_the_nearest_that_is_known() {
    refused(
        &with("failure_threshold = 5", "base = \"databse\""),
        &[],
        "
error: shop.toml:11: breakers.notify.base: unknown preset `databse`
   |
11 | base = \"databse\"
   |        ^^^^^^^^^
   = allowed: api, cache, database, default, notify
   = did you mean `database`?

1 mistake, nothing was started",
    );
}

#[test]
fn bases_that_go_round_in_a_circle_are_shown_once_with_the_way_round() {
    let breakers = "[breakers.a]\nbase = \"b\"\n[breakers.b]\nbase = \"notify\"\n";
    let text = with("failure_threshold = 5", "base = \"a\"");
    refused(
        &text.replace("[partitions.api]", &format!("{breakers}[partitions.api]")),
        &[],
        "
error: shop.toml:11: breakers.notify.base: bases go round in a circle: notify -> a -> b -> notify
   |
11 | base = \"a\"
   |        ^^^

1 mistake, nothing was started",
    );
}

#[test]
fn a_value_of_a_base_that_is_out_of_range_is_named_where_it_stands() {
    let base = "[breakers.default]\nwindow_size = 0\n[partitions.api]";
    let text = with("failure_threshold = 5", "base = \"api\"");
    refused(
        &text.replace("[partitions.api]", base),
        &[],
        "
error: shop.toml:15: breakers.default.window_size = 0 is not allowed
   |
15 | window_size = 0
   |               ^
   = allowed: 1 to 65536

1 mistake, nothing was started",
    );
}

#[test]
fn a_duration_says_how_one_is_written() {
    refused(
        &with("recovery_timeout = \"1s\"", "recovery_timeout = 1"),
        &[],
        "
error: shop.toml:12: breakers.notify.recovery_timeout = 1 is not allowed
   |
12 | recovery_timeout = 1
   |                    ^
   = allowed: a duration in quotes, such as \"500ms\", \"30s\", \"1.5s\", \"2m\" or \"1h\"

1 mistake, nothing was started",
    );
}

#[test]
fn several_mistakes_are_told_at_once_in_the_order_of_the_file() {
    refused(
        &with("breaker = \"notify\"", "breaker = \"notfy\"")
            .replace("to = \"announce\"", "to = \"anounce\""),
        &[],
        "
error: shop.toml:25: nodes.announce.breaker: unknown breaker `notfy`
   |
25 | breaker = \"notfy\"
   |           ^^^^^^^
   = allowed: notify
   = did you mean `notify`?

error: shop.toml:31: connections.0.to: unknown node `anounce`
   |
31 | to = \"anounce\"
   |      ^^^^^^^^^
   = allowed: store, announce
   = did you mean `announce`?

2 mistakes, nothing was started",
    );
}

#[test]
fn text_that_is_no_toml_is_shown() {
    refused(
        &with("csv = \"rows.csv\"", "csv = \"rows.csv"),
        &[],
        "
error: shop.toml:3: not valid TOML: invalid basic string, expected `\"`
  |
3 | csv = \"rows.csv
  |                ^

1 mistake, nothing was started",
    );
}

#[test]
fn overrides_may_add_breakers_whose_names_are_like_each_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.toml"), FILE).unwrap();
    let mut arguments = vec!["config", "check", "shop.toml"];
    for set in [
        "breakers.left1.failure_threshold=1",
        "breakers.left2.failure_threshold=2",
    ] {
        arguments.extend(["--set", set]);
    }
    let output = kailash(folder.path(), &arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
}

#[test]
fn a_wrong_override_names_its_flag() {
    refused(
        FILE,
        &[
            "nodes.anounce.timeout=1s",
            "breakers.notfy.failure_threshold=1",
            "input.concurrency=0",
        ],
        "
error: --set nodes.anounce.timeout=1s: nodes has no `anounce`
      |
--set | nodes.anounce.timeout=1s
      | ^^^^^^^^^^^^^^^^^^^^^
      = allowed: store, announce
      = did you mean `announce`?

error: --set breakers.notfy.failure_threshold=1: breakers has no `notfy`
      |
--set | breakers.notfy.failure_threshold=1
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      = allowed: notify
      = did you mean `notify`?

error: --set input.concurrency=0: input.concurrency = 0 is not allowed
      |
--set | input.concurrency=0
      |                   ^
      = allowed: 1 to 10000

3 mistakes, nothing was started",
    );
}

#[test]
fn no_password_is_shown() {
    refused(
        &with("sqlite://shop.db", "postgress://me:hunter2@db/shop"),
        &["database.uri=postgres://me:hunter3@db/shop"],
        "
error: --set database.uri=postgres://me:***@db/shop: unknown key `uri` in database
      |
--set | database.uri=postgres://me:***@db/shop
      | ^^^^^^^^^^^^
      = allowed: url, setup
      = did you mean `url`?

1 mistake, nothing was started",
    );
    refused(
        &with("sqlite://shop.db", "postgress://me:hunter2@db/shop"),
        &[],
        "
error: shop.toml:8: database.url: unknown scheme \"postgress\", allowed is postgres://USER:***@HOST:PORT/DATABASE, mysql://.. or mariadb://.. alike, sqlite://PATH or sqlite::memory:
  |
8 | url = \"postgress://me:***@db/shop\"
  |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^

1 mistake, nothing was started",
    );
}

#[test]
fn a_file_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = kailash(folder.path(), &["run", "none.toml"]);
    let expected = "error: none.toml: cannot be read: No such file or directory (os error 2)\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    assert_eq!(output.status.code(), Some(2));
}

/// The file is refused with these words among others.
#[track_caller]
fn refused_with(from: &str, to: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.toml"), with(from, to)).unwrap();
    let output = kailash(folder.path(), &["run", "shop.toml"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in:\n{stderr}");
    }
    assert!(
        stderr.contains("1 mistake, nothing was started"),
        "{stderr}"
    );
}

#[test]
fn every_part_of_the_graph_is_checked_before_it_runs() {
    let node = "id = \"store\"\ntype = \"SQLDatabaseNode\"";
    refused_with(
        node,
        "id = \"store\"\ntype = \"SQLDatabasNode\"",
        &[
            "shop.toml:19: nodes.store.type: unknown node type `SQLDatabasNode`",
            "did you mean `SQLDatabaseNode`?",
        ],
    );
    refused_with(
        "[[connections]]",
        "[[nodes]]\nid = \"store\"\ntype = \"HTTPRequestNode\"\n\n[[connections]]",
        &["shop.toml:30: nodes.store.id: another node is called `store`"],
    );
    refused_with(
        "url = \"${sandbox.url}/rows\"",
        "ulr = \"${sandbox.url}/rows\"",
        &[
            "shop.toml:27: nodes.announce.ulr: unknown key `ulr`",
            "did you mean `url`?",
        ],
    );
    refused_with(
        "${sandbox.url}/rows",
        "${sandbox.uri}/rows",
        &[
            "shop.toml:27: nodes.announce.url: unknown field of `sandbox` `uri`",
            "did you mean `url`?",
        ],
    );
    refused_with(
        "${sandbox.url}/rows",
        "${sandbx.url}/rows",
        &[
            "unknown name in an expression `sandbx`",
            "did you mean `sandbox`?",
        ],
    );
    refused_with(
        "${sandbox.url}/rows",
        "${sandbox.url +}/rows",
        &["shop.toml:27: nodes.announce.url: "],
    );
    refused_with(
        "partition = \"api\"",
        "partition = \"apl\"",
        &[
            "shop.toml:26: nodes.announce.partition: unknown partition `apl`",
            "did you mean `api`?",
        ],
    );
    refused_with(
        "[outbox]",
        "[[nodes]]\nid = \"next\"\ntype = \"HTTPRequestNode\"\nurl = \"x\"\n\n\
         [[connections]]\nfrom = \"announce\"\nto = \"next\"\n\n[outbox]",
        &["shop.toml:39: connections.1.from: `announce` is sent again by itself"],
    );
    refused_with(
        "from = \"store\"",
        "from = \"store\"\noutput = \"dat\"",
        &[
            "shop.toml:31: connections.0.output: unknown output of `store` `dat`",
            "did you mean `data`?",
        ],
    );
    refused_with(
        "breaker = \"notify\"",
        "breaker = \"notify\"\ntimeout = \"0s\"",
        &["shop.toml:26: nodes.announce.timeout: 0s is not allowed, a duration above zero is"],
    );
}

#[test]
fn nodes_that_wait_for_each_other_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let node =
        |id| format!("[[nodes]]\nid = \"{id}\"\ntype = \"HTTPRequestNode\"\nurl = \"http://x\"\n");
    let connection = |from, to| format!("[[connections]]\nfrom = \"{from}\"\nto = \"{to}\"\n");
    let text = [
        node("a"),
        node("b"),
        connection("a", "b"),
        connection("b", "a"),
    ]
    .concat();
    std::fs::write(folder.path().join("ring.toml"), text).unwrap();
    let output = kailash(folder.path(), &["run", "ring.toml"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("nodes wait for each other: a -> b -> a"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn every_section_is_checked_before_anything_runs() {
    refused_with(
        "key = \"id\"",
        "key = \"ident\"",
        &[
            "shop.toml:4: input.key: unknown column `ident`",
            "allowed: id, name",
        ],
    );
    refused_with(
        "name = \"text\"",
        "name = \"string\"",
        &[
            "shop.toml:5: input.columns.name = \"string\" is not allowed",
            "allowed: text, int,",
        ],
    );
    for (from, key) in [
        ("kind = \"errors\"", "sandbox.faults.0.kind"),
        ("partition_type = \"api\"", "partitions.api.partition_type"),
    ] {
        let (name, _) = from.split_once(" = ").unwrap();
        let words = [
            &*format!("{key} = 5 is not allowed"),
            "allowed: a text in quotes",
        ];
        refused_with(from, &format!("{name} = 5"), &words);
    }
    refused_with(
        "partition_type = \"api\"",
        "partition_type = \"api\"\npriority = 11",
        &[
            "shop.toml:16: partitions.api.priority = 11 is not allowed",
            "allowed: 1 to 10",
        ],
    );
    refused_with(
        "partition_type = \"api\"",
        "partition_type = \"api\"\nqueue_order = \"lifo\"\nreject_hopeless = 1",
        &[
            "shop.toml:16: partitions.api.queue_order = \"lifo\" is not allowed",
            "allowed: fifo, adaptive_lifo",
        ],
    );
    refused_with(
        "[input]",
        "ceiling = 0\n[input]",
        &[
            "shop.toml:2: ceiling = 0 is not allowed",
            "allowed: 1 to 1000000",
        ],
    );
    refused_with(
        "table = \"outbox\"",
        "table = \"out box\"",
        &["shop.toml:34: outbox.table = \"out box\" is not allowed"],
    );
    refused_with(
        "send = \"announce\"",
        "send = \"store\"",
        &["shop.toml:36: outbox.send: unknown node of type HTTPRequestNode `store`"],
    );
    refused_with(
        "listen = \"127.0.0.1:0\"",
        "listen = \"localhost\"",
        &["shop.toml:39: sandbox.listen = \"localhost\" is not allowed"],
    );
    refused_with(
        "kind = \"errors\"",
        "kind = \"eror\"",
        &[
            "shop.toml:42: sandbox.faults.0.kind = \"eror\" is not allowed",
            "allowed: errors, silence, slowness",
        ],
    );
    refused_with(
        "lasts = \"3s\"",
        "lasts = \"3s\"\nstatus = 200",
        &[
            "shop.toml:45: sandbox.faults.0.status = 200 is not allowed",
            "allowed: 400 to 599",
        ],
    );
    refused_with(
        "[sandbox]",
        "[[checks]]\nname = \"shop\"\ntype = \"sql\"\n\n[sandbox]",
        &["checks.shop: the key `url` is missing"],
    );
}
