"""What partitions promise to Python."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import itertools
import json
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import (
    BulkheadFullError,
    BulkheadManager,
    BulkheadPartition,
    BulkheadRejectionError,
    CeilingMetrics,
    Drained,
    PartitionConfig,
    PartitionEvent,
    PartitionType,
    current_partition,
    execute_with_bulkhead,
    get_bulkhead_manager,
)
from kailash.core.resilience.circuit_breaker import CircuitBreakerError, get_circuit_breaker
from waiting import until, until_sync

_names = (f"partition-{n}" for n in itertools.count())


def partition(slots: int = 1, **settings: Any) -> BulkheadPartition:
    config = PartitionConfig(
        next(_names), PartitionType.CUSTOM, max_concurrent_operations=slots, **settings
    )
    return BulkheadPartition(config)


def is_empty(it: BulkheadPartition) -> bool:
    metrics = it.metrics
    return metrics.active_operations == 0 and metrics.queued_operations == 0


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


def left_waiting(it: BulkheadPartition, calls: int) -> list[weakref.ref[asyncio.Task[None]]]:
    """Tasks that wait for a slot on a loop that has closed."""
    loop = asyncio.new_event_loop()
    tasks: list[Any] = [loop.create_task(it.execute(asyncio.sleep, 0)) for _ in range(calls)]
    for task in tasks:
        task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return [weakref.ref(task) for task in tasks]


def test_a_slot_for_a_loop_that_has_closed_goes_to_the_next() -> None:
    async def main() -> None:
        # More than could be told of inside one another.
        await asyncio.to_thread(lambda: left.extend(left_waiting(it, 10_000)))
        following = asyncio.ensure_future(it.execute(asyncio.sleep, 0, "ran"))
        await until(lambda: it.metrics.queued_operations == 10_001)
        it.release()
        assert await asyncio.wait_for(following, 20) == "ran" and is_empty(it)

    it = partition(queue_size=20_000, timeout=1000)
    left: list[weakref.ref[asyncio.Task[None]]] = []
    it.acquire()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    gc.collect()
    assert not any(task() for task in left)


def test_who_waits_on_a_loop_that_has_closed_leaves_the_queue() -> None:
    it = partition(timeout=1000)
    with it:
        left = left_waiting(it, 3)
        gc.collect()
        assert not any(task() for task in left)
        assert it.metrics.queued_operations == 0
    assert is_empty(it)
    left_waiting(it, 3)
    gc.collect()
    assert is_empty(it), "one of them held the slot"


async def test_a_task_that_nobody_keeps_gets_its_slot() -> None:
    async def run() -> None:
        ran.append(await it.execute(asyncio.sleep, 0, "ran"))

    it = partition(timeout=1000)
    ran: list[str] = []
    async with it:
        for _ in range(2):
            alone = weakref.ref(asyncio.ensure_future(run()))
            await asyncio.sleep(0)
            gc.collect()
            assert alone() is not None
        assert it.metrics.queued_operations == 2
    await until(lambda: ran == ["ran"] * 2)


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


async def test_a_timeout_in_the_queue_never_starts_the_call() -> None:
    it, started = partition(1), []
    it.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(started.append, 1, timeout=0.05)
    assert caught.value.reason == "waited"
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(started.append, 1, timeout=0)
    assert caught.value.reason == "busy"
    it.release()
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError):
            await it.execute(started.append, 1, timeout=wrong)
    # Whatever had kept a place would start before this.
    assert await it.execute(lambda: "runs", timeout=0) == "runs"
    assert started == [] and is_empty(it)


class TimedLoop(asyncio.SelectorEventLoop):
    """A loop on a clock of the test's, which tells what timers were set."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[float]()
        super().__init__()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, *args: Any, **settings: Any) -> asyncio.TimerHandle:
        self.timers.append(when)
        return super().call_at(when, *args, **settings)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_all_who_wait_on_a_loop_share_a_timer_and_each_has_its_own_deadline() -> None:
    it = partition(1, queue_size=10)
    loop, over = TimedLoop(), list[Any]()

    async def call(timeout: float) -> None:
        try:
            over.append(await it.execute(asyncio.sleep, 0, "ran", timeout=timeout))
        except BulkheadFullError as full:
            over.append((timeout, full.reason))

    async def main() -> None:
        it.acquire()
        calls = [asyncio.ensure_future(call(timeout)) for timeout in (30, 20, 25, 10, 40, 50)]
        await turns()
        # Only for a deadline that is earlier than all before.
        assert loop.timers == [30, 20, 10]
        loop.now = 9.9
        await turns()
        assert over == []
        # Loops ring early, by what their clock cannot tell apart.
        loop.now = 10 - 1e-10
        await turns()
        assert over == [(10, "waited")]
        calls[1].cancel()
        loop.now = 20
        await turns()
        assert over == [(10, "waited")] and loop.timers == [30, 20, 10, 25]
        loop.now = 30
        await turns()
        assert over == [(timeout, "waited") for timeout in (10, 25, 30)]
        it.release()
        await asyncio.wait(calls)
        assert over[3:] == ["ran", "ran"] and loop.timers[:5] == [30, 20, 10, 25, 40]

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert is_empty(it)


