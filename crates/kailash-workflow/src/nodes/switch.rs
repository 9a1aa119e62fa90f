//! A switch: which way its input goes.

use std::cmp::Ordering;

use futures_util::future::BoxFuture;

use crate::error::NodeError;
use crate::expression::Expression;
use crate::node::{Node, Ports};
use crate::value::{Map, Value};

use super::ConfigProblem;

/// A node that sends its input one way or another.
///
/// It decides by `condition`, a CEL expression over the fields of its input (the whole of it is
/// `input`), or by `condition_field`, `operator` and `value`. With a condition, the input leaves on
/// `true_output` or `false_output`. With `cases`, a list of values, it leaves on `case_X` for the case X
/// that the field, or the condition's value, is equal to, or else on `default`. `condition_result` is
/// what decided. What depends only on a way that was not taken is skipped.
#[derive(Debug)]
pub struct Switch {
    subject: Subject,
    decision: Decision,
}

#[derive(Debug)]
enum Subject {
    Input,
    Field(String),
    Condition(Expression),
}

#[derive(Debug)]
enum Decision {
    /// The subject itself is true or false.
    Truth,
    Compare(Operator, Value),
    Cases(Vec<Value>),
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    In,
    Contains,
    IsNull,
    IsNotNull,
}

const OPERATORS: [(&str, Operator); 10] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    (">", Operator::Greater),
    ("<", Operator::Less),
    (">=", Operator::GreaterOrEqual),
    ("<=", Operator::LessOrEqual),
    ("in", Operator::In),
    ("contains", Operator::Contains),
    ("is_null", Operator::IsNull),
    ("is_not_null", Operator::IsNotNull),
];

impl Switch {
    /// A switch of this configuration, which it takes out of the map.
    ///
    /// # Errors
    /// When the condition is no CEL expression, an operator is unknown, or the fields contradict each
    /// other.
    pub fn new(config: &mut Map) -> Result<Self, ConfigProblem> {
        let mut take = |name: &str| config.swap_remove(name).filter(|value| !value.is_null());
        let text = |name: &'static str, value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(ConfigProblem::new(
                name,
                format!("{} is not allowed, text is", other.kind()),
            )),
        };
        let condition = text("condition", take("condition"))?;
        let field = text("condition_field", take("condition_field"))?;
        let operator = text("operator", take("operator"))?;
        let (value, cases) = (take("value"), take("cases"));
        let subject = match (condition, field) {
            (Some(_), Some(_)) => {
                return Err(ConfigProblem::new(
                    "condition",
                    "condition_field excludes it",
                ));
            }
            (Some(condition), None) => {
                let expression = Expression::compile(&condition);
                let expression =
                    expression.map_err(|error| ConfigProblem::new("condition", error))?;
                Subject::Condition(expression)
            }
            (None, Some(field)) => Subject::Field(field),
            (None, None) => Subject::Input,
        };
        let decision = match (cases, operator) {
            (Some(_), Some(_)) => return Err(ConfigProblem::new("cases", "operator excludes it")),
            (Some(Value::List(cases)), None) if !cases.is_empty() => Decision::Cases(cases),
            (Some(other), None) => {
                let message = format!("{} is not allowed, a list of values is", other.kind());
                return Err(ConfigProblem::new("cases", message));
            }
            (None, None) if matches!(subject, Subject::Condition(_)) && value.is_none() => {
                Decision::Truth
            }
            (None, operator) => {
                let name = operator.as_deref().unwrap_or("==");
                let known = OPERATORS.iter().find(|(known, _)| *known == name);
                let Some((_, operator)) = known else {
                    let known = OPERATORS.map(|(name, _)| name).join(", ");
                    let message = format!("{name:?} is not allowed, one of {known} is");
                    return Err(ConfigProblem::new("operator", message));
                };
                Decision::Compare(*operator, value.unwrap_or_default())
            }
        };
        Ok(Self { subject, decision })
    }

    fn decide(&self, input: &Value) -> Result<Map, NodeError> {
        let subject = match &self.subject {
            Subject::Input => input.clone(),
            Subject::Field(path) => {
                let found = path
                    .split('.')
                    .try_fold(input, |value, name| value.field(name));
                found.cloned().unwrap_or_default()
            }
            Subject::Condition(expression) => {
                let scope = |name: &str| match input.field(name) {
                    None if name == "input" => Some(input),
                    field => field,
                };
                let value = expression.evaluate(&scope);
                value.map_err(|error| NodeError::execution(format!("condition {error}")))?
            }
        };
        let (port, result) = match &self.decision {
            Decision::Truth => match subject {
                Value::Bool(truth) => (way(truth), Value::Bool(truth)),
                other => {
                    let message = format!("condition: its value is {}, not a bool", other.kind());
                    return Err(NodeError::execution(message));
                }
            },
            Decision::Compare(operator, value) => {
                let truth = holds(&subject, *operator, value);
                (way(truth), Value::Bool(truth))
            }
            Decision::Cases(cases) => match cases.iter().find(|case| is_equal(&subject, case)) {
                Some(case) => (format!("case_{case}"), case.clone()),
                None => ("default".to_owned(), subject),
            },
        };
        let mut outputs = Map::new();
        outputs.insert("condition_result".to_owned(), result);
        outputs.insert(port, input.clone());
        Ok(outputs)
    }
}

impl Node for Switch {
    fn inputs(&self) -> Ports {
        Ports::named(["input", "input_data"])
    }

    fn outputs(&self) -> Ports {
        let mut names = vec!["condition_result".to_owned()];
        match &self.decision {
            Decision::Cases(cases) => {
                names.extend(cases.iter().map(|case| format!("case_{case}")));
                names.push("default".to_owned());
            }
            _ => names.extend(["true_output".to_owned(), "false_output".to_owned()]),
        }
        Ports::Named(names)
    }

