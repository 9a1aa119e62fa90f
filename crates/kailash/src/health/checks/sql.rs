//! Whether a database answers a query.

use std::fmt;
use std::sync::Mutex;

use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::time::timeout;

use super::server::{Address, class_of};
use crate::ConfigError;
use crate::health::threads::lock;
use crate::health::{BoxFuture, Check, ErrorClass, Outcome, Phase, Run};
use crate::sql::{ConnectOptions, DatabaseUrl};

/// Which database to ask, and what.
///
/// `Debug` shows no password.
#[derive(Clone, Default)]
pub struct SqlConfig {
    /// The database, as [`DatabaseUrl::parse`] takes it.
    pub url: String,
    /// What to ask; `SELECT 1` by default, and for SQLite a query that reads the file.
    pub query: Option<String>,
}

impl fmt::Debug for SqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlConfig").finish_non_exhaustive()
    }
}

/// A check that asks a PostgreSQL, MySQL, MariaDB or SQLite database a query.
///
/// When a kept connection does not answer within half of the timeout, a new one is asked as well: a
/// connection that some firewall forgot is no failure of the database. A SQLite file is opened anew
/// each time, so that one which was removed or replaced is noticed, and is never made.
///
/// ```
/// use kailash::health::checks::{Sql, SqlConfig};
///
/// let database = Sql::new(SqlConfig {
///     url: "postgres://app:hunter2@db/orders".to_owned(),
///     ..SqlConfig::default()
/// })?;
/// # drop(database);
/// # Ok::<(), kailash::ConfigError>(())
/// ```
pub struct Sql {
    database: DatabaseUrl,
    target: Target,
    query: String,
}

enum Target {
    Postgres(Server<PgConnection>, Box<PgConnectOptions>),
    MySql(Server<MySqlConnection>, Box<MySqlConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

struct Server<C> {
    /// None for a local socket.
    address: Option<Address>,
    kept: Mutex<Option<C>>,
}

impl Sql {
    /// A check of this database; it connects when it first runs.
    ///
    /// # Errors
    /// When the URL cannot be used, or the query is empty.
    pub fn new(config: SqlConfig) -> Result<Self, ConfigError> {
        let database = DatabaseUrl::parse(&config.url);
        let database = database.map_err(|error| {
            let (value, allowed) = (error.reason(), crate::sql::ALLOWED);
            ConfigError::new("url", value, allowed)
        })?;
        let (target, query) = match database.options().clone() {
            ConnectOptions::Postgres(options) => {
                let remote = options.get_socket().is_none();
                let address = remote.then(|| Address::new(options.get_host(), options.get_port()));
                let target = Target::Postgres(Server::new(address), Box::new(options));
                (target, "SELECT 1")
            }
            ConnectOptions::MySql(options) => {
                let remote = options.get_socket().is_none();
                let address = remote.then(|| Address::new(options.get_host(), options.get_port()));
                let target = Target::MySql(Server::new(address), Box::new(options));
                (target, "SELECT 1")
            }
            ConnectOptions::Sqlite(options) => {
                let target = Target::Sqlite(Box::new(options.create_if_missing(false)));
                (target, "SELECT count(*) FROM sqlite_master")
            }
        };
        let query = config.query.unwrap_or_else(|| query.to_owned());
        if query.trim().is_empty() {
            return Err(ConfigError::new("query", "\"\"", "a statement"));
        }
        Ok(Self {
            database,
            target,
            query,
        })
    }

    async fn ask<C: Ask>(
        &self,
        run: &Run,
        server: &Server<C>,
        options: &C::Options,
    ) -> Result<(), Outcome> {
        let kept = lock(&server.kept).take();
        let connection = match kept {
            Some(kept) => self.ask_kept(run, server, options, kept).await?,
            None => self.ask_anew(run, server, options).await?,
        };
        *lock(&server.kept) = Some(connection);
        Ok(())
    }

    /// Asks on the kept connection; on a new one too when that is broken, or late.
    async fn ask_kept<C: Ask>(
        &self,
        run: &Run,
        server: &Server<C>,
        options: &C::Options,
        mut connection: C,
    ) -> Result<C, Outcome> {
        run.reached(Phase::Connected);
        let asking = async {
            let answer = connection.ask(&self.query).await;
            answer.map(|()| connection)
        };
        let mut asking = std::pin::pin!(asking);
        match timeout(run.remaining() / 2, &mut asking).await {
            Ok(Ok(connection)) => Ok(connection),
            // The server's own error comes again on any connection.
            Ok(Err(error @ sqlx::Error::Database(_))) if !is_leaving(&error) => {
                Err(self.outcome(&error))
            }
            Ok(Err(_)) => self.ask_anew(run, server, options).await,
            Err(_) => tokio::select! {
                biased;
                // It was only slow.
                Ok(connection) = &mut asking => Ok(connection),
                answer = self.ask_anew(run, server, options) => answer,
            },
        }
    }

    async fn ask_anew<C: Ask>(
        &self,
        run: &Run,
        server: &Server<C>,
        options: &C::Options,
    ) -> Result<C, Outcome> {
        let connecting = C::connect(options);
        let connection = match &server.address {
            Some(address) => {
                address.look_up(run).await?;
                address.watch(run, connecting).await
            }
            None => connecting.await,
        };
        let mut connection = connection.map_err(|error| self.outcome(&error))?;
        run.reached(Phase::Connected);
        let answer = connection.ask(&self.query).await;
        answer.map_err(|error| self.outcome(&error))?;
        Ok(connection)
    }

    async fn open(&self, run: &Run, options: &SqliteConnectOptions) -> Result<(), Outcome> {
        run.reached(Phase::Connected);
        let connection = options.connect().await;
        let mut connection = connection.map_err(|error| self.outcome(&error))?;
        let query = sqlx::raw_sql(AssertSqlSafe(self.query.as_str()));
        let answer = query.execute(&mut connection).await;
        // The worker of the connection is ended, not left to end.
        let closed = connection.close().await;
        let answer = answer.and(closed);
        answer.map_err(|error| self.outcome(&error))
    }

    /// What an error means; of the driver's text only a code goes on.
    fn outcome(&self, error: &sqlx::Error) -> Outcome {
        let database = &self.database;
        let class = match error {
            sqlx::Error::Database(error) => {
                let code = code_of(&**error);
                let class = database_class(&**error, &code);
                return Outcome::error(class, format_args!("{database} answers with error {code}"));
            }
            sqlx::Error::Protocol(_) => ErrorClass::Mismatch,
            sqlx::Error::WorkerCrashed => ErrorClass::Closed,
            sqlx::Error::Tls(_) => class_of(error).unwrap_or(ErrorClass::Tls),
            _ => class_of(error).unwrap_or(ErrorClass::Server),
        };
        Outcome::error(class, database)
    }
}

impl Check for Sql {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let answer = match &self.target {
                Target::Postgres(server, options) => self.ask(run, server, options).await,
                Target::MySql(server, options) => self.ask(run, server, options).await,
                Target::Sqlite(options) => self.open(run, options).await,
            };
            match answer {
                Ok(()) => Outcome::healthy(),
                Err(outcome) => outcome,
            }
            .detail("database", self.database.to_string())
        })
    }
}

