"""Circuit breakers, bulkhead partitions, health monitoring and workflows, over one Rust core."""

from kailash import _process as _process
from kailash._native import __version__

__all__ = ["__version__"]
