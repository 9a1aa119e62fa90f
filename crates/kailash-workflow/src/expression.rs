//! CEL expressions, and values with expressions in them.

use std::collections::BTreeSet;

use crate::value::{Map, Value};

/// An expression that was compiled once.
pub(crate) struct Expression {
    source: String,
    kind: Kind,
}

enum Kind {
    /// Fields and indices one after the other. CEL has fewer types: taken directly, a decimal or a date
    /// stays what it is.
    Path(String, Vec<Step>),
    Cel(Box<cel::Program>),
}

enum Step {
    Field(String),
    Index(usize),
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Expression {
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        let program = cel::Program::compile(source).map_err(|error| {
            let error = error.to_string();
            let lines: Vec<_> = error
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            format!("{source:?} is no CEL expression: {}", lines.join(" "))
        })?;
        let kind = match path(source) {
            Some((root, steps)) => Kind::Path(root, steps),
            None => Kind::Cel(Box::new(program)),
        };
        Ok(Self {
            source: source.to_owned(),
            kind,
        })
    }

    /// The names it takes values from.
    fn names(&self, names: &mut BTreeSet<String>) {
        match &self.kind {
            Kind::Path(root, _) => {
                names.insert(root.clone());
            }
            Kind::Cel(program) => {
                names.extend(
                    program
                        .references()
                        .variables()
                        .into_iter()
                        .map(str::to_owned),
                );
            }
        }
    }

    pub(crate) fn evaluate<'v>(
        &self,
        scope: &dyn Fn(&str) -> Option<&'v Value>,
    ) -> Result<Value, String> {
        let source = &self.source;
        match &self.kind {
            Kind::Path(root, steps) => {
                let missing = || format!("{source}: nothing is named {root:?} here");
                let mut value = scope(root).ok_or_else(missing)?;
                for step in steps {
                    let found = match (step, value) {
                        (Step::Field(name), Value::Map(map)) => map.get(name),
                        (Step::Index(index), Value::List(list)) => list.get(*index),
                        _ => None,
                    };
                    value = found.ok_or_else(|| match step {
                        Step::Field(name) => {
                            format!("{source}: {} has no field {name:?}", value.kind())
                        }
                        Step::Index(index) => {
                            format!("{source}: {} has no item {index}", value.kind())
                        }
                    })?;
                }
                Ok(value.clone())
            }
            Kind::Cel(program) => {
                let mut context = cel::Context::default();
                for name in program.references().variables() {
                    if let Some(value) = scope(name) {
                        context.add_variable_from_value(name, value.to_cel());
                    }
                }
                let value = program
                    .execute(&context)
                    .map_err(|error| format!("{source}: {error}"))?;
                Value::from_cel(&value).ok_or_else(|| format!("{source}: no value comes of it"))
            }
        }
    }
}

/// `row.items[0].id` as a path; `None` for any other expression.
fn path(source: &str) -> Option<(String, Vec<Step>)> {
    let source = source.trim();
    let name = |text: &str| {
        let mut bytes = text.bytes();
        let first = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let is_name = first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let is_word = matches!(text, "true" | "false" | "null" | "in");
        (is_name && !is_word).then(|| text.to_owned())
    };
    let mut steps = Vec::new();
    let mut root = None;
    for part in source.split('.') {
        let (field, indices) = match part.split_once('[') {
            Some((field, rest)) => (field, Some(rest.strip_suffix(']')?)),
            None => (part, None),
        };
        let field = name(field)?;
        match root {
            None => root = Some(field),
            Some(_) => steps.push(Step::Field(field)),
        }
        for index in indices.into_iter().flat_map(|indices| indices.split("][")) {
            steps.push(Step::Index(index.parse().ok()?));
        }
    }
    Some((root?, steps))
}

/// A value of a node's configuration, with `${expression}` in its texts.
#[derive(Debug)]
pub(crate) enum Template {
    Fixed(Value),
    /// `${expression}` alone: the expression's value, whatever its type.
    Expression(Expression),
    /// Text with expressions in it, each as text.
    Text(Vec<Piece>),
    List(Vec<Template>),
    Map(Vec<(String, Template)>),
}

#[derive(Debug)]
pub(crate) enum Piece {
    Text(String),
    Expression(Expression),
}

impl Template {
    pub(crate) fn compile(value: Value) -> Result<Self, String> {
        Ok(match value {
            Value::Text(text) if text.contains("${") => {
                let mut pieces = pieces(&text)?;
                match pieces.as_mut_slice() {
                    [Piece::Expression(_)] => match pieces.pop() {
                        Some(Piece::Expression(expression)) => Self::Expression(expression),
                        _ => unreachable!("it was matched"),
                    },
                    _ => Self::Text(pieces),
                }
            }
            Value::List(list) => {
                let list = list.into_iter().map(Self::compile);
                let list = list.collect::<Result<Vec<_>, _>>()?;
                if list.iter().all(|item| matches!(item, Self::Fixed(_))) {
                    let fixed = list.into_iter().filter_map(|item| match item {
                        Self::Fixed(value) => Some(value),
                        _ => None,
                    });
                    return Ok(Self::Fixed(Value::List(fixed.collect())));
                }
                Self::List(list)
            }
            Value::Map(map) => {
                let mut fields = Vec::with_capacity(map.len());
                for (name, value) in map {
                    let template = Self::compile_named(&name, value)?;
                    fields.push((name, template));
                }
                if fields
                    .iter()
                    .all(|(_, field)| matches!(field, Self::Fixed(_)))
                {
                    let fixed = fields.into_iter().filter_map(|(name, field)| match field {
                        Self::Fixed(value) => Some((name, value)),
                        _ => None,
                    });
                    return Ok(Self::Fixed(Value::Map(fixed.collect())));
                }
                Self::Map(fields)
            }
            value => Self::Fixed(value),
        })
    }

