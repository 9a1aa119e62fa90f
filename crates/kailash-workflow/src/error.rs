//! Why a node or a plan failed.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kailash::bulkhead::{Closed, Full};
use kailash::circuit_breaker::Rejected;
use kailash::refusal::is_refusal;

/// Why a node failed.
#[derive(Clone, Debug)]
pub enum NodeError {
    /// The node itself failed: no answer, a statement the database refused.
    Execution {
        /// What went wrong, without secrets.
        message: String,
        /// What it went wrong with, if that is an error of its own.
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// The node was given something it cannot work with.
    Input(String),
    /// A node of one's own failed with an error of this type.
    Other {
        /// The error's type, as users know it.
        error_type: String,
        /// What went wrong.
        message: String,
        /// The error itself.
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// A breaker refused the call.
    Rejected(Rejected),
    /// A partition refused the call.
    Full(Full),
    /// A partition was closed.
    Closed(Closed),
    /// The node ran longer than allowed.
    TimedOut {
        /// How long it was allowed to run.
        after: Duration,
    },
}

impl NodeError {
    /// A failure of the node itself.
    pub fn execution(message: impl Into<String>) -> Self {
        Self::Execution {
            message: message.into(),
            source: None,
        }
    }

    /// A failure of the node itself, and the error behind it.
    pub fn caused_by(
        message: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self::Execution {
            message: message.into(),
            source: Some(Arc::new(source)),
        }
    }

    /// The type that a result reports as `error_type`: the name of Python's exception.
    #[must_use]
    pub fn error_type(&self) -> &str {
        match self {
            Self::Execution { .. } => "NodeExecutionError",
            Self::Input(_) => "NodeValidationError",
            Self::Other { error_type, .. } => error_type,
            Self::Rejected(_) => "CircuitBreakerError",
            Self::Full(_) => "BulkheadFullError",
            Self::Closed(_) => "BulkheadRejectionError",
            Self::TimedOut { .. } => "TimeoutError",
        }
    }

    /// Whether a breaker or a partition refused the call, around the node or within it: see
    /// [`kailash::refusal`].
    #[must_use]
    pub fn is_rejection(&self) -> bool {
        is_refusal(self)
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Execution { message, .. }
            | Self::Input(message)
            | Self::Other { message, .. } => f.write_str(message),
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Full(full) => full.fmt(f),
            Self::Closed(closed) => closed.fmt(f),
            Self::TimedOut { after } => write!(f, "timed out after {after:?}"),
        }
    }
}

impl Error for NodeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Execution { source, .. } | Self::Other { source, .. } => {
                source.as_deref().map(|source| source as _)
            }
            Self::Rejected(rejected) => Some(rejected),
            Self::Full(full) => Some(full),
            Self::Closed(closed) => Some(closed),
            _ => None,
        }
    }
}
