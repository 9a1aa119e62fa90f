//! What flows between nodes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime};
use indexmap::IndexMap;
use uuid::Uuid;

/// Values by name, in the order they were put in.
pub type Map = IndexMap<String, Value>;

/// One value that flows between nodes: what SQL, JSON, CSV and Python have in common.
///
/// ```
/// use kailash_workflow::Value;
///
/// let order = Value::from(serde_json::json!({"id": 7, "customer": "Ada"}));
/// assert_eq!(order.field("id"), Some(&Value::Int(7)));
/// assert_eq!(order.to_json().to_string(), r#"{"id":7,"customer":"Ada"}"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// Nothing: SQL's NULL, JSON's null, Python's None.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number; a larger one is a [`Value::Decimal`].
    Int(i64),
    /// A binary floating-point number.
    Float(f64),
    /// An exact decimal number.
    Decimal(BigDecimal),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A calendar date.
    Date(NaiveDate),
    /// A time of day.
    Time(NaiveTime),
    /// A date and time that names no offset.
    DateTime(NaiveDateTime),
    /// A date and time with its offset from UTC.
    OffsetDateTime(DateTime<FixedOffset>),
    /// A UUID.
    Uuid(Uuid),
    /// Values in order.
    List(Vec<Value>),
    /// Values by name, in order.
    Map(Map),
}

impl Value {
    /// What kind of value this is, in one word for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Decimal(_) => "a decimal",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Date(_) => "a date",
            Self::Time(_) => "a time",
            Self::DateTime(_) => "a datetime",
            Self::OffsetDateTime(_) => "a datetime with offset",
            Self::Uuid(_) => "a uuid",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Whether this is [`Value::Null`].
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The field of this name, when this is a map that has it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.as_map()?.get(name)
    }

    /// The text, when this is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, when this is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// The bool, when this is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(bool) => Some(*bool),
            _ => None,
        }
    }

    /// The values, when this is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// The fields, when this is a map.
    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The value as JSON, for people and for requests.
    ///
    /// JSON has fewer types: decimals, dates, times and UUIDs become text (ISO 8601), bytes become
    /// base64, a float that is no number becomes null.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Null => Json::Null,
            Self::Bool(bool) => Json::Bool(*bool),
            Self::Int(int) => Json::from(*int),
            Self::Float(float) => Json::from(*float),
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect()),
            Self::Map(map) => map_to_json(map),
            scalar => Json::String(scalar.to_string()),
        }
    }

    /// The value as CEL sees it: decimals as doubles; dates, times and UUIDs as text (ISO 8601).
    pub(crate) fn to_cel(&self) -> cel::Value {
        match self {
            Self::Null => cel::Value::Null,
            Self::Bool(bool) => cel::Value::Bool(*bool),
            Self::Int(int) => cel::Value::Int(*int),
            Self::Float(float) => cel::Value::Float(*float),
            Self::Decimal(decimal) => {
                cel::Value::Float(f64::from_str(&decimal.to_string()).unwrap_or(f64::NAN))
            }
            Self::Text(text) => cel::Value::String(text.clone().into()),
            Self::Bytes(bytes) => cel::Value::Bytes(bytes.clone().into()),
            Self::List(list) => {
                let list: Vec<_> = list.iter().map(Self::to_cel).collect();
                cel::Value::List(list.into())
            }
            Self::Map(map) => {
                let map = map
                    .iter()
                    .map(|(name, value)| (name.clone(), value.to_cel()));
                cel::Value::Map(map.collect::<std::collections::HashMap<_, _>>().into())
            }
            scalar => cel::Value::String(scalar.to_string().into()),
        }
    }

    /// The value of a CEL expression; `None` for the kinds that only live inside CEL.
    pub(crate) fn from_cel(value: &cel::Value) -> Option<Self> {
        Some(match value {
            cel::Value::Null => Self::Null,
            cel::Value::Bool(bool) => Self::Bool(*bool),
            cel::Value::Int(int) => Self::Int(*int),
            cel::Value::UInt(int) => Self::from(*int),
            cel::Value::Float(float) => Self::Float(*float),
            cel::Value::String(text) => Self::Text(text.to_string()),
            cel::Value::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            cel::Value::List(list) => {
                Self::List(list.iter().map(Self::from_cel).collect::<Option<_>>()?)
            }
            cel::Value::Map(map) => {
                let mut fields = map
                    .map
                    .iter()
                    .map(|(key, value)| Some((key.to_string(), Self::from_cel(value)?)))
                    .collect::<Option<Vec<_>>>()?;
                // CEL's maps have no order; an order that changes from run to run would surprise.
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                Self::Map(fields.into_iter().collect())
            }
            _ => return None,
        })
    }
}

