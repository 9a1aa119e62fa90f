"""Runtimes of workflows."""

from kailash.runtime.local import LocalRuntime

__all__ = ["LocalRuntime"]
