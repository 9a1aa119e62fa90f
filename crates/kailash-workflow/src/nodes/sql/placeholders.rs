//! Placeholders of any style, rewritten to the driver's own.
//!
//! A scanner walks over the statement once. It knows each dialect's literals, quoted identifiers and
//! comments, copies them untouched, and finds placeholders only between them.

use std::fmt;

use crate::value::{Map, Value};

/// Whose literals, comments and placeholders a statement has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    MySql,
    Sqlite,
}

/// A statement in the driver's own placeholders, and what to bind to them in this order.
#[derive(Debug, PartialEq)]
pub(crate) struct Bound<'p> {
    pub(crate) sql: String,
    pub(crate) values: Vec<&'p Value>,
}

/// Why parameters do not fit a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlaceholderError {
    Mixed {
        first: String,
        second: String,
    },
    TooFew {
        first: String,
        needed: usize,
        given: usize,
    },
    TooMany {
        needed: usize,
        given: usize,
    },
    Missing {
        name: String,
    },
    Unknown {
        names: Vec<String>,
    },
    NotNamed {
        first: String,
    },
    NotPositional {
        first: String,
    },
    NotParameters {
        kind: &'static str,
    },
}

impl fmt::Display for PlaceholderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed { first, second } => write!(
                f,
                "placeholders {first} and {second} are of two styles, one statement takes one \
                 (a literal question mark is ??, a literal percent sign %%)"
            ),
            Self::TooFew {
                first,
                needed,
                given,
            } => {
                write!(
                    f,
                    "placeholder {first} has no parameter ({needed} needed, {given} given)"
                )
            }
            Self::TooMany { needed, given } => {
                let first = needed + 1;
                write!(
                    f,
                    "parameter {first} has no placeholder ({needed} needed, {given} given)"
                )
            }
            Self::Missing { name } => write!(f, "placeholder {name:?} has no parameter"),
            Self::Unknown { names } => {
                write!(f, "no placeholder is named {}", quoted(names))
            }
            Self::NotNamed { first } => {
                write!(
                    f,
                    "placeholder {first} takes a list of parameters, not a map"
                )
            }
            Self::NotPositional { first } => {
                write!(
                    f,
                    "placeholder {first} takes a map of parameters, not a list"
                )
            }
            Self::NotParameters { kind } => {
                write!(f, "parameters are a list or a map, not {kind}")
            }
        }
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}

/// Rewrites `sql` for `dialect`; without parameters the text goes untouched.
pub(crate) fn bind<'p>(
    dialect: Dialect,
    sql: &str,
    parameters: &'p Value,
) -> Result<Bound<'p>, PlaceholderError> {
    bind_with_casts(dialect, sql, parameters, &[])
}

/// As [`bind`], with a cast such as `::text` behind the placeholders of some values, by their index.
pub(crate) fn bind_with_casts<'p>(
    dialect: Dialect,
    sql: &str,
    parameters: &'p Value,
    casts: &[Option<String>],
) -> Result<Bound<'p>, PlaceholderError> {
    match parameters {
        Value::Null => {
            // SQLite would take an unbound placeholder for NULL, and store it.
            if dialect == Dialect::Sqlite {
                let marks = Scanner::new(dialect, sql).marks();
                if let Some(mark) = marks.iter().find(|mark| mark.is_native_to_sqlite()) {
                    let first = mark.text(sql).to_owned();
                    return Err(PlaceholderError::TooFew {
                        first,
                        needed: 1,
                        given: 0,
                    });
                }
            }
            Ok(Bound {
                sql: sql.to_owned(),
                values: Vec::new(),
            })
        }
        Value::List(list) => by_position(dialect, sql, list, casts),
        Value::Map(map) => by_name(dialect, sql, map, casts),
        other => Err(PlaceholderError::NotParameters { kind: other.kind() }),
    }
}

/// Whether the text holds more than one statement.
pub(crate) fn is_several_statements(dialect: Dialect, sql: &str) -> bool {
    Scanner::new(dialect, sql).has_a_second_statement()
}

/// The statement's first keyword in upper case, past comments and opening parentheses.
pub(crate) fn first_keyword(dialect: Dialect, sql: &str) -> String {
    Scanner::new(dialect, sql).first_word().to_ascii_uppercase()
}

