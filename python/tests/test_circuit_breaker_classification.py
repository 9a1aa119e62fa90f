"""How a call's end is judged: alike by every entry point, and in every state.

The table is that of MicroProfile Fault Tolerance (T13), where what is excluded beats what fails; but
what is excluded is neutral here, and no success.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
)
from kailash.core.resilience.clock import ManualClock

VECTORS = Path(__file__).parents[2] / "vectors" / "circuit_breaker_classification"


class E0(Exception):
    pass


class E1(E0):
    pass


class E2(E1):
    pass


class Other(Exception):
    pass


Raises = Callable[[], None]


def decorated(guard: CircuitBreaker, work: Raises) -> None:
    guard(work)()


def called(guard: CircuitBreaker, work: Raises) -> None:
    guard.call(work)


def in_a_block(guard: CircuitBreaker, work: Raises) -> None:
    with guard:
        work()


def in_a_generator(guard: CircuitBreaker, work: Raises) -> None:
    @guard
    def generate() -> Iterator[int]:
        yield 1
        work()

    list(generate())


def in_a_coroutine(guard: CircuitBreaker, work: Raises) -> None:
    @guard
    async def awaited() -> None:
        work()

    asyncio.run(awaited())


def in_an_async_block(guard: CircuitBreaker, work: Raises) -> None:
    async def awaited() -> None:
        async with guard:
            work()

    asyncio.run(awaited())


def in_an_async_generator(guard: CircuitBreaker, work: Raises) -> None:
    @guard
    async def generate() -> AsyncIterator[int]:
        yield 1
        work()

    async def consume() -> None:
        async for _ in generate():
            pass

    asyncio.run(consume())


def in_an_awaitable(guard: CircuitBreaker, work: Raises) -> None:
    async def awaited() -> None:
        work()

    @guard
    def make() -> Any:
        return awaited()

    async def consume() -> None:
        await make()

    asyncio.run(consume())


ENTRY_POINTS = [
    decorated,
    called,
    in_a_block,
    in_a_generator,
    in_a_coroutine,
    in_an_async_block,
    in_an_async_generator,
    in_an_awaitable,
]


def judged(raised: type[Exception], excluded: type | None, fails: type | None) -> str:
    if excluded is not None and issubclass(raised, excluded):
        return "neutral"
    if fails is None or issubclass(raised, fails):
        return "failure"
    return "success"


@pytest.mark.parametrize("half_open", [False, True], ids=["closed", "half_open"])
@pytest.mark.parametrize("enter", ENTRY_POINTS)
def test_what_is_excluded_is_neutral_before_anything_else_is_asked(
    enter: Callable[[CircuitBreaker, Raises], None], half_open: bool
) -> None:
    table = itertools.product((E0, E1, E2, Other), (None, E0, E1, E2), (None, E0, E1, E2))
    for raised, excluded, fails in table:
        clock = ManualClock()
        config = CircuitBreakerConfig(
            failure_threshold=1,
            success_threshold=1,
            jitter_enabled=False,
            excluded_exceptions=[excluded] if excluded else [],
            is_failure=fails and (lambda end, fails=fails: isinstance(end, fails)),
        )
        guard = CircuitBreaker(config, clock=clock)
        if half_open:
            guard.record_failure()
            clock.advance(60)

        def work(raised: type[Exception] = raised) -> None:
            raise raised

        with pytest.raises(raised):
            enter(guard, work)
        place = f"{raised.__name__}, excluded {excluded}, fails {fails}"
        how = judged(raised, excluded, fails)
        before = CircuitState.HALF_OPEN if half_open else CircuitState.CLOSED
        after = {
            "neutral": before,
            "failure": CircuitState.OPEN,
            "success": CircuitState.CLOSED,
        }
        assert guard.state is after[how], place
        seen = guard.metrics
        counted = (seen.successful_calls, seen.failed_calls - half_open)
        expected = {"neutral": (0, 0), "failure": (0, 1), "success": (1, 0)}
        assert counted == expected[how], place
        if half_open and how == "neutral":
            # Its slot is free, with the others.
            for _ in range(config.half_open_requests):
                guard._native.acquire()


def vectors() -> list[Any]:
    every = [case for file in VECTORS.glob("*.json") for case in json.loads(file.read_text())]
    assert len(every) >= 3, "no cases"
    return [pytest.param(case, id=case["name"]) for case in every]


@pytest.mark.parametrize("half_open", [False, True], ids=["closed", "half_open"])
@pytest.mark.parametrize("enter", ENTRY_POINTS)
@pytest.mark.parametrize("case", vectors())
def test_kinds_of_errors_are_judged_as_the_vectors_say(
    case: dict[str, Any],
    enter: Callable[[CircuitBreaker, Raises], None],
    half_open: bool,
) -> None:
    kinds: dict[str, type[Exception]] = {}
    for name, parent in case["is_a"].items():
        kinds[name] = type(name, (kinds[parent] if parent else Exception,), {})
    fails = tuple(kinds[name] for name in case["fails"])
    for name, end in case["ends"].items():
        clock = ManualClock()
        config = CircuitBreakerConfig(
            failure_threshold=1,
            success_threshold=1,
            jitter_enabled=False,
            excluded_exceptions=[kinds[excluded] for excluded in case["excluded"]],
            is_failure=lambda ended: isinstance(ended, fails),
        )
        guard = CircuitBreaker(config, clock=clock)
        if half_open:
            guard.record_failure()
            clock.advance(60)

        def work(raised: type[Exception] = kinds[name]) -> None:
            raise raised

        with pytest.raises(kinds[name]):
            enter(guard, work)
        before = CircuitState.HALF_OPEN if half_open else CircuitState.CLOSED
        after = {
            "ignored": before,
            "failure": CircuitState.OPEN,
            "success": CircuitState.CLOSED,
        }
        assert guard.state is after[end], name
