//! Values that a run file names by the words that the library has for them.

use kailash::bulkhead::{PartitionType, QueueOrder};
use kailash::circuit_breaker::{State, WindowKind};
use serde::de::{self, Deserialize, Deserializer};

/// One of a few values, by its word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<T>(pub(crate) T);

/// What has a word for each of its values.
trait Worded: Copy + 'static {
    const VALUES: &'static [Self];

    fn word(self) -> &'static str;
}

macro_rules! worded {
    ($($type:ty),*) => {$(
        impl Worded for $type {
            const VALUES: &'static [Self] = &Self::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }
        }
    )*};
}

worded!(PartitionType, QueueOrder, State, WindowKind);

impl<'de, T: Worded> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = String::deserialize(deserializer)?;
        let found = T::VALUES.iter().find(|value| value.word() == given);
        found.map(|value| Self(*value)).ok_or_else(|| {
            let words = T::VALUES.iter().map(|value| format!("`{}`", value.word()));
            let words = words.collect::<Vec<_>>().join(", ");
            // As serde says it of an enum.
            de::Error::custom(format_args!(
                "unknown variant `{given}`, expected one of {words}"
            ))
        })
    }
}
