//! Which node runs after which.

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef as _;

/// The way from one node's output to another node's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The output port, and fields within its value.
    pub(crate) output: Vec<String>,
    /// The input port; `None` for an order without data.
    pub(crate) input: Option<String>,
}

/// Nodes by index, and the links between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph(DiGraph<(), Link>);

impl Graph {
    pub(crate) fn add_node(&mut self) -> usize {
        self.0.add_node(()).index()
    }

    pub(crate) fn link(&mut self, source: usize, target: usize, link: Link) {
        self.0
            .add_edge(NodeIndex::new(source), NodeIndex::new(target), link);
    }

    /// The links into a node, in the order they were made, each with its source.
    pub(crate) fn links_to(&self, node: usize) -> impl Iterator<Item = (usize, &Link)> {
        let edges = self
            .0
            .edges_directed(NodeIndex::new(node), petgraph::Incoming);
        let mut edges: Vec<_> = edges.collect();
        edges.sort_unstable_by_key(|edge| edge.id());
        edges
            .into_iter()
            .map(|edge| (edge.source().index(), edge.weight()))
    }

    /// The nodes that one has links to, as often as it has.
    pub(crate) fn after(&self, node: usize) -> impl Iterator<Item = usize> {
        let nodes = self
            .0
            .neighbors_directed(NodeIndex::new(node), petgraph::Outgoing);
        nodes.map(|node| node.index())
    }

    /// The nodes of a cycle in their order, if there is one.
    pub(crate) fn cycle(&self) -> Option<Vec<usize>> {
        for component in tarjan_scc(&self.0) {
            let start = *component.iter().min()?;
            if component.len() == 1 && !self.0.contains_edge(start, start) {
                continue;
            }
            // Within a strongly connected component a walk that stays inside returns in the end.
            let mut path = vec![start];
            loop {
                let last = *path.last().unwrap_or(&start);
                let mut next = self
                    .0
                    .neighbors(last)
                    .filter(|node| component.contains(node));
                let next = next.next()?;
                if let Some(from) = path.iter().position(|node| *node == next) {
                    let cycle = path[from..].iter().map(|node| node.index());
                    return Some(cycle.collect());
                }
                path.push(next);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(links: &[(usize, usize)]) -> Option<Vec<usize>> {
        let mut graph = Graph::default();
        (0..6).for_each(|_| {
            graph.add_node();
        });
        for (source, target) in links {
            graph.link(
                *source,
                *target,
                Link {
                    output: Vec::new(),
                    input: None,
                },
            );
        }
        graph.cycle()
    }

    #[test]
    fn a_cycle_is_found_with_its_path() {
        assert_eq!(cycle(&[(0, 1), (1, 2), (0, 2)]), None);
        assert_eq!(cycle(&[(0, 0)]), Some(vec![0]));
        assert_eq!(
            cycle(&[(0, 1), (1, 2), (2, 3), (3, 1)]),
            Some(vec![1, 2, 3])
        );
        assert_eq!(cycle(&[(5, 4), (4, 5), (0, 5)]), Some(vec![4, 5]));
    }
}
