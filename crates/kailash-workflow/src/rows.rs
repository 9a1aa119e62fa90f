//! Rows of a CSV file, each with the types its columns were given.
//!
//! A line that does not fit is an answer of its own, and the lines after it go on.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use csv::{ByteRecord, Position};
use uuid::Uuid;

use crate::value::{Map, Value};

/// The most that is kept of a line that does not fit, in bytes.
const LONGEST_REJECT: usize = 64 * 1024;

/// What the text of a column stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Any text.
    Text,
    /// A whole number of 64 bits.
    Int,
    /// A binary floating-point number.
    Float,
    /// An exact decimal number.
    Decimal,
    /// `true` or `false`.
    Bool,
    /// A date: `2026-04-01`.
    Date,
    /// A time of day: `06:00:03`.
    Time,
    /// A date and time, with an offset or without: `2026-04-01T06:00:03`, `2026-04-01 06:00:03+02:00`.
    DateTime,
    /// A UUID.
    Uuid,
}

impl ColumnType {
    /// The value that a text stands for; `None` if it is none of this type.
    ///
    /// ```
    /// use kailash_workflow::Value;
    /// use kailash_workflow::rows::ColumnType;
    ///
    /// assert_eq!(ColumnType::Int.parse("7"), Some(Value::Int(7)));
    /// assert_eq!(ColumnType::Int.parse("7.5"), None);
    /// ```
    #[must_use]
    pub fn parse(self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        Some(match self {
            Self::Text => Value::from(text),
            Self::Int => Value::Int(trimmed.parse().ok()?),
            Self::Float => Value::Float(trimmed.parse().ok().filter(|f: &f64| f.is_finite())?),
            Self::Decimal => Value::Decimal(BigDecimal::from_str(trimmed).ok()?),
            Self::Bool => Value::Bool(trimmed.parse().ok()?),
            Self::Date => Value::Date(NaiveDate::from_str(trimmed).ok()?),
            Self::Time => Value::Time(NaiveTime::from_str(trimmed).ok()?),
            Self::DateTime => {
                let text = trimmed.replacen(' ', "T", 1);
                match NaiveDateTime::from_str(&text) {
                    Ok(at) => Value::DateTime(at),
                    Err(_) => Value::OffsetDateTime(DateTime::parse_from_rfc3339(&text).ok()?),
                }
            }
            Self::Uuid => Value::Uuid(Uuid::from_str(trimmed).ok()?),
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Decimal => "a decimal number",
            Self::Bool => "true or false",
            Self::Date => "a date",
            Self::Time => "a time",
            Self::DateTime => "a date and time",
            Self::Uuid => "a uuid",
        })
    }
}

/// The columns of a file: which it must have, their types, and which is the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Name and type of each column that is read; others of the file are left out.
    pub types: Vec<(String, ColumnType)>,
    /// The column that tells one row from another.
    pub key: String,
}

impl Columns {
    /// A row from the JSON that [`Row::to_json`] made of it.
    #[must_use]
    pub fn from_json(&self, json: &str) -> Option<Row> {
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).ok()?;
        let mut values = Map::with_capacity(self.types.len());
        for (name, column) in &self.types {
            let value = match fields.get(name)? {
                serde_json::Value::Null => Value::Null,
                serde_json::Value::String(text) => column.parse(text)?,
                other => column.parse(&other.to_string())?,
            };
            values.insert(name.clone(), value);
        }
        let key = values.get(&self.key)?.to_string();
        Some(Row {
            line: 0,
            key,
            values,
        })
    }
}

/// A row of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line it starts at, from 1; 0 for one that did not come from a file.
    pub line: u64,
    /// What tells it from every other row.
    pub key: String,
    /// Its values by column.
    pub values: Map,
}

impl Row {
    /// The row as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        crate::value::map_to_json(&self.values).to_string()
    }
}