    /// The template under this name. SQL has parameters: a `query` never has values written into it.
    pub(crate) fn compile_named(name: &str, value: Value) -> Result<Self, String> {
        if name == "query" {
            return Ok(Self::Fixed(value));
        }
        Self::compile(value).map_err(|error| format!("{name}: {error}"))
    }

    pub(crate) fn names(&self, names: &mut BTreeSet<String>) {
        match self {
            Self::Fixed(_) => {}
            Self::Expression(expression) => expression.names(names),
            Self::Text(pieces) => {
                for piece in pieces {
                    if let Piece::Expression(expression) = piece {
                        expression.names(names);
                    }
                }
            }
            Self::List(list) => list.iter().for_each(|item| item.names(names)),
            Self::Map(fields) => fields.iter().for_each(|(_, field)| field.names(names)),
        }
    }

    pub(crate) fn evaluate<'v>(
        &self,
        scope: &dyn Fn(&str) -> Option<&'v Value>,
    ) -> Result<Value, String> {
        Ok(match self {
            Self::Fixed(value) => value.clone(),
            Self::Expression(expression) => expression.evaluate(scope)?,
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(piece) => text.push_str(piece),
                        Piece::Expression(expression) => {
                            text.push_str(&expression.evaluate(scope)?.to_string());
                        }
                    }
                }
                Value::Text(text)
            }
            Self::List(list) => {
                let list = list.iter().map(|item| item.evaluate(scope));
                Value::List(list.collect::<Result<_, _>>()?)
            }
            Self::Map(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, field)| Ok((name.clone(), field.evaluate(scope)?)));
                Value::Map(fields.collect::<Result<Map, String>>()?)
            }
        })
    }
}

/// The pieces of a text; `$${` is a literal `${`.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        if let Some(before) = before.strip_suffix('$') {
            literal.push_str(before);
            literal.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        literal.push_str(before);
        let inner = &rest[start + 2..];
        let end =
            closing_brace(inner).ok_or_else(|| format!("{text:?} has a ${{ without its }}"))?;
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Expression(Expression::compile(inner[..end].trim())?));
        rest = &inner[end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

/// Where the expression ends: at the brace that closes it, past the ones in it and in its strings.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quote = None;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => {
                bytes.next();
            }
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth == 0 => return Some(at),
            (None, b'}') => depth -= 1,
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluate(template: serde_json::Value) -> Result<Value, String> {
        let Value::Map(mut scope) = Value::from(json!({
            "row": {"id": 7, "name": "Ada", "tags": ["a", ["b"]], "none": null},
        })) else {
            unreachable!()
        };
        let amount = Value::Decimal("1.10".parse().unwrap());
        scope.insert("amount".to_owned(), amount);
        Template::compile(template.into())?.evaluate(&|name| scope.get(name))
    }

    #[test]
    fn expressions_in_texts_take_their_values() {
        for (template, expected) in [
            (json!("${row.id}"), json!(7)),
            (
                json!("order ${row.id} of ${ row.name }"),
                json!("order 7 of Ada"),
            ),
            (json!("${row.tags[1][0]}${row.none}"), json!("b")),
            (json!("${row.id > 5 && row.name == 'Ada'}"), json!(true)),
            (
                json!("${{'a': '}', 'b': {'c': row.id}}}"),
                json!({"a": "}", "b": {"c": 7}}),
            ),
            (json!("${'it\\'s }' + row.name}"), json!("it's }Ada")),
            (json!("$${row.id} costs $5"), json!("${row.id} costs $5")),
            (
                json!({"a": ["${row.id}", 1], "b": "x"}),
                json!({"a": [7, 1], "b": "x"}),
            ),
            (
                json!({"query": "SELECT '${row.id}'"}),
                json!({"query": "SELECT '${row.id}'"}),
            ),
            (json!("${amount > 1}"), json!(true)),
            (json!("${row.id == 7.0}"), json!(true)),
        ] {
            assert_eq!(
                evaluate(template.clone()).unwrap().to_json(),
                expected,
                "{template}"
            );
        }
    }

    #[test]
    fn a_path_keeps_the_type_of_its_value() {
        let amount = evaluate(json!("${amount}")).unwrap();
        assert_eq!(amount, Value::Decimal("1.10".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (template, error) in [
            (
                json!("${row.nope}"),
                "row.nope: a map has no field \"nope\"",
            ),
            (json!("${nope}"), "nope: nothing is named \"nope\" here"),
            (json!("${row.tags[9]}"), "row.tags[9]: a list has no item 9"),
            (json!("${row.id"), "\"${row.id\" has a ${ without its }"),
        ] {
            assert_eq!(evaluate(template).unwrap_err(), error);
        }
        for (template, part) in [
            (
                json!({"url": "${1 +}"}),
                "url: \"1 +\" is no CEL expression: ",
            ),
            (json!("${nope + 1}"), "nope + 1: "),
            (json!("${row.id + 'x'}"), "row.id + 'x': "),
        ] {
            let error = evaluate(template).unwrap_err();
            assert!(error.starts_with(part), "{error}");
        }
    }
}
