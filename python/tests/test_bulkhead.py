"""What partitions promise to Python."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import (
    BulkheadFullError,
    BulkheadManager,
    BulkheadPartition,
    BulkheadRejectionError,
    PartitionConfig,
    PartitionType,
    current_partition,
    execute_with_bulkhead,
    get_bulkhead_manager,
)
from kailash.core.resilience.circuit_breaker import CircuitBreakerError, get_circuit_breaker
from waiting import until

_names = (f"partition-{n}" for n in itertools.count())


def partition(slots: int = 1, **settings: Any) -> BulkheadPartition:
    config = PartitionConfig(
        next(_names), PartitionType.CUSTOM, max_concurrent_operations=slots, **settings
    )
    return BulkheadPartition(config)


def is_empty(it: BulkheadPartition) -> bool:
    metrics = it.metrics
    return metrics.active_operations == 0 and metrics.queued_operations == 0


# ------------------------------------------------------------------ configuration


def test_a_type_chooses_the_defaults() -> None:
    database = PartitionConfig("d", PartitionType.DATABASE)
    assert (database.max_concurrent_operations, database.timeout, database.queue_size) == (20, 30, 100)
    assert PartitionConfig("b", PartitionType.BACKGROUND).priority == 8
    assert PartitionConfig("b", PartitionType.BACKGROUND, priority=3).priority == 3


@pytest.mark.parametrize(
    ("field", "wrong", "kind"),
    [
        ("name", "", ValueError),
        ("name", 5, TypeError),
        ("partition_type", "database", TypeError),
        ("max_concurrent_operations", 0, ValueError),
        ("max_concurrent_operations", -1, ValueError),
        ("max_concurrent_operations", 2.5, TypeError),
        ("max_threads", 0, ValueError),
        ("max_connections", 0, ValueError),
        ("queue_size", -1, ValueError),
        ("queue_size", 2**40, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "30", TypeError),
        ("priority", 0, ValueError),
        ("priority", 11, ValueError),
        ("queue_order", "lifo", ValueError),
        ("queue_order", 1, TypeError),
        ("reject_hopeless", 1, TypeError),
        ("isolation_level", "shared", ValueError),
        ("metrics_enabled", False, ValueError),
        ("circuit_breaker_enabled", 1, TypeError),
    ],
)
def test_a_wrong_setting_is_named(field: str, wrong: object, kind: type[Exception]) -> None:
    settings: dict[str, Any] = {"name": "p", "partition_type": PartitionType.CUSTOM, field: wrong}
    with pytest.raises(kind) as caught:
        PartitionConfig(**settings)
    error: Any = caught.value
    assert (error.field, repr(error.value)) == (field, repr(wrong)) and error.allowed


def test_the_partitions_that_are_there_from_the_start() -> None:
    manager = BulkheadManager()
    seen = {
        name: (config.max_concurrent_operations, config.timeout, config.queue_size, config.priority)
        for name, config in ((name, each.config) for name, each in manager.partitions.items())
    }
    assert seen == {
        "critical": (5, 10, 20, 1),
        "database": (20, 30, 100, 2),
        "api": (50, 15, 100, 3),
        "compute": (5, 60, 50, 4),
        "background": (10, 120, 200, 8),
    }
    assert manager.get_partition("api").config.max_threads == 25
    assert manager.get_partition("api") is manager.get_partition("api")


async def test_an_unknown_partition_is_a_value_error_that_lists_the_names() -> None:
    with pytest.raises(ValueError, match="database"):
        await execute_with_bulkhead("datbase", lambda: 1)
    with pytest.raises(ValueError, match="exists already"):
        get_bulkhead_manager().create_partition(PartitionConfig("api", PartitionType.API))


# ------------------------------------------------------------------ running


async def test_async_functions_are_awaited_and_sync_ones_run_in_own_threads() -> None:
    it = partition(4)

    async def double(n: int, *, plus: int = 0) -> tuple[int, str]:
        return 2 * n + plus, threading.current_thread().name

    def half(n: int) -> tuple[float, str]:
        return n / 2, threading.current_thread().name

    assert await it.execute(double, 4, plus=1) == (9, threading.current_thread().name)
    value, name = await it.execute(half, 4)
    assert value == 2 and it.name in name
    assert await execute_with_bulkhead("compute", max, 1, 2) == 2
    assert is_empty(it) and it.metrics.successful_operations == 2


async def test_what_a_sync_function_returns_and_is_awaitable_is_awaited() -> None:
    it = partition()

    async def slow() -> str:
        await asyncio.sleep(0.01)
        assert it.metrics.active_operations == 1
        return "done"

    assert await it.execute(lambda: slow()) == "done"
    assert is_empty(it)
    with pytest.raises(TypeError):
        await it.execute(slow())


async def test_a_call_that_catches_its_cancellation_goes_on() -> None:
    it, seen = partition(), []

    async def stubborn() -> str:
        for _ in range(2):
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                seen.append("cancelled")
        await asyncio.sleep(0)
        return "done"

    task = asyncio.ensure_future(it.execute(stubborn))
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    assert await task == "done" and seen == ["cancelled"] * 2 and is_empty(it)

    async def at_once() -> None:
        raise KeyError("before it ever waits")

    with pytest.raises(KeyError):
        await it.execute(at_once)
    waiting: Any = it.execute(asyncio.sleep, 20)
    waiting.send(None)
    assert it.metrics.active_operations == 1
    waiting.close()
    assert is_empty(it)


async def test_context_variables_travel_and_the_partition_is_known_inside() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    it = partition()

    def inside() -> tuple[str, BulkheadPartition | None]:
        return variable.get(), current_partition()

    async def inside_async() -> tuple[str, BulkheadPartition | None]:
        return variable.get(), current_partition()

    assert await it.execute(inside) == ("mine", it)
    assert await it.execute(inside_async) == ("mine", it)
    async with it:
        assert current_partition() is it
    assert current_partition() is None


async def test_threads_keep_what_is_local_to_them() -> None:
    it, local = partition(1), threading.local()

    def count() -> int:
        local.n = getattr(local, "n", 0) + 1
        return int(local.n)

    assert [await it.execute(count) for _ in range(3)] == [1, 2, 3]


async def test_exceptions_come_through_as_they_are() -> None:
    it = partition()
    for error in (KeyError("k"), SystemExit(3)):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            await it.execute(fail)
        assert caught.value is error
    with pytest.raises(RuntimeError, match="StopIteration"):
        await it.execute(next, iter(()))
    assert is_empty(it) and it.metrics.failed_operations == 3


async def test_the_limit_holds_and_the_queue_is_bounded() -> None:
    it, running, peak = partition(3, queue_size=5), 0, 0
    go = asyncio.Event()

    async def work() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await go.wait()
        running -= 1

    tasks = [asyncio.ensure_future(it.execute(work)) for _ in range(12)]
    await asyncio.sleep(0.01)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 4
    error: Any = refused[0].exception()
    assert isinstance(error, BulkheadFullError) and isinstance(error, BulkheadRejectionError)
    assert (error.partition, error.active, error.queued, error.reason) == (it.name, 3, 5, "queue_full")
    assert it.name in str(error)
    go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count(None) == 8 and peak == 3 and is_empty(it)


async def test_the_urgent_start_first_then_first_come_first_served() -> None:
    it, order = partition(1, queue_size=10), []
    it.acquire()

    async def work(name: str) -> None:
        order.append(name)

    waits = [
        asyncio.ensure_future(it.execute(work, name, priority=priority))
        for name, priority in (("late", 9), ("a", None), ("first", 1), ("b", 5))
    ]
    await asyncio.sleep(0)
    it.release()
    await asyncio.gather(*waits)
    assert order == ["first", "a", "b", "late"]
    for wrong, kind in ((0, ValueError), (11, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(kind):
            await it.execute(work, "x", priority=wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------ timeouts and cancelling


async def test_a_timeout_in_the_queue_never_starts_the_call() -> None:
    it, started = partition(1), []
    it.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(started.append, 1, timeout=0.05)
    assert caught.value.reason == "waited"
    began = time.monotonic()
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(started.append, 1, timeout=0)
    assert caught.value.reason == "busy" and time.monotonic() - began < 1
    it.release()
    await asyncio.sleep(0.02)
    assert started == [] and is_empty(it)
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError):
            await it.execute(started.append, 1, timeout=wrong)
    assert await it.execute(lambda: "runs", timeout=0) == "runs"


async def test_a_timeout_while_running_is_a_timeout_error() -> None:
    it = partition(1)
    with pytest.raises(asyncio.TimeoutError, match=it.name):
        await it.execute(asyncio.sleep, 30, timeout=0.05)
    assert is_empty(it) and it.metrics.timed_out_operations == 1

    async def own() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await it.execute(own)
    assert it.metrics.timed_out_operations == 1


async def test_a_sync_call_that_timed_out_keeps_its_slot_until_its_thread_is_done() -> None:
    it, release = partition(1), threading.Event()
    with pytest.raises(asyncio.TimeoutError):
        await it.execute(release.wait, 20, timeout=0.05)
    assert it.metrics.active_operations == 1
    with pytest.raises(BulkheadFullError):
        it.acquire()
    release.set()
    await until(lambda: is_empty(it))
    it.acquire()
    it.release()


async def test_a_call_that_no_thread_took_in_time_never_starts() -> None:
    it, release, started = partition(2, max_threads=1), threading.Event(), []
    hog = asyncio.ensure_future(it.execute(release.wait, 20))
    await until(lambda: it.metrics.active_operations == 1)
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(started.append, 1, timeout=0.05)
    assert caught.value.reason == "waited" and it.metrics.active_operations == 1
    release.set()
    assert await hog is True
    await it.execute(lambda: None)
    assert started == []


async def test_cancelling_at_any_moment_leaves_every_slot_free() -> None:
    it = partition(2, queue_size=50)

    async def work() -> None:
        await asyncio.sleep(0.001)

    def blocking() -> None:
        time.sleep(0.001)

    for steps in range(12):
        tasks = [
            asyncio.ensure_future(it.execute(function))
            for function in (work, blocking) * 10
        ]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: is_empty(it))
    assert await it.execute(lambda: 1) == 1


async def test_a_slot_that_was_handed_to_a_cancelled_waiter_goes_on() -> None:
    it = partition(1)
    it.acquire()
    waiter = asyncio.ensure_future(it.execute(lambda: 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    it.release()
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await until(lambda: is_empty(it))
    it.acquire()
    it.release()


async def test_a_loop_that_ends_leaves_no_waiter_behind() -> None:
    it = partition(1)
    it.acquire()

    def abandoned() -> None:
        async def wait() -> None:
            await asyncio.wait_for(it.execute(lambda: 1), 0.05)

        with pytest.raises((TimeoutError, BulkheadFullError)):
            asyncio.run(wait())

    thread = threading.Thread(target=abandoned)
    thread.start()
    await asyncio.to_thread(thread.join)
    it.release()
    gc.collect()
    await until(lambda: is_empty(it))


# ------------------------------------------------------------------ holding a slot


def test_acquire_never_waits_and_release_is_counted() -> None:
    it = partition(2)
    with pytest.raises(RuntimeError):
        it.release()
    assert it.acquire() is None  # type: ignore[func-returns-value]
    it.acquire()
    with pytest.raises(BulkheadFullError):
        it.acquire()
    with pytest.raises(BulkheadFullError), it:
        raise AssertionError("never entered")
    it.release()
    with it as entered:
        assert entered is it and it.metrics.active_operations == 2
        with pytest.raises(BulkheadFullError):
            it.acquire()
    it.release()
    with pytest.raises(RuntimeError):
        it.release()
    assert is_empty(it)


async def test_an_async_block_waits_for_its_slot() -> None:
    it = partition(1)
    order = []

    async def block(name: str) -> None:
        async with it:
            order.append(name)
            await asyncio.sleep(0.001)
            order.append(name)

    await asyncio.gather(*(block(name) for name in "abc"))
    assert order == list("aabbcc") and is_empty(it)
    manager = BulkheadManager()
    async with manager.isolated_execution("critical") as critical:
        assert critical.metrics.active_operations == 1
    assert is_empty(critical)


async def test_a_block_left_in_another_context_gives_its_slot_back() -> None:
    it = partition(1)

    async def stream() -> AsyncIterator[int]:
        async with it:
            yield 1

    generator: Any = stream()
    await asyncio.create_task(generator.__anext__())
    await asyncio.create_task(generator.aclose())
    del generator
    gc.collect()
    await until(lambda: is_empty(it))


# ------------------------------------------------------------------ changing and ending


async def test_a_new_configuration_is_live_and_keeps_calls_and_queue() -> None:
    manager = BulkheadManager()
    name = next(_names)
    small = PartitionConfig(name, PartitionType.CUSTOM, max_concurrent_operations=1)
    it = manager.configure_partition(small)
    go = asyncio.Event()
    tasks = [asyncio.ensure_future(it.execute(go.wait)) for _ in range(4)]
    await asyncio.sleep(0)
    assert (it.metrics.active_operations, it.metrics.queued_operations) == (1, 3)
    large = PartitionConfig(name, PartitionType.API, max_concurrent_operations=3, timeout=9)
    assert manager.configure_partition(large) is it and it.config == large
    assert (it.metrics.active_operations, it.metrics.queued_operations) == (3, 1)
    go.set()
    assert await asyncio.gather(*tasks) == [True] * 4
    assert json.loads(json.dumps(manager.get_all_status()))[name]["type"] == "api"
    await manager.shutdown_all()
    with pytest.raises(BulkheadFullError) as caught:
        it.acquire()
    assert caught.value.reason == "closed"


async def test_more_threads_start_at_once_when_the_configuration_allows_them() -> None:
    manager, name = BulkheadManager(), next(_names)
    it = manager.configure_partition(PartitionConfig(name, PartitionType.CUSTOM, max_threads=1))
    meet = threading.Barrier(2, timeout=20)
    both = [asyncio.ensure_future(it.execute(meet.wait)) for _ in range(2)]
    await until(lambda: it.metrics.active_operations == 2)
    manager.configure_partition(PartitionConfig(name, PartitionType.CUSTOM, max_threads=2))
    assert sorted(await asyncio.gather(*both)) == [0, 1]


async def test_a_partitions_own_breaker_is_a_named_one_and_off_by_default() -> None:
    plain = partition(2)

    async def fail() -> None:
        raise ConnectionError

    for _ in range(20):
        with pytest.raises(ConnectionError):
            await plain.execute(fail)
    guarded = partition(2, circuit_breaker_enabled=True)
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await guarded.execute(fail)
    with pytest.raises(CircuitBreakerError):
        await guarded.execute(fail)
    guard = get_circuit_breaker(f"bulkhead.{guarded.name}")
    guard.reset()
    guarded.acquire()
    guarded.acquire()
    with pytest.raises(BulkheadFullError):
        await guarded.execute(fail, timeout=0)
    assert guard.metrics.total_calls == 0


# ------------------------------------------------------------------ many


async def test_a_burst_is_refused_at_once_and_leaves_nothing_behind() -> None:
    it = partition(20, queue_size=100)
    results = await asyncio.gather(
        *(it.execute(asyncio.sleep, 0.01) for _ in range(10_000)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, BulkheadFullError)]
    assert len(refused) == 9_880 and results.count(None) == 120 and is_empty(it)


async def test_ten_thousand_calls_over_three_loops_and_eight_threads() -> None:
    it, done = partition(16, queue_size=10_000, max_threads=8), itertools.count()

    async def work() -> None:
        await asyncio.sleep(0)
        next(done)

    async def many() -> None:
        calls = [it.execute(work if n % 4 else lambda: next(done)) for n in range(3_334)]
        await asyncio.gather(*calls)

    loops = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
    for loop in loops:
        loop.start()
    for loop in loops:
        await asyncio.to_thread(loop.join)
    assert next(done) == 10_002 and is_empty(it)
    assert it.metrics.peak_active_operations <= 16


async def test_blocking_work_in_one_partition_does_not_delay_another() -> None:
    busy, free, release = partition(50), partition(5), threading.Event()
    hogs = [asyncio.ensure_future(busy.execute(release.wait, 20)) for _ in range(50)]
    await until(lambda: busy.metrics.active_operations == 50)
    began = time.monotonic()
    assert await free.execute(lambda: "quick") == "quick"
    assert time.monotonic() - began < 1
    release.set()
    await asyncio.gather(*hogs)
