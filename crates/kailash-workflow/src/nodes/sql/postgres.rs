//! PostgreSQL: parameters in the types that the server infers, rows from its binary format.
//!
//! The server is asked for the type of each parameter first (a prepared statement, kept by the
//! connection). A value that has this type is sent as it is. Any other is sent in its own type behind a
//! cast, so that the server converts it or refuses it: text reaches any type in the server's own
//! spelling, as it does from psycopg.

use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::{BigInt, Sign};
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};
use futures_util::TryStreamExt as _;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
    PgTypeKind, PgValueFormat, Postgres,
};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Either, Encode, Executor as _, Row as _,
    SqlSafeStr as _, Statement as _, Type, TypeInfo as _, ValueRef as _,
};
use uuid::Uuid;

use super::placeholders::{self, Bound, Dialect};
use super::{Failure, Rows, Unreadable, last_answer};
use crate::value::{Map, Value};

/// SQLSTATE of a parameter whose type cannot be inferred.
const INDETERMINATE: &str = "42P18";

pub(super) async fn execute(
    connection: &mut PgConnection,
    sql: &str,
    parameters: &Value,
) -> Result<Rows, Failure> {
    if parameters.is_null() && placeholders::is_several_statements(Dialect::Postgres, sql) {
        return script(connection, sql).await;
    }
    let (statement, arguments) = prepare(connection, sql, parameters).await?;
    let columns = statement.columns();
    for column in columns {
        // Told before the statement runs, while nothing has happened yet.
        if !is_readable(column.type_info()) {
            return Err(unreadable(
                column.name(),
                column.type_info(),
                Unreadable::Type,
            ));
        }
    }
    let mut rows = Rows::new(
        columns
            .iter()
            .map(|column| column.name().to_owned())
            .collect(),
    );
    let returns_rows = !columns.is_empty();
    let mut stream = (&mut *connection).fetch_many(statement.query_with(arguments));
    while let Some(item) = stream.try_next().await? {
        match item {
            Either::Left(done) if !returns_rows => rows.affected(done.rows_affected()),
            Either::Left(_) => {}
            Either::Right(row) => rows.push(read(&row)?),
        }
    }
    Ok(rows)
}

/// Several statements at once, which only the simple protocol takes; the last one's rows.
async fn script(connection: &mut PgConnection, sql: &str) -> Result<Rows, Failure> {
    let answers = connection.fetch_many(sqlx::raw_sql(AssertSqlSafe(sql)));
    last_answer(answers, PgQueryResult::rows_affected, read).await
}

async fn prepare(
    connection: &mut PgConnection,
    sql: &str,
    parameters: &Value,
) -> Result<(PgStatement, PgArguments), Failure> {
    let mut casts: Vec<Option<String>> = Vec::new();
    // Each turn adds a cast to a parameter that had none, so this ends.
    loop {
        let Bound { sql, values } =
            placeholders::bind_with_casts(Dialect::Postgres, sql, parameters, &casts)?;
        casts.resize(values.len(), None);
        let statement = match (&mut *connection)
            .prepare(AssertSqlSafe(sql).into_sql_str())
            .await
        {
            Ok(statement) => statement,
            Err(error) => {
                let index = indeterminate(&error).filter(|index| casts.get(*index) == Some(&None));
                let Some(index) = index else {
                    return Err(error.into());
                };
                casts[index] = Some(natural_cast(values[index]).to_owned());
                continue;
            }
        };
        let types = match statement.parameters() {
            Some(Either::Left(types)) => types,
            _ => &[],
        };
        let mut wants_casts = false;
        let mut arguments = PgArguments::default();
        for (index, value) in values.iter().enumerate() {
            let Some(ty) = types.get(index) else { break };
            let is_cast = casts[index].is_some();
            match Parameter::new(value, ty, is_cast) {
                Some(parameter) => arguments.add(Typed { parameter, ty }).map_err(|error| {
                    Failure::Statement(format!("parameter {}: {error}", index + 1))
                })?,
                None if is_cast => {
                    let (index, kind, ty) = (index + 1, value.kind(), ty.name());
                    let message = format!("parameter {index}: {kind} is no {ty}");
                    return Err(Failure::Statement(message));
                }
                None => {
                    casts[index] = Some(cast(value, ty));
                    wants_casts = true;
                }
            }
        }
        if !wants_casts {
            return Ok((statement, arguments));
        }
    }
}

