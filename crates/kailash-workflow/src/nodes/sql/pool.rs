//! Connections, kept for the next statement.
//!
//! There is one pool per partition and database, as large as the partition's `max_connections`. A
//! refused connection is told at once, so that a breaker sees it; a call waits for a connection only
//! while all are in use. A connection whose call was cancelled is closed, since its answer may still
//! come. After a lost connection the kept ones are tested before they are used again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kailash::bulkhead::Partition;
use kailash::sql::{ConnectOptions as UrlOptions, DatabaseUrl, UrlError};
use sqlx::Connection;
use sqlx::database::HasStatementCache;
use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteError, SqliteJournalMode, SqliteSynchronous,
};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::group::Writer;
use super::placeholders::{Dialect, is_several_statements};
use super::{Failure, Rows};
use crate::value::Value;

/// The size of a pool outside any partition, and of a partition without `max_connections`.
pub const DEFAULT_CONNECTIONS: u32 = 10;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that rested longer is tested before it is used.
const TESTED_AFTER: Duration = Duration::from_secs(1);

/// How long SQLite waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The pools of all SQL nodes that share them.
///
/// Clones share the pools. Connections belong to the tokio runtime that opened them.
#[derive(Clone, Default)]
pub struct Pools(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    urls: HashMap<String, DatabaseUrl>,
    pools: HashMap<(Option<String>, String), (u32, Pool)>,
    writers: HashMap<String, Writer>,
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools").finish_non_exhaustive()
    }
}

impl Pools {
    /// No pools yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The database of this URL; the same text is the same database, in memory too.
    pub(super) fn database(&self, url: &str) -> Result<DatabaseUrl, UrlError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = known.urls.get(url) {
            return Ok(database.clone());
        }
        let database = DatabaseUrl::parse(url)?;
        known.urls.insert(url.to_owned(), database.clone());
        Ok(database)
    }

    /// The pool of the current partition for this database.
    pub(super) fn current(&self, url: &str, database: &DatabaseUrl) -> Pool {
        let partition = kailash::bulkhead::current();
        let config = partition.as_ref().map(Partition::config);
        let size = config.and_then(|config| config.max_connections);
        let mut size = size.unwrap_or(DEFAULT_CONNECTIONS);
        let mut name = partition.map(|partition| partition.name().to_owned());
        if is_in_memory(database) {
            // Connections to one database in memory lock each other's tables without waiting.
            (name, size) = (None, 1);
        }
        let key = (name, url.to_owned());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.pools.get(&key) {
            // A partition that was reconfigured gets a new pool; the old one ends with its calls.
            Some((known_size, pool)) if *known_size == size => pool.clone(),
            _ => {
                let pool = Pool::new(database, size);
                known.pools.insert(key, (size, pool.clone()));
                pool
            }
        }
    }

    /// The one writer of a SQLite file, `None` where writers need no order.
    pub(super) fn writer(&self, url: &str, database: &DatabaseUrl) -> Option<Writer> {
        let UrlOptions::Sqlite(options) = database.options() else {
            return None;
        };
        if is_in_memory(database) {
            return None;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = known.writers.entry(url.to_owned());
        Some(
            writer
                .or_insert_with(|| Writer::new(sqlite(options)))
                .clone(),
        )
    }
}

fn is_in_memory(database: &DatabaseUrl) -> bool {
    database.to_string() == "sqlite::memory:"
}

/// Readers see the last commit while one writes. A commit is not synced to disk by itself: it outlives
/// this process in any case, and the machine's power except for the last moments.
fn sqlite(options: &SqliteConnectOptions) -> Arc<SqliteConnectOptions> {
    let options = options
        .clone()
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    if options
        .get_filename()
        .as_os_str()
        .to_string_lossy()
        .contains("sqlx-in-memory")
    {
        return Arc::new(options);
    }
    let options = options.journal_mode(SqliteJournalMode::Wal);
    Arc::new(options.synchronous(SqliteSynchronous::Normal))
}

