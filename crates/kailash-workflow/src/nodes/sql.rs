//! SQL on PostgreSQL, MySQL/MariaDB and SQLite.

mod group;
mod mysql;
mod placeholders;
mod pool;
mod postgres;
mod sqlite;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use kailash::sql::{DatabaseUrl, Driver, UrlError};
use sqlx::{Column as _, Either, Row};

use self::placeholders::{Dialect, PlaceholderError};
pub use self::pool::{DEFAULT_CONNECTIONS, Pools, Statement};
use crate::error::NodeError;
use crate::node::{Node, Ports};
use crate::value::{Map, Value};

/// A database that runs statements.
///
/// Placeholders may be `%s`, `%(name)s`, `?`, `:name` or `$1` on every driver, one style per statement;
/// a literal question mark is `??`, a literal percent sign `%%`. Without parameters the text goes
/// untouched. Connections come from the pool of the current partition.
///
/// ```
/// use kailash_workflow::nodes::SqlDatabase;
/// use kailash_workflow::Value;
///
/// # tokio_test(async {
/// let orders = SqlDatabase::new("sqlite::memory:")?;
/// orders.execute("CREATE TABLE orders (id INTEGER, customer TEXT)", ()).await?;
/// let order = vec![Value::from(7_i64), Value::from("Ada")];
/// orders.execute("INSERT INTO orders VALUES (%s, %s)", order).await?;
/// let rows = orders.execute("SELECT customer FROM orders", ()).await?;
/// assert_eq!(rows.data[0]["customer"], Value::from("Ada"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// # fn tokio_test<T>(future: impl Future<Output = T>) -> T {
/// #     tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
/// # }
/// ```
#[derive(Clone)]
pub struct SqlDatabase {
    url: Arc<str>,
    database: DatabaseUrl,
    pools: Pools,
}

/// Shows the database without its password.
impl fmt::Debug for SqlDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqlDatabase").field(&self.database).finish()
    }
}

impl SqlDatabase {
    /// A database with pools of its own.
    ///
    /// # Errors
    /// When the URL is malformed or of an unknown kind; the error never quotes it.
    pub fn new(connection_string: &str) -> Result<Self, UrlError> {
        Self::with_pools(connection_string, &Pools::new())
    }

    /// A database that shares its connections with the others of these pools.
    ///
    /// # Errors
    /// When the URL is malformed or of an unknown kind; the error never quotes it.
    pub fn with_pools(connection_string: &str, pools: &Pools) -> Result<Self, UrlError> {
        let database = pools.database(connection_string)?;
        Ok(Self {
            url: connection_string.into(),
            database,
            pools: pools.clone(),
        })
    }

    /// The kind of database.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.database.driver()
    }

    /// Runs one statement; `parameters` are a list, a map, or null for none.
    ///
    /// Cancelled, the statement may have happened or not.
    ///
    /// # Errors
    /// When the parameters do not fit, the database refuses the statement or gives no answer, or a
    /// column has a type that no value has.
    pub async fn execute(
        &self,
        query: &str,
        parameters: impl Into<Value>,
    ) -> Result<Rows, NodeError> {
        let statement = Statement::new(query, parameters);
        let mut all = self.run(vec![statement]).await?;
        Ok(all.pop().unwrap_or_default())
    }

    /// Runs statements in one transaction: all of them happen, or none.
    ///
    /// On SQLite, transactions that come together share one commit; each is answered after it.
    /// Cancelled, the transaction may have happened as a whole or not at all.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); the message names the statement by its place.
    pub async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, NodeError> {
        self.run(statements).await
    }

    async fn run(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, NodeError> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let mut is_write = true;
        for statement in &statements {
            let keyword = placeholders::first_keyword(self.dialect(), &statement.query);
            let is_several = placeholders::is_several_statements(self.dialect(), &statement.query);
            if !is_several && is_transaction_control(&keyword) {
                let message = format!(
                    "{keyword} by itself has no effect, the connection is shared: \
                     several statements in one transaction are given as statements"
                );
                return Err(NodeError::Input(message));
            }
            is_write &= matches!(keyword.as_str(), "INSERT" | "UPDATE" | "DELETE" | "REPLACE");
            is_write &= !is_several;
        }
        let writer = match is_write {
            true => self.pools.writer(&self.url, &self.database),
            false => None,
        };
        let result = match writer {
            Some(writer) => writer.run(statements).await,
            None => {
                self.pools
                    .current(&self.url, &self.database)
                    .run(&statements)
                    .await
            }
        };
        let mut all = result.map_err(|failure| self.error(&failure))?;
        for rows in &mut all {
            rows.execution_time = started.elapsed();
        }
        Ok(all)
    }

    fn dialect(&self) -> Dialect {
        match self.database.driver() {
            Driver::Postgres => Dialect::Postgres,
            Driver::MySql => Dialect::MySql,
            Driver::Sqlite => Dialect::Sqlite,
        }
    }

    fn error(&self, failure: &Failure) -> NodeError {
        let database = &self.database;
        let text = database.redact(&failure.to_string());
        match failure {
            Failure::Placeholder(_) => NodeError::Input(text),
            _ => NodeError::execution(format!("{database}: {text}")),
        }
    }
}