/// The index of the parameter that the server found no type for.
fn indeterminate(error: &sqlx::Error) -> Option<usize> {
    let error = error.as_database_error()?;
    if error.code()? != INDETERMINATE {
        return None;
    }
    let (_, rest) = error.message().split_once('$')?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse::<usize>().ok()?.checked_sub(1)
}

/// The cast for a value that is not of the inferred type.
fn cast(value: &Value, ty: &PgTypeInfo) -> String {
    match (value, ty.kind()) {
        (Value::Text(_), _) | (Value::List(_), PgTypeKind::Array(_)) => {
            format!("::text::{}", ty.name())
        }
        _ => natural_cast(value).to_owned(),
    }
}

/// The cast to the type that a value has by itself.
fn natural_cast(value: &Value) -> &'static str {
    match value {
        Value::Null | Value::Text(_) => "::text",
        Value::Bool(_) => "::bool",
        Value::Int(_) => "::int8",
        Value::Float(_) => "::float8",
        Value::Decimal(_) => "::numeric",
        Value::Bytes(_) => "::bytea",
        Value::Date(_) => "::date",
        Value::Time(_) => "::time",
        Value::DateTime(_) => "::timestamp",
        Value::OffsetDateTime(_) => "::timestamptz",
        Value::Uuid(_) => "::uuid",
        Value::Map(_) => "::jsonb",
        Value::List(list) => match list.iter().find(|value| !value.is_null()) {
            Some(Value::Bool(_)) => "::text::bool[]",
            Some(Value::Int(_)) => "::text::int8[]",
            Some(Value::Float(_)) => "::text::float8[]",
            Some(Value::Decimal(_)) => "::text::numeric[]",
            Some(Value::Bytes(_)) => "::text::bytea[]",
            Some(Value::Date(_)) => "::text::date[]",
            Some(Value::Time(_)) => "::text::time[]",
            Some(Value::DateTime(_)) => "::text::timestamp[]",
            Some(Value::OffsetDateTime(_)) => "::text::timestamptz[]",
            Some(Value::Uuid(_)) => "::text::uuid[]",
            Some(Value::Map(_)) => "::text::jsonb[]",
            _ => "::text::text[]",
        },
    }
}

/// A value in a type that the server asked for.
enum Parameter<'v> {
    Null,
    Bool(bool),
    Int2(i16),
    Int4(i32),
    Int8(i64),
    Float4(f32),
    Float8(f64),
    Numeric(BigDecimal),
    Text(&'v str),
    Owned(String),
    Bytes(&'v [u8]),
    Date(NaiveDate),
    Time(NaiveTime),
    Timestamp(NaiveDateTime),
    Timestamptz(DateTime<Utc>),
    Uuid(Uuid),
    Json(String),
    Jsonb(String),
}

impl<'v> Parameter<'v> {
    /// The value as this type, `None` when it is not of it. `is_cast` says that a cast brought us here.
    fn new(value: &'v Value, ty: &PgTypeInfo, is_cast: bool) -> Option<Self> {
        if let PgTypeKind::Domain(inner) = ty.kind() {
            return Self::new(value, inner, is_cast);
        }
        let is_enum = matches!(ty.kind(), PgTypeKind::Enum(_));
        Some(match (ty.name(), value) {
            (_, Value::Null) => Self::Null,
            ("BOOL", Value::Bool(bool)) => Self::Bool(*bool),
            ("INT2", Value::Int(int)) => Self::Int2(i16::try_from(*int).ok()?),
            ("INT4", Value::Int(int)) => Self::Int4(i32::try_from(*int).ok()?),
            ("INT8", Value::Int(int)) => Self::Int8(*int),
            ("FLOAT4", Value::Float(float)) => Self::Float4(*float as f32),
            ("FLOAT4", Value::Int(int)) => Self::Float4(*int as f32),
            ("FLOAT8", Value::Float(float)) => Self::Float8(*float),
            ("FLOAT8", Value::Int(int)) => Self::Float8(*int as f64),
            ("NUMERIC", Value::Decimal(decimal)) => Self::Numeric(decimal.clone()),
            ("NUMERIC", Value::Int(int)) => Self::Numeric(BigDecimal::from(*int)),
            ("TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" | "citext" | "xml", value) => {
                match value {
                    Value::Text(text) => Self::Text(text),
                    Value::Uuid(uuid) => Self::Owned(uuid.to_string()),
                    Value::List(list) if is_cast => Self::Owned(array(list)),
                    _ => return None,
                }
            }
            (_, Value::Text(text)) if is_enum => Self::Text(text),
            ("BYTEA", Value::Bytes(bytes)) => Self::Bytes(bytes),
            ("DATE", Value::Date(date)) => Self::Date(*date),
            ("TIME", Value::Time(time)) => Self::Time(*time),
            ("TIMESTAMP", Value::DateTime(at)) => Self::Timestamp(*at),
            ("TIMESTAMPTZ", Value::OffsetDateTime(at)) => Self::Timestamptz(at.to_utc()),
            ("UUID", Value::Uuid(uuid)) => Self::Uuid(*uuid),
            ("JSON", Value::Map(_) | Value::List(_)) => Self::Json(value.to_string()),
            ("JSONB", Value::Map(_) | Value::List(_)) => Self::Jsonb(value.to_string()),
            _ => return None,
        })
    }
}

/// A list as PostgreSQL writes an array.
fn array(list: &[Value]) -> String {
    let mut text = String::from("{");
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        match value {
            Value::Null => text.push_str("NULL"),
            Value::List(inner) => text.push_str(&array(inner)),
            Value::Bytes(bytes) => {
                text.push_str(r#""\\x"#);
                for byte in bytes {
                    text.push_str(&format!("{byte:02x}"));
                }
                text.push('"');
            }
            value => {
                text.push('"');
                for c in value.to_string().chars() {
                    if matches!(c, '"' | '\\') {
                        text.push('\\');
                    }
                    text.push(c);
                }
                text.push('"');
            }
        }
    }
    text.push('}');
    text
}

struct Typed<'v> {
    parameter: Parameter<'v>,
    ty: &'v PgTypeInfo,
}

