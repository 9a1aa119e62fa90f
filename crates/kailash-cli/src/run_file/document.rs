//! A run file as a tree that knows where each value stands, with the overrides of `--set` in it.

use std::ops::Range;

use kailash::near_miss::near_miss;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::Problem;
use super::source::Source;

type Value<'t> = Spanned<DeValue<'t>>;

/// A parsed run file; `problems` collects what is wrong with it.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    pub(crate) source: Source,
    pub(crate) problems: Vec<Problem>,
    root: Value<'t>,
}

impl<'t> Document<'t> {
    /// Parses the text of a file; what cannot be parsed is among the problems.
    pub(crate) fn parse(file: String, text: &'t str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let problem = |error: &toml::de::Error| {
            let end = text.len();
            let message = format!("not valid TOML: {}", error.message());
            Problem::new(error.span().unwrap_or(end..end), message)
        };
        // What follows the first mistake of syntax is often its echo.
        let problems = errors.iter().take(1).map(problem).collect();
        let span = table.span();
        Self {
            root: Spanned::new(span, DeValue::Table(table.into_inner())),
            source: Source::new(file, text.to_owned()),
            problems,
        }
    }

    /// Puts one `KEY=VALUE` of the command line over the file's value.
    pub(crate) fn set(&mut self, assignment: &'t str) {
        let start = self.source.add_override(assignment);
        let whole = start..start + assignment.len();
        let Some((key, given)) = assignment.split_once('=') else {
            let problem = Problem::new(whole, "--set takes KEY=VALUE");
            return self
                .problems
                .push(problem.allowed(
                    "a dotted key, an equals sign and a value, as in input.csv=other.csv",
                ));
        };
        let key_span = start..start + key.len();
        let Some(path) = segments(key) else {
            let problem = Problem::new(key_span, format!("`{key}` is not a key"));
            return self.problems.push(
                problem.allowed("names joined by dots, as in breakers.api.failure_threshold"),
            );
        };
        let value_span = key_span.end + 1..whole.end;
        let value = parse_value(given, value_span);
        let end = self.source.end_of_file();
        if let Err(problem) = put(&mut self.root, &path, &key_span, value, ("", end)) {
            self.problems.push(problem);
        }
    }

    /// The names in the table at `path`, empty where there is none.
    pub(crate) fn names(&self, path: &[&str]) -> Vec<String> {
        let Some(DeValue::Table(table)) = self.value(path).map(Spanned::get_ref) else {
            return Vec::new();
        };
        table.keys().map(|key| key.get_ref().to_string()).collect()
    }

    /// How many elements the array at `path` has.
    pub(crate) fn len(&self, path: &[&str]) -> usize {
        match self.value(path).map(Spanned::get_ref) {
            Some(DeValue::Array(array)) => array.len(),
            _ => 0,
        }
    }

    pub(crate) fn has(&self, path: &[&str]) -> bool {
        self.value(path).is_some()
    }

    /// Reads the value at `path`; `None` where there is none, or a wrong one, which is then among
    /// the problems.
    pub(crate) fn read<T: DeserializeOwned>(&mut self, path: &[&str]) -> Option<T> {
        let value = self.value(path)?.clone();
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(read) => Some(read),
            Err(error) => {
                let problem = self.explain(path, &error);
                self.problems.push(problem);
                None
            }
        }
    }

    /// As [`Document::read`], for a value whose mistakes were noted before.
    pub(crate) fn read_quietly<T: DeserializeOwned>(&self, path: &[&str]) -> Option<T> {
        let value = self.value(path)?.clone();
        T::deserialize(ValueDeserializer::from(value)).ok()
    }

    /// Notes a wrong value: `path = value is not allowed`.
    pub(crate) fn reject(&mut self, path: &[&str], allowed: impl Into<String>) {
        let span = self.span(path);
        let given = self.source.text().get(span.clone()).unwrap_or_default();
        let given = given.lines().next().unwrap_or_default();
        let key = self.display(path);
        let message = format!("{key} = {given} is not allowed");
        self.problems
            .push(Problem::new(span, message).allowed(allowed));
    }

    /// Notes a name at `path` that nothing bears.
    pub(crate) fn unknown(&mut self, path: &[&str], what: &str, given: &str, names: &[String]) {
        let message = format!("{}: unknown {what} `{given}`", self.display(path));
        let names = names.iter().map(String::as_str);
        let problem = Problem::new(self.span(path), message).one_of(given, names);
        self.problems.push(problem);
    }

    /// Notes something else about the value at `path`.
    pub(crate) fn complain(&mut self, path: &[&str], why: &str) {
        let message = match path {
            [] => why.to_owned(),
            path => format!("{}: {why}", self.display(path)),
        };
        let problem = Problem::new(self.span(path), message);
        self.problems.push(problem);
    }

    /// Notes the keys of the file that are none of `names`.
    pub(crate) fn only(&mut self, names: &[&str]) {
        let DeValue::Table(table) = self.root.get_ref() else {
            return;
        };
        for key in table.keys() {
            let given = key.get_ref().as_ref();
            if !names.contains(&given) {
                let problem = Problem::new(key.span(), format!("unknown section `{given}`"));
                self.problems
                    .push(problem.one_of(given, names.iter().copied()));
            }
        }
    }

    /// A path as people write it: an element of an array by its id where it has one.
    fn display(&self, path: &[&str]) -> String {
        let mut text = String::new();
        for (depth, segment) in path.iter().enumerate() {
            let name = match self.value(&path[..=depth]).map(Spanned::get_ref) {
                Some(DeValue::Table(table)) if is_index(segment) => id(table).unwrap_or(segment),
                _ => segment,
            };
            if depth > 0 {
                text.push('.');
            }
            text.push_str(name);
        }
        text
    }

    fn value(&self, path: &[&str]) -> Option<&Value<'t>> {
        path.iter()
            .try_fold(&self.root, |value, segment| match value.get_ref() {
                DeValue::Table(table) => table.get(*segment),
                DeValue::Array(array) => array.get(segment.parse::<usize>().ok()?),
                _ => None,
            })
    }

    /// The place of the value at `path`, or of the nearest table around it that has one.
    fn span(&self, path: &[&str]) -> Range<usize> {
        let depth = (0..=path.len()).rev();
        let mut values = depth.filter_map(|depth| self.value(&path[..depth]));
        values.next().map_or(0..0, Spanned::span)
    }

    fn explain(&self, path: &[&str], error: &toml::de::Error) -> Problem {
        let span = error.span().unwrap_or_else(|| self.span(path));
        let inner = self.value(path).and_then(|value| path_to(value, &span));
        let inner = inner.unwrap_or_default();
        let full: Vec<&str> = path
            .iter()
            .copied()
            .chain(inner.iter().map(String::as_str))
            .collect();
        let key = self.display(&full);
        let message = error.message();
        let (what, expected) = match message {
            // How the parser says it where a word of an enum is no text.
            "wanted string or table" => (message, "a string"),
            _ => message.split_once(", expected ").unwrap_or((message, "")),
        };
        let named = quoted(what).next();
        if let (Some(given), true) = (named, what.starts_with("unknown field")) {
            let table = full.strip_suffix(&[given]).unwrap_or(&full);
            let problem = Problem::new(
                span,
                format!("unknown key `{given}` in {}", self.display(table)),
            );
            return problem.one_of(given, quoted(expected));
        }
        if let (Some(given), true) = (named, what.starts_with("unknown variant")) {
            let problem = Problem::new(span, format!("{key} = \"{given}\" is not allowed"));
            return problem.one_of(given, quoted(expected));
        }
        if let (Some(field), true) = (named, what.starts_with("missing field")) {
            return Problem::new(span, format!("{key}: the key `{field}` is missing"));
        }
        if expected.is_empty() {
            return Problem::new(span, format!("{key}: {message}"));
        }
        let given = self.source.text().get(span.clone()).unwrap_or_default();
        let given = given.lines().next().unwrap_or_default();
        Problem::new(span, format!("{key} = {given} is not allowed")).allowed(plain(expected))
    }
}

