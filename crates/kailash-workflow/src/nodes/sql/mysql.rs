//! MySQL and MariaDB: parameters in their own types, which the server converts; rows by column type.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use futures_util::TryStreamExt as _;
use sqlx::mysql::{MySqlArguments, MySqlColumn, MySqlConnection, MySqlQueryResult, MySqlRow};
use sqlx::types::BigDecimal;
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Decode, Either, Executor as _, MySql, Row as _,
    SqlSafeStr as _, Statement as _, Type, TypeInfo as _, ValueRef as _,
};

use super::placeholders::{self, Dialect};
use super::{Failure, Rows, Unreadable, last_answer};
use crate::value::{Map, Value};

/// "This command is not supported in the prepared statement protocol yet".
const NOT_PREPARABLE: u16 = 1295;

pub(super) async fn execute(
    connection: &mut MySqlConnection,
    sql: &str,
    parameters: &Value,
) -> Result<Rows, Failure> {
    if parameters.is_null() && placeholders::is_several_statements(Dialect::MySql, sql) {
        return unprepared(connection, sql).await;
    }
    let bound = placeholders::bind(Dialect::MySql, sql, parameters)?;
    let text = AssertSqlSafe(bound.sql).into_sql_str();
    let statement = match (&mut *connection).prepare(text.clone()).await {
        Ok(statement) => statement,
        Err(error) if parameters.is_null() && is_not_preparable(&error) => {
            return unprepared(connection, sql).await;
        }
        Err(error) => return Err(error.into()),
    };
    for column in statement.columns() {
        if is_unreadable(column) {
            return Err(unreadable(column, Unreadable::Type));
        }
    }
    let mut arguments = MySqlArguments::default();
    for (index, value) in bound.values.into_iter().enumerate() {
        add(&mut arguments, value)
            .map_err(|error| Failure::Statement(format!("parameter {}: {error}", index + 1)))?;
    }
    let columns = statement
        .columns()
        .iter()
        .map(|column| column.name().to_owned());
    let mut rows = Rows::new(columns.collect());
    let mut stream = (&mut *connection).fetch_many(statement.query_with(arguments));
    while let Some(item) = stream.try_next().await? {
        match item {
            Either::Left(done) if rows.columns.is_empty() => rows.affected(done.rows_affected()),
            Either::Left(_) => {}
            Either::Right(row) => {
                if rows.data.is_empty() {
                    // The row knows better than what was prepared: MariaDB announces no columns of a
                    // RETURNING, and a table may have changed since.
                    rows = Rows::new(row.columns().iter().map(|c| c.name().to_owned()).collect());
                }
                rows.push(read(&row)?);
            }
        }
    }
    Ok(rows)
}

fn is_not_preparable(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let error = error.and_then(|error| error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>());
    error.is_some_and(|error| error.number() == NOT_PREPARABLE)
}

/// Statements in the text protocol; the last one's rows.
async fn unprepared(connection: &mut MySqlConnection, sql: &str) -> Result<Rows, Failure> {
    let answers = connection.fetch_many(sqlx::raw_sql(AssertSqlSafe(sql)));
    last_answer(answers, MySqlQueryResult::rows_affected, read).await
}

fn add(arguments: &mut MySqlArguments, value: &Value) -> Result<(), sqlx::error::BoxDynError> {
    match value {
        Value::Null => arguments.add(None::<String>),
        Value::Bool(bool) => arguments.add(*bool),
        Value::Int(int) => arguments.add(*int),
        Value::Float(float) => arguments.add(*float),
        Value::Decimal(decimal) => arguments.add(decimal.clone()),
        Value::Text(text) => arguments.add(text.as_str()),
        Value::Bytes(bytes) => arguments.add(bytes.as_slice()),
        Value::Date(date) => arguments.add(*date),
        Value::Time(time) => arguments.add(*time),
        Value::DateTime(at) => arguments.add(*at),
        Value::OffsetDateTime(at) => arguments.add(at.to_utc()),
        // As text a UUID fits MariaDB's own type and a CHAR(36).
        Value::Uuid(_) | Value::List(_) | Value::Map(_) => arguments.add(value.to_string()),
    }
}

fn read(row: &MySqlRow) -> Result<Map, Failure> {
    let mut fields = Map::with_capacity(row.len());
    for (index, column) in row.columns().iter().enumerate() {
        let value = if row.try_get_raw(index)?.is_null() {
            Value::Null
        } else {
            decode(row, index, column).map_err(|reason| unreadable(column, reason))?
        };
        fields.insert(column.name().to_owned(), value);
    }
    Ok(fields)
}

fn unreadable(column: &MySqlColumn, reason: Unreadable) -> Failure {
    let (column, ty) = (
        column.name().to_owned(),
        column.type_info().name().to_owned(),
    );
    Failure::Column { column, ty, reason }
}

fn is_unreadable(column: &MySqlColumn) -> bool {
    column.type_info().name() == "GEOMETRY"
}

fn decode(row: &MySqlRow, index: usize, column: &MySqlColumn) -> Result<Value, Unreadable> {
    fn get<'r, T: Decode<'r, MySql>>(row: &'r MySqlRow, index: usize) -> Result<T, Unreadable> {
        let raw = row.try_get_raw(index).map_err(|_| Unreadable::Value)?;
        T::decode(raw).map_err(|_| Unreadable::Value)
    }
    if <str as Type<MySql>>::compatible(column.type_info()) {
        // By its character set; by name, MariaDB's UUIDs and text with a binary collation are bytes.
        return Ok(Value::Text(get(row, index)?));
    }
    Ok(match column.type_info().name() {
        "NULL" => Value::Null,
        // TINYINT(1) too holds more than two numbers.
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            Value::Int(get(row, index)?)
        }
        "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED"
        | "BIGINT UNSIGNED" | "YEAR" | "BIT" => Value::from(get::<u64>(row, index)?),
        "FLOAT" => super::shortest(get::<f32>(row, index)?),
        "DOUBLE" => Value::Float(get(row, index)?),
        "DECIMAL" => Value::Decimal(get::<BigDecimal>(row, index)?),
        "DATE" => Value::Date(get::<NaiveDate>(row, index)?),
        "TIME" => Value::Time(get::<NaiveTime>(row, index)?),
        "DATETIME" => Value::DateTime(get::<NaiveDateTime>(row, index)?),
        "TIMESTAMP" => Value::OffsetDateTime(get::<DateTime<Utc>>(row, index)?.fixed_offset()),
        "JSON" => get::<serde_json::Value>(row, index)?.into(),
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
            Value::Bytes(get(row, index)?)
        }
        _ => return Err(Unreadable::Type),
    })
}