/// A line that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Its number, from 1.
    pub line: u64,
    /// Why it does not fit.
    pub reason: String,
    /// The line as it stands in the file, at most the first 64 KiB of it.
    pub text: String,
}

/// Why a file of rows cannot be read.
#[derive(Debug)]
pub enum RowsError {
    /// It cannot be opened or read.
    Io(PathBuf, io::Error),
    /// Its first line lacks a column.
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column it lacks.
        column: String,
        /// Those it has.
        found: Vec<String>,
    },
    /// Its first line names a column twice.
    RepeatedColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
}

impl fmt::Display for RowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::MissingColumn {
                path,
                column,
                found,
            } => {
                let (path, found) = (path.display(), found.join(", "));
                write!(
                    f,
                    "{path}: the first line has no column \"{column}\", only {found}"
                )
            }
            Self::RepeatedColumn { path, column } => {
                let path = path.display();
                write!(
                    f,
                    "{path}: the first line has the column \"{column}\" twice"
                )
            }
        }
    }
}

impl Error for RowsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            _ => None,
        }
    }
}

/// The rows of a file, in order: an iterator that reads as it is asked.
///
/// It blocks while it reads: on an event loop it belongs on a thread of its own.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    reader: csv::Reader<File>,
    /// The same file again, for lines as they stand in it, and its length.
    file: File,
    length: u64,
    columns: Columns,
    /// Where each column stands in a line.
    places: Vec<usize>,
    width: usize,
    record: ByteRecord,
    lines: Lines,
    seen: HashSet<String>,
    is_broken: bool,
}

impl Rows {
    /// Opens a CSV file whose first line names its columns.
    ///
    /// # Errors
    /// When it cannot be read, or its first line lacks a column or has one twice.
    pub fn open(path: &Path, columns: Columns) -> Result<Self, RowsError> {
        let io_error = |error| RowsError::Io(path.to_owned(), error);
        let file = File::open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let mut builder = csv::ReaderBuilder::new();
        let mut reader = builder.flexible(true).from_reader(file);
        let header = reader
            .byte_headers()
            .map_err(|error| io_error(error.into()))?;
        let header: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        let mut places = Vec::new();
        for (name, _) in &columns.types {
            let mut found = header
                .iter()
                .enumerate()
                .filter(|(_, other)| *other == name);
            let (path, column) = (path.to_owned(), name.clone());
            match (found.next(), found.next()) {
                (Some((place, _)), None) => places.push(place),
                (Some(_), Some(_)) => return Err(RowsError::RepeatedColumn { path, column }),
                (None, _) => {
                    let found = header;
                    return Err(RowsError::MissingColumn {
                        path,
                        column,
                        found,
                    });
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            reader,
            file: File::open(path).map_err(io_error)?,
            length,
            columns,
            places,
            width: header.len(),
            record: ByteRecord::new(),
            lines: Lines::open(path).map_err(io_error)?,
            seen: HashSet::new(),
            is_broken: false,
        })
    }

    fn read(&mut self) -> Result<Option<Result<Row, Reject>>, io::Error> {
        if !self.reader.read_byte_record(&mut self.record)? {
            return Ok(None);
        }
        let start = self.record.position().map_or(0, Position::byte);
        let (start, line) = self.lines.of(start)?;
        let is_last = self.reader.position().byte() >= self.length;
        let row = self.row(line);
        if row.is_ok() && !(is_last && self.record.as_slice().contains(&b'\n')) {
            return Ok(row.ok().map(Ok));
        }
        let raw = self.raw(start)?;
        if is_last && let Some(first) = unended_quote(&raw) {
            // It took the rest of the file for one field: only its own line is wrong.
            let mut next = Position::new();
            next.set_byte(start + first as u64 + 1);
            self.reader.seek(next)?;
            let reason = "a quote that never ends".to_owned();
            return Ok(Some(Err(Reject::new(line, reason, &raw[..first]))));
        }
        Ok(Some(row.map_err(|reason| Reject::new(line, reason, &raw))))
    }

    fn row(&mut self, line: u64) -> Result<Row, String> {
        let (width, found) = (self.width, self.record.len());
        if found != width {
            return Err(format!("{found} fields, the first line has {width}"));
        }
        let mut values = Map::with_capacity(self.places.len());
        for ((name, column), place) in self.columns.types.iter().zip(&self.places) {
            let bytes = self.record.get(*place).unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| format!("{name}: not UTF-8"))?;
            let value = column.parse(text);
            let shown: String = text.chars().take(60).collect();
            let value = value.ok_or_else(|| format!("{name}: \"{shown}\" is not {column}"))?;
            values.insert(name.clone(), value);
        }
        let key_column = &self.columns.key;
        let key = values.get(key_column).map(ToString::to_string);
        let key = key.unwrap_or_default();
        if key.is_empty() {
            return Err(format!("{key_column}: the key is empty"));
        }
        if !self.seen.insert(key.clone()) {
            return Err(format!("{key_column}: {key} stands on an earlier line too"));
        }
        Ok(Row { line, key, values })
    }

