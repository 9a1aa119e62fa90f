"""Assembles workflows."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from kailash import _native
from kailash.nodes import Node, NodeRegistry
from kailash.nodes.base import BuiltInNode
from kailash.sdk_exceptions import NodeConfigurationError, WorkflowValidationError
from kailash.workflow.graph import PythonNode, Workflow, add_to_plan

__all__ = ["WorkflowBuilder"]


class WorkflowBuilder:
    """Assembles a workflow; what is wrong with it is told at once, with its place.

    A node's configuration holds its inputs and its policies: `breaker`, `partition`, `priority`,
    `timeout`, `retries`, `retry_delay`, `retry_multiplier`, `max_retry_delay`, `retry_jitter`,
    `retry_rejections` and `fallback`. Its texts may have `${expression}` in them.
    """

    def __init__(self) -> None:
        self._plan = _native.WorkflowPlan()
        self._generation = _native.process_generation()
        self._nodes: dict[str, tuple[str | PythonNode, dict[str, Any]]] = {}
        self._connections: list[tuple[str, str, str, str]] = []

    def add_node(
        self,
        node_type: str | type[Node] | Node,
        node_id: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> str:
        """Adds a node, and answers its id.

        `node_type` is the name of a type, a class, or a node of one's own that is made already.
        """
        if node_id is None:
            node_id = f"node_{uuid4().hex[:8]}"
        if not isinstance(node_id, str):
            raise TypeError(f"a node's id is a text, not {node_id!r}")
        if config is not None and not isinstance(config, dict):
            raise TypeError(f"a node's configuration is a dict, not {config!r}")
        config = dict(config or {})
        what: str | PythonNode
        if isinstance(node_type, Node):
            what = PythonNode(node_type, config)
        else:
            node_class = self._class(node_id, node_type)
            if issubclass(node_class, BuiltInNode):
                what = node_class.node_type
            else:
                _, rest = _native.split_policies(config)
                what = PythonNode(node_class(**rest), config)
        add_to_plan(self._current(), node_id, what, config)
        self._nodes[node_id] = what, config
        return node_id

    def _class(self, node_id: str, node_type: str | type[Node]) -> type[Node]:
        if isinstance(node_type, type) and issubclass(node_type, Node):
            return node_type
        if not isinstance(node_type, str):
            raise TypeError(f"a type of node is a name or a subclass of Node, not {node_type!r}")
        try:
            return NodeRegistry.get(node_type)
        except NodeConfigurationError as error:
            raise WorkflowValidationError(f"node {node_id!r}: {error}") from None

    def add_connection(
        self, from_node: str, from_output: str, to_node: str, to_input: str
    ) -> WorkflowBuilder:
        """Leads an output of one node to an input of another, which then runs after it.

        Every node's whole output is on its port `result`, unless it has one of that name.
        """
        self._current().add_connection(from_node, from_output, to_node, to_input)
        self._connections.append((from_node, from_output, to_node, to_input))
        return self

    def get_node(self, node_id: str) -> Node:
        """The node added under this id, ready to be executed. Raises a KeyError if there is none."""
        if node_id not in self._nodes:
            self._current().node(node_id)
        what, config = self._nodes[node_id]
        if isinstance(what, PythonNode):
            return what.node
        return NodeRegistry.get(what)._over(lambda: self._current().node(node_id), config)  # type: ignore[attr-defined, no-any-return]

    def build(self) -> Workflow:
        """The workflow as it stands. Raises WorkflowValidationError if nodes wait for each other."""
        return Workflow(dict(self._nodes), list(self._connections), self._current().build())

    def _current(self) -> _native.WorkflowPlan:
        if self._generation != _native.process_generation():
            # In a forked child, with connections of its own.
            self._plan = Workflow(self._nodes, self._connections).plan()
            self._generation = _native.process_generation()
        return self._plan
