"""Nodes for data."""

from kailash.nodes.data.sql import SQLDatabaseNode

__all__ = ["SQLDatabaseNode"]