/// The connections of one partition to one database.
#[derive(Clone)]
pub(super) enum Pool {
    Postgres(Arc<Connections<PgConnection>>),
    MySql(Arc<Connections<MySqlConnection>>),
    Sqlite(Arc<Connections<SqliteConnection>>),
}

impl Pool {
    fn new(database: &DatabaseUrl, size: u32) -> Self {
        match database.options() {
            UrlOptions::Postgres(options) => {
                Self::Postgres(Connections::new(options.clone(), size, false))
            }
            UrlOptions::MySql(options) => {
                Self::MySql(Connections::new(options.clone(), size, false))
            }
            UrlOptions::Sqlite(options) => {
                let options = sqlite(options).as_ref().clone();
                Self::Sqlite(Connections::new(options, size, is_in_memory(database)))
            }
        }
    }

    /// Runs these statements on one connection, in one transaction when there are several.
    pub(super) async fn run(&self, statements: &[Statement]) -> Result<Vec<Rows>, Failure> {
        match self {
            Self::Postgres(connections) => connections.run(statements).await,
            Self::MySql(connections) => connections.run(statements).await,
            Self::Sqlite(connections) => connections.run(statements).await,
        }
    }
}

/// One statement and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The text, with placeholders of any one style.
    pub query: String,
    /// A list or a map of values, or null for none.
    pub parameters: Value,
}

impl Statement {
    /// A statement with these parameters.
    pub fn new(query: impl Into<String>, parameters: impl Into<Value>) -> Self {
        Self {
            query: query.into(),
            parameters: parameters.into(),
        }
    }
}

