"""Waiting for a condition, with a generous limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_LIMIT = 20.0


async def until(condition: Callable[[], object]) -> None:
    """Waits on the loop until `condition()` holds."""
    end = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.005)


def until_sync(condition: Callable[[], object]) -> None:
    """Waits on the thread until `condition()` holds."""
    end = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)