def test_calls_that_wait_one_after_the_other_set_no_timer_each() -> None:
    it, loop = partition(1, queue_size=10), TimedLoop()

    async def main() -> None:
        for n in range(100):
            loop.now = n / 100
            it.acquire()
            calls = [asyncio.ensure_future(it.execute(no_op, timeout=9)) for _ in range(3)]
            await turns()
            it.release()
            await asyncio.wait(calls)

    async def no_op() -> None:
        pass

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert is_empty(it) and loop.timers == [9]


async def test_a_call_that_waited_leaves_nothing_of_its_context_behind() -> None:
    class Kept:
        pass

    it, context = partition(1), contextvars.ContextVar[Kept]("kept")
    kept: list[weakref.ref[Kept]] = []

    async def call() -> Any:
        value = Kept()
        kept.append(weakref.ref(value))
        context.set(value)
        return await it.execute(one)

    async def one() -> int:
        return 1

    it.acquire()
    waiting = asyncio.ensure_future(call())
    await turns()
    assert it.metrics.queued_operations == 1
    it.release()
    assert await waiting == 1
    del waiting
    # The loop knows the task until its next turn.
    await turns()
    gc.collect()
    assert kept[0]() is None


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


def test_a_timeout_cancels_as_asyncios_does_and_leaves_no_request_behind() -> None:
    it, loop = partition(9, timeout=10), TimedLoop()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "went on"

    async def translates(error: type[Exception]) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            raise error("cancelled") from None

    async def over(function: Callable[..., Any], *args: Any) -> Any:
        """What a call comes to whose time is over while it runs."""
        loop.call_soon(setattr, loop, "now", loop.now + 10)
        try:
            return await it.execute(function, *args)
        except Exception as error:
            return error

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for function, args, kind in (
            (asyncio.sleep, (1000,), TimeoutError),
            (translates, (TimeoutError,), TimeoutError),
            (translates, (KeyError,), KeyError),
            (stubborn, (), str),
        ):
            outcome = await over(function, *args)
            assert type(outcome) is kind and task.cancelling() == 0
            assert (it.name in str(outcome)) == (kind is TimeoutError)
        assert it.metrics.timed_out_operations == 2 and is_empty(it)
        # What is around a call is over first, and says so itself.
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(5):
                await over(asyncio.sleep, 1000)
        assert it.name not in str(caught.value) and task.cancelling() == 0
        # Who is cancelled in the moment of its timeout is cancelled.
        both = asyncio.ensure_future(it.execute(asyncio.sleep, 1000))
        await turns()
        loop.now += 10
        both.cancel()
        await asyncio.wait([both])
        assert both.cancelled() and is_empty(it)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_a_loop_that_is_dropped_takes_the_calls_along_that_run_on_it() -> None:
    it = partition(1)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        loop.create_task(it.execute(asyncio.sleep, 1000))
        loop.run_until_complete(turns())
        assert it.metrics.active_operations == 1

    with warnings.catch_warnings():
        # It is not closed.
        warnings.simplefilter("ignore", ResourceWarning)
        abandon()
        gc.collect()
    assert is_empty(it)


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


