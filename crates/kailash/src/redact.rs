//! Text without secrets.
//!
//! Whatever leaves the library as text and may quote a connection string, a header or another
//! program's words goes through here: errors, alerts, logs, pages.
//!
//! ```
//! use kailash::redact::redact;
//!
//! let text = "no route to postgres://app:hunter2@db/orders?password=x";
//! assert_eq!(redact(text), "no route to postgres://app:***@db/orders?password=***");
//! ```

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// Words that end the name of a secret, lower case, with `_` for `-`.
const SECRET_NAMES: [&str; 14] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "credential",
    "credentials",
    "signature",
    "authorization",
];

/// The text with every password of a URL and every value of a secret's name masked.
///
/// It knows `scheme://user:password@host`, and `name=value`, `name: value` and `"name": "value"`
/// for names such as `password`, `pwd`, `token`, `secret`, `api_key` and `authorization`.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut spans = url_passwords(text);
    spans.extend(named_values(text));
    spans.extend(bearer_tokens(text));
    mask(text, spans)
}

/// Secrets that are known word by word, to be removed from any text in every form they may take.
///
/// Its `Debug` shows only how many there are.
///
/// ```
/// use kailash::redact::Secrets;
///
/// let secrets = Secrets::new(["hunter#2"]);
/// assert_eq!(secrets.redact("login hunter%232 as hunter#2 failed"), "login *** as *** failed");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// These secrets; empty ones are none.
    pub fn new<S: Into<String>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            let secret: String = secret.into();
            let quoted = Value::String(secret.clone()).to_string();
            forms.push(quoted[1..quoted.len() - 1].to_owned());
            forms.push(url::form_urlencoded::byte_serialize(secret.as_bytes()).collect());
            forms.push(percent_encoded(&secret));
            forms.push(secret);
        }
        forms.retain(|form| !form.is_empty());
        // The longest first: a short secret may be a part of a longer one.
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self(forms)
    }

    /// The text without these secrets, nor any that [`redact`] finds.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let mut spans = Vec::new();
        for form in &self.0 {
            let found = text.match_indices(form.as_str());
            let found = found.map(|(at, form)| (at, at + form.len()));
            // A secret of a letter or two would tear up every word.
            spans.extend(found.filter(|span| form.len() > 3 || is_word(text, *span)));
        }
        redact(&mask(text, spans)).into_owned()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} forms)", self.0.len())
    }
}

type Span = (usize, usize);

fn mask(text: &str, mut spans: Vec<Span>) -> Cow<'_, str> {
    spans.retain(|(from, to)| from < to);
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    spans.sort_unstable();
    let mut masked = String::with_capacity(text.len());
    let mut done = 0;
    for (from, to) in spans {
        if from >= done {
            masked.push_str(&text[done..from]);
            masked.push_str(MASK);
        }
        done = done.max(to);
    }
    masked.push_str(&text[done..]);
    Cow::Owned(masked)
}

/// The passwords before the `@` of URLs; of HTTP URLs the user too, which is often a token.
fn url_passwords(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    for (separator, _) in text.match_indices("://") {
        let from = separator + 3;
        let rest = &text[from..];
        let token = rest.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c));
        let token = &rest[..token.unwrap_or(rest.len())];
        let authority = token.find(['/', '?', '#']).unwrap_or(token.len());
        let at = match token[..authority].rfind('@') {
            Some(at) => at,
            // An unescaped `/`, `?` or `#` in the password cuts the authority short.
            None if has_bad_port(&token[..authority]) => match token.rfind('@') {
                Some(at) => at,
                None => continue,
            },
            None => continue,
        };
        match token[..at].find(':') {
            Some(colon) => spans.push((from + colon + 1, from + at)),
            None if is_http(&text[..separator]) => spans.push((from, from + at)),
            None => {}
        }
    }
    spans
}

fn is_http(scheme: &str) -> bool {
    let scheme = scheme.as_bytes();
    let ends = |end: &[u8]| {
        let start = scheme.len().checked_sub(end.len());
        start.is_some_and(|start| scheme[start..].eq_ignore_ascii_case(end))
    };
    ends(b"http") || ends(b"https")
}

fn has_bad_port(authority: &str) -> bool {
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| !authority.ends_with(']') && port.parse::<u16>().is_err())
}

