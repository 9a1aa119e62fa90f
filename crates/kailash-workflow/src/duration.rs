//! Durations as people write them.

use std::time::Duration;

use crate::value::Value;

/// What [`read`] accepts, for messages.
pub(crate) const ALLOWED: &str =
    "seconds as a number, or text such as \"500ms\", \"30s\", \"5m\", \"1h\"";

/// A duration from seconds (a number) or from text with a unit; `None` when it is neither.
pub(crate) fn read(value: &Value) -> Option<Duration> {
    match value {
        Value::Int(seconds) => Some(Duration::from_secs(u64::try_from(*seconds).ok()?)),
        Value::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        Value::Text(text) => parse(text),
        _ => None,
    }
}

fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (value, expected) in [
            (Value::Int(3), Some(Duration::from_secs(3))),
            (Value::Float(0.25), Some(Duration::from_millis(250))),
            (Value::from("500ms"), Some(Duration::from_millis(500))),
            (Value::from("1.5 s"), Some(Duration::from_millis(1500))),
            (Value::from("2m"), Some(Duration::from_secs(120))),
            (Value::from("1h"), Some(Duration::from_secs(3600))),
            (Value::Int(-1), None),
            (Value::Float(f64::NAN), None),
            (Value::from("30"), None),
            (Value::from("s"), None),
            (Value::from("-1s"), None),
            (Value::Null, None),
        ] {
            assert_eq!(read(&value), expected, "{value:?}");
        }
    }
}
