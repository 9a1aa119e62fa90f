//! Workflows of nodes that run behind breakers and partitions.
//!
//! A [`WorkflowBuilder`] assembles [`Node`]s into a [`Workflow`], whose plan is checked as a whole. A
//! [`LocalRuntime`] runs it: independent nodes at the same time, each behind the [`Policies`] it names.
//! [`Items`] runs it once per item of a stream, such as the [`rows`] of a file; an [`outbox`] makes sure that
//! what one node stored is sent by another.

mod builder;
mod duration;
mod error;
mod expression;
mod graph;
mod node;
pub mod nodes;
pub mod outbox;
mod policy;
pub mod rows;
mod run;
mod runtime;
mod value;

pub use self::builder::{PlanError, PlannedNode, Workflow, WorkflowBuilder};
pub use self::error::NodeError;
pub use self::node::{Node, Ports};
pub use self::nodes::{ConfigProblem, Registry};
pub use self::policy::{Policies, Retry};
pub use self::run::{Control, Items, Progress};
pub use self::runtime::{Inputs, LocalRuntime, NodeResult, Prepared, Run};
pub use self::value::{Map, Value};
