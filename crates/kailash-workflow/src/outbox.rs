//! What was stored and is still to be sent: a table that makes "sent at least once" true.
//!
//! A row of the outbox comes into being in the same transaction as what it announces, and is marked
//! once that was sent. A process that dies in between leaves it unmarked, and whoever comes next sends
//! it again; the receiver tells a repeat by its key.

mod relay;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use kailash::sql::Driver;

pub use self::relay::{Delivery, Ended, Held, Relay, RelayConfig, RelaySnapshot};
use crate::error::NodeError;
use crate::node::{Node, Ports};
use crate::nodes::sql::{self, Rows, SqlDatabase, Statement};
use crate::value::{Map, Value};

/// The longest key, in characters: what every database can index.
pub const LONGEST_KEY: usize = 191;

/// A table of what is still to be sent; clones share it.
///
/// ```
/// use kailash_workflow::nodes::sql::{SqlDatabase, Statement};
/// use kailash_workflow::outbox::Outbox;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let shop = SqlDatabase::new("sqlite::memory:")?;
/// shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)", ()).await?;
/// let outbox = Outbox::open(shop, "outbox").await?;
///
/// let insert = Statement::new("INSERT INTO orders (id) VALUES (7)", ());
/// outbox.store("7", "{\"id\": 7}", vec![insert]).await?;
/// let unsent = outbox.unsent(100).await?;
/// assert_eq!(unsent[0].key, "7");
///
/// outbox.mark_sent(&["7".to_owned()]).await?;
/// assert!(outbox.unsent(100).await?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbox(Arc<Table>);

#[derive(Debug)]
struct Table {
    database: SqlDatabase,
    /// The table's name, quoted.
    name: String,
}

/// A row that is not marked as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsent {
    /// What tells it from every other row.
    pub key: String,
    /// What is to be sent, as it was stored.
    pub payload: String,
    /// When it was stored, by the clock of the machine that did.
    pub stored_at: SystemTime,
}

