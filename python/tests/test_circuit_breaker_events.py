"""What subscriptions to calls promise."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from contextlib import suppress
from typing import Any

import pytest
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitBreakerEvent,
    CircuitBreakerManager,
    CircuitState,
)
from kailash.core.resilience.clock import ManualClock
from waiting import until, until_sync

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def ended(outcome: Any, ran: float | None = 0, **fields: Any) -> CircuitBreakerEvent:
    return CircuitBreakerEvent("api", "ended", outcome=outcome, ran=ran, **fields)


async def test_all_that_happens_is_told_in_order() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        failure_threshold=2,
        success_threshold=1,
        slow_call_threshold=5,
        excluded_exceptions=[KeyError],
        jitter_enabled=False,
        retry_after=lambda error: 7 if isinstance(error, OSError) else None,
    )
    guard = CircuitBreaker(config, name="api", clock=clock)
    heard: list[CircuitBreakerEvent] = []
    guard.subscribe(heard.append)

    @guard
    def call(error: type[BaseException] | None = None, *, takes: float = 0) -> None:
        clock.advance(takes)
        if error is not None:
            raise error

    @guard
    async def wait() -> None:
        await asyncio.sleep(0)

    call()
    await wait()
    call(takes=5)
    for error in (KeyError, KeyboardInterrupt, ValueError, OSError, RuntimeError):
        with suppress(error, CircuitBreakerError):
            call(error)
    clock.advance(7)
    with guard:
        pass
    guard.record_failure()
    guard.force_open()
    await until(lambda: len(heard) == 14)
    transition = lambda old, new, cause, **fields: CircuitBreakerEvent(  # noqa: E731
        "api", "transition", old_state=old, new_state=new, cause=cause, **fields
    )
    assert heard == [
        ended("success"),
        ended("success"),
        ended("success", ran=5, is_slow=True),
        ended("ignored"),
        ended("cancelled"),
        ended("failure"),
        ended("failure", retry_after=7),
        transition(CLOSED, OPEN, "consecutive_failures", wait=7),
        CircuitBreakerEvent("api", "rejected"),
        transition(OPEN, HALF_OPEN, heard[9].cause),
        ended("success"),
        transition(HALF_OPEN, CLOSED, heard[11].cause),
        ended("failure", ran=None),
        transition(CLOSED, OPEN, "told", forced=True),
    ]


def test_what_time_brings_is_told_without_a_call() -> None:
    clock = ManualClock()
    guard = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1), clock=clock)
    heard: list[CircuitState | None] = []
    guard.subscribe(lambda event: heard.append(event.new_state))
    guard.record_failure()
    until_sync(lambda: OPEN in heard)
    clock.advance(100)
    until_sync(lambda: heard[-1] is HALF_OPEN)


def test_one_subscription_hears_of_all_breakers_of_a_manager() -> None:
    manager = CircuitBreakerManager()
    old, hosts = manager.get_or_create("old"), manager.keyed("host")
    held = hosts["a"]
    heard: list[CircuitBreakerEvent] = []
    manager.subscribe(heard.append)
    for guard in (old, manager.get_or_create("new"), held, hosts["b"]):
        guard.call(int)
    until_sync(lambda: len(heard) == 4)
    assert [event.breaker for event in heard] == ["old", "new", "host/a", "host/b"]
    manager.unsubscribe(heard.append)
    old.call(int)
    manager.subscribe(heard.append)
    hosts["b"].force_open()
    until_sync(lambda: len(heard) == 5)
    assert (heard[-1].breaker, heard[-1].new_state) == ("host/b", OPEN)


def test_who_wants_transitions_only_hears_of_no_call_and_which_breaker_each_is_of() -> None:
    manager = CircuitBreakerManager()
    hosts = manager.keyed("host", CircuitBreakerConfig(failure_threshold=1))
    guard, heard = CircuitBreaker(name="api"), []
    manager.subscribe_transitions(heard.append)
    guard.subscribe_transitions(heard.append)
    for each in (manager.get_or_create("db"), hosts["a"], guard):
        each.call(int)
        each.force_open()
        with suppress(CircuitBreakerError):
            each.call(int)
    until_sync(lambda: len(heard) == 3)
    assert {(event.breaker, event.kind) for event in heard} == {
        ("db", "transition"),
        ("host/a", "transition"),
        ("api", "transition"),
    }
    for source in (manager, guard):
        source.unsubscribe(heard.append)
    guard.reset()
    manager.subscribe(heard.append)
    hosts["b"].call(int)
    until_sync(lambda: len(heard) == 4)
    assert heard[-1].breaker == "host/b"


async def test_one_that_hangs_loses_the_oldest_and_is_told_how_many() -> None:
    guard = CircuitBreaker(name="api")
    release, slow, quick, awaited = threading.Event(), [], [], []

    def hanging(event: CircuitBreakerEvent) -> None:
        release.wait(20)
        slow.append(event)

    async def hanging_too(event: CircuitBreakerEvent) -> None:
        while not release.is_set():
            await asyncio.sleep(0.001)
        awaited.append(event)

    for listener in (hanging, hanging_too, quick.append):
        guard.subscribe(listener)
    count = 0
    for _ in range(10):
        for _ in range(1000):
            guard.call(int)
        count += 1000
        await until(lambda: len(quick) == count)
    assert not slow and not awaited and all(event.kind == "ended" for event in quick)
    release.set()

    def accounted(heard: list[CircuitBreakerEvent]) -> int:
        return sum(event.lost if event.kind == "lost" else 1 for event in heard)

    await until(lambda: accounted(slow) == accounted(awaited) == count)
    for heard in (slow, awaited):
        assert sum(event.lost for event in heard) >= count - 1024 - 257
        assert {event.breaker for event in heard} == {"api"}
        assert heard[-1].kind == "ended"


async def test_one_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    guard, heard = CircuitBreaker(), []

    def raising(event: CircuitBreakerEvent) -> None:
        raise ZeroDivisionError

    async def raising_too(event: CircuitBreakerEvent) -> None:
        raise ZeroDivisionError

    for listener in (raising, raising_too, heard.append):
        guard.subscribe(listener)
    with caplog.at_level(logging.ERROR, logger="kailash"):
        for _ in range(3):
            assert guard.call(int) == 0
        await until(lambda: len(heard) == 3 and len(caplog.records) == 6)
    assert all("circuit breaker subscriber" in record.message for record in caplog.records)


@pytest.mark.parametrize("how", ["raise", "await"])
async def test_one_that_raises_a_cancellation_hears_the_rest(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard, heard, loops = CircuitBreaker(), [], set()

    async def listener(event: CircuitBreakerEvent) -> None:
        heard.append(event)
        loops.add(asyncio.get_running_loop())
        if len(heard) == 3:
            if how == "raise":
                raise asyncio.CancelledError
            other = asyncio.ensure_future(asyncio.Event().wait())
            other.cancel()
            await other

    async def transition(old: object, new: object, metrics: object) -> None:
        raise asyncio.CancelledError

    guard.subscribe(listener)
    with caplog.at_level(logging.ERROR, logger="kailash"):
        for _ in range(200):
            guard.call(int)
        await until(lambda: len(heard) == 200)
        guard.add_listener(transition)
        guard.force_open()
        await until(lambda: len(caplog.records) == 2)
    assert loops == {asyncio.get_running_loop()}
    assert ["subscriber" in each.message for each in caplog.records] == [True, False]


@pytest.mark.parametrize("at", [1, 20, 99])
def test_one_whose_loop_ends_hears_the_rest_on_the_librarys(at: int) -> None:
    guard, heard, cancelled = CircuitBreaker(), [], []

    async def listener(event: CircuitBreakerEvent) -> None:
        heard.append(asyncio.get_running_loop())
        try:
            if len(heard) == at:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def main() -> None:
        guard.subscribe(listener)
        for _ in range(100):
            guard.call(int)
        await until(lambda: len(heard) == at)

    asyncio.run(main())
    until_sync(lambda: len(heard) == 100)
    assert cancelled == [1]
    guard.call(int)
    until_sync(lambda: len(heard) == 101)


async def test_an_async_one_whose_task_is_cancelled_hears_the_rest() -> None:
    guard, heard = CircuitBreaker(), []

    async def listener(event: CircuitBreakerEvent) -> None:
        heard.append(asyncio.get_running_loop())
        if len(heard) == 3:
            task = asyncio.current_task()
            assert task is not None and task.cancel()
            await asyncio.sleep(0)

    guard.subscribe(listener)
    for _ in range(300):
        guard.call(int)
    await until(lambda: len(heard) == 300)
    mine = asyncio.get_running_loop()
    guard.call(int)
    await until(lambda: len(heard) == 301)
    assert heard[0] is heard[300] is mine


async def test_an_async_one_runs_on_its_loop_one_event_at_a_time() -> None:
    guard, heard, running = CircuitBreaker(), [], []
    loop = asyncio.get_running_loop()

    async def listener(event: CircuitBreakerEvent) -> None:
        assert asyncio.get_running_loop() is loop and not running
        running.append(1)
        await asyncio.sleep(0)
        running.pop()
        heard.append(event)

    guard.subscribe(listener)
    for _ in range(600):
        guard.call(int)
    await until(lambda: len(heard) == 600)


def test_a_plain_one_keeps_its_thread() -> None:
    guard, threads = CircuitBreaker(), []
    guard.subscribe(lambda event: threads.append(threading.current_thread()))
    for n in range(1, 20):
        guard.call(int)
        until_sync(lambda n=n: len(threads) == n)
    assert len(set(threads)) == 1 and "circuit-breaker-subscriber" in threads[0].name
    assert threading.current_thread() not in threads


def test_one_that_was_unsubscribed_hears_no_more_and_its_thread_ends() -> None:
    guard, heard, threads = CircuitBreaker(), [], []

    def listener(event: CircuitBreakerEvent) -> None:
        threads.append(threading.current_thread())
        heard.append(event)

    guard.subscribe(listener)
    guard.call(int)
    until_sync(lambda: len(heard) == 1)
    guard.unsubscribe(listener)
    guard.unsubscribe(listener)
    guard.call(int)
    guard.subscribe(listener)
    guard.call(int)
    until_sync(lambda: len(heard) == 2)
    threads[0].join(5)
    assert not threads[0].is_alive()


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_subscriber_keeps_no_breaker_alive(is_removed: bool) -> None:
    guard, manager = CircuitBreaker(), CircuitBreakerManager()
    heard: list[object] = []

    def listener(event: CircuitBreakerEvent) -> None:
        heard.append((guard, manager)[:0])

    guard.subscribe(listener)
    manager.subscribe(listener)
    guard.call(int)
    manager.get_or_create("api").call(int)
    until_sync(lambda: len(heard) == 2)
    if is_removed:
        guard.unsubscribe(listener)
        manager.unsubscribe(listener)
    gone = weakref.ref(guard), weakref.ref(manager)
    del guard, manager, listener

    def is_gone() -> bool:
        gc.collect()
        return gone[0]() is None and gone[1]() is None

    until_sync(is_gone)


def test_a_key_whose_breaker_is_subscribed_to_is_forgotten_once_nobody_holds_it() -> None:
    clock = ManualClock()
    hosts = CircuitBreakerManager(clock=clock).keyed("host", idle_timeout=1)
    held, heard = hosts["a"], []
    held.subscribe(heard.append)
    clock.advance(1)
    assert hosts.forget_idle() == 0
    hosts["a"].call(int)
    until_sync(lambda: len(heard) == 1)
    del held

    def is_forgotten() -> bool:
        clock.advance(1)
        gc.collect()
        return hosts.forget_idle() == 1

    until_sync(is_forgotten)


def test_only_functions_subscribe() -> None:
    for source in (CircuitBreaker(), CircuitBreakerManager()):
        with pytest.raises(TypeError):
            source.subscribe(5)  # type: ignore[arg-type]