    fn run(&self, mut inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            let input = inputs
                .swap_remove("input")
                .or_else(|| inputs.swap_remove("input_data"));
            self.decide(&input.unwrap_or_default())
        })
    }
}

fn way(truth: bool) -> String {
    if truth {
        "true_output".to_owned()
    } else {
        "false_output".to_owned()
    }
}

fn holds(subject: &Value, operator: Operator, value: &Value) -> bool {
    match operator {
        Operator::Equal => is_equal(subject, value),
        Operator::NotEqual => !is_equal(subject, value),
        Operator::Greater => compare(subject, value) == Some(Ordering::Greater),
        Operator::Less => compare(subject, value) == Some(Ordering::Less),
        Operator::GreaterOrEqual => {
            matches!(
                compare(subject, value),
                Some(Ordering::Greater | Ordering::Equal)
            )
        }
        Operator::LessOrEqual => {
            matches!(
                compare(subject, value),
                Some(Ordering::Less | Ordering::Equal)
            )
        }
        Operator::In => contains(value, subject),
        Operator::Contains => contains(subject, value),
        Operator::IsNull => subject.is_null(),
        Operator::IsNotNull => !subject.is_null(),
    }
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::List(list), part) => list.iter().any(|item| is_equal(item, part)),
        (Value::Text(text), Value::Text(part)) => text.contains(part.as_str()),
        (Value::Map(map), Value::Text(name)) => map.contains_key(name),
        _ => false,
    }
}

fn is_equal(a: &Value, b: &Value) -> bool {
    a == b || compare(a, b) == Some(Ordering::Equal)
}

/// The order of two values; numbers compare by their value, other kinds only with their own.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Date(a), Value::Date(b)) => Some(a.cmp(b)),
        (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (Value::DateTime(a), Value::DateTime(b)) => Some(a.cmp(b)),
        (Value::OffsetDateTime(a), Value::OffsetDateTime(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        _ => Some(number(a)?.cmp(&number(b)?)),
    }
}

fn number(value: &Value) -> Option<bigdecimal::BigDecimal> {
    match value {
        Value::Int(int) => Some((*int).into()),
        Value::Float(float) => bigdecimal::BigDecimal::try_from(*float).ok(),
        Value::Decimal(decimal) => Some(decimal.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(json: serde_json::Value) -> Map {
        let Value::Map(map) = Value::from(json) else {
            panic!("no map")
        };
        map
    }

    fn taken(config: serde_json::Value, input: serde_json::Value) -> Result<String, NodeError> {
        let switch = Switch::new(&mut map(config)).unwrap();
        let outputs = switch.decide(&Value::from(input.clone()))?;
        let (port, value) = outputs.last().unwrap();
        assert!(switch.outputs().contains(port));
        assert_eq!(value.to_json(), input);
        Ok(port.clone())
    }

    #[test]
    fn an_input_leaves_the_way_that_was_decided() {
        let health = json!({"overall_status": "healthy", "n": 3});
        for (config, way) in [
            (
                json!({"condition": "overall_status == 'healthy'"}),
                "true_output",
            ),
            (json!({"condition": "n > 3"}), "false_output"),
            (
                json!({"condition": "input.n == 3 && has(input.n)"}),
                "true_output",
            ),
            (
                json!({"condition_field": "n", "operator": ">=", "value": 3.0}),
                "true_output",
            ),
            (
                json!({"condition_field": "n", "operator": "in", "value": [1, 2]}),
                "false_output",
            ),
            (
                json!({"condition_field": "overall_status", "operator": "contains", "value": "heal"}),
                "true_output",
            ),
            (
                json!({"condition_field": "nope", "operator": "is_null"}),
                "true_output",
            ),
            (
                json!({"condition_field": "n", "operator": "is_not_null"}),
                "true_output",
            ),
            (
                json!({"condition_field": "n", "operator": "<", "value": "x"}),
                "false_output",
            ),
            (
                json!({"condition_field": "n", "operator": "!=", "value": "x"}),
                "true_output",
            ),
            (
                json!({"condition_field": "overall_status", "cases": ["degraded", "healthy"]}),
                "case_healthy",
            ),
            (json!({"condition_field": "n", "cases": [1, 2]}), "default"),
            (json!({"condition": "n % 2", "cases": [0, 1]}), "case_1"),
        ] {
            assert_eq!(
                taken(config.clone(), health.clone()).unwrap(),
                way,
                "{config}"
            );
        }
    }

    #[test]
    fn a_condition_that_cannot_be_decided_fails() {
        for (condition, error) in [
            ("n", "condition: its value is an integer, not a bool"),
            ("nope.x", "condition nope.x: nothing is named \"nope\" here"),
        ] {
            let found = taken(json!({"condition": condition}), json!({"n": 1})).unwrap_err();
            assert_eq!(found.to_string(), error);
        }
    }

    #[test]
    fn a_wrong_configuration_is_named() {
        for (config, error) in [
            (
                json!({"condition": "a =="}),
                "condition: \"a ==\" is no CEL expression",
            ),
            (
                json!({"condition": 1}),
                "condition: an integer is not allowed, text is",
            ),
            (
                json!({"condition": "a", "condition_field": "b"}),
                "condition: condition_field excludes it",
            ),
            (
                json!({"condition_field": "a", "operator": "~"}),
                "operator: \"~\" is not allowed, one of ==",
            ),
            (
                json!({"cases": 1}),
                "cases: an integer is not allowed, a list of values is",
            ),
        ] {
            let found = Switch::new(&mut map(config)).unwrap_err().to_string();
            assert!(found.starts_with(error), "{found}");
        }
    }
}
