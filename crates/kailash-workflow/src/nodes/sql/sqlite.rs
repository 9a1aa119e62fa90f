//! SQLite: values by the class they are stored in, and by the column's declared type where SQLite
//! has no class of its own: BOOLEAN, DATE, TIME, DATETIME and TIMESTAMP.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteQueryResult, SqliteRow};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Connection as _, Decode, Executor as _, Row as _,
    SqlSafeStr as _, Sqlite, Statement as _, TypeInfo as _, ValueRef as _,
};

use super::placeholders::{self, Dialect};
use super::{Failure, Rows, Unreadable, last_answer};
use crate::value::{Map, Value};

pub(super) async fn execute(
    connection: &mut SqliteConnection,
    sql: &str,
    parameters: &Value,
) -> Result<Rows, Failure> {
    let bound = placeholders::bind(Dialect::Sqlite, sql, parameters)?;
    let text = AssertSqlSafe(bound.sql).into_sql_str();
    // A kept statement whose number of columns changes with its tables would be read past its end.
    let is_open_ended = text.as_str().contains('*');
    let mut arguments = SqliteArguments::default();
    for (index, value) in bound.values.into_iter().enumerate() {
        add(&mut arguments, value)
            .map_err(|error| Failure::Statement(format!("parameter {}: {error}", index + 1)))?;
    }
    let query = sqlx::query_with(text.clone(), arguments).persistent(!is_open_ended);
    let answers = (&mut *connection).fetch_many(query);
    let mut rows = last_answer(answers, SqliteQueryResult::rows_affected, read).await?;
    if rows.columns.is_empty() && may_return_rows(text.as_str()) {
        // No row told the columns; the statement does.
        if is_open_ended {
            connection.clear_cached_statements().await?;
        }
        let statement = (&mut *connection).prepare(text).await?;
        if !statement.columns().is_empty() {
            let columns = statement
                .columns()
                .iter()
                .map(|column| column.name().to_owned());
            rows = Rows::new(columns.collect());
        }
    }
    Ok(rows)
}

fn may_return_rows(sql: &str) -> bool {
    let keyword = placeholders::first_keyword(Dialect::Sqlite, sql);
    matches!(
        keyword.as_str(),
        "SELECT" | "WITH" | "VALUES" | "PRAGMA" | "EXPLAIN"
    ) || sql.to_ascii_lowercase().contains("returning")
}

fn add(arguments: &mut SqliteArguments, value: &Value) -> Result<(), sqlx::error::BoxDynError> {
    match value {
        Value::Null => arguments.add(None::<String>),
        Value::Bool(bool) => arguments.add(*bool),
        Value::Int(int) => arguments.add(*int),
        Value::Float(float) => arguments.add(*float),
        Value::Text(text) => arguments.add(text.clone()),
        Value::Bytes(bytes) => arguments.add(bytes.clone()),
        // The spelling of SQLite's own functions, so that both compare.
        Value::DateTime(at) => arguments.add(at.format("%Y-%m-%d %H:%M:%S%.f").to_string()),
        Value::OffsetDateTime(at) => {
            arguments.add(at.format("%Y-%m-%d %H:%M:%S%.f%:z").to_string())
        }
        value => arguments.add(value.to_string()),
    }
}

fn read(row: &SqliteRow) -> Result<Map, Failure> {
    let mut fields = Map::with_capacity(row.len());
    for (index, column) in row.columns().iter().enumerate() {
        let raw = row.try_get_raw(index)?;
        let stored = raw.type_info().name().to_owned();
        let value = match stored.as_str() {
            _ if raw.is_null() => Ok(Value::Null),
            "INTEGER" => <i64 as Decode<'_, Sqlite>>::decode(raw).map(|int| {
                match (column.type_info().name(), int) {
                    ("BOOLEAN", 0) => Value::Bool(false),
                    ("BOOLEAN", 1) => Value::Bool(true),
                    _ => Value::Int(int),
                }
            }),
            "REAL" => <f64 as Decode<'_, Sqlite>>::decode(raw).map(Value::Float),
            "TEXT" => {
                let text = <String as Decode<'_, Sqlite>>::decode(raw);
                text.map(|text| declared(column.type_info().name(), text))
            }
            _ => <Vec<u8> as Decode<'_, Sqlite>>::decode(raw).map(Value::Bytes),
        };
        let value = value.map_err(|_| Failure::Column {
            column: column.name().to_owned(),
            ty: stored,
            reason: Unreadable::Value,
        })?;
        fields.insert(column.name().to_owned(), value);
    }
    Ok(fields)
}

/// Text by the declared type of its column; SQLite stores any text there, and what is no date stays text.
fn declared(ty: &str, text: String) -> Value {
    match ty {
        "DATE" => text
            .parse::<NaiveDate>()
            .map_or(Value::Text(text), Value::Date),
        "TIME" => text
            .parse::<NaiveTime>()
            .map_or(Value::Text(text), Value::Time),
        "DATETIME" => {
            let iso = text.replacen(' ', "T", 1);
            if let Ok(at) = iso.parse::<NaiveDateTime>() {
                return Value::DateTime(at);
            }
            let at = DateTime::parse_from_rfc3339(&iso);
            at.map_or(Value::Text(text), Value::OffsetDateTime)
        }
        _ => Value::Text(text),
    }
}