fn is_transaction_control(keyword: &str) -> bool {
    matches!(
        keyword,
        "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE"
    )
}

/// What a statement answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The rows, each a map by column name; of two columns with one name the last counts.
    pub data: Vec<Map>,
    /// How many rows `data` has, or how many the statement affected when it returns none.
    pub row_count: u64,
    /// The names of the columns, in order.
    pub columns: Vec<String>,
    /// How long it took, waiting for a connection included.
    pub execution_time: Duration,
}

impl Rows {
    fn new(columns: Vec<String>) -> Self {
        Self {
            columns,
            ..Self::default()
        }
    }

    fn push(&mut self, row: Map) {
        self.data.push(row);
        self.row_count += 1;
    }

    fn affected(&mut self, count: u64) {
        self.row_count = count;
    }

    /// The answer as a map: data, row_count, columns and execution_time (in seconds).
    #[must_use]
    pub fn into_map(self) -> Map {
        Map::from_iter([
            (
                "data".to_owned(),
                self.data
                    .into_iter()
                    .map(Value::Map)
                    .collect::<Vec<_>>()
                    .into(),
            ),
            ("row_count".to_owned(), self.row_count.into()),
            ("columns".to_owned(), self.columns.into_iter().collect()),
            (
                "execution_time".to_owned(),
                self.execution_time.as_secs_f64().into(),
            ),
        ])
    }
}

/// The answer to the last of several statements.
async fn last_answer<R: Row>(
    mut answers: BoxStream<'_, Result<Either<AnswerOf<R>, R>, sqlx::Error>>,
    affected: fn(&AnswerOf<R>) -> u64,
    read: fn(&R) -> Result<Map, Failure>,
) -> Result<Rows, Failure> {
    let mut rows = Rows::default();
    let mut is_new = true;
    while let Some(item) = answers.try_next().await? {
        match item {
            Either::Left(done) => {
                if is_new {
                    rows = Rows::default();
                    rows.affected(affected(&done));
                }
                is_new = true;
            }
            Either::Right(row) => {
                if is_new {
                    rows = Rows::new(row.columns().iter().map(|c| c.name().to_owned()).collect());
                    is_new = false;
                }
                rows.push(read(&row)?);
            }
        }
    }
    Ok(rows)
}

/// What a database says of a statement that has ended.
type AnswerOf<R> = <<R as Row>::Database as sqlx::Database>::QueryResult;

/// Why a driver has no answer.
#[derive(Debug)]
enum Failure {
    Placeholder(PlaceholderError),
    Database(sqlx::Error),
    Shared(Arc<sqlx::Error>),
    Statement(String),
    Column {
        column: String,
        ty: String,
        reason: Unreadable,
    },
    Connect(Duration),
    Nth {
        index: usize,
        failure: Box<Failure>,
    },
}

/// Why a column's value cannot be read.
#[derive(Clone, Copy, Debug)]
enum Unreadable {
    /// No value is of this type.
    Type,
    /// This one value lies outside what a value can hold.
    Value,
}

impl Failure {
    fn in_statement(self, index: usize) -> Self {
        Self::Nth {
            index,
            failure: Box::new(self),
        }
    }

    /// Whether PostgreSQL refused a statement only because it was prepared before its tables changed.
    fn is_stale(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().as_deref() == Some("0A000") && error.message().contains("cached plan")
            }
            Self::Nth { failure, .. } => failure.is_stale(),
            _ => false,
        }
    }

    /// Whether the connection is gone, rather than the statement refused.
    fn is_lost(&self) -> bool {
        match self {
            Self::Database(error) => is_lost(error),
            Self::Shared(error) => is_lost(error),
            Self::Nth { failure, .. } => failure.is_lost(),
            _ => false,
        }
    }
}

fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // PostgreSQL: shut down, crashed, starting, connection failures. MySQL: shutting down, killed.
            let mysql = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
            let is_mysql = mysql.is_some_and(|e| matches!(e.number(), 1053 | 1152..=1161 | 1927));
            let code = error.code().unwrap_or_default();
            is_mysql || matches!(&*code, "57P01" | "57P02" | "57P03") || code.starts_with("08")
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<PlaceholderError> for Failure {
    fn from(error: PlaceholderError) -> Self {
        Self::Placeholder(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placeholder(error) => error.fmt(f),
            Self::Database(error) => write_error(error, f),
            Self::Shared(error) => write_error(error, f),
            Self::Statement(message) => f.write_str(message),
            Self::Column {
                column,
                ty,
                reason: Unreadable::Type,
            } => write!(
                f,
                "column {column:?} is of type {ty}, which has no value here; cast it in the query"
            ),
            Self::Column {
                column,
                ty,
                reason: Unreadable::Value,
            } => {
                write!(
                    f,
                    "column {column:?} holds a value of type {ty} that has no counterpart here"
                )
            }
            Self::Connect(timeout) => write!(f, "no connection within {timeout:?}"),
            Self::Nth { index, failure } => write!(f, "statement {}: {failure}", index + 1),
        }
    }
}

fn write_error(error: &sqlx::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        sqlx::Error::Database(error) => {
            f.write_str(error.message())?;
            match error.code() {
                Some(code) => write!(f, " ({code})"),
                None => Ok(()),
            }
        }
        sqlx::Error::Io(error) => write!(f, "{error}"),
        error => write!(f, "{error}"),
    }
}

/// A float of 32 bits as the shortest decimal that stands for it, not as its 64-bit neighbour.
fn shortest(float: f32) -> Value {
    Value::Float(float.to_string().parse().unwrap_or_else(|_| float.into()))
}

impl Node for SqlDatabase {
    fn inputs(&self) -> Ports {
        Ports::named(["query", "parameters", "params", "statements"])
    }

    fn outputs(&self) -> Ports {
        Ports::named(["data", "row_count", "columns", "execution_time", "results"])
    }

    fn run(&self, mut inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            if let Some(statements) = inputs.swap_remove("statements") {
                if inputs.contains_key("query") {
                    let message = "query and statements exclude each other".to_owned();
                    return Err(NodeError::Input(message));
                }
                let all = self.transaction(read_statements(statements)?).await?;
                let last = all.last().cloned().unwrap_or_default();
                let results: Vec<_> = all
                    .into_iter()
                    .map(|rows| Value::Map(rows.into_map()))
                    .collect();
                let mut outputs = last.into_map();
                outputs.insert("results".to_owned(), Value::List(results));
                return Ok(outputs);
            }
            let Statement { query, parameters } = read_statement(inputs)?;
            Ok(self.execute(&query, parameters).await?.into_map())
        })
    }
}

pub(crate) fn read_statements(statements: Value) -> Result<Vec<Statement>, NodeError> {
    let Value::List(list) = statements else {
        let message = format!(
            "statements is {}, allowed is a list of maps",
            statements.kind()
        );
        return Err(NodeError::Input(message));
    };
    let read = |(index, item)| match item {
        Value::Map(map) => read_statement(map)
            .map_err(|error| NodeError::Input(format!("statements[{index}]: {error}"))),
        Value::Text(query) => Ok(Statement::new(query, Value::Null)),
        other => {
            let message = format!("statements[{index}] is {}, allowed is a map", other.kind());
            Err(NodeError::Input(message))
        }
    };
    list.into_iter().enumerate().map(read).collect()
}

pub(crate) fn read_statement(mut map: Map) -> Result<Statement, NodeError> {
    let query = match map.swap_remove("query") {
        Some(Value::Text(query)) => query,
        Some(other) => {
            return Err(NodeError::Input(format!(
                "query is {}, allowed is text",
                other.kind()
            )));
        }
        None => return Err(NodeError::Input("query is missing".to_owned())),
    };
    let parameters = map
        .swap_remove("parameters")
        .filter(|value| !value.is_null());
    let params = map.swap_remove("params").filter(|value| !value.is_null());
    if parameters.is_some() && params.is_some() {
        return Err(NodeError::Input(
            "parameters and params are the same, give one".to_owned(),
        ));
    }
    if let Some(unknown) = map.keys().next() {
        return Err(NodeError::Input(format!("unknown key {unknown:?}")));
    }
    Ok(Statement {
        query,
        parameters: parameters.or(params).unwrap_or_default(),
    })
}
