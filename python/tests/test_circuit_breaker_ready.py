"""What waiting for a circuit breaker promises."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitState,
    ConfigError,
    ConfigTypeError,
)
from kailash.core.resilience.clock import ManualClock
from waiting import until, until_sync


def opened(clock: ManualClock | None = None, **settings: Any) -> CircuitBreaker:
    """A breaker that is open for a minute."""
    config = CircuitBreakerConfig(failure_threshold=1, jitter_enabled=False, **settings)
    guard = CircuitBreaker(config, name="api", clock=clock)
    guard.record_failure()
    return guard


async def begun(waiting: Awaitable[None]) -> asyncio.Task[None]:
    async def wait() -> None:
        await waiting

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_closed_breaker_is_not_waited_for() -> None:
    guard = CircuitBreaker()
    with pytest.raises(StopIteration):
        guard.ready().send(None)
    with pytest.raises(StopIteration):
        guard.wait_until_closed().send(None)
    guard.disable()
    await guard.wait_until_closed(timeout=0)
    await asyncio.to_thread(guard.ready_sync)


async def test_it_is_ready_when_the_wait_of_its_opening_is_over() -> None:
    clock = ManualClock()
    guard = opened(clock)
    waits = [await begun(guard.ready()) for _ in range(3)]
    clock.advance(59)
    await asyncio.sleep(0)
    assert guard.state is CircuitState.OPEN and not any(wait.done() for wait in waits)
    clock.advance(1)
    await asyncio.gather(*waits)
    assert guard.state is CircuitState.HALF_OPEN


async def test_it_is_ready_when_a_probes_slot_is_free() -> None:
    clock = ManualClock()
    guard = opened(clock, half_open_requests=1, success_threshold=2)
    clock.advance(60)
    with guard:
        waits = await begun(guard.ready())
        with pytest.raises(CircuitBreakerError):
            guard.call(int)
    await waits
    assert guard.call(int) == 0


async def test_it_is_closed_once_somebodys_probes_succeed() -> None:
    clock = ManualClock()
    guard = opened(clock, success_threshold=2)
    waits = await begun(guard.wait_until_closed())
    clock.advance(60)
    await guard.ready()
    guard.call(int)
    await asyncio.sleep(0)
    assert not waits.done()
    guard.call(int)
    await waits
    assert guard.state is CircuitState.CLOSED


async def test_a_forced_one_is_waited_for_until_it_is_let_go() -> None:
    guard = CircuitBreaker()
    guard.force_open()
    waits = [await begun(guard.ready()), await begun(guard.wait_until_closed())]
    guard.force_close()
    await asyncio.gather(*waits)


@pytest.mark.parametrize("name", ["ready", "wait_until_closed"])
async def test_a_wait_that_lasts_too_long_is_a_timeout_error(name: str) -> None:
    guard = opened()
    what = "ready" if name == "ready" else "closed"
    with pytest.raises(TimeoutError, match=rf"^circuit breaker 'api': not {what} within 0.01 s$"):
        await getattr(guard, name)(timeout=0.01)
    with pytest.raises(TimeoutError):
        await getattr(guard, name)(0)
    with pytest.raises(TimeoutError, match=rf"^circuit breaker 'api': not {what} within 0.01 s$"):
        await asyncio.to_thread(getattr(guard, f"{name}_sync"), timeout=0.01)


async def test_a_timeout_that_is_none_is_named() -> None:
    for guard in (CircuitBreaker(), opened()):
        with pytest.raises(ConfigError, match=r"^timeout: -1 is not allowed"):
            await guard.ready(-1)
        with pytest.raises(ConfigTypeError, match=r"^timeout: 'soon' is not allowed"):
            await guard.wait_until_closed("soon")  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            await asyncio.to_thread(guard.ready_sync, float("inf"))


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    guard = CircuitBreaker()
    guard.force_open()
    waits = [await begun(guard.ready(timeout)) for timeout in [None, 1000.0] * 50]
    for wait in waits:
        wait.cancel()
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    gone = weakref.ref(guard)
    del guard, waits, wait, ends

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    await until(is_gone)


async def test_a_wait_that_is_closed_leaves_nothing_behind() -> None:
    guard = CircuitBreaker()
    guard.force_open()
    wait = guard.ready()
    future = wait.send(None)
    wait.close()
    gone = weakref.ref(future)
    del wait, future
    await until(lambda: gc.collect() is not None and gone() is None)


@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_a_wait_whose_loop_has_closed_is_given_up(timeout: float | None) -> None:
    guard = opened()
    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(guard.ready(timeout))
    task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gone = weakref.ref(task), weakref.ref(loop)
    del task, loop
    until_sync(lambda: gc.collect() is not None and not any(each() for each in gone))
    assert guard.state is CircuitState.OPEN


async def test_a_wait_that_nobody_keeps_goes_on() -> None:
    async def wait() -> None:
        await guard.ready()
        ready.append(guard)

    guard = opened()
    ready: list[CircuitBreaker] = []
    alone = weakref.ref(asyncio.ensure_future(wait()))
    await asyncio.sleep(0)
    gc.collect()
    assert alone() is not None and not ready
    guard.force_close()
    await until(lambda: ready == [guard])


async def test_a_wait_that_is_cancelled_as_it_ends_ends_once() -> None:
    for _ in range(100):
        guard = CircuitBreaker()
        guard.force_open()
        wait = await begun(guard.ready())
        guard.force_close()
        wait.cancel()
        with suppress(asyncio.CancelledError):
            await wait
        assert wait.done()


def test_one_change_wakes_all_loops_and_threads() -> None:
    guard = CircuitBreaker()
    guard.force_open()
    begun, ended = [], []

    def on_a_loop() -> None:
        async def wait() -> None:
            begun.append(1)
            await guard.ready()
            await guard.wait_until_closed()
            ended.append(1)

        async def main() -> None:
            await asyncio.gather(*(wait() for _ in range(10)))

        asyncio.run(main())

    def on_a_thread() -> None:
        begun.append(1)
        guard.ready_sync()
        guard.wait_until_closed_sync()
        ended.append(1)

    threads = [threading.Thread(target=it) for it in [on_a_loop, on_a_thread] * 4]
    for thread in threads:
        thread.start()
    until_sync(lambda: len(begun) == 44)
    assert not ended
    guard.force_close()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 44


async def test_a_thread_never_stops_its_event_loop() -> None:
    guard = CircuitBreaker()
    for wait in (guard.ready_sync, guard.wait_until_closed_sync):
        with pytest.raises(RuntimeError, match=r"await (ready|wait_until_closed)\(\) instead"):
            wait()


def test_callers_that_wait_get_through_as_probes_and_close_it() -> None:
    guard = opened(recovery_timeout=0.01, half_open_requests=2, success_threshold=5)
    done: list[int] = []

    def caller(call: Callable[[], int]) -> None:
        while True:
            guard.ready_sync()
            try:
                done.append(call())
                return
            except CircuitBreakerError:
                pass  # another was faster

    threads = [threading.Thread(target=caller, args=(lambda: guard.call(int),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 8 and guard.state is CircuitState.CLOSED