fn by_position<'p>(
    dialect: Dialect,
    sql: &str,
    list: &'p [Value],
    casts: &[Option<String>],
) -> Result<Bound<'p>, PlaceholderError> {
    let marks = one_style(Scanner::new(dialect, sql).marks(), sql)?;
    let given = list.len();
    let mut next = 0;
    let mut slots = Vec::new();
    for mark in placeholders(&marks) {
        let index = match mark.kind {
            Kind::Numbered(number) => number.wrapping_sub(1),
            Kind::Question | Kind::Percent => {
                next += 1;
                next - 1
            }
            _ => {
                return Err(PlaceholderError::NotPositional {
                    first: mark.text(sql).to_owned(),
                });
            }
        };
        slots.push(index);
    }
    let needed = match marks
        .iter()
        .find(|mark| matches!(mark.kind, Kind::Numbered(_)))
    {
        Some(_) => slots
            .iter()
            .map(|slot| slot.wrapping_add(1))
            .max()
            .unwrap_or(0),
        None => slots.len(),
    };
    let beyond = placeholders(&marks)
        .zip(&slots)
        .find(|(_, slot)| **slot >= given);
    if let Some((mark, slot)) = beyond {
        let text = mark.text(sql);
        let first = match mark.kind {
            Kind::Numbered(_) => text.to_owned(),
            _ => format!("{} ({text})", slot + 1),
        };
        return Err(PlaceholderError::TooFew {
            first,
            needed,
            given,
        });
    }
    if let Some(unused) = (0..given).find(|index| !slots.contains(index)) {
        if unused >= needed {
            return Err(PlaceholderError::TooMany { needed, given });
        }
        return Err(PlaceholderError::Unknown {
            names: vec![format!("${}", unused + 1)],
        });
    }
    Ok(rewrite(dialect, sql, &marks, &slots, casts, |slot| {
        &list[slot]
    }))
}

fn by_name<'p>(
    dialect: Dialect,
    sql: &str,
    map: &'p Map,
    casts: &[Option<String>],
) -> Result<Bound<'p>, PlaceholderError> {
    let marks = one_style(Scanner::new(dialect, sql).marks(), sql)?;
    let mut slots = Vec::new();
    for mark in placeholders(&marks) {
        let name = match mark.kind {
            Kind::Named { start, end } => &sql[start..end],
            _ => {
                return Err(PlaceholderError::NotNamed {
                    first: mark.text(sql).to_owned(),
                });
            }
        };
        let index = map.get_index_of(name);
        slots.push(index.ok_or_else(|| PlaceholderError::Missing {
            name: name.to_owned(),
        })?);
    }
    let unknown = map
        .keys()
        .enumerate()
        .filter(|(index, _)| !slots.contains(index));
    let names: Vec<_> = unknown.map(|(_, name)| name.clone()).collect();
    if !names.is_empty() {
        return Err(PlaceholderError::Unknown { names });
    }
    Ok(rewrite(dialect, sql, &marks, &slots, casts, |slot| {
        &map[slot]
    }))
}

fn placeholders(marks: &[Mark]) -> impl Iterator<Item = &Mark> {
    marks
        .iter()
        .filter(|mark| !matches!(mark.kind, Kind::Literal(_)))
}

/// The marks, when their placeholders are of one style.
fn one_style(marks: Vec<Mark>, sql: &str) -> Result<Vec<Mark>, PlaceholderError> {
    let first = placeholders(&marks).next();
    let other =
        |first: &Mark| placeholders(&marks).find(|mark| mark.style(sql) != first.style(sql));
    if let Some((first, second)) = first.and_then(|first| Some((first, other(first)?))) {
        let (first, second) = (first.text(sql).to_owned(), second.text(sql).to_owned());
        return Err(PlaceholderError::Mixed { first, second });
    }
    Ok(marks)
}

/// The statement in the driver's own placeholders. PostgreSQL and SQLite number them, so a parameter
/// that is used twice is bound once, and one type is inferred for it; MySQL only counts them.
fn rewrite<'p>(
    dialect: Dialect,
    sql: &str,
    marks: &[Mark],
    slots: &[usize],
    casts: &[Option<String>],
    value: impl Fn(usize) -> &'p Value,
) -> Bound<'p> {
    let mut text = String::with_capacity(sql.len() + 8);
    let mut numbers: Vec<usize> = Vec::new();
    let mut values = Vec::new();
    let mut slots = slots.iter();
    let mut copied = 0;
    for mark in marks {
        text.push_str(&sql[copied..mark.start]);
        copied = mark.end;
        let Kind::Literal(sign) = mark.kind else {
            let slot = *slots.next().expect("one slot per placeholder");
            if dialect == Dialect::MySql {
                values.push(value(slot));
                text.push('?');
                continue;
            }
            let known = numbers.iter().position(|known| *known == slot);
            let number = known.unwrap_or_else(|| {
                numbers.push(slot);
                values.push(value(slot));
                numbers.len() - 1
            });
            let sign = if dialect == Dialect::Sqlite { '?' } else { '$' };
            let shown = match casts.get(number) {
                Some(Some(cast)) => format!("({sign}{}{cast})", number + 1),
                _ => format!("{sign}{}", number + 1),
            };
            text.push_str(&shown);
            continue;
        };
        text.push(sign);
    }
    text.push_str(&sql[copied..]);
    Bound { sql: text, values }
}