async def test_a_decorated_function_stays_what_it_was() -> None:
    it = partition(2)

    @it
    async def double(n: int, *, plus: int = 0) -> int:
        """Doubles."""
        await asyncio.sleep(0)
        assert current_partition() is it and it.metrics.active_operations == 1
        return 2 * n + plus

    @it
    def half(n: int) -> tuple[float, str]:
        assert current_partition() is it and it.metrics.active_operations == 1
        return n / 2, threading.current_thread().name

    class Service:
        factor = 3

        @it
        async def method(self, n: int) -> int:
            return self.factor * n

        @it
        def sync_method(self, n: int) -> int:
            return self.factor * n

        @it
        @staticmethod
        async def static(n: int) -> int:
            return n

        @it
        @classmethod
        def of_class(cls, n: int) -> int:
            return cls.factor * n

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    assert str(inspect.signature(double)) == "(n: 'int', *, plus: 'int' = 0) -> 'int'"
    assert inspect.iscoroutinefunction(double) and not inspect.iscoroutinefunction(half)
    assert await double(4, plus=1) == 9
    assert half(4) == (2, threading.current_thread().name)
    service = Service()
    assert inspect.iscoroutinefunction(service.method)
    assert (await service.method(2), service.sync_method(2)) == (6, 6)
    assert (await service.static(2), service.of_class(2)) == (2, 6)
    assert await it(functools.partial(asyncio.sleep, 0))(4) == 4
    assert current_partition() is None and is_empty(it)
    assert it.metrics.successful_operations == 7
    for wrong in (5, double(1)):
        with pytest.raises(TypeError):
            it(wrong)  # type: ignore[type-var]

    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        it(generator)


async def test_a_decorated_async_function_queues_and_is_timed() -> None:
    it, order = partition(1, timeout=0.05), []

    @it
    async def append(n: int) -> None:
        await asyncio.sleep(0)
        order.append(n)

    await asyncio.gather(*(append(n) for n in range(20)))
    assert order == list(range(20)) and is_empty(it)

    @it
    async def hang() -> None:
        await asyncio.sleep(20)

    with pytest.raises(TimeoutError, match=it.name):
        await hang()
    it.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        await hang()
    assert caught.value.reason == "waited"
    it.release()


def test_a_decorated_sync_function_waits_for_its_slot_in_the_callers_thread() -> None:
    it, order = partition(1, queue_size=5), []

    @it
    def append(n: int) -> None:
        order.append((n, threading.current_thread().name))

    it.acquire()
    threads = [threading.Thread(target=append, args=(n,), name=f"caller-{n}") for n in range(3)]
    for n, thread in enumerate(threads):
        thread.start()
        until_sync(lambda n=n: it.metrics.queued_operations == n + 1)
    it.release()
    for thread in threads:
        thread.join()
    assert order == [(n, f"caller-{n}") for n in range(3)] and is_empty(it)

    short = partition(1, timeout=0.02)
    short.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        short(lambda: order.clear())()
    assert caught.value.reason == "waited" and is_empty_but(short, 1) and order


def is_empty_but(it: BulkheadPartition, active: int) -> bool:
    return (it.metrics.active_operations, it.metrics.queued_operations) == (active, 0)


async def test_a_decorated_sync_function_never_stops_an_event_loop() -> None:
    it = partition(1)
    it.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        it(lambda: 1)()
    assert caught.value.reason == "busy"
    assert it.metrics.queued_operations == 0
    it.release()
    assert it(lambda: 1)() == 1

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        it(fail)()
    assert is_empty(it) and it.metrics.failed_operations == 1


async def test_an_awaitable_that_a_decorated_function_returns_holds_its_slot() -> None:
    it, go = partition(2), asyncio.Event()

    async def wait() -> bool:
        assert current_partition() is it
        return await go.wait()

    @it
    def coroutine() -> Any:
        return wait()

    @it
    def future() -> Any:
        return asyncio.ensure_future(go.wait())

    waits = [asyncio.ensure_future(coroutine()), future()]
    await asyncio.sleep(0)
    assert isinstance(waits[1], asyncio.Future) and is_empty_but(it, 2)
    go.set()
    assert await asyncio.gather(*waits) == [True, True]
    await until(lambda: is_empty(it))


async def test_a_decorated_function_is_behind_the_partitions_breaker() -> None:
    it = partition(1, circuit_breaker_enabled=True)

    @it
    async def fail() -> None:
        raise ConnectionError

    @it
    def fail_here() -> None:
        raise ConnectionError

    for n in range(5):
        with pytest.raises(ConnectionError):
            await fail() if n % 2 else fail_here()
    with pytest.raises(CircuitBreakerError):
        await fail()
    with pytest.raises(CircuitBreakerError):
        fail_here()
    assert is_empty(it)