impl Type<Postgres> for Typed<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("unknown")
    }
}

impl<'q> Encode<'q, Postgres> for Typed<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        fn put<'q, T: Encode<'q, Postgres>>(
            value: &T,
            buffer: &mut PgArgumentBuffer,
        ) -> Result<IsNull, BoxDynError> {
            value.encode_by_ref(buffer)
        }
        match &self.parameter {
            Parameter::Null => Ok(IsNull::Yes),
            Parameter::Bool(value) => put(value, buffer),
            Parameter::Int2(value) => put(value, buffer),
            Parameter::Int4(value) => put(value, buffer),
            Parameter::Int8(value) => put(value, buffer),
            Parameter::Float4(value) => put(value, buffer),
            Parameter::Float8(value) => put(value, buffer),
            Parameter::Numeric(value) => put(value, buffer),
            Parameter::Text(value) => put(value, buffer),
            Parameter::Owned(value) => put(value, buffer),
            Parameter::Bytes(value) => put(value, buffer),
            Parameter::Date(value) => put(value, buffer),
            Parameter::Time(value) => put(value, buffer),
            Parameter::Timestamp(value) => put(value, buffer),
            Parameter::Timestamptz(value) => put(value, buffer),
            Parameter::Uuid(value) => put(value, buffer),
            Parameter::Json(text) => {
                buffer.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
            Parameter::Jsonb(text) => {
                // The version of jsonb's binary format.
                buffer.push(1);
                buffer.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.ty.clone())
    }
}

fn read(row: &PgRow) -> Result<Map, Failure> {
    let mut fields = Map::with_capacity(row.len());
    for (index, column) in row.columns().iter().enumerate() {
        let raw = row.try_get_raw(index)?;
        let value = if raw.is_null() {
            Value::Null
        } else {
            let ty = raw.type_info();
            let bytes = raw.as_bytes().map_err(sqlx::Error::Decode)?;
            let value = match raw.format() {
                PgValueFormat::Binary => decode(&ty, bytes),
                PgValueFormat::Text => decode_text(&ty, bytes),
            };
            value.map_err(|reason| unreadable(column.name(), &ty, reason))?
        };
        fields.insert(column.name().to_owned(), value);
    }
    Ok(fields)
}

fn unreadable(column: &str, ty: &PgTypeInfo, reason: Unreadable) -> Failure {
    Failure::Column {
        column: column.to_owned(),
        ty: ty.name().to_owned(),
        reason,
    }
}

