"""Nodes that decide."""

from kailash.nodes.logic.operations import SwitchNode

__all__ = ["SwitchNode"]