async def test_a_function_that_a_breaker_guards_runs_in_a_slot_as_any() -> None:
    it, guard = partition(1, timeout=0.05), get_circuit_breaker("guards-within")

    @it
    @guard
    async def work(n: int) -> int:
        assert it.metrics.active_operations == 1
        for _ in range(n):
            await asyncio.sleep(0)
        return n

    assert [await work(n) for n in range(4)] == [0, 1, 2, 3]
    assert await it.execute(guard(asyncio.sleep), 0, "slept") == "slept"
    with pytest.raises(TimeoutError, match=it.name):
        await it.execute(guard(asyncio.sleep), 20)
    assert guard.metrics.successful_calls == 5 and is_empty(it)


async def test_a_block_of_another_partition_entered_in_the_first_step_is_kept() -> None:
    it, other = partition(), partition()

    async def nested() -> None:
        async with other:
            await asyncio.sleep(0)
            assert current_partition() is other
        assert current_partition() is it

    await it.execute(nested)
    await it(nested)()
    it.acquire()
    queued = asyncio.ensure_future(it.execute(nested))
    await asyncio.sleep(0)
    it.release()
    await queued
    assert current_partition() is None and is_empty(it) and is_empty(other)


async def test_the_innermost_call_or_block_says_what_the_current_partition_is() -> None:
    it, other = partition(9), partition(9)

    async def deepest() -> None:
        assert current_partition() is it
        with other:
            assert current_partition() is other
            async with it, other:
                assert current_partition() is other
            assert current_partition() is other
        assert current_partition() is it

    async def within(steps: int) -> None:
        await turns() if steps else None
        assert current_partition() is it
        async with other:
            assert current_partition() is other
            await it.execute(deepest)
            assert current_partition() is other
            await asyncio.create_task(it(deepest)())
            assert current_partition() is other
        assert current_partition() is it

    for steps in range(2):
        await it.execute(within, steps)
        async with other:
            await it(within)(steps)
            assert current_partition() is other
        assert current_partition() is None
    assert is_empty(it) and is_empty(other)


