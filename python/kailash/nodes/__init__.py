"""Nodes: what a workflow is made of, each also of use by itself."""

from kailash.nodes.api import HTTPRequestNode
from kailash.nodes.base import Node, NodeParameter, NodeRegistry, register_node
from kailash.nodes.base_async import AsyncNode
from kailash.nodes.data import SQLDatabaseNode
from kailash.nodes.logic import SwitchNode
from kailash.nodes.monitoring import HealthCheckNode

__all__ = [
    "AsyncNode",
    "HTTPRequestNode",
    "HealthCheckNode",
    "Node",
    "NodeParameter",
    "NodeRegistry",
    "SQLDatabaseNode",
    "SwitchNode",
    "register_node",
]
