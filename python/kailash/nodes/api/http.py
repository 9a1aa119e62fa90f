"""HTTP services as nodes."""

from __future__ import annotations

from kailash.nodes.base import BuiltInNode, register_node

__all__ = ["HTTPRequestNode"]


@register_node()
class HTTPRequestNode(BuiltInNode):
    """Makes HTTP requests.

    `execute(url=, method=, headers=, params=, json=, data=, timeout=)` answers `status_code`,
    `success` (a status below 400) and `response` with `status_code`, `headers`, `content_type`,
    `content`, `response_time_ms` and `url`. Any answer is returned; none raises NodeExecutionError.
    """

    node_type = "HTTPRequestNode"