async def test_a_refusal_tells_of_its_own_moment_and_can_be_pickled() -> None:
    it = partition(1, queue_size=1)

    def refusal() -> BulkheadFullError:
        with pytest.raises(BulkheadFullError) as caught:
            it.acquire()
        return caught.value

    it.acquire()
    first, second = refusal(), refusal()
    waiting = asyncio.ensure_future(it.execute(asyncio.sleep, 0))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError) as caught:
        await it.execute(asyncio.sleep, 0)
    third, fourth = refusal(), caught.value
    assert first is not second and first.args == second.args
    name = f'partition "{it.name}": '
    assert str(second) == name + "no slot is free (1 running)"
    assert str(third) == name + "no slot is free (1 running, 1 waiting)"
    assert str(fourth) == name + "queue is full (1 waiting)"
    for error, queued, reason in (
        (second, 0, "busy"),
        (third, 1, "busy"),
        (fourth, 1, "queue_full"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        for full in (error, copy):
            assert (full.partition, full.active, full.queued) == (it.name, 1, queued)
            assert full.reason == reason and repr(full) == repr(error)
            assert type(full) is BulkheadFullError and str(full) == str(error)
    it.release()
    await waiting


async def test_listeners_are_told_what_happens() -> None:
    it, heard = partition(1, queue_size=1), []
    broken: list[PartitionEvent] = []

    def fail(event: PartitionEvent) -> None:
        broken.append(event)
        raise ValueError

    async def listen(event: PartitionEvent) -> None:
        heard.append(event)

    it.add_listener(fail)
    it.add_listener(listen)
    it.acquire()
    queued = asyncio.ensure_future(it.execute(asyncio.sleep, 0))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError):
        await it.execute(asyncio.sleep, 0)
    it.release()
    await queued
    with pytest.raises(TimeoutError):
        await it.execute(asyncio.sleep, 20, timeout=0.01)
    await it.shutdown()
    kinds = ["started", "queued", "rejected", "ended", "started", "ended"]
    kinds += ["started", "timed_out", "ended", "closed"]
    await until(lambda: len(heard) == len(kinds) == len(broken))
    assert [event.kind for event in heard] == kinds
    assert heard[2] == PartitionEvent(it.name, "rejected", reason="queue_full")
    assert all((event.ran is not None) == (event.kind == "ended") for event in heard)
    with pytest.raises(TypeError):
        it.add_listener(5)  # type: ignore[arg-type]


async def test_a_listener_that_was_removed_hears_no_more() -> None:
    it, first, second = partition(1), [], []
    it.add_listener(first.append)
    it.add_listener(second.append)
    it.acquire()
    await until(lambda: first and second)
    it.remove_listener(first.append)
    it.remove_listener(print)
    it.release()
    await until(lambda: len(second) == 2)
    assert [event.kind for event in first] == ["started"]


async def test_a_partition_that_was_listened_to_can_be_forgotten() -> None:
    it, heard = partition(1), []
    it.add_listener(heard.append)
    it.acquire()
    await until(lambda: heard)
    still_there = weakref.ref(it)
    del it
    gc.collect()
    assert still_there() is None


async def test_the_status_tells_how_long_calls_waited_and_ran() -> None:
    it = partition(1)
    it.acquire()
    queued = asyncio.ensure_future(it.execute(asyncio.sleep, 0.001))
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    it.release()
    await queued
    metrics = it.metrics
    assert metrics.rejected_operations == 0 and metrics.total_operations == 2
    assert 0 < metrics.wait_p99 and 0 < metrics.run_p50 <= metrics.run_p99
    assert 0 < metrics.avg_execution_time <= metrics.max_execution_time
    status = it.get_status()
    assert status["metrics"]["run_p99"] == metrics.run_p99
    assert status["config"]["queue_order"] == "fifo"
    assert status["config"]["reject_hopeless"] is False


async def test_partitions_under_a_ceiling_share_it_by_priority() -> None:
    manager = get_bulkhead_manager().under_ceiling(2)
    assert get_bulkhead_manager().ceiling is None
    critical, background = map(manager.get_partition, ("critical", "background"))
    assert background is not get_bulkhead_manager().get_partition("background")
    critical.acquire()
    background.acquire()
    with pytest.raises(BulkheadFullError) as caught:
        critical.acquire()
    assert caught.value.reason == "ceiling"
    order: list[str] = []

    async def append(name: str) -> None:
        order.append(name)

    waits = [asyncio.ensure_future(background.execute(append, "background"))]
    waits += [asyncio.ensure_future(critical.execute(append, "critical"))]
    await asyncio.sleep(0)
    assert manager.ceiling == CeilingMetrics(active=2, limit=2, held_up=2, peak_active=2)
    background.release()
    await asyncio.gather(*waits)
    assert order == ["critical", "background"]
    manager.set_ceiling(1)
    critical.release()
    assert manager.ceiling == CeilingMetrics(active=0, limit=1, held_up=0, peak_active=2)
    for wrong, kind in ((0, ValueError), (2**40, ValueError), (1.5, TypeError)):
        with pytest.raises(kind):
            manager.set_ceiling(wrong)  # type: ignore[arg-type]
        with pytest.raises(kind):
            manager.under_ceiling(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        get_bulkhead_manager().set_ceiling(5)


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
    fresh = manager.configure_partition(large)
    assert fresh is not it and manager.get_partition(name) is fresh
    assert await fresh.execute(lambda: 1) == 1


async def test_the_end_of_a_partition_says_what_was_left() -> None:
    it, release = partition(1), threading.Event()
    running = asyncio.ensure_future(it.execute(release.wait, 20))
    await until(lambda: it.metrics.active_operations == 1)
    queued = asyncio.ensure_future(it.execute(asyncio.sleep, 0))
    await asyncio.sleep(0)
    assert await it.shutdown(within=0.01) == Drained(it.name, turned_away=1, left=1)
    with pytest.raises(BulkheadFullError):
        await queued
    release.set()
    assert await running is True
    assert await it.shutdown() == Drained(it.name, turned_away=0, left=0)


async def test_threads_are_named_and_idle_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kailash._threads._IDLE", 0.01)
    it, meet = partition(3), threading.Barrier(3, timeout=20)

    def name() -> str:
        meet.wait()
        return threading.current_thread().name

    names = await asyncio.gather(*(it.execute(name) for _ in range(3)))
    assert sorted(names) == [f"kailash-{it.name}-{n}" for n in (1, 2, 3)]
    await until(lambda: it.get_status()["resources"]["thread_pool_active"] == 0)
    assert await it.execute(lambda: "again") == "again"


async def test_the_thread_that_was_busy_last_works_first() -> None:
    it, meet = partition(5), threading.Barrier(5, timeout=20)
    await asyncio.gather(*(it.execute(meet.wait) for _ in range(5)))
    names = {await it.execute(lambda: threading.current_thread().name) for _ in range(50)}
    # In turn it would be all five; one may have been on its way to its rest when the others were there.
    assert len(names) <= 2


async def test_a_thread_that_the_system_does_not_grant_refuses_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it, started = partition(2), []

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(BulkheadFullError) as caught:
            await it.execute(started.append, 1)
    assert caught.value.reason == "no_thread" and is_empty(it)
    await it.execute(started.append, 2)
    assert started == [2]


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


async def test_a_burst_is_refused_at_once_and_leaves_nothing_behind() -> None:
    it = partition(20, queue_size=100)
    results = await asyncio.gather(
        *(it.execute(asyncio.sleep, 0.01) for _ in range(10_000)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, BulkheadFullError)]
    assert len(refused) == 9_880 and results.count(None) == 120 and is_empty(it)
    assert {error.reason for error in refused} == {"queue_full"}
    metrics = it.metrics
    assert (metrics.total_operations, metrics.rejected_operations) == (120, 9_880)
    assert (metrics.successful_operations, metrics.peak_active_operations) == (120, 20)


async def test_ten_thousand_calls_over_three_loops_and_eight_threads() -> None:
    it, done = partition(16, queue_size=10_000, max_threads=8), itertools.count()
    names: set[str] = set()

    async def work() -> None:
        await asyncio.sleep(0)
        next(done)

    def blocking() -> None:
        names.add(threading.current_thread().name)
        next(done)

    async def many(calls: int) -> None:
        kinds = (work, blocking, it(work), blocking)
        await asyncio.gather(
            *(
                kinds[n % 4]() if n % 4 == 2 else it.execute(kinds[n % 4])
                for n in range(calls)
            )
        )

    loops = [
        threading.Thread(target=asyncio.run, args=(many(calls),)) for calls in (3_334, 3_333, 3_333)
    ]
    for loop in loops:
        loop.start()
    for loop in loops:
        await asyncio.to_thread(loop.join)
    metrics = it.metrics
    assert next(done) == 10_000 and is_empty(it) and len(names) <= 8
    assert (metrics.total_operations, metrics.successful_operations) == (10_000, 10_000)
    assert (metrics.failed_operations, metrics.rejected_operations) == (0, 0)
    assert metrics.peak_active_operations <= 16


@pytest.mark.parametrize("is_free", [True, False], ids=["free", "queued"])
@pytest.mark.parametrize("kind", ["async", "sync", "awaitable", "block", "decorated"])
async def test_cancelled_at_any_await_point_a_call_leaves_its_slot_free(
    kind: str, is_free: bool
) -> None:
    it = partition(1)
    events = [threading.Event()]

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def block() -> None:
        async with it:
            await work()

    calls: dict[str, Callable[[], Any]] = {
        "async": lambda: it.execute(work),
        "sync": lambda: it.execute(lambda: events[-1].wait(20)),
        "awaitable": lambda: it.execute(lambda: work()),
        "block": block,
        "decorated": it(work),
    }
    for steps in range(14):
        events.append(threading.Event())
        if not is_free:
            it.acquire()
        task = asyncio.ensure_future(calls[kind]())
        for step in range(steps):
            if step == 3:
                # Cancelled before that, it was queued; after that, it has had its turn.
                if not is_free:
                    it.release()
                events[-1].set()
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        events[-1].set()
        if steps <= 3 and not is_free:
            assert is_empty_but(it, 1)
            it.release()
        await until(lambda: is_empty(it))
        it.acquire()
        it.release()
    gc.collect()
    assert await it.execute(lambda: "still works") == "still works"


async def test_a_partition_that_drowns_in_blocking_calls_harms_no_other() -> None:
    busy, free = partition(50, queue_size=150, timeout=60), partition(5, queue_size=0)
    release, started = threading.Event(), itertools.count()

    def block() -> bool:
        next(started)
        return release.wait(20)

    hogs = [asyncio.ensure_future(busy.execute(block)) for _ in range(200)]
    await until(lambda: busy.metrics.active_operations == 50)
    assert busy.metrics.queued_operations == 150
    answers = [await free.execute(lambda n=n: n) for n in range(100)]
    assert answers == list(range(100))
    assert [await free.execute(asyncio.sleep, 0, n) for n in range(100)] == answers
    metrics = free.metrics
    # Nobody waited, and with no queue nobody could have: each found a slot of its own at once.
    assert (metrics.successful_operations, metrics.rejected_operations) == (200, 0)
    assert metrics.wait_p99 == 0 and next(started) == 50
    release.set()
    assert await asyncio.gather(*hogs) == [True] * 200 and is_empty(busy)
