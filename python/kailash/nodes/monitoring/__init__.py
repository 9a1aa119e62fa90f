"""Nodes that watch."""

from kailash.nodes.monitoring.health_check import HealthCheckNode

__all__ = ["HealthCheckNode"]