impl<C> Server<C> {
    fn new(address: Option<Address>) -> Self {
        let kept = Mutex::new(None);
        Self { address, kept }
    }
}

/// A connection that can be asked.
trait Ask: Sized + Send {
    type Options: Sync;

    fn connect(options: &Self::Options) -> impl Future<Output = sqlx::Result<Self>> + Send;
    fn ask(&mut self, query: &str) -> impl Future<Output = sqlx::Result<()>> + Send;
}

impl Ask for PgConnection {
    type Options = PgConnectOptions;

    async fn connect(options: &PgConnectOptions) -> sqlx::Result<Self> {
        options.connect().await
    }

    async fn ask(&mut self, query: &str) -> sqlx::Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(query));
        query.execute(self).await.map(drop)
    }
}

impl Ask for MySqlConnection {
    type Options = MySqlConnectOptions;

    async fn connect(options: &MySqlConnectOptions) -> sqlx::Result<Self> {
        options.connect().await
    }

    async fn ask(&mut self, query: &str) -> sqlx::Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(query));
        query.execute(self).await.map(drop)
    }
}

fn code_of(error: &dyn DatabaseError) -> String {
    let mysql = error.try_downcast_ref::<MySqlDatabaseError>();
    let number = mysql.map(|error| error.number().to_string());
    let code = number.or_else(|| error.code().map(|code| code.into_owned()));
    code.unwrap_or_else(|| "without a code".to_owned())
}

fn database_class(error: &dyn DatabaseError, code: &str) -> ErrorClass {
    if error.try_downcast_ref::<MySqlDatabaseError>().is_some() {
        return match code {
            "1044" | "1045" | "1142" | "1227" | "1251" | "1698" => ErrorClass::Auth,
            "1040" | "1203" | "1226" => ErrorClass::Saturated,
            "1053" | "1927" => ErrorClass::Starting,
            "1290" | "1792" | "1836" => ErrorClass::ReadOnly,
            "1049" | "1146" => ErrorClass::Missing,
            _ => ErrorClass::Server,
        };
    }
    match code {
        // PostgreSQL.
        "28000" | "28P01" | "42501" => ErrorClass::Auth,
        "53300" => ErrorClass::Saturated,
        "57P01" | "57P02" | "57P03" => ErrorClass::Starting,
        "25006" => ErrorClass::ReadOnly,
        "3D000" | "42P01" => ErrorClass::Missing,
        // SQLite, whose extended codes keep the basic one in their low byte.
        code => match code.parse::<u32>().map(|code| code & 0xFF) {
            Ok(3 | 23) => ErrorClass::Auth,
            Ok(5 | 6) => ErrorClass::Saturated,
            Ok(8) => ErrorClass::ReadOnly,
            Ok(11 | 26) => ErrorClass::Mismatch,
            Ok(14) => ErrorClass::Missing,
            _ => ErrorClass::Server,
        },
    }
}

/// Whether the server ended the connection with this error, as it does when it shuts down.
fn is_leaving(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| database_class(error, &code_of(error)) == ErrorClass::Starting)
}
