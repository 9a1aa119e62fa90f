//! What a node is.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::error::NodeError;
use crate::value::Map;

/// Something that takes inputs by name and answers outputs by name.
///
/// A node is shared: it may run many times at once. Cancelling drops its future.
///
/// ```
/// use futures_util::future::BoxFuture;
/// use kailash_workflow::{Map, Node, NodeError, Ports, Value};
///
/// struct Double;
///
/// impl Node for Double {
///     fn inputs(&self) -> Ports {
///         Ports::named(["number"])
///     }
///
///     fn outputs(&self) -> Ports {
///         Ports::named(["double"])
///     }
///
///     fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
///         Box::pin(async move {
///             let Some(Value::Int(number)) = inputs.get("number") else {
///                 return Err(NodeError::Input("number must be an integer".to_owned()));
///             };
///             Ok(Map::from_iter([("double".to_owned(), Value::Int(2 * number))]))
///         })
///     }
/// }
/// ```
pub trait Node: Send + Sync + 'static {
    /// The names of its inputs; any unless it says which.
    fn inputs(&self) -> Ports {
        Ports::Any
    }

    /// The names of its outputs; any unless it says which. Every node has `result` besides, its whole
    /// output.
    fn outputs(&self) -> Ports {
        Ports::Any
    }

    /// Whether what it answered counts as a failure for a breaker.
    fn is_failure(&self, outputs: &Map) -> bool {
        let _ = outputs;
        false
    }

    /// Whether an error says nothing about what the node depends on, so that a breaker counts it neither
    /// as a failure nor as a success.
    fn is_neutral(&self, error: &NodeError) -> bool {
        let _ = error;
        false
    }

    /// Runs it once.
    fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>>;
}

impl<N: Node + ?Sized> Node for Arc<N> {
    fn inputs(&self) -> Ports {
        (**self).inputs()
    }

    fn outputs(&self) -> Ports {
        (**self).outputs()
    }

    fn is_failure(&self, outputs: &Map) -> bool {
        (**self).is_failure(outputs)
    }

    fn is_neutral(&self, error: &NodeError) -> bool {
        (**self).is_neutral(error)
    }

    fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        (**self).run(inputs)
    }
}

/// The names that a node's inputs or outputs may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Any name.
    Any,
    /// These names only.
    Named(Vec<String>),
}

impl Ports {
    /// These names only.
    pub fn named<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self::Named(names.into_iter().map(Into::into).collect())
    }

    /// Whether a port of this name exists.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(names) => names.iter().any(|known| known == name),
        }
    }
}
