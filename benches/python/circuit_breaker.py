"""What a circuit breaker costs a call in Python: ours beside the peers that are installed.

    pip install circuitbreaker interlock-cb pybreaker aiobreaker purgatory hyx
    python benches/python/circuit_breaker.py [--json]

Every case is measured in turn, again and again, so that a slow moment of the machine meets all of
them; what counts is the median of the processor time, which leaves out what others had of it. The
bars are in units of the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from time import thread_time_ns
from typing import Any

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


# ------------------------------------------------------------------ who is measured


@dataclass
class Candidate:
    name: str
    package: str | None
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


# ------------------------------------------------------------------ how they are measured


@dataclass
class Case:
    candidate: str
    kind: str
    what: str
    function: Function
    samples: list[float] = field(default_factory=list)

    @property
    def ns(self) -> float:
        return statistics.median(self.samples)


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
        result = case.function(1)
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
                case.samples.append(await run(case.function, calls))
            else:
                run_now = run_sync_raising if raising else run_sync
                case.samples.append(run_now(case.function, calls))


# ------------------------------------------------------------------ what comes of it


def report(measured: list[Case], repeats: int, calls: int) -> dict[str, Any]:
    ns = {(case.candidate, case.kind, case.what): case.ns for case in measured}

    def of(candidate: str, kind: str, what: str) -> float:
        # A rejected call does what a failing bare one does: it raises.
        return ns[candidate, kind, "failing" if what == "rejected" else what]

    rows = [
        {
            "name": case.candidate,
            "kind": case.kind,
            "case": case.what,
            "ns": round(case.ns, 1),
            "to_bare": round(case.ns / of("bare", case.kind, case.what), 2),
            "to_pass_through": round(case.ns / of("pass-through", case.kind, case.what), 2),
        }
        for case in measured
    ]
    bars = [
        ("async ok", ns["kailash", "async", "ok"], 3 * ns["bare", "async", "ok"], "3 x bare"),
        ("sync ok", ns["kailash", "sync", "ok"], ns["pass-through", "sync", "ok"], "pass-through"),
        ("async rejected", ns["kailash", "async", "rejected"], 500.0, "500 ns"),
        ("sync rejected", ns["kailash", "sync", "rejected"], 500.0, "500 ns"),
    ]
    return {
        "bench": "python/circuit_breaker",
        "python": platform.python_version(),
        "repeats": repeats,
        "calls": calls,
        "rows": rows,
        "bars": [
            {"bar": name, "ns": round(got, 1), "at_most": round(limit, 1), "is": what, "holds": got <= limit}
            for name, got, limit, what in bars
        ],
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    yield f"CPython {found['python']}, ns a call, medians of {found['repeats']} x {found['calls']:,} calls"
    for kind, what in FUNCTIONS:
        yield ""
        yield f"{kind + ' ' + what:<20}{'ns':>9}{'x bare':>9}{'x pass-through':>16}"
        for row in found["rows"]:
            if (row["kind"], row["case"]) == (kind, what):
                numbers = f"{row['ns']:>9.0f}{row['to_bare']:>9.2f}{row['to_pass_through']:>16.2f}"
                yield f"{row['name']:<20}{numbers}"
    yield ""
    for bar in found["bars"]:
        sign = "<=" if bar["holds"] else "> "
        yield f"{bar['bar']:<20}{bar['ns']:>9.0f} {sign} {bar['at_most']:.0f} ({bar['is']})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments.add_argument("--repeats", type=int, default=21)
    arguments.add_argument("--calls", type=int, default=5_000)
    arguments.add_argument("--without-peers", action="store_true")
    asked = arguments.parse_args()
    measured = list(cases(list(installed(asked.without_peers))))
    asyncio.run(measure(measured, asked.repeats, asked.calls))
    found = report(measured, asked.repeats, asked.calls)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(table(found)))


def installed(without_peers: bool) -> Iterator[Candidate]:
    for candidate in CANDIDATES:
        is_peer = candidate.package not in (None, "kailash")
        if is_peer and without_peers:
            continue
        try:
            if candidate.package is not None:
                importlib.metadata.version(candidate.package)
        except importlib.metadata.PackageNotFoundError:
            print(f"skipped {candidate.name}: not installed", file=sys.stderr)
        else:
            yield candidate


if __name__ == "__main__":
    main()
