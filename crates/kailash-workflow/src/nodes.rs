//! The nodes that come with the library, and the registry that makes nodes by the name of their type.

pub mod health_check;
pub mod http;
pub mod sql;
pub mod switch;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

pub use self::health_check::HealthCheck;
pub use self::http::HttpRequest;
pub use self::sql::SqlDatabase;
pub use self::switch::Switch;
use crate::node::Node;
use crate::value::{Map, Value};

/// The types of node that a builder knows.
///
/// Clones share their types, and the connections of the nodes that they make. `SQLDatabaseNode`,
/// `HTTPRequestNode`, `HealthCheckNode` and `SwitchNode` are there from the start.
///
/// ```
/// use std::sync::Arc;
/// use futures_util::future::BoxFuture;
/// use kailash_workflow::{Map, Node, NodeError, Registry};
///
/// struct Nothing;
///
/// impl Node for Nothing {
///     fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
///         Box::pin(async move { Ok(inputs) })
///     }
/// }
///
/// let registry = Registry::new();
/// registry.register("NothingNode", |_config| Ok(Arc::new(Nothing)));
/// assert!(registry.types().contains(&"NothingNode".to_owned()));
/// ```
#[derive(Clone)]
pub struct Registry(Arc<RwLock<BTreeMap<String, Maker>>>);

type Maker = Arc<dyn Fn(&mut Map) -> Result<Arc<dyn Node>, ConfigProblem> + Send + Sync>;

impl Registry {
    /// The types of this library, with connections of their own.
    #[must_use]
    pub fn new() -> Self {
        let registry = Self(Arc::default());
        let pools = sql::Pools::new();
        registry.register("SQLDatabaseNode", move |config| {
            let url = match config.swap_remove("connection_string") {
                Some(Value::Text(url)) => url,
                Some(other) => {
                    let message = format!("{} is not allowed, text is", other.kind());
                    return Err(ConfigProblem::new("connection_string", message));
                }
                None => return Err(ConfigProblem::new("connection_string", "is missing")),
            };
            let database = SqlDatabase::with_pools(&url, &pools);
            let problem = |error| ConfigProblem::new("connection_string", error);
            Ok(Arc::new(database.map_err(problem)?))
        });
        let http = HttpRequest::new();
        registry.register("HTTPRequestNode", move |_| Ok(Arc::new(http.clone())));
        registry.register("HealthCheckNode", |config| {
            Ok(Arc::new(match config.swap_remove("services") {
                Some(services) => HealthCheck::read(&services)?,
                None => HealthCheck::default(),
            }))
        });
        registry.register("SwitchNode", |config| Ok(Arc::new(Switch::new(config)?)));
        registry
    }

    /// Adds a type, or replaces the one of this name.
    ///
    /// `make` takes what it needs out of the configuration; what it leaves are inputs of the node.
    pub fn register(
        &self,
        name: impl Into<String>,
        make: impl Fn(&mut Map) -> Result<Arc<dyn Node>, ConfigProblem> + Send + Sync + 'static,
    ) {
        let mut types = self.0.write().unwrap_or_else(PoisonError::into_inner);
        types.insert(name.into(), Arc::new(make));
    }

    /// The names of all types.
    #[must_use]
    pub fn types(&self) -> Vec<String> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    /// Makes a node, `None` when the type is unknown.
    pub(crate) fn make(
        &self,
        name: &str,
        config: &mut Map,
    ) -> Option<Result<Arc<dyn Node>, ConfigProblem>> {
        let types = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let make = Arc::clone(types.get(name)?);
        // A node written in Python may register another while it is made.
        drop(types);
        Some(make(config))
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.types()).finish()
    }
}

/// What is wrong with a node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key, as it is written.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

impl ConfigProblem {
    /// A problem of this key.
    pub fn new(key: impl Into<String>, message: impl fmt::Display) -> Self {
        Self {
            key: key.into(),
            message: message.to_string(),
        }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl Error for ConfigProblem {}
