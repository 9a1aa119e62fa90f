"""What a bulkhead costs a call in Python: ours beside the peers that are installed.

    pip install hyx
    python benches/python/bulkhead.py [--json]

Every case is measured in turn, again and again, so that a slow moment of the machine meets all of
them; what counts is the median.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any

import measuring
from measuring import Case

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


@dataclass
class Candidate(measuring.Candidate):
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


async def cases(candidates: list[Candidate]) -> AsyncIterator[Case]:
    for case in CASES:
        for candidate in candidates:
            if case in candidate.cases:
                yield Case(candidate.name, *case, await candidate.make(case))


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


async def proven(measured: Case) -> None:
    """The case does what it is called after."""
    try:
        await measured.call(1)
    except Exception:
        is_full = True
    else:
        is_full = False
    if is_full != (measured.case == FULL):
        raise SystemExit(f"{measured.candidate}: {measured.what} was refused: {is_full}")
    if measured.case == QUEUED:
        waited = _behind.pop()
        if waited.done():
            raise SystemExit(f"{measured.candidate}: the second call did not wait")
        await waited


async def measure(candidates: list[Candidate], repeats: int, calls: int) -> list[Case]:
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


def main() -> None:
    asked = measuring.asked(__doc__, repeats=101, calls=1_000)
    candidates = list(measuring.present(CANDIDATES, asked.without_peers))
    measured = asyncio.run(measure(candidates, asked.repeats, asked.calls))
    measuring.tell(measured, ["kailash"], asked)


if __name__ == "__main__":
    main()