/// The words between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What a type of Rust's is called in a run file.
fn plain(expected: &str) -> &str {
    match expected {
        "a string" | "string" => "a text in quotes",
        "a boolean" => "true or false",
        "i64" | "u32" | "u64" | "usize" => "a whole number",
        "u16" => "a whole number from 0 to 65535",
        "f64" => "a number",
        "a sequence" => "an array",
        "a map" => "a table",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}

/// The keys that lead from `value` to the key or value at `span`.
fn path_to(value: &Value<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let below = |name: String, value: &Value<'_>| {
        let mut path = path_to(value, span)?;
        path.insert(0, name);
        Some(path)
    };
    let found = match value.get_ref() {
        DeValue::Table(table) => table.iter().find_map(|(key, value)| {
            let name = key.get_ref().to_string();
            if key.span() == *span {
                return Some(vec![name]);
            }
            below(name, value)
        }),
        DeValue::Array(array) => {
            (array.iter().enumerate()).find_map(|(index, value)| below(index.to_string(), value))
        }
        _ => None,
    };
    let here = value.span() == *span;
    found.or_else(|| here.then(Vec::new))
}

/// The names of a dotted key; `None` if it is none.
fn segments(key: &str) -> Option<Vec<String>> {
    let line = format!("{key} = 0");
    let table = DeTable::parse(&line).ok()?.into_inner();
    let mut path = Vec::new();
    let mut value = DeValue::Table(table);
    while let DeValue::Table(table) = value {
        let (name, inner) = table.into_iter().next()?;
        path.push(name.into_inner().into_owned());
        value = inner.into_inner();
    }
    Some(path)
}