/// What a driver does with a connection.
pub(super) trait Driver:
    Connection<Options: Clone + Sync, Database: HasStatementCache> + Sized + Send + 'static
{
    /// How its statements are written.
    const DIALECT: Dialect;
    /// How a transaction begins.
    const BEGIN: &'static str;

    /// Opens a connection.
    ///
    /// Of those who turn a new SQLite file to its write-ahead log at once, SQLite lets all but one fail
    /// without waiting: these try again.
    fn open(options: &Self::Options) -> impl Future<Output = Result<Self, sqlx::Error>> + Send {
        async move {
            let begun = Instant::now();
            loop {
                match Self::connect_with(options).await {
                    Err(error) if is_busy(&error) && begun.elapsed() < BUSY_TIMEOUT => {
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    opened => return opened,
                }
            }
        }
    }

    /// Runs one statement.
    fn execute(
        &mut self,
        sql: &str,
        parameters: &Value,
    ) -> impl Future<Output = Result<Rows, Failure>> + Send;

    /// Runs a statement of ours.
    fn command(
        &mut self,
        sql: &'static str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Runs statements, in one transaction when there are several.
    fn run(
        &mut self,
        statements: &[Statement],
    ) -> impl Future<Output = Result<Vec<Rows>, Failure>> + Send {
        async move {
            if let [statement] = statements {
                return Ok(vec![
                    self.execute(&statement.query, &statement.parameters)
                        .await?,
                ]);
            }
            self.command(Self::BEGIN).await?;
            match self.run_each(statements).await {
                Ok(rows) => {
                    self.command("COMMIT").await?;
                    Ok(rows)
                }
                Err(failure) => {
                    // A connection that cannot even do this is lost, and its transaction with it.
                    let _ = self.command("ROLLBACK").await;
                    Err(failure)
                }
            }
        }
    }

    /// Runs statements one after the other, up to the first that fails.
    fn run_each(
        &mut self,
        statements: &[Statement],
    ) -> impl Future<Output = Result<Vec<Rows>, Failure>> + Send {
        async move {
            let mut all = Vec::with_capacity(statements.len());
            for (index, statement) in statements.iter().enumerate() {
                let rows = self.execute(&statement.query, &statement.parameters).await;
                all.push(rows.map_err(|failure| failure.in_statement(index))?);
            }
            Ok(all)
        }
    }
}

/// Whether SQLite says that another has locked the file.
fn is_busy(error: &sqlx::Error) -> bool {
    let sqlite = error.as_database_error();
    let sqlite = sqlite.and_then(|error| error.try_downcast_ref::<SqliteError>());
    let code = sqlite.and_then(|error| error.code()?.parse::<u32>().ok());
    // The low byte, as the rest says more precisely by whom: https://sqlite.org/rescode.html
    code.is_some_and(|code| code & 0xff == 5)
}

macro_rules! driver {
    ($connection:ty, $module:ident, $dialect:ident, $begin:literal) => {
        impl Driver for $connection {
            const DIALECT: Dialect = Dialect::$dialect;
            const BEGIN: &'static str = $begin;

            async fn execute(&mut self, sql: &str, parameters: &Value) -> Result<Rows, Failure> {
                super::$module::execute(self, sql, parameters).await
            }

            async fn command(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
                sqlx::raw_sql(sql).execute(self).await.map(|_| ())
            }
        }
    };
}

driver!(PgConnection, postgres, Postgres, "BEGIN");
driver!(MySqlConnection, mysql, MySql, "START TRANSACTION");
driver!(SqliteConnection, sqlite, Sqlite, "BEGIN IMMEDIATE");

/// At most `size` connections, the idle ones kept.
pub(super) struct Connections<C: Driver> {
    options: C::Options,
    places: Semaphore,
    /// Keeps a database in memory alive while no other connection is open.
    anchor: Option<OnceCell<Mutex<C>>>,
    idle: Mutex<Vec<Idle<C>>>,
    /// Counts the lost connections: one that rested since before the last is tested first.
    losses: AtomicU64,
}

struct Idle<C> {
    connection: C,
    since: Instant,
    losses: u64,
}

impl<C: Driver> Connections<C> {
    fn new(options: C::Options, size: u32, is_anchored: bool) -> Arc<Self> {
        Arc::new(Self {
            options,
            anchor: is_anchored.then(OnceCell::new),
            places: Semaphore::new(size as usize),
            idle: Mutex::default(),
            losses: AtomicU64::new(0),
        })
    }

    async fn run(&self, statements: &[Statement]) -> Result<Vec<Rows>, Failure> {
        let place = self.places.acquire().await.expect("never closed");
        let mut connection = self.connect().await?;
        // Cancelled from here on, the connection is dropped, which closes it.
        let mut result = connection.run(statements).await;
        if result.as_ref().is_err_and(Failure::is_stale) {
            // It was refused before it ran, and a transaction around it is rolled back.
            connection.clear_cached_statements().await?;
            result = connection.run(statements).await;
        }
        // A script may leave a transaction open, which closing ends.
        let is_script = |s: &Statement| is_several_statements(C::DIALECT, &s.query);
        if result.as_ref().is_err_and(Failure::is_lost) {
            self.losses.fetch_add(1, Ordering::Relaxed);
        } else if !statements.iter().any(is_script) {
            self.keep(connection, place);
        }
        result
    }

    async fn connect(&self) -> Result<C, Failure> {
        if let Some(anchor) = &self.anchor {
            let open = || async { Ok::<_, sqlx::Error>(Mutex::new(C::open(&self.options).await?)) };
            anchor.get_or_try_init(open).await?;
        }
        loop {
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let Some(mut idle) = idle else { break };
            let is_fresh = idle.since.elapsed() < TESTED_AFTER
                && idle.losses == self.losses.load(Ordering::Relaxed);
            if is_fresh || idle.connection.ping().await.is_ok() {
                return Ok(idle.connection);
            }
        }
        let connect = C::open(&self.options);
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connection) => Ok(connection?),
            Err(_) => Err(Failure::Connect(CONNECT_TIMEOUT)),
        }
    }

    fn keep(&self, connection: C, place: SemaphorePermit<'_>) {
        let losses = self.losses.load(Ordering::Relaxed);
        let idle = Idle {
            connection,
            since: Instant::now(),
            losses,
        };
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(idle);
        // Only now may the next one look for it.
        drop(place);
    }
}
