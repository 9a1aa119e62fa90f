"""Async nodes of one's own."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from kailash._loops import library_loop
from kailash.nodes.base import Node

__all__ = ["AsyncNode"]


class AsyncNode(Node):
    """A node of one's own whose work is async: a subclass says in `async_run` what it does.

    In a workflow it runs on a loop of the library's, and must not block it.
    """

    @abstractmethod
    async def async_run(self, **inputs: Any) -> Any:
        """Does the node's work once."""

    async def execute_async(self, **inputs: Any) -> dict[str, Any]:
        """Runs the node once. An input that it does not have is a TypeError."""
        return self._outputs(await self.async_run(**self._inputs(inputs)))

    def run(self, **inputs: Any) -> Any:
        """Runs `async_run` on the library's loop, and blocks until it is done."""
        work = asyncio.run_coroutine_threadsafe(_awaited(self, inputs), library_loop())
        try:
            return work.result()
        except BaseException:
            work.cancel()
            raise


async def _awaited(node: AsyncNode, inputs: dict[str, Any]) -> Any:
    return await node.async_run(**inputs)