    /// What was just read, as it stands in the file.
    fn raw(&mut self, start: u64) -> io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        let length = self.reader.position().byte().saturating_sub(start);
        self.file.seek(SeekFrom::Start(start))?;
        (&mut self.file).take(length).read_to_end(&mut raw)?;
        Ok(raw)
    }
}

/// Where the first line of a record ends whose quote never does.
fn unended_quote(raw: &[u8]) -> Option<usize> {
    // Quotes in pairs mean that the field really has these lines.
    let quotes = raw.iter().filter(|byte| **byte == b'"').count();
    let first = raw.iter().position(|byte| *byte == b'\n')?;
    (quotes % 2 == 1).then_some(first)
}

impl Reject {
    fn new(line: u64, reason: String, raw: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&raw[..raw.len().min(LONGEST_REJECT)]);
        let text = text.trim_end_matches(['\r', '\n']).to_owned();
        Self { line, reason, text }
    }
}

/// Counts the lines of a file, since a CSV reader counts some of them late.
#[derive(Debug)]
struct Lines {
    file: BufReader<File>,
    byte: u64,
    line: u64,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::new(File::open(path)?);
        Ok(Self {
            file,
            byte: 0,
            line: 1,
        })
    }

    /// Where the record really starts that is read from `byte` on, and the number of that line.
    fn of(&mut self, byte: u64) -> io::Result<(u64, u64)> {
        loop {
            let before = usize::try_from(byte.saturating_sub(self.byte)).unwrap_or(usize::MAX);
            let bytes = self.file.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            let taken = if before > 0 {
                before.min(bytes.len())
            } else {
                // Ends of lines before a record belong to no record.
                let is_end = |byte: &&u8| matches!(byte, b'\r' | b'\n');
                match bytes.iter().take_while(is_end).count() {
                    0 => break,
                    ends => ends,
                }
            };
            let ends = bytes[..taken].iter().filter(|byte| **byte == b'\n');
            self.line += ends.count() as u64;
            self.byte += taken as u64;
            self.file.consume(taken);
        }
        Ok((self.byte, self.line))
    }
}

