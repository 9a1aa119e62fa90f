//! Durations as people write them: `"30s"`, `"1.5s"`, `"500ms"`, `"2m"`, `"1h"`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

const UNITS: [(&str, f64); 5] = [
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];
const ALLOWED: &str =
    "a duration in quotes, such as \"500ms\", \"30s\", \"1.5s\", \"2m\" or \"1h\"";

/// A duration of a run file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span(pub(crate) Duration);

/// A duration of a run file, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SpanOrOff(pub(crate) Option<Duration>);

fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let number = number.trim();
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let seconds = number.parse::<f64>().ok()? * scale;
    Duration::try_from_secs_f64(seconds).ok()
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ALLOWED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                parse(text).map(Span).ok_or_else(wrong)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for SpanOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SpanOrOff;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{ALLOWED}, or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SpanOrOff, E> {
                if text == "off" {
                    return Ok(SpanOrOff(None));
                }
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                parse(text)
                    .map(|span| SpanOrOff(Some(span)))
                    .ok_or_else(wrong)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A share of a run file, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ShareOrOff(pub(crate) Option<f64>);

impl<'de> Deserialize<'de> for ShareOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Share;
        impl Visitor<'_> for Share {
            type Value = ShareOrOff;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number above 0 and up to 1, or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ShareOrOff, E> {
                match text {
                    "off" => Ok(ShareOrOff(None)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<ShareOrOff, E> {
                Ok(ShareOrOff(Some(share)))
            }

            fn visit_i64<E: de::Error>(self, share: i64) -> Result<ShareOrOff, E> {
                #[expect(clippy::cast_precision_loss, reason = "only 1 is in range")]
                Ok(ShareOrOff(Some(share as f64)))
            }
        }
        deserializer.deserialize_any(Share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text}");
        };
        check("30s", Some(30_000));
        check("1.5s", Some(1_500));
        check("500 ms", Some(500));
        check("2m", Some(120_000));
        check("1h", Some(3_600_000));
        check("0s", Some(0));
        check("30", None);
        check("-1s", None);
        check("1e400s", None);
        check("s", None);
        check("5 fortnights", None);
    }
}
