"""Nodes for services."""

from kailash.nodes.api.http import HTTPRequestNode

__all__ = ["HTTPRequestNode"]
