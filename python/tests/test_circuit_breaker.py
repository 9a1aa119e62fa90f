"""What a circuit breaker promises to Python."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import BulkheadFullError
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitBreakerManager,
    CircuitState,
    ConnectionCircuitBreaker,
    get_circuit_breaker,
    get_circuit_breaker_manager,
)
from waiting import until, until_sync

_names = (f"breaker-{n}" for n in itertools.count())


def breaker(**settings: Any) -> CircuitBreaker:
    return CircuitBreaker(CircuitBreakerConfig(**settings), name=next(_names))


def counted(guard: CircuitBreaker) -> tuple[int, int]:
    metrics = guard.metrics
    return metrics.successful_calls, metrics.failed_calls


# ------------------------------------------------------------------ configuration


def test_the_defaults_are_those_that_users_know() -> None:
    config = CircuitBreakerConfig()
    assert (config.failure_threshold, config.success_threshold) == (5, 3)
    assert (config.recovery_timeout, config.max_wait_duration_in_half_open) == (60, 60)
    assert (config.half_open_requests, config.window_size) == (3, 100)
    assert (config.error_rate_threshold, config.slow_call_rate_threshold) == (0.5, 0.8)
    assert (config.min_calls_before_evaluation, config.slow_call_threshold) == (10, 5.0)
    assert (config.exponential_backoff_multiplier, config.max_jitter_percentage) == (2.0, 0.1)
    assert (config.jitter_enabled, config.excluded_exceptions) == (True, [])
    assert (config.max_recovery_timeout, config.cancelled_counts_after) == (600, 1)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("failure_threshold", 0),
        ("failure_threshold", -1),
        ("failure_threshold", 1_000_001),
        ("failure_threshold", 2**80),
        ("success_threshold", 0),
        ("success_threshold", 10_001),
        ("half_open_requests", 0),
        ("half_open_requests", 1_025),
        ("window_size", 0),
        ("window_size", 65_537),
        ("min_calls_before_evaluation", -1),
        ("error_rate_threshold", 0.0),
        ("error_rate_threshold", 1.1),
        ("error_rate_threshold", float("nan")),
        ("slow_call_rate_threshold", -0.5),
        ("recovery_timeout", 0),
        ("recovery_timeout", -1.0),
        ("recovery_timeout", float("inf")),
        ("slow_call_threshold", -1),
        ("max_wait_duration_in_half_open", float("nan")),
        ("exponential_backoff_multiplier", 0.5),
        ("max_jitter_percentage", 2),
        ("cancelled_counts_after", -1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, wrong: float) -> None:
    with pytest.raises(ValueError) as caught:
        CircuitBreakerConfig(**{field: wrong})
    error: Any = caught.value
    assert (error.field, repr(error.value)) == (field, repr(wrong))
    assert error.allowed and field in str(error) and repr(wrong) in str(error)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("failure_threshold", "5"),
        ("failure_threshold", 5.5),
        ("failure_threshold", True),
        ("failure_threshold", None),
        ("recovery_timeout", "60"),
        ("recovery_timeout", None),
        ("error_rate_threshold", True),
        ("jitter_enabled", 1),
        ("excluded_exceptions", ValueError),
        ("excluded_exceptions", ["ValueError"]),
        ("excluded_exceptions", [int]),
        ("is_failure", 5),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, wrong: object) -> None:
    with pytest.raises(TypeError) as caught:
        CircuitBreakerConfig(**{field: wrong})  # type: ignore[arg-type]
    error: Any = caught.value
    assert error.field == field and error.allowed


def test_none_switches_rates_and_slow_calls_off() -> None:
    config = CircuitBreakerConfig(
        error_rate_threshold=None, slow_call_threshold=None, slow_call_rate_threshold=None
    )
    guard = CircuitBreaker(config)
    for _ in range(20):
        guard.record_failure()
        guard.record_success()
    assert guard.state is CircuitState.CLOSED


# ------------------------------------------------------------------ decorating


def test_every_kind_of_function_keeps_its_kind_and_its_name() -> None:
    guard = breaker()

    @guard
    def plain(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    @guard
    async def awaited() -> int:
        return 1

    @guard
    def generated() -> Iterator[int]:
        yield 1

    @guard
    async def streamed() -> AsyncIterator[int]:
        yield 1

    assert not inspect.iscoroutinefunction(plain)
    assert inspect.iscoroutinefunction(awaited)
    assert inspect.isgeneratorfunction(generated)
    assert inspect.isasyncgenfunction(streamed)
    assert (plain.__name__, plain.__doc__) == ("plain", "Adds.")
    assert str(inspect.signature(plain)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert plain(1) == 3
    assert list(generated()) == [1]


async def test_methods_of_each_kind_are_guarded() -> None:
    guard = breaker()

    class Client:
        def __init__(self) -> None:
            self.base = 10

        @guard
        async def fetch(self, n: int) -> int:
            return self.base + n

        @guard
        def read(self, n: int) -> int:
            return self.base + n

        @guard
        @classmethod
        def kind(cls) -> str:
            return cls.__name__

        @guard
        @staticmethod
        def twice(n: int) -> int:
            return 2 * n

    client = Client()
    assert await client.fetch(1) == 11
    assert client.read(2) == 12
    assert (client.kind(), Client.twice(4)) == ("Client", 8)
    assert counted(guard) == (4, 0)


async def test_an_async_callable_is_awaited() -> None:
    guard = breaker()

    class Fetch:
        async def __call__(self, n: int) -> int:
            raise ConnectionError(n)

    guarded = guard(Fetch())
    with pytest.raises(ConnectionError):
        await guarded(1)
    assert counted(guard) == (0, 1)


def test_only_functions_can_be_guarded() -> None:
    with pytest.raises(TypeError, match="guards functions"):
        breaker()(5)  # type: ignore[type-var]


async def test_failures_open_it_and_an_open_one_calls_nothing() -> None:
    guard, calls = breaker(failure_threshold=3), 0

    @guard
    async def down() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError("refused")

    for _ in range(3):
        assert guard.state is CircuitState.CLOSED
        with pytest.raises(ConnectionError):
            await down()
    assert guard.state is CircuitState.OPEN
    with pytest.raises(CircuitBreakerError) as caught:
        await down()
    assert calls == 3
    error = caught.value
    assert (error.name, error.state) == (guard.name, CircuitState.OPEN)
    assert error.retry_after is not None and 50 < error.retry_after <= 66
    assert (error.cause, error.forced) == ("consecutive_failures", False)
    assert guard.name in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_rejections_are_new_exceptions_whose_tracebacks_do_not_grow() -> None:
    guard = breaker(failure_threshold=1)
    guard.record_failure()

    @guard
    def call() -> None:
        raise AssertionError("never called")

    depths, seen = set(), []
    for _ in range(50):
        try:
            call()
        except CircuitBreakerError as error:
            seen.append(error)
            depth, trace = 0, error.__traceback__
            while trace is not None:
                depth, trace = depth + 1, trace.tb_next
            depths.add(depth)
    assert len(set(map(id, seen))) == 50 and depths == {2}


async def test_an_awaitable_from_a_sync_function_is_judged_at_its_end() -> None:
    guard = breaker(failure_threshold=2)

    async def down() -> None:
        await asyncio.sleep(0)
        raise ConnectionError

    @guard
    def coroutine() -> Any:
        return down()

    @guard
    def task() -> Any:
        return asyncio.ensure_future(down())

    with pytest.raises(ConnectionError):
        await coroutine()
    assert counted(guard) == (0, 1)
    future = task()
    assert isinstance(future, asyncio.Task)
    with pytest.raises(ConnectionError):
        await future
    assert guard.state is CircuitState.OPEN


async def test_an_awaitable_context_manager_stays_one() -> None:
    guard, left = breaker(failure_threshold=1), []

    class Request:
        url = "http://x"

        def __await__(self) -> Any:
            return self.__aenter__().__await__()

        async def __aenter__(self) -> str:
            return "response"

        async def __aexit__(self, *_: object) -> None:
            left.append(True)

    @guard
    def get() -> Any:
        return Request()

    assert await get() == "response"
    async with get() as response:
        assert response == "response"
    assert left == [True] and get().url == "http://x"
    assert guard.metrics.successful_calls == 2


async def test_call_runs_a_function_once() -> None:
    guard = ConnectionCircuitBreaker(CircuitBreakerConfig(failure_threshold=1))

    async def double(n: int) -> int:
        return 2 * n

    def half(n: int) -> float:
        return n / 2

    assert await guard.call(double, 4) == 8
    assert guard.call(half, n=4) == 2
    assert guard.success_count == 2


# ------------------------------------------------------------------ generators


def test_a_generator_is_admitted_at_its_first_next() -> None:
    guard = breaker(failure_threshold=1)

    @guard
    def rows() -> Iterator[int]:
        yield 1
        raise ConnectionError

    early = rows()
    assert guard.metrics.total_calls == 0
    assert next(early) == 1
    with pytest.raises(ConnectionError):
        next(early)
    assert guard.state is CircuitState.OPEN
    late = rows()
    with pytest.raises(CircuitBreakerError):
        next(late)


def test_a_generator_that_is_given_up_is_neutral_and_closed() -> None:
    guard, closed = breaker(cancelled_counts_after=0), []

    @guard
    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    for _ in rows():
        break
    gc.collect()
    assert closed == [True] and guard.metrics.total_calls == 0


def test_a_generator_is_timed_only_inside_its_body() -> None:
    guard = breaker(slow_call_threshold=0.05)

    @guard
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    for _ in rows():
        threading.Event().wait(0.04)
    assert guard.metrics.slow_calls == 0 and guard.metrics.successful_calls == 1


def test_a_generator_passes_values_and_exceptions_both_ways() -> None:
    guard = breaker()

    @guard
    def echo() -> Any:
        heard = []
        try:
            while True:
                heard.append((yield len(heard)))
        except KeyError:
            return heard

    generator = echo()
    assert next(generator) == 0 and generator.send("a") == 1
    with pytest.raises(StopIteration) as end:
        generator.throw(KeyError("done"))
    assert end.value.value == ["a"]
    assert counted(guard) == (1, 0)


async def test_an_async_generator_is_guarded_alike() -> None:
    guard, closed = breaker(failure_threshold=1, cancelled_counts_after=0), []

    @guard
    async def rows(fails: bool) -> AsyncIterator[int]:
        try:
            yield 1
            if fails:
                raise ConnectionError
        finally:
            closed.append(True)

    assert [n async for n in rows(False)] == [1]
    given_up: Any = rows(True)
    assert await anext(given_up) == 1
    await given_up.aclose()
    assert counted(guard) == (1, 0) and closed == [True, True]
    with pytest.raises(ConnectionError):
        [n async for n in rows(True)]
    assert guard.state is CircuitState.OPEN
    with pytest.raises(CircuitBreakerError):
        [n async for n in rows(False)]


# ------------------------------------------------------------------ blocks


async def test_blocks_are_guarded() -> None:
    guard = breaker(failure_threshold=2)
    with guard as entered:
        assert entered is guard
    with pytest.raises(ConnectionError):
        with guard:
            raise ConnectionError
    with pytest.raises(ConnectionError):
        async with guard:
            raise ConnectionError
    assert counted(guard) == (1, 2) and guard.state is CircuitState.OPEN
    with pytest.raises(CircuitBreakerError):
        async with guard:
            raise AssertionError("refused")


async def test_nested_and_concurrent_blocks_keep_their_own_outcomes() -> None:
    outer, inner = breaker(), breaker()
    with outer, inner, outer:
        pass
    assert counted(outer) == (2, 0) and counted(inner) == (1, 0)

    async def block(fails: bool) -> None:
        async with outer:
            await asyncio.sleep(0)
            if fails:
                raise ConnectionError

    await asyncio.gather(*(block(n % 2 == 0) for n in range(10)), return_exceptions=True)
    assert counted(outer) == (7, 5)


async def test_a_block_left_in_another_context_gives_its_slot_back() -> None:
    guard = breaker(failure_threshold=1, half_open_requests=1, recovery_timeout=0.01)
    guard.record_failure()
    await until(lambda: guard.state is CircuitState.HALF_OPEN)

    async def stream() -> AsyncIterator[int]:
        async with guard:
            yield 1

    generator: Any = stream()
    await asyncio.create_task(generator.__anext__())
    await asyncio.create_task(generator.aclose())
    gc.collect()
    with guard:
        pass
    assert guard.metrics.consecutive_successes == 1


# ------------------------------------------------------------------ what counts


async def test_excluded_exceptions_are_neutral() -> None:
    guard = breaker(failure_threshold=1, excluded_exceptions=[KeyError])

    @guard
    async def find() -> None:
        raise KeyError("the caller's own mistake")

    with pytest.raises(KeyError):
        await find()
    assert guard.metrics.total_calls == 0


async def test_is_failure_decides_about_results_and_exceptions() -> None:
    guard = breaker(
        failure_threshold=2,
        is_failure=lambda outcome: isinstance(outcome, ConnectionError) or outcome == 500,
    )

    @guard
    async def status(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert await status(200) == 200
    with pytest.raises(ValueError):
        await status(ValueError())
    assert counted(guard) == (2, 0)
    assert await status(500) == 500
    with pytest.raises(ConnectionError):
        await status(ConnectionError())
    assert guard.state is CircuitState.OPEN


def test_a_classifier_that_raises_is_a_failure_and_leaks_nothing() -> None:
    def broken(outcome: object) -> bool:
        raise ZeroDivisionError

    guard = breaker(failure_threshold=1, is_failure=broken)
    with pytest.raises(ZeroDivisionError):
        guard(lambda: 1)()
    assert guard.state is CircuitState.OPEN


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_base_exception_is_a_cancelled_call_and_passes_through(kind: type[BaseException]) -> None:
    guard = breaker(failure_threshold=1)

    def stop() -> None:
        raise kind

    with pytest.raises(kind):
        guard(stop)()
    assert guard.metrics.total_calls == 0


async def test_callers_that_hang_up_are_neutral() -> None:
    guard = breaker(failure_threshold=1)

    @guard
    async def hang() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.ensure_future(hang()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert guard.metrics.total_calls == 0 and guard.state is CircuitState.CLOSED


async def test_a_dependency_that_hangs_trips_it_though_callers_give_up_first() -> None:
    guard = breaker(failure_threshold=2, cancelled_counts_after=0.01)

    @guard
    async def hang() -> None:
        await asyncio.Event().wait()

    for _ in range(2):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(hang(), 0.05)
    assert guard.state is CircuitState.OPEN


async def test_rejections_of_inner_layers_are_neutral() -> None:
    outer, inner = breaker(failure_threshold=1), breaker(failure_threshold=1)
    inner.record_failure()

    @outer
    @inner
    async def call() -> None:
        raise AssertionError("never called")

    with pytest.raises(CircuitBreakerError):
        await call()

    @outer
    async def full() -> None:
        raise BulkheadFullError("full", "db", 1, 0, "busy")

    with pytest.raises(BulkheadFullError):
        await full()
    assert outer.metrics.total_calls == 0


# ------------------------------------------------------------------ half-open


async def test_cancelled_probes_give_their_slots_back_and_decide_nothing() -> None:
    guard = breaker(
        failure_threshold=1, recovery_timeout=0.01, half_open_requests=2, success_threshold=3
    )
    guard.record_failure()
    await until(lambda: guard.state is CircuitState.HALF_OPEN)

    @guard
    async def hang() -> None:
        await asyncio.Event().wait()

    @guard
    async def healthy() -> None:
        pass

    for _ in range(10):
        tasks = [asyncio.ensure_future(hang()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(CircuitBreakerError) as caught:
            await healthy()
        assert caught.value.state is CircuitState.HALF_OPEN
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert guard.state is CircuitState.HALF_OPEN
    for _ in range(3):
        await healthy()
    assert guard.state is CircuitState.CLOSED


async def test_a_failed_probe_opens_it_again_for_longer() -> None:
    guard = breaker(failure_threshold=1, recovery_timeout=0.01, jitter_enabled=False)
    guard.record_failure()
    await until(lambda: guard.state is CircuitState.HALF_OPEN)
    with pytest.raises(ConnectionError):
        with guard:
            raise ConnectionError
    transitions = guard.get_status()["state_transitions"]
    assert [step["to"] for step in transitions] == ["open", "half_open", "open"]
    assert transitions[-1]["reason"] == "probe_failed"


# ------------------------------------------------------------------ steering


async def test_orders_are_sync_and_awaitable() -> None:
    guard = breaker()
    await guard.force_open()
    assert guard.state is CircuitState.OPEN and guard.get_status()["forced"] is True
    with pytest.raises(CircuitBreakerError) as caught, guard:
        pass
    assert caught.value.forced and caught.value.retry_after is None
    await guard.force_close()
    assert guard.state is CircuitState.CLOSED
    await guard.record_failure()
    await guard.record_success()
    assert guard.metrics.total_calls == 2
    guard.reset()
    assert guard.metrics.total_calls == 0


def test_disabled_counts_nothing_and_metrics_only_refuses_nothing() -> None:
    guard = breaker(failure_threshold=1)
    guard.disable()
    guard.record_failure()
    assert (guard.state, guard.metrics.total_calls) == (CircuitState.DISABLED, 0)
    guard.enable()
    guard.metrics_only()
    guard.record_failure()
    with guard:
        pass
    assert (guard.state, guard.metrics.failed_calls) == (CircuitState.METRICS_ONLY, 1)
    guard.enable()
    assert guard.state is CircuitState.CLOSED


def test_reconfigure_changes_the_settings_and_keeps_the_counts() -> None:
    guard = breaker(failure_threshold=10)
    for _ in range(3):
        guard.record_failure()
    guard.reconfigure(failure_threshold=4, excluded_exceptions=[KeyError])
    assert guard.config.failure_threshold == 4
    with pytest.raises(KeyError), guard:
        raise KeyError
    assert guard.state is CircuitState.CLOSED
    guard.record_failure()
    assert guard.state is CircuitState.OPEN
    with pytest.raises(ValueError):
        guard.reconfigure(window_size=0)
    assert guard.config.window_size == 100


def test_the_status_is_ready_for_json() -> None:
    guard = breaker(excluded_exceptions=[KeyError], is_failure=bool)
    guard.record_failure()
    status = json.loads(json.dumps(guard.get_status()))
    assert status["state"] == "closed" and status["metrics"]["failed_calls"] == 1
    assert status["metrics"]["error_rate"] == 1.0 and status["time_until_recovery"] is None
    assert status["config"]["excluded_exceptions"] == ["KeyError"]


async def test_listeners_hear_each_transition_and_can_harm_no_call() -> None:
    guard, heard, awaited = breaker(failure_threshold=1, recovery_timeout=0.05), [], []
    loop = asyncio.get_running_loop()
    release = threading.Event()

    def hanging(*_: object) -> None:
        release.wait(10)

    def raising(*_: object) -> None:
        raise ZeroDivisionError

    async def on_loop(old: CircuitState, new: CircuitState, metrics: object) -> None:
        assert asyncio.get_running_loop() is loop
        awaited.append((old, new))

    def reentrant(old: CircuitState, new: CircuitState, metrics: Any) -> None:
        heard.append((old, new, guard.state, metrics.failed_calls))

    for listener in (hanging, raising, on_loop, reentrant):
        guard.add_listener(listener)
    guard.record_failure()
    # Nobody calls: the wait's end is told all the same.
    await until(lambda: len(heard) == 2 and len(awaited) == 2)
    opened, probing = (CircuitState.CLOSED, CircuitState.OPEN), (CircuitState.OPEN, CircuitState.HALF_OPEN)
    assert [step[:2] for step in heard] == [opened, probing] == awaited
    guard.remove_listener(reentrant)
    guard.reset()
    await until(lambda: len(awaited) == 3)
    release.set()
    assert len(heard) == 2
    for listener in (hanging, raising, on_loop):
        guard.remove_listener(listener)
    guard.add_listener(on_loop)
    guard.force_open()
    await until(lambda: len(awaited) == 4)
    await asyncio.sleep(0.02)
    assert len(awaited) == 4, "each transition is told once"


# ------------------------------------------------------------------ registry


def test_the_same_name_is_the_same_breaker() -> None:
    name = next(_names)
    first = get_circuit_breaker(name, failure_threshold=7)
    assert get_circuit_breaker(name) is first
    assert get_circuit_breaker(name, failure_threshold=7) is first
    assert get_circuit_breaker(name, CircuitBreakerConfig(failure_threshold=7)) is first
    assert get_circuit_breaker_manager().get_circuit_breaker(name) is first
    with pytest.raises(ValueError, match="failure_threshold=7.*failure_threshold=3"):
        get_circuit_breaker(name, failure_threshold=3)
    with pytest.raises(ValueError, match="excluded_exceptions"):
        get_circuit_breaker(name, failure_threshold=7, excluded_exceptions=[KeyError])
    with pytest.raises(TypeError):
        get_circuit_breaker(name, failure_treshold=7)


def test_threads_that_race_for_a_name_get_one_breaker() -> None:
    manager, start, got = CircuitBreakerManager(), threading.Barrier(16), []

    def race() -> None:
        start.wait()
        got.append(manager.get_or_create("one"))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1


async def test_a_manager_has_the_methods_that_users_know() -> None:
    manager = CircuitBreakerManager()
    api = manager.create_circuit_breaker("api", pattern="api")
    assert (api.config.failure_threshold, api.config.recovery_timeout) == (3, 30)
    with pytest.raises(ValueError):
        manager.create_circuit_breaker("other", pattern="no such")
    assert manager.get_circuit_breaker("missing") is None
    assert manager.force_open_circuit_breaker("api") is True
    assert manager.force_open_circuit_breaker("missing") is False

    async def call() -> str:
        return "real"

    assert await manager.execute_with_circuit_breaker("api", call, lambda: "instead") == "instead"
    assert manager.reset_circuit_breaker("api") is True
    assert await manager.execute_with_circuit_breaker("api", call, lambda: "instead") == "real"
    assert set(manager.get_all_status()) == {"api"} == set(manager.get_all_circuit_states())
    await manager.reset_all()

    heard: list[str] = []
    manager.add_global_callback(lambda old, new, metrics: heard.append(new.value))
    manager.get_or_create("later").force_open()
    api.force_open()
    until_sync(lambda: heard == ["open", "open"])
    manager.set_default_config(CircuitBreakerConfig(failure_threshold=9))
    assert manager.get_or_create("newest").config.failure_threshold == 9


# ------------------------------------------------------------------ threads and loops


def test_any_number_of_threads_and_loops_share_a_breaker() -> None:
    guard = breaker(failure_threshold=1_000_000, error_rate_threshold=None)

    @guard
    async def call(n: int) -> int:
        await asyncio.sleep(0)
        if n % 10 == 0:
            raise ConnectionError
        return n

    async def many() -> None:
        await asyncio.gather(*(call(n) for n in range(1000)), return_exceptions=True)

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(guard) == (7200, 800)
