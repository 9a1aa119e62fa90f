//! Database URLs: which driver, with which options, and how to show them.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions as _;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use url::Url;

use crate::redact::Secrets;

pub(crate) const ALLOWED: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, mysql://.. or mariadb://.. alike, \
                       sqlite://PATH or sqlite::memory:";

const POSTGRES_PARAMETERS: [&str; 19] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[NAME]",
];

const MYSQL_PARAMETERS: [&str; 13] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "charset",
    "collation",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "socket",
    "timezone",
];

/// A database: its driver, how to connect, and a text that names it without its secrets.
///
/// `Display` and `Debug` show that text.
///
/// ```
/// use kailash::sql::{DatabaseUrl, Driver};
///
/// let database: DatabaseUrl = "postgresql://app:hunter2@db/orders".parse()?;
/// assert_eq!(database.driver(), Driver::Postgres);
/// assert_eq!(database.to_string(), "postgres://app@db:5432/orders");
/// # Ok::<(), kailash::sql::UrlError>(())
/// ```
#[derive(Clone)]
pub struct DatabaseUrl {
    options: ConnectOptions,
    shown: String,
    secrets: Secrets,
}

impl DatabaseUrl {
    /// Reads a database URL.
    ///
    /// - `postgres://` and `postgresql://`, with the parameters of libpq that sqlx knows
    /// - `mysql://` and `mariadb://`
    /// - `sqlite://PATH`, where PATH is absolute or relative and is taken as it stands: nothing in it
    ///   is decoded and nothing is a parameter; a missing file is made
    /// - `sqlite::memory:`, one database in memory per parsed URL, shared by its clones
    ///
    /// Statements are not logged, since they may hold secrets.
    ///
    /// # Errors
    /// When the scheme is another one, a parameter is unknown, or a part is malformed.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(UrlError::new("no scheme"));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "postgres" | "postgresql" => {
                let url = server(url, &POSTGRES_PARAMETERS)?;
                let options =
                    PgConnectOptions::from_url(&url).map_err(|_| UrlError::parameter())?;
                let shown = match options.get_socket() {
                    Some(socket) => format!(
                        "postgres://{}@{}/{}",
                        options.get_username(),
                        socket.display(),
                        options.get_database().unwrap_or_default(),
                    ),
                    None => shown(
                        "postgres",
                        options.get_username(),
                        options.get_host(),
                        options.get_port(),
                        options.get_database(),
                    ),
                };
                let options = ConnectOptions::Postgres(options.disable_statement_logging());
                Ok(Self::new(options, shown, passwords(&url)))
            }
            "mysql" | "mariadb" => {
                let url = server(url, &MYSQL_PARAMETERS)?;
                let options =
                    MySqlConnectOptions::from_url(&url).map_err(|_| UrlError::parameter())?;
                let shown = shown(
                    "mysql",
                    options.get_username(),
                    options.get_host(),
                    options.get_port(),
                    options.get_database(),
                );
                let options = ConnectOptions::MySql(options.disable_statement_logging());
                Ok(Self::new(options, shown, passwords(&url)))
            }
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() {
                    return Err(UrlError::new("sqlite: no path"));
                }
                let options = if path == ":memory:" {
                    SqliteConnectOptions::from_str("sqlite::memory:")
                        .map_err(|_| UrlError::parameter())?
                } else {
                    SqliteConnectOptions::new()
                        .filename(path)
                        .create_if_missing(true)
                };
                let options = ConnectOptions::Sqlite(options.disable_statement_logging());
                let shown = match path {
                    ":memory:" => "sqlite::memory:".to_owned(),
                    path => format!("sqlite://{path}"),
                };
                Ok(Self::new(options, shown, Secrets::default()))
            }
            other
                if other
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
            {
                Err(UrlError::new(format!("unknown scheme {other:?}")))
            }
            // It may be anything, a password too.
            _ => Err(UrlError::new("no scheme")),
        }
    }

    /// The driver that the scheme names.
    #[must_use]
    pub fn driver(&self) -> Driver {
        match self.options {
            ConnectOptions::Postgres(_) => Driver::Postgres,
            ConnectOptions::MySql(_) => Driver::MySql,
            ConnectOptions::Sqlite(_) => Driver::Sqlite,
        }
    }

    /// What to connect with.
    #[must_use]
    pub fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// A text without this database's password, nor any other secret that can be told.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.secrets.redact(text)
    }

    fn new(options: ConnectOptions, shown: String, secrets: Secrets) -> Self {
        Self {
            options,
            shown,
            secrets,
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        Self::parse(url)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.shown)
    }
}

/// The kinds of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    /// SQLite.
    Sqlite,
}

/// What sqlx connects with.
#[derive(Clone)]
pub enum ConnectOptions {
    /// PostgreSQL.
    Postgres(PgConnectOptions),
    /// MySQL and MariaDB.
    MySql(MySqlConnectOptions),
    /// SQLite.
    Sqlite(SqliteConnectOptions),
}

/// A database URL that cannot be used; it says why, and never quotes the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlError {
    reason: String,
}

impl UrlError {
    fn new(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { reason }
    }

    /// Why it cannot be used, without what is allowed instead.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn parameter() -> Self {
        Self::new("the value of a parameter is not allowed")
    }
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database url: {}, allowed is {ALLOWED}", self.reason)
    }
}