/// These fields as a JSON object.
pub(crate) fn map_to_json(map: &Map) -> serde_json::Value {
    let fields = map
        .iter()
        .map(|(name, value)| (name.clone(), value.to_json()));
    serde_json::Value::Object(fields.collect())
}

/// Text as a person would write it: text itself, numbers in digits, dates and times in ISO 8601,
/// bytes in base64, lists and maps as JSON, nothing for null.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Bool(bool) => bool.fmt(f),
            Self::Int(int) => int.fmt(f),
            Self::Float(float) => float.fmt(f),
            Self::Decimal(decimal) => f.write_str(&decimal.to_plain_string()),
            Self::Text(text) => text.fmt(f),
            Self::Bytes(bytes) => BASE64.encode(bytes).fmt(f),
            Self::Date(date) => date.fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::DateTime(at) => at.format("%Y-%m-%dT%H:%M:%S%.f").fmt(f),
            Self::OffsetDateTime(at) => at.to_rfc3339().fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::List(_) | Self::Map(_) => self.to_json().fmt(f),
        }
    }
}

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(bool) => serializer.serialize_bool(*bool),
            Self::Int(int) => serializer.serialize_i64(*int),
            Self::Float(float) => serializer.serialize_f64(*float),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => serializer.collect_seq(list),
            Self::Map(map) => serializer.collect_map(map),
            scalar => serializer.collect_str(scalar),
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(bool) => Self::Bool(bool),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(int),
                (None, Some(int)) => Self::from(int),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(list) => list.into_iter().collect(),
            serde_json::Value::Object(map) => map.into_iter().collect(),
        }
    }
}

impl<V: Into<Self>> FromIterator<V> for Value {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl<K: Into<String>, V: Into<Self>> FromIterator<(K, V)> for Value {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(fields: I) -> Self {
        let fields = fields.into_iter();
        Self::Map(
            fields
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl From<u64> for Value {
    fn from(int: u64) -> Self {
        i64::try_from(int).map_or_else(|_| Self::Decimal(BigDecimal::from(int)), Self::Int)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<()> for Value {
    fn from((): ()) -> Self {
        Self::Null
    }
}

impl<V: Into<Self>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),* $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from! {
    bool => Bool,
    i32 => Int,
    u32 => Int,
    i64 => Int,
    f64 => Float,
    BigDecimal => Decimal,
    String => Text,
    Vec<u8> => Bytes,
    NaiveDate => Date,
    NaiveTime => Time,
    NaiveDateTime => DateTime,
    DateTime<FixedOffset> => OffsetDateTime,
    Uuid => Uuid,
    Vec<Value> => List,
    Map => Map,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_goes_through_unchanged() {
        let json = json!({"z": [1, 2.5, null, true], "a": {"text": "ä"}, "big": -9_007_199_254_740_993_i64});
        assert_eq!(Value::from(json.clone()).to_json(), json);
    }

    #[test]
    fn a_number_above_the_largest_integer_stays_exact() {
        let value = Value::from(json!(u64::MAX));
        assert_eq!(value, Value::Decimal(BigDecimal::from(u64::MAX)));
        assert_eq!(value.to_string(), "18446744073709551615");
    }

    #[test]
    fn what_json_lacks_becomes_text() {
        let day = NaiveDate::from_ymd_opt(2026, 2, 3).unwrap();
        let at = day.and_hms_milli_opt(4, 5, 6, 700).unwrap();
        let cases = [
            (Value::Decimal("1.10".parse().unwrap()), "1.10"),
            (Value::Bytes(vec![0, 255]), "AP8="),
            (Value::Date(day), "2026-02-03"),
            (Value::Time(at.time()), "04:05:06.700"),
            (Value::DateTime(at), "2026-02-03T04:05:06.700"),
            (
                Value::OffsetDateTime(at.and_utc().fixed_offset()),
                "2026-02-03T04:05:06.700+00:00",
            ),
            (
                Value::Uuid(Uuid::nil()),
                "00000000-0000-0000-0000-000000000000",
            ),
        ];
        for (value, text) in cases {
            assert_eq!(value.to_json(), json!(text));
            assert_eq!(serde_json::to_value(&value).unwrap(), json!(text));
        }
    }

    #[test]
    fn cel_values_come_back() {
        let value = Value::from(json!({"a": [1, 2.5, "x", null, false]}));
        assert_eq!(Value::from_cel(&value.to_cel()), Some(value));
    }
}