fn is_readable(ty: &PgTypeInfo) -> bool {
    match ty.kind() {
        PgTypeKind::Domain(inner) | PgTypeKind::Array(inner) => is_readable(inner),
        PgTypeKind::Enum(_) => true,
        _ => matches!(
            ty.name(),
            "BOOL"
                | "INT2"
                | "INT4"
                | "INT8"
                | "OID"
                | "FLOAT4"
                | "FLOAT8"
                | "NUMERIC"
                | "TEXT"
                | "VARCHAR"
                | "CHAR"
                | "\"CHAR\""
                | "NAME"
                | "UNKNOWN"
                | "citext"
                | "xml"
                | "BYTEA"
                | "DATE"
                | "TIME"
                | "TIMESTAMP"
                | "TIMESTAMPTZ"
                | "UUID"
                | "JSON"
                | "JSONB"
                | "VOID"
        ),
    }
}

/// A value from the server's binary format.
fn decode(ty: &PgTypeInfo, bytes: &[u8]) -> Result<Value, Unreadable> {
    match ty.kind() {
        PgTypeKind::Domain(inner) => return decode(inner, bytes),
        PgTypeKind::Array(element) => return decode_array(element, bytes),
        PgTypeKind::Enum(_) => return text(bytes),
        _ => {}
    }
    Ok(match ty.name() {
        "BOOL" => Value::Bool(bytes == [1]),
        "INT2" => Value::Int(i16::from_be_bytes(fixed(bytes)?).into()),
        "INT4" => Value::Int(i32::from_be_bytes(fixed(bytes)?).into()),
        "INT8" => Value::Int(i64::from_be_bytes(fixed(bytes)?)),
        "OID" => Value::Int(u32::from_be_bytes(fixed(bytes)?).into()),
        "FLOAT4" => super::shortest(f32::from_be_bytes(fixed(bytes)?)),
        "FLOAT8" => Value::Float(f64::from_be_bytes(fixed(bytes)?)),
        "NUMERIC" => numeric(bytes)?,
        "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" | "citext" | "xml" => {
            text(bytes)?
        }
        "BYTEA" => Value::Bytes(bytes.to_vec()),
        "DATE" => {
            let days = TimeDelta::try_days(i32::from_be_bytes(fixed(bytes)?).into());
            let date = days.and_then(|days| epoch().date().checked_add_signed(days));
            Value::Date(date.ok_or(Unreadable::Value)?)
        }
        "TIME" => {
            // 24:00:00 exists in SQL, and nowhere else.
            let time = micros(bytes)?.num_microseconds().unwrap_or(-1);
            let (seconds, micros) = (time.div_euclid(1_000_000), time.rem_euclid(1_000_000));
            let seconds = u32::try_from(seconds).map_err(|_| Unreadable::Value)?;
            let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, micros as u32 * 1000);
            Value::Time(time.ok_or(Unreadable::Value)?)
        }
        "TIMESTAMP" => Value::DateTime(timestamp(bytes)?),
        "TIMESTAMPTZ" => Value::OffsetDateTime(timestamp(bytes)?.and_utc().fixed_offset()),
        "UUID" => Value::Uuid(Uuid::from_bytes(fixed(bytes)?)),
        "JSON" => json(bytes)?,
        "JSONB" => json(bytes.get(1..).ok_or(Unreadable::Value)?)?,
        "VOID" => Value::Null,
        _ => return Err(Unreadable::Type),
    })
}

/// A value from the simple protocol, which answers in text.
fn decode_text(ty: &PgTypeInfo, bytes: &[u8]) -> Result<Value, Unreadable> {
    let Value::Text(text) = text(bytes)? else {
        return Err(Unreadable::Value);
    };
    fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, Unreadable> {
        text.parse().map_err(|_| Unreadable::Value)
    }
    Ok(match ty.name() {
        "BOOL" => Value::Bool(text == "t"),
        "INT2" | "INT4" | "INT8" | "OID" => Value::Int(parsed(&text)?),
        "FLOAT4" | "FLOAT8" => Value::Float(parsed(&text)?),
        "NUMERIC" => Value::Decimal(parsed(&text)?),
        "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" => Value::Text(text),
        "DATE" => Value::Date(parsed(&text)?),
        "TIME" => Value::Time(parsed(&text)?),
        "TIMESTAMP" => Value::DateTime(parsed(&text.replacen(' ', "T", 1))?),
        "UUID" => Value::Uuid(parsed(&text)?),
        "JSON" | "JSONB" => json(text.as_bytes())?,
        "VOID" => Value::Null,
        _ => return Err(Unreadable::Type),
    })
}

