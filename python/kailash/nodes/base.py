"""Nodes of one's own, and the registry that knows nodes by the name of their type."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from kailash import _native
from kailash.core.resilience.bulkhead import current_partition
from kailash.sdk_exceptions import NodeConfigurationError, NodeValidationError

__all__ = ["BuiltInNode", "Node", "NodeParameter", "NodeRegistry", "register_node"]

_N = TypeVar("_N", bound="type[Node]")


@dataclass(frozen=True)
class NodeParameter:
    """One input of a node; `type` is checked where it is a class other than `object`."""

    name: str
    type: Any = object
    required: bool = True
    default: Any = None
    description: str = ""


class Node(ABC):
    """A node of one's own: a subclass says in `run` what it does.

    What the constructor is given is its configuration, and serves as inputs where `execute` or a
    workflow gives none. `run` takes the inputs by name and answers outputs by name; anything but a
    dict is the output `result`. In a workflow it runs on a thread of the library's, so it may block.

    >>> class Double(Node):
    ...     def get_parameters(self):
    ...         return {"number": NodeParameter("number", int)}
    ...     def run(self, number):
    ...         return {"double": 2 * number}
    >>> Double().execute(number=4)
    {'double': 8}
    """

    def __init__(self, **config: Any) -> None:
        self.config = config

    def get_parameters(self) -> dict[str, NodeParameter]:
        """The inputs by name; any inputs if it says none."""
        return {}

    @abstractmethod
    def run(self, **inputs: Any) -> Any:
        """Does the node's work once."""

    def execute(self, **inputs: Any) -> dict[str, Any]:
        """Runs the node once. An input that it does not have is a TypeError."""
        return self._outputs(self.run(**self._inputs(inputs)))

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with what is configured, checked."""
        parameters = self.get_parameters()
        if not parameters:
            return {**self.config, **inputs}
        for name in inputs:
            if name not in parameters:
                known = ", ".join(parameters)
                raise TypeError(f"execute() has no parameter {name!r}, it has {known}")
        checked = {}
        for name, parameter in parameters.items():
            if name in inputs:
                value = inputs[name]
            elif name in self.config:
                value = self.config[name]
            elif parameter.required and parameter.default is None:
                raise NodeValidationError(f"{name} is missing")
            else:
                value = parameter.default
            expected = parameter.type
            if isinstance(expected, type) and value is not None and not isinstance(value, expected):
                kind = type(value).__name__
                raise NodeValidationError(f"{name} is {kind}, allowed is {expected.__name__}")
            checked[name] = value
        return checked

    def _outputs(self, answer: Any) -> dict[str, Any]:
        return answer if isinstance(answer, dict) else {"result": answer}


class BuiltInNode(Node):
    """A node that Rust runs."""

    node_type: ClassVar[str]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        policies, _ = _native.split_policies(config)
        if wrong := sorted(set(policies) - {"timeout"}):
            raise TypeError(f"{self.node_type} has the setting {wrong[0]!r} only in a workflow")
        self._generation = -1
        self._planned: _native.PlannedWorkflowNode | None = None
        self._plan()

    @classmethod
    def _over(cls, plan: Callable[[], _native.PlannedWorkflowNode], config: dict[str, Any]) -> Node:
        """The node of a workflow, where `plan` finds it there."""
        node = cls.__new__(cls)
        node.config = config
        node._plan = plan  # type: ignore[method-assign]
        return node

    def _plan(self) -> _native.PlannedWorkflowNode:
        # A forked child must not use its parent's connections.
        if self._planned is None or self._generation != _native.process_generation():
            self._planned = _native.PlannedWorkflowNode(self.node_type, self.config)
            self._generation = _native.process_generation()
        return self._planned

    def get_parameters(self) -> dict[str, NodeParameter]:
        """The inputs by name."""
        names = self._plan().inputs() or []
        return {name: NodeParameter(name, required=False) for name in names}

    def run(self, **inputs: Any) -> dict[str, Any]:
        """The same as `execute`."""
        return self.execute(**inputs)

    def execute(self, **inputs: Any) -> dict[str, Any]:
        """Runs the node once, and blocks until it has.

        An input that it does not have is a TypeError.
        """
        return self._plan().execute(inputs, _partition())

    async def execute_async(self, **inputs: Any) -> dict[str, Any]:
        """Runs the node once, without blocking the loop; cancelling it drops the work."""
        return await self._plan().execute_async(inputs, _partition())


def _partition() -> _native.BulkheadPartition | None:
    partition = current_partition()
    return None if partition is None else partition._native


class NodeRegistry:
    """The types of node by their name."""

    _types: ClassVar[dict[str, type[Node]]] = {}

    @classmethod
    def register(cls, node_class: _N, alias: str | None = None) -> _N:
        """Makes a type known by its name, or by another."""
        if not (inspect.isclass(node_class) and issubclass(node_class, Node)):
            raise TypeError(f"a type of node is a subclass of Node, not {node_class!r}")
        name = alias or node_class.__name__
        known = cls._types.get(name)
        if known is not None and issubclass(known, BuiltInNode):
            raise NodeConfigurationError(f"{name} is a built-in type of node")
        cls._types[name] = node_class
        return node_class

    @classmethod
    def get(cls, name: str) -> type[Node]:
        """The type of this name. Raises NodeConfigurationError if there is none."""
        try:
            return cls._types[name]
        except KeyError:
            known = ", ".join(sorted(cls._types))
            text = f"unknown type {name!r}, known are {known}"
            raise NodeConfigurationError(text) from None

    @classmethod
    def list_nodes(cls) -> dict[str, type[Node]]:
        """All types by their name."""
        return dict(cls._types)


def register_node(alias: str | None = None) -> Callable[[_N], _N]:
    """A class decorator that makes a type of node known to workflows by its name, or by another."""

    def register(node_class: _N) -> _N:
        return NodeRegistry.register(node_class, alias)

    return register