/// A TOML value, or the text itself where it is none.
fn parse_value(given: &str, span: Range<usize>) -> Value<'_> {
    let mut value = match DeValue::parse(given) {
        Ok(value) => value.into_inner(),
        Err(_) => DeValue::String(given.trim().to_owned().into()),
    };
    // One place for all of it: an override is short enough to be shown whole.
    respan(&mut value, &span);
    Spanned::new(span, value)
}

fn respan(value: &mut DeValue<'_>, span: &Range<usize>) {
    match value {
        DeValue::Table(table) => {
            let entries = std::mem::take(table);
            for (key, value) in entries {
                let mut inner = value.into_inner();
                respan(&mut inner, span);
                table.insert(
                    Spanned::new(span.clone(), key.into_inner()),
                    Spanned::new(span.clone(), inner),
                );
            }
        }
        DeValue::Array(array) => {
            for element in array.iter_mut() {
                let mut inner = std::mem::replace(element.get_mut(), DeValue::Boolean(false));
                respan(&mut inner, span);
                *element = Spanned::new(span.clone(), inner);
            }
        }
        _ => {}
    }
}

/// Sets the value at `path` below `target`, which stands at `above`, in a file that ends at `end`.
fn put<'t>(
    target: &mut Value<'t>,
    path: &[String],
    span: &Range<usize>,
    value: Value<'t>,
    (above, end): (&str, usize),
) -> Result<(), Problem> {
    let Some((name, rest)) = path.split_first() else {
        *target = value;
        return Ok(());
    };
    let here = match above {
        "" => name.clone(),
        above => format!("{above}.{name}"),
    };
    match target.get_mut() {
        DeValue::Table(table) => {
            if let Some(inner) = table.get_mut(name.as_str()) {
                return put(inner, rest, span, value, (&here, end));
            }
            // A table whose name is so near to one of the file's is mistyped rather than new.
            let of_file = table.keys().filter(|key| key.span().end <= end);
            let names: Vec<&str> = of_file.map(|key| key.get_ref().as_ref()).collect();
            let is_in_section = !above.is_empty() && !rest.is_empty();
            if is_in_section && near_miss(name, names.iter().copied()).is_some() {
                let problem = Problem::new(span.clone(), format!("{above} has no `{name}`"));
                return Err(problem.one_of(name, names));
            }
            let mut inner = Spanned::new(span.clone(), DeValue::Table(DeTable::new()));
            put(&mut inner, rest, span, value, (&here, end))?;
            let key = Spanned::new(span.clone(), name.clone().into());
            table.insert(key, inner);
            Ok(())
        }
        DeValue::Array(array) => {
            let ids: Vec<String> = array
                .iter()
                .enumerate()
                .map(|(index, element)| match element.get_ref() {
                    DeValue::Table(table) => id(table).map_or(index.to_string(), str::to_owned),
                    _ => index.to_string(),
                })
                .collect();
            let by_id = ids.iter().position(|id| id == name);
            let index = by_id.or_else(|| name.parse().ok().filter(|index| *index < ids.len()));
            let Some(index) = index else {
                let problem = Problem::new(span.clone(), format!("{above} has no `{name}`"));
                return Err(problem.one_of(name, ids.iter().map(String::as_str)));
            };
            let element = array.get_mut(index);
            let element = element.expect("the index was found in this array");
            put(element, rest, span, value, (&here, end))
        }
        _ => {
            let message = format!("{above} is a single value, it has no `{name}`");
            Err(Problem::new(span.clone(), message))
        }
    }
}

fn is_index(segment: &str) -> bool {
    segment.bytes().all(|byte| byte.is_ascii_digit())
}

/// What an element of an array is called.
fn id<'a>(table: &'a DeTable<'_>) -> Option<&'a str> {
    let name = table.get("id").or_else(|| table.get("name"))?;
    name.get_ref().as_str()
}