impl Outbox {
    /// Opens the outbox of this name, and makes its table where it is missing.
    ///
    /// `table` starts with a letter and holds letters, digits and underscores, at most 63.
    ///
    /// # Errors
    /// When the name is another, or the database does not answer or refuses.
    pub async fn open(database: SqlDatabase, table: &str) -> Result<Self, NodeError> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts = table.starts_with(|c: char| c.is_ascii_alphabetic());
        if !starts || !table.chars().all(is_word) || table.len() > 63 {
            let allowed = "a letter, then letters, digits and underscores, at most 63";
            return Err(NodeError::Input(format!(
                "table {table:?}: allowed is {allowed}"
            )));
        }
        let driver = database.driver();
        let (name, key, text, index) = match driver {
            // Its usual collations take "a" and "A" for one key.
            Driver::MySql => (
                format!("`{table}`"),
                "VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                "LONGTEXT CHARACTER SET utf8mb4",
                ", KEY (sent_at, stored_at)",
            ),
            Driver::Postgres | Driver::Sqlite => {
                (format!("\"{table}\""), "VARCHAR(191)", "TEXT", "")
            }
        };
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {name} (item_key {key} NOT NULL PRIMARY KEY, \
             payload {text} NOT NULL, stored_at BIGINT NOT NULL, sent_at BIGINT{index})"
        );
        database.execute(&create, ()).await?;
        if driver != Driver::MySql {
            let index = format!(
                "CREATE INDEX IF NOT EXISTS \"{table}_unsent\" ON {name} (stored_at, item_key) \
                 WHERE sent_at IS NULL"
            );
            database.execute(&index, ()).await?;
        }
        Ok(Self(Arc::new(Table { database, name })))
    }

    /// Runs `statements` and adds a row to the outbox, in one transaction: all of it happens, or
    /// nothing. The answers are those of `statements`.
    ///
    /// Cancelled, it may have happened as a whole or not at all.
    ///
    /// # Errors
    /// When a statement is refused, the key exists or is longer than [`LONGEST_KEY`], or the database
    /// does not answer.
    pub async fn store(
        &self,
        key: &str,
        payload: &str,
        mut statements: Vec<Statement>,
    ) -> Result<Vec<Rows>, NodeError> {
        // SQLite would take it.
        if key.chars().count() > LONGEST_KEY {
            let message = format!("the key is longer than {LONGEST_KEY} characters");
            return Err(NodeError::Input(message));
        }
        let Table { database, name } = &*self.0;
        let insert = format!("INSERT INTO {name} (item_key, payload, stored_at) VALUES (?, ?, ?)");
        let row = vec![
            Value::from(key),
            Value::from(payload),
            millis(SystemTime::now()),
        ];
        statements.push(Statement::new(&insert, row));
        let mut all = database.transaction(statements).await?;
        all.pop();
        Ok(all)
    }

    /// Which of these keys exist, each with whether it is marked as sent.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(&self, keys: &[String]) -> Result<HashMap<String, bool>, NodeError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let Table { database, name } = &*self.0;
        let marks = marks(keys.len());
        let query = format!(
            "SELECT item_key, CASE WHEN sent_at IS NULL THEN 0 ELSE 1 END AS is_sent \
             FROM {name} WHERE item_key IN ({marks})"
        );
        let keys: Vec<Value> = keys.iter().map(|key| Value::from(key.as_str())).collect();
        let rows = database.execute(&query, keys).await?;
        let found = rows.data.into_iter().filter_map(|row| {
            let key = row.get("item_key")?.as_text()?.to_owned();
            Some((key, row.get("is_sent")?.as_int()? == 1))
        });
        Ok(found.collect())
    }

    /// The oldest rows that are not marked as sent, at most `most`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unsent(&self, most: usize) -> Result<Vec<Unsent>, NodeError> {
        let Table { database, name } = &*self.0;
        let query = format!(
            "SELECT item_key, payload, stored_at FROM {name} WHERE sent_at IS NULL \
             ORDER BY stored_at, item_key LIMIT {most}"
        );
        let rows = database.execute(&query, ()).await?;
        let unsent = rows.data.into_iter().filter_map(|row| {
            let stored_at = u64::try_from(row.get("stored_at")?.as_int()?).ok()?;
            Some(Unsent {
                key: row.get("item_key")?.as_text()?.to_owned(),
                payload: row.get("payload")?.as_text()?.to_owned(),
                stored_at: UNIX_EPOCH + Duration::from_millis(stored_at),
            })
        });
        Ok(unsent.collect())
    }

    /// Whether it has no rows at all.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn is_empty(&self) -> Result<bool, NodeError> {
        let Table { database, name } = &*self.0;
        let query = format!("SELECT item_key FROM {name} LIMIT 1");
        Ok(database.execute(&query, ()).await?.data.is_empty())
    }

    /// How many rows are not marked as sent.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_unsent(&self) -> Result<u64, NodeError> {
        let Table { database, name } = &*self.0;
        let query = format!("SELECT COUNT(*) AS unsent FROM {name} WHERE sent_at IS NULL");
        let rows = database.execute(&query, ()).await?;
        let count = rows
            .data
            .first()
            .and_then(|row| row.get("unsent")?.as_int());
        Ok(count
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or_default())
    }

    /// Marks these keys as sent.
    ///
    /// Cancelled, all of them may be marked, or none.
    ///
    /// # Errors
    /// When the database does not answer; none is marked then.
    pub async fn mark_sent(&self, keys: &[String]) -> Result<(), NodeError> {
        if keys.is_empty() {
            return Ok(());
        }
        let Table { database, name } = &*self.0;
        let marks = marks(keys.len());
        let update = format!("UPDATE {name} SET sent_at = ? WHERE item_key IN ({marks})");
        let mut values = vec![millis(SystemTime::now())];
        values.extend(keys.iter().map(|key| Value::from(key.as_str())));
        database.execute(&update, values).await?;
        Ok(())
    }
}

/// An SQL node that adds a row to an outbox with what it does, in one transaction.
///
/// Its inputs are those of [`SqlDatabase`], and `item_key` and `payload` of the row. What is stored
/// already, by whomever, is no error: nothing is done then, and `row_count` is 0.
#[derive(Clone, Debug)]
pub struct Store {
    outbox: Outbox,
}

impl Store {
    /// A node that stores into this outbox's database.
    #[must_use]
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox }
    }
}

impl Node for Store {
    fn inputs(&self) -> Ports {
        match Node::inputs(&self.outbox.0.database) {
            Ports::Named(mut names) => {
                names.extend(["item_key", "payload"].map(str::to_owned));
                Ports::Named(names)
            }
            any => any,
        }
    }

    fn outputs(&self) -> Ports {
        Node::outputs(&self.outbox.0.database)
    }

