"""What a bulkhead costs a call in Python: ours beside the peers that are installed.

    pip install hyx
    python benches/python/bulkhead.py [--json]

Every case is measured in turn, again and again, so that a slow moment of the machine meets all of
them; what counts is the median. The bars are in units of the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import random
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import Any

SLOTS = 20

Call = Callable[[int], Awaitable[Any]]


async def async_ok(n: int) -> int:
    return n


def sync_ok(n: int) -> int:
    return n


# The cases, and by how much a call of each is slower than one that finds a free slot.
CASES: dict[tuple[str, str], int] = {
    ("async", "free slot"): 1,
    ("async", "full"): 1,
    ("async", "queued"): 10,
    ("sync", "own thread"): 20,
}
FREE, FULL, QUEUED, THREAD = CASES


# ------------------------------------------------------------------ who is measured


@dataclass
class Candidate:
    name: str
    package: str | None
    #: Makes what is called in a case.
    make: Callable[[tuple[str, str]], Awaitable[Call]]
    cases: tuple[tuple[str, str], ...]


async def bare(case: tuple[str, str]) -> Call:
    return async_ok


async def semaphore(case: tuple[str, str]) -> Call:
    slots = asyncio.Semaphore(1 if case == QUEUED else SLOTS)

    async def call(n: int) -> int:
        async with slots:
            return await async_ok(n)

    async def held(n: int) -> None:
        async with slots:
            await behind(call(n))

    return held if case == QUEUED else call


async def to_thread(case: tuple[str, str]) -> Call:
    return partial(asyncio.to_thread, sync_ok)


async def thread_pool(case: tuple[str, str]) -> Call:
    pool, loop = ThreadPoolExecutor(SLOTS), asyncio.get_running_loop()

    async def call(n: int) -> int:
        return await loop.run_in_executor(pool, sync_ok, n)

    return call


async def kailash(case: tuple[str, str]) -> Call:
    from kailash.core.resilience.bulkhead import (
        PartitionConfig,
        PartitionType,
        execute_with_bulkhead,
        get_bulkhead_manager,
    )

    name = f"bench {case[1]}"
    config = PartitionConfig(
        name,
        PartitionType.API,
        max_concurrent_operations=1 if case in (FULL, QUEUED) else SLOTS,
        queue_size=0 if case == FULL else 100,
    )
    partition = get_bulkhead_manager().configure_partition(config)
    if case == FULL:
        partition.acquire()
    call = partial(execute_with_bulkhead, name, sync_ok if case == THREAD else async_ok)

    async def held(n: int) -> None:
        async with partition:
            await behind(call(n))

    return held if case == QUEUED else call


async def hyx(case: tuple[str, str]) -> Call:
    from hyx.bulkhead import bulkhead

    few = case in (FULL, QUEUED)
    guard = bulkhead(max_concurrency=1 if few else SLOTS, max_capacity=1 if case == FULL else 100)
    if case == FULL:
        await guard.__aenter__()
    call = guard(async_ok)

    async def held(n: int) -> None:
        async with guard:
            await behind(call(n))

    return held if case == QUEUED else call


_behind: list[asyncio.Task[Any]] = []


async def behind(call: Awaitable[Any]) -> None:
    """Lets a call come to wait for the slot that the caller holds."""
    _behind.append(asyncio.ensure_future(call))
    await asyncio.sleep(0)


CANDIDATES = [
    Candidate("bare", None, bare, (FREE,)),
    Candidate("asyncio.Semaphore", None, semaphore, (FREE, QUEUED)),
    Candidate("kailash", "kailash", kailash, tuple(CASES)),
    Candidate("hyx", "hyx", hyx, (FREE, FULL, QUEUED)),
    Candidate("asyncio.to_thread", None, to_thread, (THREAD,)),
    Candidate("ThreadPoolExecutor", None, thread_pool, (THREAD,)),
]


# ------------------------------------------------------------------ how they are measured


@dataclass
class Measured:
    candidate: str
    case: tuple[str, str]
    call: Call
    samples: list[float] = field(default_factory=list)

    @property
    def ns(self) -> float:
        return statistics.median(self.samples)


async def cases(candidates: list[Candidate]) -> AsyncIterator[Measured]:
    for case in CASES:
        for candidate in candidates:
            if case in candidate.cases:
                yield Measured(candidate.name, case, await candidate.make(case))


async def run(call: Call, calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        await call(1)
    return (perf_counter_ns() - start) / calls


async def run_refused(call: Call, calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        try:
            await call(1)
        except Exception:
            pass
    return (perf_counter_ns() - start) / calls


async def run_queued(call: Call, calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        await call(1)
        await _behind.pop()
    return (perf_counter_ns() - start) / calls


async def proven(measured: Measured) -> None:
    """The case does what it is called after."""
    try:
        await measured.call(1)
    except Exception:
        is_full = True
    else:
        is_full = False
    if is_full != (measured.case == FULL):
        raise SystemExit(f"{measured.candidate}: {measured.case[1]} was refused: {is_full}")
    if measured.case == QUEUED:
        waited = _behind.pop()
        if waited.done():
            raise SystemExit(f"{measured.candidate}: the second call did not wait")
        await waited


async def measure(
    candidates: list[Candidate], repeats: int, calls: int
) -> list[Measured]:
    everyone = [measured async for measured in cases(candidates)]
    for measured in everyone:
        await proven(measured)
    runs = {FULL: run_refused, QUEUED: run_queued}
    order, chance = list(everyone), random.Random(1)
    for _ in range(repeats):
        # Who comes after a busy case finds the other threads, and the system, in another mood.
        chance.shuffle(order)
        for measured in order:
            of_case = runs.get(measured.case, run)
            few = max(1, calls // CASES[measured.case])
            measured.samples.append(await of_case(measured.call, few))
    return everyone


# ------------------------------------------------------------------ what comes of it


def report(everyone: list[Measured], repeats: int, calls: int) -> dict[str, Any]:
    ns = {(measured.candidate, measured.case): measured.ns for measured in everyone}
    rows = [
        {
            "name": measured.candidate,
            "kind": measured.case[0],
            "case": measured.case[1],
            "ns": round(measured.ns, 1),
            "to_kailash": round(measured.ns / ns["kailash", measured.case], 2),
        }
        for measured in everyone
    ]
    to_thread_share = 0.6 * ns["asyncio.to_thread", THREAD]
    bars = [
        ("async free slot", ns["kailash", FREE], 900.0, "900 ns"),
        ("sync own thread", ns["kailash", THREAD], to_thread_share, "0.6 x asyncio.to_thread"),
    ]
    return {
        "bench": "python/bulkhead",
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
    for case in CASES:
        yield ""
        yield f"{', '.join(case):<20}{'ns':>9}{'x kailash':>12}"
        for row in found["rows"]:
            if (row["kind"], row["case"]) == case:
                yield f"{row['name']:<20}{row['ns']:>9.0f}{row['to_kailash']:>12.2f}"
    yield ""
    for bar in found["bars"]:
        sign = "<=" if bar["holds"] else "> "
        yield f"{bar['bar']:<20}{bar['ns']:>9.0f} {sign} {bar['at_most']:.0f} ({bar['is']})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments.add_argument("--repeats", type=int, default=101)
    arguments.add_argument(
        "--calls", type=int, default=1_000, help="of the quickest cases; others make fewer"
    )
    arguments.add_argument("--without-peers", action="store_true")
    asked = arguments.parse_args()
    present = []
    for candidate in CANDIDATES:
        is_peer = candidate.package not in (None, "kailash")
        if is_peer and asked.without_peers:
            continue
        try:
            if candidate.package is not None:
                importlib.metadata.version(candidate.package)
        except importlib.metadata.PackageNotFoundError:
            print(f"skipped {candidate.name}: not installed", file=sys.stderr)
        else:
            present.append(candidate)
    everyone = asyncio.run(measure(present, asked.repeats, asked.calls))
    found = report(everyone, asked.repeats, asked.calls)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
