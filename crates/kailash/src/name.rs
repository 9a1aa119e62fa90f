//! The name that a refusal carries.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use crate::spare::{self, Spare};

thread_local! {
    static SPARE: Spare<str> = const { Spare::new(None) };
}

/// The name of a breaker or a partition, in an error that tells of it.
///
/// It is a text that is shared with what it names. A thread keeps the name that it dropped last, and takes it
/// for the next error that tells of the same breaker or partition: so it counts no references while it is
/// refused again and again. What it keeps is the memory of one name, until it drops another or ends.
///
/// ```
/// use std::sync::Arc;
///
/// use kailash::circuit_breaker::{CircuitBreaker, Config};
///
/// let breaker = CircuitBreaker::new("database", Config::default())?;
/// breaker.force_open();
/// let rejected = breaker.try_acquire().unwrap_err();
/// assert_eq!(rejected.name, "database");
/// assert!(rejected.name.starts_with("data"));
/// let name: Arc<str> = rejected.name.into();
/// assert!(Arc::ptr_eq(&name, breaker.name()));
/// # Ok::<(), kailash::ConfigError>(())
/// ```
pub struct Name(
    /// Present until the drop.
    Option<Arc<str>>,
);

impl Name {
    /// A name that others hold too.
    #[inline]
    pub(crate) fn of(shared: &Arc<str>) -> Self {
        Self(Some(spare::take(&SPARE, shared)))
    }

    /// The name as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Drop for Name {
    #[inline]
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            spare::keep(&SPARE, shared);
        }
    }
}

impl Clone for Name {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Some(name))
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(Some(name.into()))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Some(name.into()))
    }
}

impl From<Name> for Arc<str> {
    fn from(mut name: Name) -> Self {
        name.0.take().expect("it is present until the drop")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<Arc<str>> for Name {
    fn eq(&self, other: &Arc<str>) -> bool {
        self.as_str() == &**other
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Name {
    // As its text hashes, which it can be looked up by.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}
