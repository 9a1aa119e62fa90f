use proptest::prelude::*;
use serde_json::json;

use super::Dialect::{MySql, Postgres, Sqlite};
use super::*;

fn check(dialect: Dialect, sql: &str, parameters: serde_json::Value, expected: &str) {
    let parameters = Value::from(parameters);
    let text = match bind(dialect, sql, &parameters) {
        Ok(bound) => {
            let values: Vec<_> = bound.values.iter().map(|value| value.to_string()).collect();
            format!("{} <- {}", bound.sql, values.join(","))
        }
        Err(error) => format!("error: {error}"),
    };
    assert_eq!(text, expected, "{dialect:?}: {sql}");
}

#[test]
fn every_style_works_on_every_driver() {
    let list = json!([10, 20]);
    let map = json!({"a": 10, "b": 20});
    let cases = [
        ("SELECT %s, %s", &list),
        ("SELECT ?, ?", &list),
        ("SELECT $1, $2", &list),
        ("SELECT :a, :b", &map),
        ("SELECT %(a)s, %(b)s", &map),
    ];
    for (sql, parameters) in cases {
        check(Postgres, sql, parameters.clone(), "SELECT $1, $2 <- 10,20");
        check(MySql, sql, parameters.clone(), "SELECT ?, ? <- 10,20");
        check(Sqlite, sql, parameters.clone(), "SELECT ?1, ?2 <- 10,20");
    }
}

#[test]
fn a_parameter_used_twice_is_bound_once_where_the_driver_numbers() {
    for (sql, parameters) in [
        ("SELECT $2, $1, $2", json!([1, 2])),
        ("SELECT :b, :a, :b", json!({"a": 1, "b": 2})),
        ("SELECT %(b)s, %(a)s, %(b)s", json!({"a": 1, "b": 2})),
    ] {
        check(
            Postgres,
            sql,
            parameters.clone(),
            "SELECT $1, $2, $1 <- 2,1",
        );
        check(Sqlite, sql, parameters.clone(), "SELECT ?1, ?2, ?1 <- 2,1");
        check(MySql, sql, parameters, "SELECT ?, ?, ? <- 2,1,2");
    }
}

