//! The graph of a run file.

use std::fmt;

use kailash_workflow::outbox::{self, Outbox};
use kailash_workflow::{PlanError, Policies, Value, Workflow, WorkflowBuilder};

use super::RunFile;

/// The keys of a node that every type takes.
pub(super) const POLICIES: [&str; 11] = [
    "breaker",
    "partition",
    "priority",
    "timeout",
    "retries",
    "retry_delay",
    "max_retry_delay",
    "retry_multiplier",
    "retry_jitter",
    "retry_rejections",
    "fallback",
];

/// What is wrong with the graph, and with which part of it.
#[derive(Debug)]
pub(crate) enum Wrong {
    Node(usize, PlanError),
    Connection(usize, PlanError),
    Whole(PlanError),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Node(_, error) | Self::Connection(_, error) | Self::Whole(error)) = self;
        error.fmt(f)
    }
}

/// The graph, whose storing node adds to `outbox` where there is one.
pub(crate) fn build(file: &RunFile, outbox: Option<&Outbox>) -> Result<Workflow, Wrong> {
    let mut builder = WorkflowBuilder::new();
    for index in 0..file.nodes.len() {
        add(&mut builder, file, index, outbox).map_err(|error| Wrong::Node(index, error))?;
    }
    for (index, connection) in file.connections.iter().enumerate() {
        let (from, to) = (&connection.from, &connection.to);
        let added = match (&connection.output, &connection.input) {
            (None, None) => builder.add_order(from, to),
            (output, input) => {
                let output = output.as_deref().unwrap_or("result");
                let input = input.as_deref().unwrap_or("input");
                builder.add_connection(from, output, to, input)
            }
        };
        added.map_err(|error| Wrong::Connection(index, error))?;
    }
    builder.build().map_err(Wrong::Whole)
}

/// The sending node of the outbox alone, for what is sent again.
pub(crate) fn build_send(file: &RunFile, send: &str) -> Result<Workflow, Wrong> {
    let mut builder = WorkflowBuilder::new();
    let index = file.nodes.iter().position(|node| node.id == send);
    if let Some(index) = index {
        add(&mut builder, file, index, None).map_err(|error| Wrong::Node(index, error))?;
    }
    builder.build().map_err(Wrong::Whole)
}

fn add(
    builder: &mut WorkflowBuilder,
    file: &RunFile,
    index: usize,
    outbox: Option<&Outbox>,
) -> Result<(), PlanError> {
    let node = &file.nodes[index];
    let mut config = node.config.clone();
    let stores = file
        .outbox
        .as_ref()
        .is_some_and(|outbox| outbox.store == node.id);
    if let (Some(outbox), true) = (outbox, stores) {
        config.shift_remove("connection_string");
        let problem = |problem| PlanError::Config {
            id: node.id.clone(),
            problem,
        };
        let policies = Policies::take(&mut config).map_err(problem)?;
        let store = outbox::Store::new(outbox.clone());
        return builder.add(&node.id, store, config, policies).map(drop);
    }
    if node.node_type == "SQLDatabaseNode" && !config.contains_key("connection_string") {
        let url = Value::from(file.database.url.as_str());
        config.insert("connection_string".to_owned(), url);
    }
    builder
        .add_node(&node.node_type, &node.id, config)
        .map(drop)
}

/// Every `root.field` within the `${...}` of a value, roughly: what is no such pair is left out.
pub(super) fn places(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Text(text) => {
            let inner = text.split("${").skip(1);
            let inner = inner.filter_map(|rest| rest.split('}').next());
            inner.flat_map(pairs).collect()
        }
        Value::List(list) => list.iter().flat_map(places).collect(),
        Value::Map(map) => map.values().flat_map(places).collect(),
        _ => Vec::new(),
    }
}

/// Every `name.name` of an expression whose first name follows nothing.
fn pairs(expression: &str) -> Vec<(String, String)> {
    // What stands in quotes is text.
    let outside: String = expression
        .split(['"', '\''])
        .step_by(2)
        .collect::<Vec<_>>()
        .join(" ");
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let words = outside.split(|c| !is_word(c));
    let pairs = words.filter_map(|word| {
        let mut names = word.split('.');
        let (root, field) = (names.next()?, names.next()?);
        let is_pair = !root.is_empty() && !field.is_empty();
        is_pair.then(|| (root.to_owned(), field.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_of_roots_are_found_in_texts() {
        let value = Value::from(json!({
            "url": "${sandbox.url}/orders/${row.id}",
            "list": ["row.none", "${upper(row.name) + \"row.quoted\"}"],
        }));
        let pairs: Vec<String> = places(&value)
            .iter()
            .map(|(root, field)| format!("{root}.{field}"))
            .collect();
        assert_eq!(pairs, ["sandbox.url", "row.id", "row.name"]);
    }
}