/// A placeholder or a doubled sign, and where it stands.
#[derive(Clone, Debug)]
struct Mark {
    start: usize,
    end: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Question,
    Percent,
    Named { start: usize, end: usize },
    Numbered(usize),
    Literal(char),
}

impl Mark {
    fn text<'s>(&self, sql: &'s str) -> &'s str {
        &sql[self.start..self.end]
    }

    /// The style by its look: `?`, `%s`, `%(name)s`, `:name` or `$1`.
    fn style(&self, sql: &str) -> (u8, bool) {
        let named = matches!(self.kind, Kind::Named { .. });
        (sql.as_bytes()[self.start], named)
    }

    fn is_native_to_sqlite(&self) -> bool {
        matches!(self.kind, Kind::Question | Kind::Numbered(_))
            || matches!(self.kind, Kind::Named { start, .. } if start == self.start + 1)
    }
}

struct Scanner<'s> {
    dialect: Dialect,
    sql: &'s [u8],
    at: usize,
    brackets: usize,
}

/// What the scanner found next.
enum Token {
    Mark(Mark),
    Word {
        start: usize,
    },
    Semicolon,
    /// White space or a comment.
    Gap,
    Other,
}

impl<'s> Scanner<'s> {
    fn new(dialect: Dialect, sql: &'s str) -> Self {
        Self {
            dialect,
            sql: sql.as_bytes(),
            at: 0,
            brackets: 0,
        }
    }

    fn marks(mut self) -> Vec<Mark> {
        let mut marks = Vec::new();
        while let Some(token) = self.next() {
            if let Token::Mark(mark) = token {
                marks.push(mark);
            }
        }
        marks
    }

    fn has_a_second_statement(mut self) -> bool {
        let mut ended = false;
        while let Some(token) = self.next() {
            match token {
                Token::Semicolon => ended = true,
                Token::Gap => {}
                _ if ended => return true,
                _ => {}
            }
        }
        false
    }

    fn first_word(mut self) -> &'s str {
        while let Some(token) = self.next() {
            match token {
                Token::Word { start } => {
                    return std::str::from_utf8(&self.sql[start..self.at]).unwrap_or_default();
                }
                Token::Gap | Token::Semicolon => {}
                Token::Other if self.sql[self.at - 1] == b'(' => {}
                _ => break,
            }
        }
        ""
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Option<Token> {
        use Dialect::{MySql, Postgres, Sqlite};
        let start = self.at;
        let first = *self.sql.get(start)?;
        let second = self.peek(1);
        match (first, self.dialect) {
            (b'\'', MySql) => self.quoted(b'\'', true),
            (b'\'', _) => self.quoted(b'\'', false),
            (b'"', MySql) => self.quoted(b'"', true),
            (b'"', _) => self.quoted(b'"', false),
            (b'`', MySql | Sqlite) => self.quoted(b'`', false),
            (b'[', Sqlite) => self.until(b"]"),
            (b'$', Postgres) if self.dollar_quote() => {}
            (b'-', _) if second == b'-' && self.starts_line_comment() => {
                self.until(b"\n");
                return Some(Token::Gap);
            }
            (b'#', MySql) => {
                self.until(b"\n");
                return Some(Token::Gap);
            }
            (b'/', _) if second == b'*' => {
                self.block_comment();
                return Some(Token::Gap);
            }
            (b';', _) => {
                self.at += 1;
                return Some(Token::Semicolon);
            }
            (byte, _) if byte.is_ascii_whitespace() => {
                self.at += 1;
                return Some(Token::Gap);
            }
            (byte, _) if is_word(byte) && byte != b'$' => {
                self.skip_word();
                if self.dialect == Postgres
                    && self.peek(0) == b'\''
                    && matches!(&self.sql[start..self.at], b"E" | b"e")
                {
                    self.escape_string();
                    return Some(Token::Other);
                }
                return Some(Token::Word { start });
            }
            (b'?', _) if second == b'?' => return Some(self.literal('?')),
            (b'%', _) if second == b'%' => return Some(self.literal('%')),
            (b'?', _) => {
                self.at += 1;
                return Some(self.mark(start, Kind::Question));
            }
            (b'%', _) if second == b's' && !is_word(self.peek(2)) => {
                self.at += 2;
                return Some(self.mark(start, Kind::Percent));
            }
            (b'%', _) if second == b'(' => {
                if let Some(kind) = self.percent_name() {
                    return Some(self.mark(start, kind));
                }
                self.at += 1;
            }
            (b':', _) if second == b':' || second == b'=' => self.at += 2,
            (b':', _) if second.is_ascii_alphabetic() || second == b'_' => {
                if self.is_slice() {
                    self.at += 1;
                    return Some(Token::Other);
                }
                self.at += 1;
                self.skip_word_without_dollar();
                let kind = Kind::Named {
                    start: start + 1,
                    end: self.at,
                };
                return Some(self.mark(start, kind));
            }
            (b'$', _) if second.is_ascii_digit() => {
                self.at += 1;
                let digits = self.at;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
                let number = std::str::from_utf8(&self.sql[digits..self.at]).unwrap_or_default();
                // Nothing has 65,536 parameters: a number beyond has no parameter, nor has 0.
                let number = number.parse().unwrap_or(usize::MAX);
                return Some(self.mark(start, Kind::Numbered(number)));
            }
            (b'[', _) => {
                self.brackets += 1;
                self.at += 1;
            }
            (b']', _) => {
                self.brackets = self.brackets.saturating_sub(1);
                self.at += 1;
            }
            _ => self.at += 1,
        }
        Some(Token::Other)
    }