#[test]
fn literals_quoted_identifiers_and_comments_go_untouched() {
    let untouched = [
        (
            vec![Postgres, MySql, Sqlite],
            "'? %s :n $1 %(n)s ?? %% it''s ?'",
        ),
        (vec![Postgres, MySql, Sqlite], r#""? %s :n $1 ""x"" ?""#),
        (vec![Postgres, MySql, Sqlite], "-- ? %s :n $1 'x\n"),
        (vec![Postgres, MySql, Sqlite], "/* ? %s :n $1 ' */"),
        (vec![Postgres], "/* a /* ? */ ? */"),
        (vec![Postgres], "$$ ? %s :n $1 ' $$"),
        (vec![Postgres], "$tag$ ? $$ ? $tag$"),
        (vec![Postgres], r"E'it\'s ? %s'"),
        (vec![Postgres], "E'a'\n  'b\\' ? '"),
        (vec![Postgres], r"'\' "),
        (vec![Postgres, MySql, Sqlite], "a::text"),
        (vec![Postgres], "a[i:j]"),
        (vec![Postgres, MySql, Sqlite], "f(a := 1)"),
        (vec![Postgres, MySql, Sqlite], "price$1"),
        (vec![Postgres, MySql, Sqlite], "10 % 3"),
        (vec![MySql], r"'it\'s ? %s'"),
        (vec![MySql], r#""it\"s ? %s""#),
        (vec![MySql, Sqlite], "`? :n`"),
        (vec![MySql], "# ? %s :n\n"),
        (vec![Sqlite], "[? :n]"),
        (vec![Sqlite], r"'\'"),
        (vec![Postgres, Sqlite], "1--? :n\n"),
        (vec![Postgres, MySql, Sqlite], "'unterminated ? "),
    ];
    for (dialects, piece) in untouched {
        for dialect in dialects {
            let sql = format!("SELECT {piece}");
            check(dialect, &sql, json!([]), &format!("{sql} <- "));
        }
    }
}

#[test]
fn a_placeholder_next_to_a_literal_or_a_cast_is_found() {
    check(
        Postgres,
        "SELECT 'a'||?||'b?'",
        json!([1]),
        "SELECT 'a'||$1||'b?' <- 1",
    );
    check(
        Postgres,
        "SELECT :a::int[]",
        json!({"a": 1}),
        "SELECT $1::int[] <- 1",
    );
    check(
        Postgres,
        "SELECT %s::int",
        json!([1]),
        "SELECT $1::int <- 1",
    );
    check(
        Postgres,
        "SELECT x[:a]",
        json!({"a": 1}),
        "SELECT x[$1] <- 1",
    );
    check(Postgres, "SELECT $1$2", json!([1, 2]), "SELECT $1$2 <- 1,2");
    check(MySql, "SELECT 5--?", json!([1]), "SELECT 5--? <- 1");
    check(
        Postgres,
        "SELECT '\\', ?",
        json!([1]),
        "SELECT '\\', $1 <- 1",
    );
    check(
        Sqlite,
        "VALUES(?,?);",
        json!([1, 2]),
        "VALUES(?1,?2); <- 1,2",
    );
    check(
        Sqlite,
        "SELECT ü, :ä",
        json!({"ä": 1}),
        "error: no placeholder is named \"ä\"",
    );
}

#[test]
fn doubled_signs_are_the_literal_ones() {
    check(
        Postgres,
        "SELECT d ?? 'k', ?",
        json!([1]),
        "SELECT d ? 'k', $1 <- 1",
    );
    check(
        Postgres,
        "SELECT d ??| %s",
        json!([1]),
        "SELECT d ?| $1 <- 1",
    );
    check(MySql, "SELECT 5 %% %s", json!([2]), "SELECT 5 % ? <- 2");
    check(
        Sqlite,
        "SELECT 5 %% 2, '%%'",
        json!([]),
        "SELECT 5 % 2, '%%' <- ",
    );
}

#[test]
fn without_parameters_the_text_goes_untouched() {
    let sql = "SELECT d ? 'k', 5 %% 2, '%s', a::text, $1, :n";
    check(Postgres, sql, json!(null), &format!("{sql} <- "));
    check(MySql, "SELECT 5 %% %s", json!(null), "SELECT 5 %% %s <- ");
}

#[test]
fn sqlite_does_not_store_null_for_a_forgotten_parameter() {
    for mark in ["?", "$1", ":n"] {
        let expected = format!("error: placeholder {mark} has no parameter (1 needed, 0 given)");
        check(
            Sqlite,
            &format!("INSERT INTO t VALUES ({mark})"),
            json!(null),
            &expected,
        );
    }
}

#[test]
fn parameters_that_do_not_fit_are_named() {
    let cases = [
        (
            "?, ?",
            json!([1]),
            "placeholder 2 (?) has no parameter (2 needed, 1 given)",
        ),
        (
            "?",
            json!([]),
            "placeholder 1 (?) has no parameter (1 needed, 0 given)",
        ),
        (
            "?",
            json!([1, 2, 3]),
            "parameter 2 has no placeholder (1 needed, 3 given)",
        ),
        (
            "1",
            json!([1]),
            "parameter 1 has no placeholder (0 needed, 1 given)",
        ),
        (
            "$1, $3",
            json!([1, 2]),
            "placeholder $3 has no parameter (3 needed, 2 given)",
        ),
        ("$1, $3", json!([1, 2, 3]), "no placeholder is named \"$2\""),
        (":a", json!({"b": 1}), "placeholder \"a\" has no parameter"),
        (
            ":a",
            json!({"a": 1, "b": 1}),
            "no placeholder is named \"b\"",
        ),
        (
            ":a",
            json!([1]),
            "placeholder :a takes a map of parameters, not a list",
        ),
        (
            "%s",
            json!({"a": 1}),
            "placeholder %s takes a list of parameters, not a map",
        ),
        (
            "?",
            json!(7),
            "parameters are a list or a map, not an integer",
        ),
    ];
    for (sql, parameters, error) in cases {
        for dialect in [Postgres, MySql, Sqlite] {
            check(dialect, sql, parameters.clone(), &format!("error: {error}"));
        }
    }
}

#[test]
fn two_styles_in_one_statement_are_an_error_that_names_both() {
    for (sql, first, second) in [
        ("?, %s", "?", "%s"),
        ("d ? $1", "?", "$1"),
        (":a, %(a)s", ":a", "%(a)s"),
        ("%s, %(a)s", "%s", "%(a)s"),
    ] {
        let error = format!(
            "error: placeholders {first} and {second} are of two styles, one statement takes one \
             (a literal question mark is ??, a literal percent sign %%)"
        );
        check(Postgres, sql, json!([1, 2]), &error);
    }
}

#[test]
fn several_statements_are_recognised() {
    for (sql, several) in [
        ("SELECT 1", false),
        ("SELECT ';' ; -- ; \n ", false),
        ("SELECT 1; SELECT 2", true),
        ("SELECT $$ a; b $$", false),
    ] {
        assert_eq!(is_several_statements(Postgres, sql), several, "{sql}");
    }
}

#[test]
fn the_first_keyword_is_found_past_comments_and_parentheses() {
    for (sql, word) in [
        ("insert into t", "INSERT"),
        (" -- x\n /* y */ ( select 1)", "SELECT"),
        ("", ""),
    ] {
        assert_eq!(first_keyword(Sqlite, sql), word);
    }
}

fn dialects() -> impl Strategy<Value = Dialect> {
    prop_oneof![Just(Postgres), Just(MySql), Just(Sqlite)]
}

/// Pieces in which no placeholder may be seen, as each dialect closes them.
fn opaque(dialect: Dialect) -> BoxedStrategy<String> {
    let text = "[a-z?%$:()s1\" \n]{0,20}";
    let literal = text.prop_map(|text| format!("'{text}'"));
    let comment = "[a-z?%$:()s1' ]{0,20}".prop_map(|text| format!("/*{text}*/"));
    let line = "[a-z?%$:()s1' ]{0,20}".prop_map(|text| format!("-- {text}\n"));
    let own = match dialect {
        Postgres => "[a-z?%:()s1' \n]{0,20}"
            .prop_map(|text| format!("$q$ {text} $q$"))
            .boxed(),
        MySql => r"([a-z?%$:()s1]|\\'){0,20}"
            .prop_map(|text| format!("'{text}'"))
            .boxed(),
        Sqlite => "[a-z?%$:()s1' ]{0,20}"
            .prop_map(|text| format!("[{text}]"))
            .boxed(),
    };
    prop_oneof![literal, comment, line, own].boxed()
}

fn statements() -> impl Strategy<Value = (Dialect, Vec<String>)> {
    dialects().prop_flat_map(|dialect| {
        (
            Just(dialect),
            proptest::collection::vec(opaque(dialect), 0..8),
        )
    })
}

proptest! {
    #[test]
    fn what_stands_between_placeholders_is_never_touched((dialect, pieces) in statements()) {
        let sql = pieces.join(" ? ");
        let count = pieces.len().saturating_sub(1);
        let parameters: Value = (0..count as i64).collect();
        let bound = bind(dialect, &sql, &parameters).unwrap();
        let mut expected = String::new();
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                expected.push_str(&match dialect {
                    Postgres => format!(" ${index} "),
                    MySql => " ? ".to_owned(),
                    Sqlite => format!(" ?{index} "),
                });
            }
            expected.push_str(piece);
        }
        prop_assert_eq!(bound.sql, expected);
        prop_assert_eq!(bound.values.len(), count);
    }

    #[test]
    fn no_text_makes_the_scanner_panic(dialect in dialects(), sql in "[a-z'\"`$%?:(){}\\[\\];*/#\\\\ \nEü-]{0,60}") {
        let _ = bind(dialect, &sql, &Value::List(Vec::new()));
        let _ = bind(dialect, &sql, &Value::Map(Map::new()));
        let _ = is_several_statements(dialect, &sql);
        let _ = first_keyword(dialect, &sql);
    }
}
