"""What a circuit breaker costs a call in Python: ours beside the peers that are installed.

    pip install circuitbreaker interlock-cb pybreaker aiobreaker purgatory hyx
    python benches/python/circuit_breaker.py [--json]

Every case is measured in turn, again and again, so that a slow moment of the machine meets all of
them; what counts is the median of the processor time, which leaves out what others had of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import thread_time_ns
from typing import Any

import measuring
from measuring import Case

NEVER = 1_000_000_000
ONE_DAY = 86_400.0

Function = Callable[[int], Any]
Guard = Callable[[Function], Function]


class Down(Exception):
    """What the guarded function raises."""


async def async_ok(n: int) -> int:
    return n


async def async_failing(n: int) -> int:
    raise Down


def sync_ok(n: int) -> int:
    return n


def sync_failing(n: int) -> int:
    raise Down


FUNCTIONS: dict[tuple[str, str], Function] = {
    ("async", "ok"): async_ok,
    ("async", "failing"): async_failing,
    ("async", "rejected"): async_ok,
    ("sync", "ok"): sync_ok,
    ("sync", "failing"): sync_failing,
    ("sync", "rejected"): sync_ok,
}


@dataclass
class Candidate(measuring.Candidate):
    #: Makes a decorator that never opens, or one that stays open.
    guard: Callable[[str, bool], Guard]
    kinds: tuple[str, ...] = ("async", "sync")


def bare(kind: str, is_open: bool) -> Guard:
    return lambda function: function


def pass_through(kind: str, is_open: bool) -> Guard:
    def guard(function: Function) -> Function:
        if kind == "sync":

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            return wrapper

        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return async_wrapper

    return guard


def kailash(kind: str, is_open: bool, **settings: Any) -> Guard:
    from kailash.core.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig

    config = CircuitBreakerConfig(
        failure_threshold=1_000_000, error_rate_threshold=None, **settings
    )
    breaker = CircuitBreaker(config)
    if is_open:
        breaker.reconfigure(failure_threshold=1, recovery_timeout=ONE_DAY, max_recovery_timeout=ONE_DAY)
        breaker.record_failure()
    return breaker


def kailash_without_clock(kind: str, is_open: bool) -> Guard:
    return kailash(kind, is_open, slow_call_threshold=None, cancelled_counts_after=None)


def circuitbreaker(kind: str, is_open: bool) -> Guard:
    from circuitbreaker import CircuitBreaker

    return opened(
        CircuitBreaker(failure_threshold=1 if is_open else NEVER, recovery_timeout=ONE_DAY), is_open
    )


def interlock(kind: str, is_open: bool) -> Guard:
    from interlock import CircuitBreaker, Config

    config = Config(minimum_number_of_calls=NEVER, wait_duration_in_open=ONE_DAY)
    breaker = CircuitBreaker(name="peer", config=config)
    if is_open:
        breaker.force_open()
    return breaker


def pybreaker(kind: str, is_open: bool) -> Guard:
    from pybreaker import CircuitBreaker

    breaker = CircuitBreaker(fail_max=NEVER, reset_timeout=ONE_DAY)
    if is_open:
        breaker.open()
    return breaker


def aiobreaker(kind: str, is_open: bool) -> Guard:
    from aiobreaker import CircuitBreaker

    breaker = CircuitBreaker(fail_max=NEVER, timeout_duration=timedelta(days=1))
    if is_open:
        breaker.open()
    return breaker


def purgatory(kind: str, is_open: bool) -> Guard:
    import purgatory

    of_kind = {
        "async": purgatory.AsyncCircuitBreakerFactory,
        "sync": purgatory.SyncCircuitBreakerFactory,
    }
    factory = of_kind[kind](default_threshold=1 if is_open else NEVER, default_ttl=ONE_DAY)
    return opened(factory("peer"), is_open)


def hyx(kind: str, is_open: bool) -> Guard:
    from hyx.circuitbreaker import consecutive_breaker

    breaker = consecutive_breaker(
        exceptions=Down,
        failure_threshold=1 if is_open else NEVER,
        recovery_time_secs=ONE_DAY,
        recovery_threshold=1,
    )
    return opened(breaker, is_open)


def opened(guard: Guard, is_open: bool) -> Guard:
    """The guard, after the failure that opens it."""

    def decorate(function: Function) -> Function:
        if is_open:
            failing = async_failing if asyncio.iscoroutinefunction(function) else sync_failing
            try:
                result = guard(failing)(1)
                if asyncio.iscoroutine(result):
                    asyncio.run(as_coroutine(result))
            except Down:
                pass
        return guard(function)

    return decorate


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


CANDIDATES = [
    Candidate("bare", None, bare),
    Candidate("pass-through", None, pass_through),
    Candidate("kailash", "kailash", kailash),
    Candidate("kailash, no clock", "kailash", kailash_without_clock),
    Candidate("circuitbreaker", "circuitbreaker", circuitbreaker),
    Candidate("interlock-cb", "interlock-cb", interlock),
    Candidate("pybreaker", "pybreaker", pybreaker, kinds=("sync",)),
    Candidate("aiobreaker", "aiobreaker", aiobreaker),
    Candidate("purgatory", "purgatory", purgatory),
    Candidate("hyx", "hyx", hyx, kinds=("async",)),
]


def cases(candidates: list[Candidate]) -> Iterator[Case]:
    for (kind, what), function in FUNCTIONS.items():
        for candidate in candidates:
            is_open = what == "rejected"
            if kind in candidate.kinds and not (is_open and candidate.package is None):
                guarded = candidate.guard(kind, is_open)(function)
                yield Case(candidate.name, kind, what, guarded)


async def run_async(function: Function, calls: int) -> float:
    start = thread_time_ns()
    for _ in range(calls):
        await function(1)
    return (thread_time_ns() - start) / calls


async def run_async_raising(function: Function, calls: int) -> float:
    start = thread_time_ns()
    for _ in range(calls):
        try:
            await function(1)
        except Exception:
            pass
    return (thread_time_ns() - start) / calls


def run_sync(function: Function, calls: int) -> float:
    start = thread_time_ns()
    for _ in range(calls):
        function(1)
    return (thread_time_ns() - start) / calls


def run_sync_raising(function: Function, calls: int) -> float:
    start = thread_time_ns()
    for _ in range(calls):
        try:
            function(1)
        except Exception:
            pass
    return (thread_time_ns() - start) / calls


async def proven(case: Case) -> None:
    """The case does what it is called after."""
    try:
        result = case.call(1)
        if case.kind == "async":
            await result
    except Down:
        seen = "failing"
    except Exception:
        seen = "rejected"
    else:
        seen = "ok"
    if seen != case.what:
        raise SystemExit(f"{case.candidate}: {case.kind} {case.what} was {seen}")


async def measure(measured: list[Case], repeats: int, calls: int) -> None:
    for case in measured:
        await proven(case)
    for _ in range(repeats):
        for case in measured:
            raising = case.what != "ok"
            if case.kind == "async":
                run = run_async_raising if raising else run_async
                case.samples.append(await run(case.call, calls))
            else:
                run_now = run_sync_raising if raising else run_sync
                case.samples.append(run_now(case.call, calls))


def main() -> None:
    asked = measuring.asked(__doc__, repeats=21, calls=5_000)
    measured = list(cases(list(measuring.present(CANDIDATES, asked.without_peers))))
    asyncio.run(measure(measured, asked.repeats, asked.calls))
    measuring.tell(measured, ["bare", "pass-through"], asked)


if __name__ == "__main__":
    main()