impl Iterator for Rows {
    type Item = Result<Result<Row, Reject>, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_broken {
            return None;
        }
        let next = self.read().transpose()?;
        Some(next.map_err(|error| {
            self.is_broken = true;
            RowsError::Io(self.path.clone(), error)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        let types = [
            ("id", ColumnType::Int),
            ("amount", ColumnType::Decimal),
            ("note", ColumnType::Text),
        ];
        Columns {
            types: types
                .map(|(name, column)| (name.to_owned(), column))
                .to_vec(),
            key: "id".to_owned(),
        }
    }

    /// Rows as their keys, rejects as line and reason.
    fn read(text: impl AsRef<[u8]>) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let rows = Rows::open(file.path(), columns()).unwrap();
        rows.map(|row| match row.unwrap() {
            Ok(row) => format!("{}: {}", row.line, row.key),
            Err(Reject { line, reason, text }) => format!("{line}! {reason} | {text}"),
        })
        .collect()
    }

    #[test]
    fn rows_come_with_their_line_and_their_types() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "note,id,other,amount\r\n\"a \"\"b\"\"\",7,x,1.50\r\n",
        )
        .unwrap();
        let mut rows = Rows::open(file.path(), columns()).unwrap();
        let row = rows.next().unwrap().unwrap().unwrap();
        assert_eq!((row.line, &*row.key), (2, "7"));
        assert_eq!(
            row.to_json(),
            r#"{"id":7,"amount":"1.50","note":"a \"b\""}"#
        );
        assert_eq!(
            columns().from_json(&row.to_json()).unwrap().values,
            row.values
        );
        assert!(rows.next().is_none());
    }

    #[test]
    fn a_line_that_does_not_fit_is_told_and_the_rest_goes_on() {
        let text = b"id,amount,note\n1,2.5,a\nx,1,b\n3,1\n4,,d\n\n1,1,again\n5,1,\xff\n6,1,f\n";
        assert_eq!(
            read(text),
            [
                "2: 1",
                "3! id: \"x\" is not a whole number | x,1,b",
                "4! 2 fields, the first line has 3 | 3,1",
                "5! amount: \"\" is not a decimal number | 4,,d",
                "7! id: 1 stands on an earlier line too | 1,1,again",
                "8! note: not UTF-8 | 5,1,\u{fffd}",
                "9: 6",
            ]
        );
    }

    #[test]
    fn a_quote_that_never_ends_costs_its_own_line_only() {
        let text = "id,amount,note\r\n1,1,a\r\n2,1,\"b\r\n\r\n3,1,c\r\n5,1,e";
        let rows = [
            "2: 1",
            "3! a quote that never ends | 2,1,\"b",
            "5: 3",
            "6: 5",
        ];
        assert_eq!(read(text), rows);
    }

    #[test]
    fn lines_within_a_quoted_field_are_never_taken_for_rows() {
        let text = "id,amount,note\n1,wrong,\"a\n2,1,smuggled\n\"\n3,1,c\n";
        assert_eq!(
            read(text),
            [
                "2! amount: \"wrong\" is not a decimal number | 1,wrong,\"a\n2,1,smuggled\n\"",
                "5: 3",
            ]
        );
    }

    #[test]
    fn a_file_that_lacks_a_column_or_is_missing_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "id,sum\n").unwrap();
        let path = file.path().display().to_string();
        let error = Rows::open(file.path(), columns()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{path}: the first line has no column \"amount\", only id, sum")
        );
        let error = Rows::open(Path::new("none.csv"), columns()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "none.csv: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_text_stands_for_a_value_of_its_type_only() {
        let check = |column: ColumnType, text: &str, shown: Option<&str>| {
            let value = column.parse(text).map(|value| value.to_string());
            assert_eq!(value.as_deref(), shown, "{column}: {text}");
        };
        check(ColumnType::Float, "1.5", Some("1.5"));
        check(ColumnType::Float, "inf", None);
        check(ColumnType::Bool, "true", Some("true"));
        check(ColumnType::Bool, "yes", None);
        check(ColumnType::Date, "2026-02-30", None);
        check(ColumnType::Time, "06:00:03", Some("06:00:03"));
        check(
            ColumnType::DateTime,
            "2026-04-01 06:00:03",
            Some("2026-04-01T06:00:03"),
        );
        let with_offset = "2026-04-01T06:00:03+02:00";
        check(ColumnType::DateTime, with_offset, Some(with_offset));
        check(ColumnType::Uuid, "x", None);
        check(ColumnType::Int, "9223372036854775808", None);
    }
}