fn decode_array(element: &PgTypeInfo, bytes: &[u8]) -> Result<Value, Unreadable> {
    let mut reader = Reader(bytes);
    let dimensions = reader.int()?;
    let _has_nulls = reader.int()?;
    let _element_type = reader.int()?;
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(reader.int()?).map_err(|_| Unreadable::Value)?);
        let _lower_bound = reader.int()?;
    }
    if lengths.is_empty() {
        return Ok(Value::List(Vec::new()));
    }
    reader.list(element, &lengths)
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unreadable::Value)?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i32, Unreadable> {
        Ok(i32::from_be_bytes(fixed(self.take(4)?)?))
    }

    fn list(&mut self, element: &PgTypeInfo, lengths: &[usize]) -> Result<Value, Unreadable> {
        let Some((length, inner)) = lengths.split_first() else {
            return self.element(element);
        };
        (0..*length)
            .map(|_| self.list(element, inner))
            .collect::<Result<_, _>>()
            .map(Value::List)
    }

    fn element(&mut self, element: &PgTypeInfo) -> Result<Value, Unreadable> {
        let length = self.int()?;
        match usize::try_from(length) {
            Ok(length) => decode(element, self.take(length)?),
            Err(_) => Ok(Value::Null),
        }
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Unreadable> {
    bytes.try_into().map_err(|_| Unreadable::Value)
}

fn text(bytes: &[u8]) -> Result<Value, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::Value)?;
    Ok(Value::Text(text.to_owned()))
}

fn json(bytes: &[u8]) -> Result<Value, Unreadable> {
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| Unreadable::Value)?;
    Ok(json.into())
}

/// Where the server's dates begin.
fn epoch() -> NaiveDateTime {
    NaiveDate::from_ymd_opt(2000, 1, 1)
        .expect("a date")
        .and_time(NaiveTime::MIN)
}

fn micros(bytes: &[u8]) -> Result<TimeDelta, Unreadable> {
    Ok(TimeDelta::microseconds(i64::from_be_bytes(fixed(bytes)?)))
}

fn timestamp(bytes: &[u8]) -> Result<NaiveDateTime, Unreadable> {
    epoch()
        .checked_add_signed(micros(bytes)?)
        .ok_or(Unreadable::Value)
}

/// A numeric with the digits behind the point that the server shows.
fn numeric(bytes: &[u8]) -> Result<Value, Unreadable> {
    let mut reader = Reader(bytes);
    let mut short = || Ok::<_, Unreadable>(i16::from_be_bytes(fixed(reader.take(2)?)?));
    let count = short()?;
    let weight = i64::from(short()?);
    let sign = match short()? as u16 {
        0x0000 => Sign::Plus,
        0x4000 => Sign::Minus,
        // Not a number, or infinite.
        _ => return Err(Unreadable::Value),
    };
    let shown = i64::from(short()?);
    let mut digits = Vec::new();
    for _ in 0..count {
        let group = short()?;
        // Base 100 is as near as a byte comes to base 10,000.
        digits.push(u8::try_from(group / 100).map_err(|_| Unreadable::Value)?);
        digits.push(u8::try_from(group % 100).map_err(|_| Unreadable::Value)?);
    }
    if digits.is_empty() {
        return Ok(Value::Decimal(BigDecimal::from(0).with_scale(shown)));
    }
    let scale = (i64::from(count) - weight - 1) * 4;
    let digits = BigInt::from_radix_be(sign, &digits, 100).ok_or(Unreadable::Value)?;
    Ok(Value::Decimal(
        BigDecimal::new(digits, scale).with_scale(shown),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_as_an_array() {
        let list = [
            Value::Int(1),
            Value::Null,
            Value::from(r#"a"b\c,{}"#),
            Value::List(vec![Value::Bool(true)]),
            Value::Bytes(vec![1, 255]),
        ];
        assert_eq!(
            array(&list),
            r#"{"1",NULL,"a\"b\\c,{}",{"true"},"\\x01ff"}"#
        );
    }
}
