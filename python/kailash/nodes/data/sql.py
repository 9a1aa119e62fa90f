"""Databases as nodes."""

from __future__ import annotations

from typing import Any

from kailash.nodes.base import BuiltInNode, register_node

__all__ = ["SQLDatabaseNode"]


@register_node()
class SQLDatabaseNode(BuiltInNode):
    """Runs statements on PostgreSQL, MySQL, MariaDB or SQLite.

    `execute(query=, params=)`, or `parameters=`, answers `data` (the rows as dicts), `row_count`,
    `columns` and `execution_time` in seconds. Placeholders may be `%s`, `%(name)s`, `?`, `:name` or
    `$1` on every driver, one style per statement; `%%` and `??` are the literal signs; without
    parameters the text goes untouched. `execute(statements=[{"query": .., "params": ..}, ..])` runs
    several in one transaction. Inside a partition the connections are those of its pool.
    """

    node_type = "SQLDatabaseNode"

    def __init__(self, connection_string: str, **config: Any) -> None:
        super().__init__(connection_string=connection_string, **config)

    @property
    def connection_string(self) -> str:
        """The database's URL, secrets and all."""
        return str(self.config["connection_string"])
