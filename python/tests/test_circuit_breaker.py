"""What a circuit breaker promises to Python."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import itertools
import json
import logging
import pickle
import pydoc
import sys
import threading
import traceback
import tracemalloc
import types
import typing
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import nullcontext, suppress
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest
from kailash.core.resilience.bulkhead import BulkheadFullError
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerCounts,
    CircuitBreakerError,
    CircuitBreakerManager,
    CircuitState,
    ConnectionCircuitBreaker,
    get_circuit_breaker,
    get_circuit_breaker_manager,
)
from kailash.core.resilience.clock import ManualClock
from waiting import until, until_sync

_names = (f"breaker-{n}" for n in itertools.count())


def breaker(**settings: Any) -> CircuitBreaker:
    return CircuitBreaker(CircuitBreakerConfig(**settings), name=next(_names))


async def half_open(**settings: Any) -> CircuitBreaker:
    guard = breaker(failure_threshold=1, recovery_timeout=0.01, **settings)
    guard.record_failure()
    await until(lambda: guard.state is CircuitState.HALF_OPEN)
    return guard


def counted(guard: CircuitBreaker) -> tuple[int, int]:
    metrics = guard.metrics
    return metrics.successful_calls, metrics.failed_calls


class Awaited:
    async def __call__(self, outcome: object) -> bool:
        return False


_module_breaker = breaker()


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
        ("is_failure", asyncio.sleep),
        ("retry_after", Awaited()),
        ("retry_after", functools.partial(functools.partial(Awaited()))),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, wrong: object) -> None:
    with pytest.raises(TypeError) as caught:
        CircuitBreakerConfig(**{field: wrong})  # type: ignore[arg-type]
    error: Any = caught.value
    assert error.field == field and error.allowed


def test_a_mock_of_a_function_is_a_classifier_and_can_be_guarded() -> None:
    def judge(outcome: object) -> bool:
        raise AssertionError("never called")

    for mocked in (Mock(spec=judge, return_value=True), MagicMock(spec=judge, return_value=True)):
        guard = breaker(is_failure=mocked)
        assert guard(mocked)(1) is True and guard.call(mocked, 2) is True
        assert counted(guard) == (0, 2) and mocked.call_count == 4


@pytest.mark.parametrize("wrong", [10**400, -(10**400), 10**5000], ids=["many", "negative", "more"])
@pytest.mark.parametrize("field", ["failure_threshold", "recovery_timeout", "error_rate_threshold"])
def test_a_number_that_is_too_large_for_anything_is_out_of_range(field: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"{field}: .* is not allowed") as caught:
        CircuitBreakerConfig(**{field: wrong})  # type: ignore[arg-type]
    assert cast(Any, caught.value).value is wrong


def test_none_switches_rates_and_slow_calls_off() -> None:
    config = CircuitBreakerConfig(
        error_rate_threshold=None, slow_call_threshold=None, slow_call_rate_threshold=None
    )
    guard = CircuitBreaker(config)
    for _ in range(20):
        guard.record_failure()
        guard.record_success()
    assert guard.state is CircuitState.CLOSED


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


async def test_methods_bind_in_whatever_order_they_are_decorated() -> None:
    guard = breaker()

    class Base:
        @classmethod
        @guard
        def kind(cls) -> str:
            return cls.__name__

        @staticmethod
        @guard
        async def twice(n: int) -> int:
            return 2 * n

        @property
        @guard
        def size(self) -> int:
            return 3

        @guard
        def own(self) -> object:
            return self

        added = functools.partialmethod(guard(lambda self, a, b=0: a + b), 1, b=2)

    class Derived(Base):
        def own(self) -> object:
            return [super().own()]

    derived = Derived()
    assert (derived.kind(), Derived.kind(), derived.size) == ("Derived", "Derived", 3)
    assert await Derived.twice(4) == 8 == await derived.twice(4)
    assert derived.own() == [derived] and derived.added() == 3
    bound = derived.kind
    assert inspect.ismethod(bound) and bound.__self__ is Derived
    assert inspect.isroutine(Base.own) and Base.own is Base.__dict__["own"]
    with pytest.raises(TypeError):
        Base.own()  # type: ignore[call-arg]
    assert counted(guard) == (7, 1)


def test_arguments_arrive_as_they_were_given() -> None:
    guard = breaker()

    @guard
    def sync(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @guard
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    settings = {"b": 2}
    for call in (sync, lambda *a, **k: asyncio.run(awaited(*a, **k))):
        assert call() == ((), {})
        assert call(1, *(2, 3), a=1, **settings) == ((1, 2, 3), {"a": 1, "b": 2})
        assert functools.partial(call, 1, c=3)(2, d=4) == ((1, 2), {"c": 3, "d": 4})
    assert list(map(sync, [1, 2])) == [((1,), {}), ((2,), {})]


@_module_breaker
async def fetched(url: str, *, tries: int = 1) -> bytes:
    """Fetches."""
    return url.encode() * tries


@_module_breaker
def parsed(text: str) -> int:
    """Parses."""
    return int(text)


@pytest.mark.parametrize("guarded", [fetched, parsed])
def test_introspection_sees_the_function_that_was_decorated(guarded: Any) -> None:
    plain = guarded.__wrapped__
    assert isinstance(plain, types.FunctionType) and inspect.unwrap(guarded) is plain
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__code__", "__globals__"):
        assert getattr(guarded, name) == getattr(plain, name), name
    assert inspect.signature(guarded) == inspect.signature(plain)
    assert typing.get_type_hints(guarded) == typing.get_type_hints(plain)
    assert inspect.getsource(guarded) == inspect.getsource(plain)
    assert inspect.iscoroutinefunction(guarded) is inspect.iscoroutinefunction(plain)
    assert asyncio.iscoroutinefunction(guarded) is inspect.iscoroutinefunction(plain)
    assert inspect.isroutine(guarded) and inspect.getdoc(guarded) == plain.__doc__
    assert f"{plain.__name__}(" in pydoc.plain(pydoc.render_doc(guarded))
    assert plain.__name__ in repr(guarded)
    assert pickle.loads(pickle.dumps(guarded)) is guarded
    assert copy.copy(guarded) is guarded is copy.deepcopy(guarded)
    assert weakref.ref(guarded)() is guarded and hash(guarded) == hash(guarded)
    assert functools.wraps(guarded)(lambda: None).__doc__ == plain.__doc__
    guarded.tag = "x"
    assert guarded.tag == "x" and not hasattr(plain, "tag")
    with pytest.raises(AttributeError):
        guarded.no_such_attribute
    with pytest.raises(TypeError):
        type(guarded)()


def test_a_guarded_function_is_taken_for_a_function_and_other_callables_are_not() -> None:
    guard = breaker()

    @guard
    def call(first: int, *, second: int = 2) -> int:
        return first + second

    @guard
    @guard
    async def awaited() -> None: ...

    for each in (call, awaited):
        assert isinstance(each, types.FunctionType) and inspect.isfunction(each)
        assert inspect.isroutine(each) and not inspect.ismethoddescriptor(each)
    for other in (functools.partial(int), len, str, "".join):
        assert not inspect.isfunction(guard(other))
    # What frameworks do with functions only.
    spec = create_autospec(call)
    with pytest.raises(TypeError):
        spec()
    assert copy.copy(call) is call and type(call) is not types.FunctionType


def test_what_has_no_name_can_be_copied_and_is_not_pickled() -> None:
    guarded = breaker()(functools.partial(int, "5"))
    assert copy.copy(guarded) is guarded is copy.deepcopy(guarded)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(guarded)


def test_a_cache_can_lie_on_top() -> None:
    calls = []

    @functools.cache
    @breaker()
    def load(key: str) -> str:
        calls.append(key)
        return key

    assert [load("a"), load("a"), load("b")] == ["a", "a", "b"] and calls == ["a", "b"]


async def test_a_call_in_flight_looks_like_the_coroutine_that_it_is() -> None:
    guard = breaker()
    release = asyncio.Event()

    @guard
    async def waits() -> str:
        await release.wait()
        return "done"

    call: Any = waits()
    assert isinstance(call, Coroutine) and inspect.iscoroutine(call) and asyncio.iscoroutine(call)
    assert inspect.isawaitable(call) and call.__qualname__ == waits.__qualname__
    assert "waits" in repr(call) and call.cr_code is waits.__wrapped__.__code__
    assert inspect.getcoroutinestate(call) == inspect.CORO_CREATED
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(call) == inspect.CORO_SUSPENDED and call.cr_await is not None
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["waits"]
    assert "waits" in repr(task)
    release.set()
    assert await task == "done"
    assert inspect.getcoroutinestate(call) == inspect.CORO_CLOSED and call.cr_await is None
    with pytest.raises(RuntimeError, match="already awaited"):
        await call
    with pytest.raises(AttributeError):
        call.no_such_attribute


async def test_an_async_callable_is_awaited() -> None:
    guard = breaker()

    class Fetch:
        async def __call__(self, n: int) -> int:
            raise ConnectionError(n)

    guarded = guard(Fetch())
    assert inspect.iscoroutinefunction(guarded) and guarded.__wrapped__.__class__ is Fetch
    with pytest.raises(ConnectionError):
        await guarded(1)
    assert counted(guard) == (0, 1)
    with pytest.raises(ConnectionError):
        await guard(functools.partial(Fetch().__call__, 1))()
    assert counted(guard) == (0, 2)


def test_what_is_made_of_the_parts_of_a_guarded_function_cannot_be_without_its_breaker() -> None:
    # As cloudpickle does with functions that it finds in no module.
    guard, factor = breaker(), 2

    @guard
    def plain() -> int:
        return 1

    @guard
    def closes_over() -> int:
        return factor

    for each, cells in ((plain, [guard]), (closes_over, [factor, guard])):
        assert [cell.cell_contents for cell in each.__closure__ or ()] == cells
        with pytest.raises(ValueError, match="closure"):
            types.FunctionType(each.__code__, each.__globals__, closure=each.__closure__)
        with pytest.raises(TypeError, match="cannot pickle .*CircuitBreaker"):
            pickle.dumps([cell.cell_contents for cell in each.__closure__ or ()])
    assert inspect.getclosurevars(closes_over).nonlocals == {"factor": 2}
    assert not hasattr(guard(int), "__closure__")


async def test_a_callable_object_is_guarded_as_what_its_calls_give() -> None:
    class Items:
        def __call__(self) -> Iterator[int]:
            yield 1
            raise ValueError

    class AwaitedItems:
        async def __call__(self) -> AsyncIterator[int]:
            yield 1
            raise ValueError

    guard = breaker()
    items, awaited_items = guard(Items()), guard(functools.partial(AwaitedItems()))
    assert inspect.isgeneratorfunction(items) and inspect.isasyncgenfunction(awaited_items)
    with pytest.raises(ValueError):
        list(items())
    with pytest.raises(ValueError):
        list(guard.call(Items()))
    with pytest.raises(ValueError):
        async for _ in awaited_items():
            pass
    assert counted(guard) == (0, 3)


async def test_an_async_callable_is_asked_for_its_attributes_too() -> None:
    mocked = AsyncMock(return_value=7)
    guarded: Any = breaker()(mocked)
    assert await guarded(1) == 7
    guarded.assert_awaited_once_with(1)
    assert guarded.await_count == 1 and inspect.iscoroutinefunction(guarded)
    partial: Any = breaker()(functools.partial(mocked, 2))
    assert partial.func is mocked and partial.args == (2,)
    assert repr(partial).startswith("<guarded functools.partial(")
    with pytest.raises(AttributeError, match="partial.*no attribute 'unknown'"):
        partial.unknown  # noqa: B018


def test_a_class_makes_objects_though_calls_of_these_are_async() -> None:
    guard = breaker()
    assert isinstance(guard(Awaited)(), Awaited) and isinstance(guard.call(Awaited), Awaited)
    assert counted(guard) == (2, 0)


async def test_a_generator_that_is_there_to_be_awaited_stays_awaitable() -> None:
    guard = breaker()

    @guard
    @types.coroutine
    def steps(fails: bool) -> Iterator[None]:
        yield
        if fails:
            raise ValueError

    async def call(fails: bool) -> None:
        await steps(fails)

    await call(False)
    with pytest.raises(ValueError):
        await call(True)
    assert counted(guard) == (1, 1)


async def test_guards_can_lie_on_guards() -> None:
    outer, inner = breaker(), breaker()

    @outer
    @inner
    async def call(n: int) -> int:
        await asyncio.sleep(0)
        if n < 0:
            raise ConnectionError
        return n

    assert inspect.iscoroutinefunction(call) and await call(1) == 1
    with pytest.raises(ConnectionError):
        await call(-1)
    task = asyncio.ensure_future(call(1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted(outer) == (1, 1) == counted(inner)


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
    assert len(set(map(id, seen))) == 50 and depths == {1}


def test_a_hundred_thousand_rejections_take_no_memory() -> None:
    guard = breaker(failure_threshold=1)
    guard.record_failure()

    @guard
    def sync() -> None:
        raise AssertionError("never called")

    @guard
    async def awaited() -> None:
        raise AssertionError("never called")

    async def refuse(times: int) -> int:
        for _ in range(times):
            with suppress(CircuitBreakerError):
                sync()
            with suppress(CircuitBreakerError):
                await awaited()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def grown() -> int:
        before = await refuse(100)
        return await refuse(50_000) - before

    tracemalloc.start()
    try:
        assert asyncio.run(grown()) < 10_000
    finally:
        tracemalloc.stop()
    assert guard.metrics.rejected_calls == 100_200
    assert not any(isinstance(each, CircuitBreakerError) for each in gc.get_objects())


def test_a_refusal_has_what_was_being_handled_as_its_context() -> None:
    guard = breaker(failure_threshold=1)
    guard.record_failure()
    with pytest.raises(CircuitBreakerError) as caught:
        try:
            raise KeyError("first")
        except KeyError:
            guard(lambda: None)()
    assert isinstance(caught.value.__context__, KeyError)


def test_a_refusal_that_someone_else_made_is_read_as_it_was_written() -> None:
    made = CircuitBreakerError("the cache is closed for today")
    assert str(made) == "the cache is closed for today"
    assert (made.name, made.state, made.retry_after) == ("", CircuitState.OPEN, None)


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


async def test_an_error_of_a_task_that_nobody_asks_is_still_told() -> None:
    guard, told = breaker(), list[str]()

    async def fails() -> None:
        raise ValueError

    @guard
    def begin() -> asyncio.Task[None]:
        return asyncio.create_task(fails())

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    begin()
    await until(lambda: counted(guard) == (0, 1))
    gc.collect()
    assert told == ["Task exception was never retrieved"]


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


async def test_an_awaitable_that_can_be_gone_through_stays_one() -> None:
    # As a cursor of asyncpg is.
    class Rows:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return "cursor"

        async def __aiter__(self) -> AsyncIterator[int]:
            yield 1
            yield 2
            if self.fails:
                raise ValueError

    guard = breaker()
    rows: Any = guard(lambda fails: Rows(fails))
    assert isinstance(rows(False), AsyncIterable)
    assert await rows(False) == "cursor" and counted(guard) == (1, 0)
    assert [row async for row in rows(False)] == [1, 2] and counted(guard) == (2, 0)
    with pytest.raises(ValueError):
        async for _ in rows(True):
            pass
    assert counted(guard) == (2, 1)
    begun = aiter(rows(True))
    assert await anext(begun) == 1
    await begun.aclose()
    assert counted(guard) == (2, 1) and guard.metrics.total_calls == 3


async def test_an_awaitable_that_cannot_be_gone_through_does_not_pretend_to() -> None:
    class Answer:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()

    guard = breaker()
    answer: Any = guard(lambda: Answer())()
    assert not isinstance(answer, AsyncIterable) and not hasattr(answer, "__aiter__")
    await answer
    assert counted(guard) == (1, 0)


async def test_a_call_that_is_never_awaited_takes_no_permit() -> None:
    guard = await half_open(half_open_requests=1, success_threshold=2)

    @guard
    async def call() -> int:
        return 1

    with pytest.warns(RuntimeWarning, match="'.*call' was never awaited"):
        call()
        gc.collect()
    closed = call()
    closed.close()
    thrown: Any = call()
    with pytest.raises(KeyError):
        thrown.throw(KeyError("before it began"))
    waiting = call()
    assert guard.metrics.consecutive_successes == 0 and await call() == 1 == await waiting
    assert guard.state is CircuitState.CLOSED


async def test_a_call_that_is_dropped_unfinished_is_cancelled_and_cleans_up() -> None:
    guard, left = await half_open(half_open_requests=1), []

    @guard
    async def call() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            left.append(True)

    for end in ("drop", "close", "throw"):
        flying: Any = call()
        flying.send(None)
        with pytest.raises(CircuitBreakerError):
            await call()
        if end == "close":
            flying.close()
        elif end == "throw":
            with pytest.raises(GeneratorExit):
                flying.throw(GeneratorExit)
        del flying
        gc.collect()
        assert left.pop() and guard.state is CircuitState.HALF_OPEN
    await call()
    assert guard.metrics.consecutive_successes == 1


async def test_a_call_obeys_the_protocol_of_coroutines() -> None:
    guard = breaker()

    @types.coroutine
    def ask(question: str) -> Any:
        return (yield question)

    @guard
    async def talk() -> Any:
        first = await ask("first")
        try:
            await ask("second")
        except KeyError:
            return (first, "caught")

    call: Any = talk()
    with pytest.raises(TypeError, match="just-started"):
        call.send("too early")
    assert call.send(None) == "first" and call.send("answer") == "second"
    with pytest.raises(StopIteration) as end:
        call.throw(KeyError())
    assert end.value.value == ("answer", "caught") and counted(guard) == (1, 0)
    with pytest.raises(RuntimeError, match="already awaited"):
        call.send(None)
    assert call.close() is None

    @guard
    async def refuses_to_end() -> None:
        try:
            await ask("anything")
        except GeneratorExit:
            await ask("more")

    call = refuses_to_end()
    call.send(None)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        call.close()
    assert counted(guard) == (1, 1)

    @guard
    async def sends_to_itself() -> None:
        own.send(None)

    own: Any = sends_to_itself()
    with pytest.raises(ValueError, match="already executing"):
        own.send(None)
    # Results that an exception could be mistaken for, and the one that says nothing.
    for result in (None, (1, 2), ValueError("a value"), StopIteration(3)):

        @guard
        async def gives() -> Any:
            return result

        assert await gives() is result
        with pytest.raises(StopIteration) as end:
            gives().send(None)  # type: ignore[attr-defined]
        assert end.value.value is result
        with pytest.raises(StopIteration) as end:
            next(gives().__await__())
        assert end.value.value is result
        native = StopIteration() if result is None else StopIteration(result)
        assert end.value.args == native.args and repr(end.value) == repr(native)


async def test_a_call_that_is_awaited_by_two_is_that_of_the_first() -> None:
    guard, go = breaker(), asyncio.Event()

    @guard
    async def call() -> str:
        await go.wait()
        return "done"

    shared = call()

    async def wait() -> str:
        return await shared

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.wait([second], timeout=10)
    go.set()
    assert await first == "done" and counted(guard) == (1, 0)
    with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
        await second


def test_a_coroutine_leaves_nothing_of_its_result_behind() -> None:
    guard = breaker()

    class Result:
        pass

    @guard
    async def gives(result: object) -> object:
        return result

    result = Result()
    gone = weakref.ref(result)
    ended = gives(result).__await__()
    with pytest.raises(StopIteration):
        next(ended)
    del ended, result
    gc.collect()
    assert gone() is None
    ended = gives(1).__await__()
    with pytest.raises(StopIteration) as end:
        next(ended)
    assert end.value.args == (1,)


def each_way_through(
    guard: CircuitBreaker, work: Callable[[], Coroutine[Any, Any, int]]
) -> list[Callable[[], Coroutine[Any, Any, int]]]:
    @guard
    async def decorated() -> int:
        return await work()

    @guard
    def gives_coroutine() -> Any:
        return work()

    @guard
    def gives_task() -> Any:
        return asyncio.ensure_future(work())

    @guard
    async def items() -> AsyncIterator[int]:
        yield await work()

    async def through_coroutine() -> int:
        return cast(int, await gives_coroutine())

    async def through_task() -> int:
        return cast(int, await gives_task())

    async def through_generator() -> int:
        return [n async for n in items()][0]

    async def through_block() -> int:
        async with guard:
            return await work()

    return [decorated, through_coroutine, through_task, through_generator, through_block]


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("steps", range(1, 7))
@pytest.mark.parametrize("probing", [False, True])
async def test_a_task_can_be_cancelled_at_every_await(way: int, steps: int, probing: bool) -> None:
    if probing:
        guard = await half_open(half_open_requests=1, success_threshold=1)
    else:
        guard = breaker(failure_threshold=1)
    before, state = guard.metrics.total_calls, guard.state
    begun, cleaned = [], []

    async def work() -> int:
        begun.append(True)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
        finally:
            cleaned.append(True)
            await asyncio.sleep(0)
        return 1

    call = each_way_through(guard, work)[way]
    task = asyncio.ensure_future(call())
    for _ in range(steps):
        await asyncio.sleep(0)
    if probing:
        with pytest.raises(CircuitBreakerError):
            await call()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == begun
    assert (guard.metrics.total_calls, guard.state) == (before, state)
    # The slot is back.
    assert await call() == 1
    assert guard.metrics.total_calls == before + 1 and guard.state is CircuitState.CLOSED


def test_call_passes_arguments_on_whatever_their_names() -> None:
    def named(**names: int) -> dict[str, int]:
        return names

    assert breaker().call(named, self=1, function=2) == {"self": 1, "function": 2}


async def test_call_runs_a_function_once() -> None:
    guard = ConnectionCircuitBreaker(CircuitBreakerConfig(failure_threshold=1))

    async def double(n: int) -> int:
        return 2 * n

    def half(n: int) -> float:
        return n / 2

    assert await guard.call(double, 4) == 8
    assert guard.call(half, n=4) == 2
    assert guard.success_count == 2


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


def test_a_loop_that_ends_closes_an_async_generator_once() -> None:
    guard, kept, told, ended = breaker(), list[object](), list[object](), list[int]()

    @guard
    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        # More than one: in which order a loop ends them is chance.
        for _ in range(10):
            kept.append(begun := items())
            await anext(begun)

    asyncio.run(leave())
    assert ended == [1] * 10 and not told and guard.metrics.total_calls == 0


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


def apart(function: Callable[..., object], *args: object) -> None:
    """Calls it in a context that is gone afterwards."""
    contextvars.copy_context().run(function, *args)


def test_a_block_whose_ends_run_in_two_contexts_counts_as_any() -> None:
    guard = breaker(failure_threshold=2)
    for _ in range(2):
        apart(guard.__enter__)
        error = ConnectionError()
        apart(guard.__exit__, ConnectionError, error, None)
    assert counted(guard) == (0, 2) and guard.state is CircuitState.OPEN

    clock = ManualClock()
    guard = CircuitBreaker(CircuitBreakerConfig(failure_threshold=2), clock=clock)
    for _ in range(2):
        entered = contextvars.copy_context()
        entered.run(guard.__enter__)
        clock.advance(1.5)
        apart(guard.__exit__, None, None, None)
        del entered
        gc.collect()
    assert counted(guard) == (2, 0)
    assert guard.metrics.avg_call_duration == pytest.approx(1.5)
    assert not guard._entered


def test_blocks_that_end_elsewhere_leave_each_other_a_verdict() -> None:
    guard = breaker(failure_threshold=9)
    apart(guard.__enter__)
    with guard:
        # It takes the newest permit, and this block the other.
        apart(lambda: contextvars.Context().run(guard.__exit__, None, None, None))
    assert counted(guard) == (2, 0)
    with guard, guard:
        pass
    assert counted(guard) == (4, 0) and not guard._entered


def test_a_probe_that_ends_in_another_context_keeps_its_slot_until_then() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, half_open_requests=1, success_threshold=1, jitter_enabled=False
    )
    guard = CircuitBreaker(config, clock=clock)
    guard.record_failure()
    clock.advance(60)
    apart(guard.__enter__)
    gc.collect()
    with pytest.raises(CircuitBreakerError):
        guard.call(int)
    apart(guard.__exit__, None, None, None)
    assert guard.state is CircuitState.CLOSED


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


def test_a_classifier_runs_as_the_handler_of_the_exception() -> None:
    seen: list[object] = []

    def asks(outcome: object) -> bool:
        seen.append(sys.exc_info()[1])
        if isinstance(outcome, ValueError):
            raise ZeroDivisionError
        return isinstance(outcome, Exception)

    guard = breaker(is_failure=asks)
    error = KeyError()

    @guard
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        fails(error)
    assert caught.value is error and seen == [error]
    with pytest.raises(ZeroDivisionError) as raised:
        fails(ValueError())
    assert isinstance(raised.value.__context__, ValueError)
    assert guard(lambda: 1)() == 1 and seen[2:] == [None]
    assert counted(guard) == (1, 2)


async def test_a_classifier_sees_where_the_exception_came_from() -> None:
    seen: list[str] = []

    def asks(outcome: Any) -> bool:
        seen.append(traceback.format_exc())
        return outcome.__traceback__ is not None

    guard = breaker(is_failure=asks)

    def where() -> None:
        raise ValueError

    async def awaited() -> None:
        where()

    for call in (lambda: guard(where)(), lambda: asyncio.run(guard(awaited)())):
        with pytest.raises(ValueError) as caught:
            await asyncio.to_thread(call)
        assert caught.traceback[-1].name == "where"
    assert all("in where" in each for each in seen) and counted(guard) == (0, 2)


@pytest.mark.parametrize("ends_by", ["return", "raise", "throw"])
async def test_a_stop_iteration_from_a_classifier_ends_an_async_call(ends_by: str) -> None:
    def broken(outcome: object) -> bool:
        return bool(next(iter(())))

    guard = breaker(is_failure=broken)

    @guard
    async def call() -> str:
        if ends_by == "raise":
            raise ValueError
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60 if ends_by == "throw" else 0)
        return "done"

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    if ends_by == "throw":
        task.cancel()
    # Not `wait_for`: it would wait for a task that cannot end.
    await asyncio.wait([task], timeout=10)
    assert task.done()
    error = task.exception()
    # As Python has it of a coroutine that raises one.
    assert type(error) is RuntimeError and str(error) == "coroutine raised StopIteration"
    assert isinstance(error.__cause__, StopIteration) and counted(guard) == (0, 1)


async def test_a_classifier_judges_async_calls_too() -> None:
    def broken(outcome: object) -> bool:
        if outcome == "broken":
            raise ZeroDivisionError
        return outcome == "failure"

    guard = breaker(is_failure=broken)

    @guard
    async def gives(outcome: str) -> str:
        await asyncio.sleep(0)
        return outcome

    assert (await gives("success"), await gives("failure")) == ("success", "failure")
    with pytest.raises(ZeroDivisionError):
        await gives("broken")
    assert counted(guard) == (1, 2)


def test_an_exception_class_may_say_itself_what_it_excludes() -> None:
    class Asked(type):
        def __instancecheck__(cls, error: object) -> bool:
            return "neutral" in str(error)

    class Neutral(Exception, metaclass=Asked):
        pass

    guard = breaker(excluded_exceptions=[Neutral])

    @guard
    def fails(text: str) -> None:
        raise ConnectionError(text)

    for text in ("neutral", "bad"):
        with pytest.raises(ConnectionError):
            fails(text)
    assert counted(guard) == (0, 1)


def test_what_was_decorated_before_a_reconfiguration_obeys_it() -> None:
    guard = breaker()

    @guard
    def fails() -> None:
        raise ConnectionError

    def fail() -> tuple[int, int]:
        with pytest.raises(ConnectionError):
            fails()
        return counted(guard)

    assert fail() == (0, 1)
    guard.reconfigure(excluded_exceptions=[OSError])
    assert fail() == (0, 1)
    guard.reconfigure(excluded_exceptions=[], is_failure=lambda outcome: False)
    assert fail() == (1, 1)
    guard.reconfigure(is_failure=None)
    assert fail() == (1, 2)


def test_a_breaker_that_nobody_uses_is_collected_with_all_that_it_knew() -> None:
    class Client:
        def __init__(self) -> None:
            self.breaker = breaker(is_failure=self.is_bad)
            self.call = self.breaker(self.fetch)
            self.stream = self.breaker(self.rows)()
            next(self.stream)

        def is_bad(self, outcome: object) -> bool:
            return False

        async def fetch(self) -> None:
            await asyncio.sleep(0)

        def rows(self) -> Iterator[int]:
            yield 1

    client = Client()
    client.flying = client.call()  # type: ignore[attr-defined]
    client.flying.send(None)  # type: ignore[attr-defined]
    parts = [weakref.ref(client), weakref.ref(client.breaker), weakref.ref(client.call)]
    del client
    gc.collect()
    assert [part() for part in parts] == [None, None, None]


async def test_no_way_that_a_call_can_end_leaks_a_reference() -> None:
    class Outcome:
        """What is counted: whatever a call could have kept keeps one of these."""

    outcome, error = Outcome(), ConnectionError()
    guard = breaker(failure_threshold=1_000_000, error_rate_threshold=None)
    shut = breaker()
    shut.force_open()

    async def later(fails: bool, outcome: Outcome) -> Outcome:
        await asyncio.sleep(0)
        if fails:
            raise error.with_traceback(None)
        return outcome

    def now(fails: bool, outcome: Outcome) -> Outcome:
        if fails:
            raise error.with_traceback(None)
        return outcome

    async def awaited(fails: bool, given: Outcome) -> None:
        with suppress(ConnectionError, CircuitBreakerError):
            await later_guarded(fails, outcome=given)

    async def one_round() -> None:
        for fails in (False, True):
            with suppress(ConnectionError, CircuitBreakerError):
                now_guarded(fails, outcome=outcome)
            await awaited(fails, outcome)
            for end in ("drop", "close", "throw", "cancel"):
                task = asyncio.ensure_future(awaited(fails, outcome))
                await asyncio.sleep(0)
                if end == "cancel":
                    task.cancel()
                await asyncio.wait([task])
                flying: Any = later_guarded(fails, outcome)
                with suppress(CircuitBreakerError):
                    flying.send(None)
                if end == "close":
                    flying.close()
                elif end == "throw":
                    with suppress(KeyError, RuntimeError):
                        flying.throw(KeyError())
                del flying
        error.with_traceback(None).__context__ = None
        gc.collect()

    for by in (guard, shut):
        now_guarded, later_guarded = by(now), by(later)
        kept = (outcome, now_guarded, later_guarded, by, by._native, now, later)
        for _ in range(3):
            await one_round()
        before = [sys.getrefcount(each) for each in kept]
        for _ in range(50):
            await one_round()
        assert [sys.getrefcount(each) for each in kept] == before


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


@pytest.mark.parametrize("way", range(5))
async def test_calls_that_hang_open_it_unless_they_are_generators(way: int) -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        overdue_calls_enabled=True,
        slow_call_threshold=1.0,
        slow_call_rate_threshold=1.0,
        min_calls_before_evaluation=2,
    )
    guard = CircuitBreaker(config, clock=clock)
    release = asyncio.Event()

    async def hang() -> int:
        await release.wait()
        return 1

    call = each_way_through(guard, hang)[way]
    tasks = [asyncio.ensure_future(call()) for _ in range(2)]
    await asyncio.sleep(0)
    clock.advance(1.5)
    is_generator = way == 3
    with nullcontext() if is_generator else pytest.raises(CircuitBreakerError):
        guard(lambda: None)()
    assert guard.state is (CircuitState.CLOSED if is_generator else CircuitState.OPEN)
    release.set()
    assert await asyncio.gather(*tasks) == [1, 1]


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


@pytest.mark.parametrize("classifier", [None, lambda outcome: outcome is not None])
async def test_a_group_of_nothing_but_refusals_and_excluded_exceptions_is_neutral(
    classifier: Callable[[Any], bool] | None,
) -> None:
    inner = breaker(failure_threshold=1)
    inner.record_failure()
    outer = breaker(excluded_exceptions=[KeyError], is_failure=classifier)

    @inner
    async def refused() -> None:
        raise AssertionError("never called")

    @outer
    async def fan_out() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refused())
            tasks.create_task(refused())

    with pytest.raises(ExceptionGroup):
        await fan_out()

    def judged(error: Exception) -> int:
        with suppress(ExceptionGroup), outer:
            raise error
        return outer.metrics.failed_calls

    refusal = CircuitBreakerError("inner", "open", None, "told", True)
    nested = ExceptionGroup("nested", [KeyError(), ExceptionGroup("deeper", [refusal])])
    assert judged(nested) == outer.metrics.total_calls == 0
    assert judged(ExceptionGroup("mixed", [nested, ValueError()])) == 1

    class Own(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> Any:
            return list(super().exceptions)

    def failing(error: Exception) -> None:
        raise error

    own = Own("own", [nested])
    with pytest.raises(Own) as caught:
        outer.call(failing, own)
    assert caught.value is own and outer.metrics.failed_calls == 1


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


def test_why_someone_opens_or_closes_a_breaker_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    guard = CircuitBreaker(name="db")
    with caplog.at_level(logging.INFO, "kailash"):
        guard.force_open("moving the database")
        guard.force_close(reason="it has moved")
    assert caplog.messages == [
        "circuit breaker 'db' is forced open: moving the database",
        "circuit breaker 'db' is closed by force: it has moved",
    ]


def test_every_share_and_count_of_the_window_and_of_all_calls_can_be_asked_for() -> None:
    guard = breaker(slow_call_threshold=None)
    for number in ("1", "2", "none"):
        with suppress(ValueError):
            guard.call(int, number)
    assert (guard.success_count, guard.failure_count) == (2, 1)
    metrics = guard.metrics
    assert metrics.get_error_rate() == metrics.error_rate == pytest.approx(1 / 3)
    assert metrics.get_slow_call_rate() == metrics.slow_call_rate == 0


def test_no_reset_sets_back_what_metrics_show() -> None:
    guard = breaker(failure_threshold=2)
    guard.call(int)
    for _ in range(2):
        with pytest.raises(ValueError):
            guard.call(int, "no number")
    with pytest.raises(CircuitBreakerError):
        guard.call(int)
    counted = CircuitBreakerCounts(calls=3, failures=2, rejections=1, openings=1)
    assert guard.counts == counted
    guard.reset()
    assert (guard.metrics.total_calls, guard.counts) == (0, counted)


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


def test_the_status_tells_why_it_opened_and_what_metrics_only_would_have_done() -> None:
    guard = breaker(failure_threshold=2)
    status = guard.get_status()
    assert status["cause"] is None and status["would_open"] is None
    assert status["openings"] == 0 and status["ramp_share"] is None
    guard.metrics_only()
    for _ in range(2):
        guard.record_failure()
    assert guard.get_status()["would_open"] == "consecutive_failures"
    assert guard.state is CircuitState.METRICS_ONLY
    guard.enable()
    guard.reset()
    for _ in range(2):
        guard.record_failure()
    status = json.loads(json.dumps(guard.get_status()))
    assert status["cause"] == "consecutive_failures" and status["openings"] == 1


def test_the_status_tells_the_share_that_a_ramp_lets_pass() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, ramp_enabled=True, jitter_enabled=False
    )
    guard = CircuitBreaker(config, clock=clock)
    guard.record_failure()
    clock.advance(60)
    guard.call(int)
    assert guard.get_status()["ramp_share"] == pytest.approx(0.05)


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_listener_keeps_no_breaker_alive(is_removed: bool) -> None:
    guard, heard = breaker(), []

    def listener(old: CircuitState, new: CircuitState, metrics: object) -> None:
        heard.append(new)

    guard.add_listener(listener)
    guard.force_open()
    until_sync(lambda: heard == [CircuitState.OPEN])
    if is_removed:
        guard.remove_listener(listener)
    gone = weakref.ref(guard)
    del guard

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    until_sync(is_gone)


def test_a_listener_that_is_added_after_the_last_was_removed_hears() -> None:
    guard, heard = breaker(), []

    def listener(old: CircuitState, new: CircuitState, metrics: object) -> None:
        heard.append(new)

    for _ in range(3):
        guard.add_listener(listener)
        guard.remove_listener(listener)
    guard.remove_listener(listener)
    guard.force_open()
    guard.add_listener(listener)
    guard.reset()
    until_sync(lambda: heard == [CircuitState.CLOSED])


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
    guard.reset()
    # They are told in order: a second telling would come before the end of this one.
    await until(lambda: awaited[-1][1] is CircuitState.CLOSED)
    assert len(awaited) == 5, "each transition is told once"


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
    inner = breaker()
    inner.force_open()
    with pytest.raises(CircuitBreakerError) as refused:
        await manager.execute_with_circuit_breaker("api", lambda: inner.call(int), lambda: 1)
    assert refused.value.name == inner.name, "its fallback is for its own refusals"
    assert manager.get_or_create("api").metrics.failed_calls == 0
    assert set(manager.get_all_status()) == {"api"} == set(manager.get_all_circuit_states())
    await manager.reset_all()

    heard: list[str] = []
    manager.add_global_callback(lambda old, new, metrics: heard.append(new.value))
    manager.get_or_create("later").force_open()
    api.force_open()
    until_sync(lambda: heard == ["open", "open"])
    manager.set_default_config(CircuitBreakerConfig(failure_threshold=9))
    assert manager.get_or_create("newest").config.failure_threshold == 9


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


async def test_threads_that_call_at_once_share_the_slots_of_a_half_open_breaker() -> None:
    guard = await half_open(half_open_requests=3, success_threshold=3)
    inside, release = threading.Semaphore(0), threading.Event()
    ends: list[object] = []

    @guard
    def probe() -> str:
        inside.release()
        release.wait(30)
        return "passed"

    def call() -> None:
        try:
            ends.append(probe())
        except CircuitBreakerError as error:
            ends.append(error.state)

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    await until(lambda: len(ends) == 17)
    assert ends == [CircuitState.HALF_OPEN] * 17
    assert all(inside.acquire(timeout=30) for _ in range(3))
    release.set()
    for thread in threads:
        thread.join()
    assert ends[17:] == ["passed"] * 3 and guard.state is CircuitState.CLOSED


class Throttled(Exception):
    def __init__(self, wait: float | None) -> None:
        self.wait = wait


def asked_wait(outcome: Any) -> float | None:
    return outcome.wait if isinstance(outcome, Throttled) else outcome.get("retry_after")


async def test_retry_after_is_how_long_an_opening_lasts() -> None:
    guard = breaker(failure_threshold=1, retry_after=asked_wait)

    @guard
    async def throttled() -> None:
        raise Throttled(7.5)

    with pytest.raises(Throttled):
        await throttled()
    with pytest.raises(CircuitBreakerError) as rejected:
        await throttled()
    assert rejected.value.retry_after == pytest.approx(7.5, abs=0.5)


async def test_retry_after_is_asked_about_results_that_are_failures() -> None:
    guard = breaker(
        failure_threshold=1,
        is_failure=lambda outcome: isinstance(outcome, dict) and outcome["status"] == 503,
        retry_after=asked_wait,
    )
    answers = iter([{"status": 200, "retry_after": 1.0}, {"status": 503, "retry_after": 30.0}])

    @guard
    def ask() -> dict[str, float]:
        return next(answers)

    ask()
    assert guard.state is CircuitState.CLOSED
    ask()
    assert guard.get_status()["time_until_recovery"] == pytest.approx(30, abs=0.5)


async def test_without_an_answer_of_retry_after_the_wait_is_the_breakers() -> None:
    guard = breaker(failure_threshold=1, recovery_timeout=100, jitter_enabled=False, retry_after=asked_wait)
    with pytest.raises(Throttled):
        async with guard:
            raise Throttled(None)
    assert guard.get_status()["time_until_recovery"] == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "soon"])
async def test_a_wait_that_is_none_counts_as_a_failure_and_says_what_is_wrong(wrong: Any) -> None:
    guard = breaker(failure_threshold=5, retry_after=lambda outcome: wrong)

    @guard
    def fails() -> None:
        raise ConnectionError

    with pytest.raises((ValueError, TypeError), match="retry_after"):
        fails()
    assert counted(guard) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"window": "hours"}, ValueError),
        ({"window": 3}, TypeError),
        ({"window_duration": 0.001}, ValueError),
        ({"window_duration": 100_000}, ValueError),
        ({"overdue_calls_enabled": 1}, TypeError),
        ({"ramp_enabled": "yes"}, TypeError),
        ({"initial_state": "ajar"}, ValueError),
        ({"retry_after": 5}, TypeError),
    ],
)
def test_a_wrong_value_of_a_new_kind_is_named(settings: dict[str, Any], kind: type[Exception]) -> None:
    (field,) = settings
    with pytest.raises(kind, match=field):
        CircuitBreakerConfig(**settings)


def test_a_state_to_start_in_may_be_a_member_or_its_value() -> None:
    for state in CircuitState:
        by_value = breaker(initial_state=state.value)
        assert by_value.state is breaker(initial_state=state).state is state
        assert by_value.config.initial_state is state
        json.dumps(by_value.get_status())


async def test_calls_that_hang_open_the_breaker_before_they_end() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        overdue_calls_enabled=True, slow_call_threshold=4, min_calls_before_evaluation=3
    )
    guard = CircuitBreaker(config, name=next(_names), clock=clock)
    never = asyncio.Event()
    hung = [asyncio.create_task(guard(never.wait)()) for _ in range(3)]
    await asyncio.sleep(0)
    clock.advance(5)
    with pytest.raises(CircuitBreakerError):
        await guard(never.wait)()
    assert guard.metrics.slow_calls == 3
    never.set()
    await asyncio.gather(*hung)
