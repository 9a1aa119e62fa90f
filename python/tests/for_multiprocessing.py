"""What the worker processes of a test run."""

from __future__ import annotations

import asyncio

from kailash.core.resilience.bulkhead import execute_with_bulkhead
from kailash.core.resilience.circuit_breaker import get_circuit_breaker
from kailash.nodes import SQLDatabaseNode

_guard = get_circuit_breaker("of workers")
_node = SQLDatabaseNode("sqlite::memory:")


def warm() -> None:
    """Starts threads and connections in this process."""
    work(0)


@_guard
def work(n: int) -> int:
    """Doubles, by way of everything that has threads."""
    doubled: int = asyncio.run(execute_with_bulkhead("database", _double, n))
    return doubled


def _double(n: int) -> int:
    return int(_node.execute(query="SELECT 2 * ? AS n", params=[n])["data"][0]["n"])