/// The values behind the names of secrets.
fn named_values(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    let bytes = text.as_bytes();
    for (separator, _) in text.match_indices(['=', ':']) {
        let before = text[..separator].trim_end();
        let before = before.strip_suffix(['"', '\'']).unwrap_or(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let name = before.rfind(|c| !is_name(c)).map_or(0, |at| {
            at + before[at..].chars().next().map_or(1, char::len_utf8)
        });
        let is_parameter = name > 0 && matches!(bytes[name - 1], b'?' | b'&');
        let name = before[name..].to_ascii_lowercase().replace('-', "_");
        let is_secret = SECRET_NAMES.iter().any(|secret| name.ends_with(secret))
            || name == "pass"
            || name.ends_with("_pass")
            || (is_parameter && matches!(&*name, "auth" | "key" | "sig"));
        if !is_secret || text[separator..].starts_with("://") {
            continue;
        }
        let after = &text[separator + 1..];
        let from = separator + 1 + (after.len() - after.trim_start_matches([' ', '\t']).len());
        let value = &text[from..];
        let line = value.find(['\n', '\r']).unwrap_or(value.len());
        let span = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => (from + 1, from + 1 + quoted(&value[1..], quote)),
            Some('{') => (from + 1, from + 1 + quoted(&value[1..], '}')),
            _ if name.ends_with("authorization") => (from, from + line),
            _ => {
                let ends = |c: char| c.is_whitespace() || "&;,)}]\"'`<>".contains(c);
                (from, from + value.find(ends).unwrap_or(value.len()))
            }
        };
        // A server's own words: whether a password was given, not which.
        if !matches!(&text[span.0..span.1], "YES" | "NO") {
            spans.push(span);
        }
    }
    spans
}

/// The tokens of `Bearer` and `Basic` where no header name stands before them.
fn bearer_tokens(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    for scheme in ["Bearer ", "bearer ", "Basic ", "basic "] {
        for (at, _) in text.match_indices(scheme) {
            let from = at + scheme.len();
            let is_token = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
            let length = text[from..].find(|c| !is_token(c));
            let to = length.map_or(text.len(), |length| from + length);
            // A word of prose is no token.
            if to - from >= 8 {
                spans.push((from, to));
            }
        }
    }
    spans
}

/// The length of a quoted text up to its closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

fn is_word(text: &str, (from, to): Span) -> bool {
    let before = text[..from].chars().next_back();
    let after = text[to..].chars().next();
    ![before, after]
        .iter()
        .flatten()
        .any(|c| c.is_alphanumeric())
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(redact(text), expected);
    }

    #[test]
    fn passwords_of_urls_are_masked() {
        check(
            "postgres://app:s3cret@db:5432/x",
            "postgres://app:***@db:5432/x",
        );
        check(
            "redis://:s3cret@cache/0 refused",
            "redis://:***@cache/0 refused",
        );
        check("mysql://a:b@c@db/x", "mysql://a:***@db/x");
        check("postgres://a:p/w#d@db/x", "postgres://a:***@db/x");
        check(
            "<amqp://a:b@q>, <amqp://c:d@q>",
            "<amqp://a:***@q>, <amqp://c:***@q>",
        );
        check("https://ghp_abc@host/x", "https://***@host/x");
    }

    #[test]
    fn urls_without_a_secret_stay() {
        for text in [
            "postgres://app@db:5432/x",
            "http://host:8080/users?mail=a@b.c",
            "http://[::1]:80/x@y",
            "sqlite:///tmp/a@b.db",
        ] {
            check(text, text);
        }
    }

    #[test]
    fn values_behind_the_name_of_a_secret_are_masked() {
        check("host=db password=x y=z", "host=db password=*** y=z");
        check("Server=db;Pwd={a;b};Uid=u", "Server=db;Pwd={***};Uid=u");
        check("password = 'a b\\'c' port=1", "password = '***' port=1");
        check(
            r#"{"api_key": "a,b", "n": 1}"#,
            r#"{"api_key": "***", "n": 1}"#,
        );
        check("GET /x?key=AbC&n=1", "GET /x?key=***&n=1");
        check("X-Auth-Token: abc", "X-Auth-Token: ***");
        check("db_pass=abc&pass=abc", "db_pass=***&pass=***");
        check(
            "Authorization: Bearer a.b.c\nHost: h",
            "Authorization: ***\nHost: h",
        );
        check("sent Bearer eyJhbGciOi.x-y", "sent Bearer ***");
    }

    #[test]
    fn prose_about_secrets_stays() {
        for text in [
            "password authentication failed for user \"app\"",
            "Access denied for user 'app'@'host' (using password: YES)",
            "key=orders:5 is missing",
            "basic auth is not allowed",
            "bypass: 5 rules",
            "auth: postgres://app@db/x refuses the user",
        ] {
            check(text, text);
        }
    }

    #[test]
    fn known_secrets_are_masked_in_every_form() {
        let secrets = Secrets::new(["p\"w d", "ab"]);
        for form in ["p\"w d", "p%22w%20d", "p%22w+d", "p\\\"w d"] {
            assert_eq!(secrets.redact(&format!("<{form}>")), "<***>");
        }
        assert_eq!(secrets.redact("about ab."), "about ***.");
        assert_eq!(format!("{secrets:?}"), "Secrets(5 forms)");
    }

    proptest! {
        #[test]
        fn no_password_of_a_url_survives(password in "[a-zA-Z0-9!$%^*+~/?#.-]{8,20}") {
            let text = format!("error: mysql://user:x{password}@host:1/db, retrying");
            prop_assert!(!redact(&text).contains(&password), "{}", redact(&text));
        }

        #[test]
        fn any_text_is_taken(text in "\\PC*") {
            let _ = Secrets::new(["x"]).redact(&text);
        }
    }
}