    fn run(&self, mut inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(async move {
            let mut text = |name: &str| match inputs.swap_remove(name) {
                Some(Value::Text(text)) => Ok(text),
                _ => Err(NodeError::Input(format!("{name} is missing"))),
            };
            let (key, payload) = (text("item_key")?, text("payload")?);
            let statements = match inputs.swap_remove("statements") {
                Some(statements) => sql::read_statements(statements)?,
                None => vec![sql::read_statement(inputs)?],
            };
            match self.outbox.store(&key, &payload, statements).await {
                Ok(mut all) => Ok(all.pop().unwrap_or_default().into_map()),
                Err(error) => {
                    let found = self.outbox.find(std::slice::from_ref(&key)).await;
                    let is_stored = found.is_ok_and(|found| found.contains_key(&key));
                    match is_stored {
                        true => Ok(Rows::default().into_map()),
                        false => Err(error),
                    }
                }
            }
        })
    }
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn millis(at: SystemTime) -> Value {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Value::Int(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open() -> (SqlDatabase, Outbox) {
        let database = SqlDatabase::new("sqlite::memory:").unwrap();
        let orders = "CREATE TABLE orders (id INTEGER PRIMARY KEY)";
        database.execute(orders, ()).await.unwrap();
        let outbox = Outbox::open(database.clone(), "outbox").await.unwrap();
        (database, outbox)
    }

    fn order(id: i64) -> Vec<Statement> {
        vec![Statement::new(
            "INSERT INTO orders (id) VALUES (?)",
            vec![Value::Int(id)],
        )]
    }

    #[tokio::test]
    async fn what_is_stored_is_unsent_until_it_is_marked() {
        let (_, outbox) = open().await;
        outbox.store("1", "one", order(1)).await.unwrap();
        outbox.store("2", "two", order(2)).await.unwrap();
        outbox.mark_sent(&["1".to_owned()]).await.unwrap();
        let unsent = outbox.unsent(10).await.unwrap();
        assert_eq!(unsent.len(), 1);
        assert_eq!((&*unsent[0].key, &*unsent[0].payload), ("2", "two"));
        assert_eq!(outbox.count_unsent().await.unwrap(), 1);
        let keys = ["1", "2", "3"].map(str::to_owned);
        let found = outbox.find(&keys).await.unwrap();
        assert_eq!(
            found,
            HashMap::from([("1".to_owned(), true), ("2".to_owned(), false)])
        );
    }

    #[tokio::test]
    async fn an_item_and_its_row_are_stored_together_or_not_at_all() {
        let (database, outbox) = open().await;
        outbox.store("1", "one", order(1)).await.unwrap();
        outbox.store("1", "again", order(2)).await.unwrap_err();
        outbox.store("2", "two", order(1)).await.unwrap_err();
        let rows = database.execute("SELECT id FROM orders", ()).await.unwrap();
        assert_eq!(rows.row_count, 1);
        assert_eq!(outbox.count_unsent().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_is_stored_already_is_no_failure_of_the_node() {
        let (database, outbox) = open().await;
        let store = Store::new(outbox.clone());
        let inputs = |key: &str, id: i64| {
            let inputs = serde_json::json!({
                "item_key": key,
                "payload": "{}",
                "query": "INSERT INTO orders (id) VALUES (?)",
                "parameters": [id],
            });
            match Value::from(inputs) {
                Value::Map(inputs) => inputs,
                other => panic!("{other}"),
            }
        };
        let outputs = store.run(inputs("1", 1)).await.unwrap();
        assert_eq!(outputs["row_count"], Value::Int(1));
        let outputs = store.run(inputs("1", 1)).await.unwrap();
        assert_eq!(outputs["row_count"], Value::Int(0));
        // Another item that does not fit is one.
        store.run(inputs("2", 1)).await.unwrap_err();
        let rows = database.execute("SELECT id FROM orders", ()).await.unwrap();
        assert_eq!(
            (rows.row_count, outbox.count_unsent().await.unwrap()),
            (1, 1)
        );
    }

    #[tokio::test]
    async fn a_table_is_opened_again_and_again() {
        let (database, outbox) = open().await;
        outbox.store("1", "one", order(1)).await.unwrap();
        let again = Outbox::open(database, "outbox").await.unwrap();
        assert_eq!(again.count_unsent().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_name_that_is_no_word_is_refused() {
        let (database, _) = open().await;
        for name in ["", "1st", "a-b", "x; DROP TABLE orders"] {
            let error = Outbox::open(database.clone(), name).await.unwrap_err();
            assert!(matches!(error, NodeError::Input(_)), "{error}");
        }
    }
}