    fn mark(&self, start: usize, kind: Kind) -> Token {
        Token::Mark(Mark {
            start,
            end: self.at,
            kind,
        })
    }

    fn literal(&mut self, sign: char) -> Token {
        let start = self.at;
        self.at += 2;
        self.mark(start, Kind::Literal(sign))
    }

    /// Past a quoted piece; a doubled quote stays inside.
    fn quoted(&mut self, quote: u8, backslash_escapes: bool) {
        self.at += 1;
        while self.at < self.sql.len() {
            let byte = self.sql[self.at];
            self.at += 1;
            if byte == b'\\' && backslash_escapes {
                self.at += 1;
            } else if byte == quote {
                if self.peek(0) != quote {
                    return;
                }
                self.at += 1;
            }
        }
        self.at = self.sql.len();
    }

    /// Past PostgreSQL's `E'..'`, and past the pieces that continue it on further lines.
    fn escape_string(&mut self) {
        loop {
            self.quoted(b'\'', true);
            let gap = self.sql[self.at..]
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace());
            let gap = gap.count();
            let continues = self.sql[self.at..self.at + gap].contains(&b'\n');
            if !continues || self.peek(gap) != b'\'' {
                return;
            }
            self.at += gap;
        }
    }

    fn until(&mut self, end: &[u8]) {
        let rest = &self.sql[self.at..];
        let found = rest.windows(end.len()).position(|window| window == end);
        self.at += found.map_or(rest.len(), |position| position + end.len());
    }

    /// MySQL takes `--` for a comment only before white space.
    fn starts_line_comment(&self) -> bool {
        let third = self.peek(2);
        self.dialect != Dialect::MySql || third <= b' '
    }

    /// Past a block comment; PostgreSQL's nest.
    fn block_comment(&mut self) {
        self.at += 2;
        let mut depth = 1;
        while self.at < self.sql.len() && depth > 0 {
            match (self.peek(0), self.peek(1)) {
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                }
                (b'/', b'*') if self.dialect == Dialect::Postgres => {
                    depth += 1;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
    }

    /// Past `$tag$ .. $tag$`, when one starts here.
    fn dollar_quote(&mut self) -> bool {
        let rest = &self.sql[self.at + 1..];
        let length = rest
            .iter()
            .take_while(|byte| is_word(**byte) && **byte != b'$')
            .count();
        let tag_starts_with_digit = rest.first().is_some_and(u8::is_ascii_digit);
        if rest.get(length) != Some(&b'$') || tag_starts_with_digit {
            return false;
        }
        let tag = &self.sql[self.at..self.at + length + 2];
        self.at += tag.len();
        self.until(tag);
        true
    }

    fn percent_name(&mut self) -> Option<Kind> {
        let start = self.at + 2;
        let length = self.sql[start..].iter().position(|byte| *byte == b')')?;
        let end = start + length;
        if length == 0 || self.sql.get(end + 1) != Some(&b's') {
            return None;
        }
        if self.sql.get(end + 2).is_some_and(|byte| is_word(*byte)) {
            return None;
        }
        self.at = end + 2;
        Some(Kind::Named { start, end })
    }

    /// Whether a colon stands inside an array's brackets right behind an operand: a slice, as in `a[i:j]`.
    fn is_slice(&self) -> bool {
        let before = self.at.checked_sub(1).map(|before| self.sql[before]);
        let operand = |byte| is_word(byte) || matches!(byte, b')' | b']' | b'"');
        self.brackets > 0 && before.is_some_and(operand)
    }

    fn skip_word(&mut self) {
        while is_word(self.peek(0)) {
            self.at += 1;
        }
    }

    fn skip_word_without_dollar(&mut self) {
        while is_word(self.peek(0)) && self.peek(0) != b'$' {
            self.at += 1;
        }
    }
}

/// Whether a byte may stand in an identifier; all three dialects allow `$` inside one.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

#[cfg(test)]
mod tests;
