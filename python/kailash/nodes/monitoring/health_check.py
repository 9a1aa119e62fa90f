"""The health of services as a node."""

from __future__ import annotations

from kailash.nodes.base import BuiltInNode, register_node

__all__ = ["HealthCheckNode"]


@register_node()
class HealthCheckNode(BuiltInNode):
    """Asks its services how they are, all at the same time.

    `services` is a list of dicts with `name`, `type` (database, redis or http), `critical`, `timeout`
    and what the type needs: `connection_string`, `redis_config`, or `url` and `expected_status`. It
    answers `overall_status`, `services` by name, `healthy_count`, `unhealthy_count`, `total_latency`
    and `timestamp`.
    """

    node_type = "HealthCheckNode"