impl Error for UrlError {}

/// The URL of a server, each of its parameters known.
fn server(text: &str, parameters: &[&str]) -> Result<Url, UrlError> {
    let url = Url::parse(text).map_err(|error| {
        let hint = "is every sign but letters and digits in user and password percent-encoded?";
        UrlError::new(format!("{error} ({hint})"))
    })?;
    // Without this, what follows the sign in the password would be taken for a host and a path.
    if url.username().is_empty() && url.password().is_none() && text.contains('@') {
        let reason = "a '/', '?' or '#' in user or password must be percent-encoded";
        return Err(UrlError::new(reason));
    }
    if !text[url.scheme().len()..].starts_with("://") {
        return Err(UrlError::new("no // after the scheme"));
    }
    for (name, _) in url.query_pairs() {
        let is_known = parameters.contains(&&*name)
            || (parameters.contains(&"options[NAME]") && name.starts_with("options["));
        if !is_known {
            // The unknown name may be a part of a password that was not encoded.
            let parameters = parameters.join(", ");
            let reason = format!("unknown parameter (known are {parameters})");
            return Err(UrlError::new(reason));
        }
    }
    Ok(url)
}

fn shown(scheme: &str, user: &str, host: &str, port: u16, database: Option<&str>) -> String {
    let database = database.unwrap_or_default();
    format!("{scheme}://{user}@{host}:{port}/{database}")
}

fn passwords(url: &Url) -> Secrets {
    let parameters = url.query_pairs();
    let parameters = parameters.filter(|(name, _)| name == "password");
    let mut secrets: Vec<String> = parameters.map(|(_, value)| value.into_owned()).collect();
    if let Some(password) = url.password() {
        // As a form's value, but with `+` as it stands.
        let escaped = password.replace('+', "%2B");
        let decoded = url::form_urlencoded::parse(escaped.as_bytes());
        secrets.extend(decoded.map(|(password, _)| password.into_owned()));
        secrets.push(password.to_owned());
    }
    Secrets::new(secrets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(url: &str, driver: Driver, shown: &str) {
        let database = DatabaseUrl::parse(url).unwrap();
        assert_eq!(database.driver(), driver);
        assert_eq!(database.to_string(), shown);
        assert_eq!(format!("{database:?}"), format!("DatabaseUrl({shown})"));
    }

    #[track_caller]
    fn fails(url: &str, reason: &str) {
        let error = DatabaseUrl::parse(url).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains("sqlite://PATH"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        check(
            "postgresql://a:s3cret@db:5433/x?sslmode=disable",
            Driver::Postgres,
            "postgres://a@db:5433/x",
        );
        check(
            "postgres://db/x?user=a&password=s3cret",
            Driver::Postgres,
            "postgres://a@db:5432/x",
        );
        check(
            "mariadb://a:s3cret@db/x",
            Driver::MySql,
            "mysql://a@db:3306/x",
        );
    }

    #[test]
    fn a_sqlite_path_is_taken_as_it_stands() {
        for path in ["orders.db", "./a b.db", "/tmp/50%?mode=ro#x.db", "a@b:c.db"] {
            let url = format!("sqlite://{path}");
            check(&url, Driver::Sqlite, &url);
            let ConnectOptions::Sqlite(options) = DatabaseUrl::parse(&url).unwrap().options else {
                panic!("not SQLite");
            };
            assert_eq!(options.get_filename().to_str(), Some(path));
        }
        check("sqlite::memory:", Driver::Sqlite, "sqlite::memory:");
    }

    #[test]
    fn a_wrong_url_names_what_is_allowed_and_no_secret() {
        fails("", "no scheme");
        fails("s3cret", "no scheme");
        fails("the s3cret: x", "no scheme");
        fails("oracle://a:s3cret@db/x", "unknown scheme \"oracle\"");
        fails("postgres:db", "no //");
        fails("postgres://a:s3cret/x@db/x", "percent-encoded");
        fails("postgres://a:1/s3cret@db/x", "percent-encoded");
        fails("postgres://a:1?s3cret@db/x", "percent-encoded");
        fails("mysql://a:s3cret@db:99999/x", "port");
        fails(
            "postgres://a:s3cret@db/x?sslmod=require",
            "unknown parameter",
        );
        fails(
            "postgres://a:s3cret@db/x?sslmode=maybe",
            "value of a parameter",
        );
        fails("sqlite://", "no path");
    }

    #[test]
    fn the_password_is_removed_from_any_text() {
        let database = DatabaseUrl::parse("postgres://a:s3%23cret+@db/x").unwrap();
        assert_eq!(
            database.redact("s3#cret+ and s3%23cret%2B and s3%23cret+"),
            "*** and *** and ***"
        );
    }

    proptest! {
        #[test]
        fn no_error_and_no_display_shows_a_password(password in "[ -~]{0,12}") {
            let secret = format!("s3cret{password}");
            for scheme in ["postgres", "mysql", "oracle"] {
                let url = format!("{scheme}://user:{secret}@host/db");
                let shown = match DatabaseUrl::parse(&url) {
                    Ok(database) => format!("{database} {database:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!shown.contains("s3cret"), "{}", shown);
            }
        }
    }
}
