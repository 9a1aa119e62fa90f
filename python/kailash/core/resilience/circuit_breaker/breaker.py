"""One circuit breaker."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from types import CodeType, FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakSet, ref

from kailash import _native
from kailash._callbacks import Callback, Done
from kailash._kinds import ASYNC_GENERATOR, COROUTINE, GENERATOR, kind_of
from kailash._process import in_forked_child
from kailash.core.resilience.circuit_breaker.config import FIELDS, CircuitBreakerConfig, checked
from kailash.core.resilience.circuit_breaker.event import EventListener, Subscribers
from kailash.core.resilience.circuit_breaker.state import STATES, CircuitState
from kailash.core.resilience.clock import ManualClock
from kailash.core.resilience.histogram import HistogramSnapshot
from kailash.core.resilience.rejection import RejectionError

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerCounts",
    "CircuitBreakerMetrics",
    "ConnectionCircuitBreaker",
    "Listener",
    "judge_by",
]

_logger = logging.getLogger("kailash")

_asyncgen_hooks, _set_asyncgen_hooks = sys.get_asyncgen_hooks, sys.set_asyncgen_hooks

_P = ParamSpec("_P")
_R = TypeVar("_R")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CircuitBreakerMetrics:
    """What a circuit breaker has counted, at one moment; durations in seconds."""

    total_calls: int = 0
    successful_calls: int = 0
    failed_calls: int = 0
    rejected_calls: int = 0
    slow_calls: int = 0
    error_rate: float = 0.0
    slow_call_rate: float = 0.0
    avg_call_duration: float = 0.0
    consecutive_failures: int = 0
    consecutive_successes: int = 0

    def get_error_rate(self) -> float:
        """The share of failed calls in the window."""
        return self.error_rate

    def get_slow_call_rate(self) -> float:
        """The share of slow calls in the window."""
        return self.slow_call_rate


@dataclass(frozen=True)
class CircuitBreakerCounts:
    """What breakers have counted since they were made. No reset sets it back: this is for metrics."""

    calls: int = 0
    failures: int = 0
    slow_calls: int = 0
    rejections: int = 0
    openings: int = 0


_METRICS = tuple(each.name for each in fields(CircuitBreakerMetrics))

# The blocks of `with breaker:` that the current task or thread is inside, the innermost first.
_Block = tuple["CircuitBreaker", _native.CircuitBreakerPermit, Any]
_blocks: ContextVar[_Block | None] = ContextVar("kailash_circuit_breaker_blocks", default=None)

_every: WeakSet[CircuitBreaker] = WeakSet()

Listener = Callable[[CircuitState, CircuitState, CircuitBreakerMetrics], object]


class _Audience:
    """Who is told of a breaker's transitions."""

    def __init__(self) -> None:
        self.listeners: list[tuple[Listener, Callback]] = []
        # Popped by whoever adds the first listener.
        self.unheard = [True]
        self.subscription: _native.CircuitBreakerSubscription | None = None


class CircuitBreaker:
    """A circuit breaker: a decorator, a context manager, and a handle to see and steer it.

    As a decorator it takes functions, async functions, generators, async generators and methods,
    and keeps their kind. `with` and `async with` guard a block. A call that it refuses raises
    `CircuitBreakerError`. A block may be left in another context or thread than it was entered in.
    What a block raises counts, and so does what is thrown into a generator at its `yield` and comes
    out of it, as `contextmanager` and dependencies of FastAPI throw what the code around them raised:
    `excluded_exceptions` says which of it is none of the dependency's doing.
    What it guards is pickled by name, as functions are. What is not found by its name, as in a script
    whose functions cloudpickle sends by value, cannot be: a breaker stays in its process.
    Any thread and any event loop may use it. `clock` is for tests.
    """

    # Made when they are first needed: a breaker of a key may live for one call.
    _audience: _Audience | None = None
    _subscribers: Subscribers | None = None
    # The permits of all blocks that run, the newest last.
    _entered: dict[_native.CircuitBreakerPermit, None] | None = None

    def __init__(
        self,
        config: CircuitBreakerConfig | None = None,
        *,
        name: str = "circuit_breaker",
        clock: ManualClock | None = None,
    ) -> None:
        config = checked(config) or CircuitBreakerConfig()
        self._adopt(_native.CircuitBreaker(name, config, clock), config)

    @classmethod
    def _over(cls, native: _native.CircuitBreaker, config: CircuitBreakerConfig) -> CircuitBreaker:
        breaker = cls.__new__(cls)
        breaker._adopt(native, config)
        return breaker

    def _adopt(self, native: _native.CircuitBreaker, config: CircuitBreakerConfig) -> None:
        self._native = native
        self._configure(config)
        _every.add(self)

    def _configure(self, config: CircuitBreakerConfig) -> None:
        self._config = config
        judge_by(self._native, config)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state.value}>"

    @property
    def name(self) -> str:
        """The breaker's name."""
        return self._native.name

    @property
    def config(self) -> CircuitBreakerConfig:
        """The settings in force."""
        return self._config

    @property
    def state(self) -> CircuitState:
        """What it does with calls now; an open breaker whose wait is over reads HALF_OPEN."""
        return STATES[self._native.state()]

    @property
    def metrics(self) -> CircuitBreakerMetrics:
        """What it has counted so far."""
        counted = self._native.snapshot()
        return CircuitBreakerMetrics(**{name: counted[name] for name in _METRICS})

    @property
    def counts(self) -> CircuitBreakerCounts:
        """What it has counted since it was made. No reset sets it back: this is for metrics."""
        return CircuitBreakerCounts(**self._native.counts())

    @property
    def success_count(self) -> int:
        """How many calls succeeded."""
        return self.metrics.successful_calls

    @property
    def failure_count(self) -> int:
        """How many calls failed."""
        return self.metrics.failed_calls

    @property
    def durations(self) -> HistogramSnapshot | None:
        """How long calls took since the last reset.

        None unless its manager was told to `record_durations` and a call has ended since then, and
        for the breaker of a key: its group has those of all keys together.
        """
        return self._native.durations()

    @property
    def all_durations(self) -> HistogramSnapshot | None:
        """As `durations`, but no reset sets it back: this is for metrics."""
        return self._native.all_durations()

    def get_status(self) -> dict[str, Any]:
        """Everything about the breaker now, ready for JSON.

        `cause` is why it is open or half-open, `openings` how often it opened, `would_open` why it would have
        opened in METRICS_ONLY, and `ramp_share` which share of the calls passes during a ramp.
        `durations` has count, sum, mean, p50, p90, p99 and cumulative buckets, each an upper bound and
        how many calls took no longer, or is None: see the property.
        """
        counted = self._native.snapshot()
        settings = self.config
        config: dict[str, Any] = {name: getattr(settings, name) for name in FIELDS}
        config["excluded_exceptions"] = [each.__qualname__ for each in settings.excluded_exceptions]
        config["initial_state"] = settings.initial_state.value
        for judge in ("is_failure", "retry_after"):
            config[judge] = config[judge] and repr(config[judge])
        return {
            "name": self.name,
            "state": counted["state"],
            "forced": counted["forced"],
            "cause": counted["cause"],
            "openings": counted["openings"],
            "would_open": counted["would_open"],
            "ramp_share": counted["ramp_share"],
            "metrics": {name: counted[name] for name in _METRICS},
            "durations": _for_json(self.durations),
            "config": config,
            "time_until_recovery": counted["retry_after"],
            "state_transitions": counted["state_transitions"],
        }

    def add_listener(self, listener: Listener) -> None:
        """Has `listener(old_state, new_state, metrics)` told of each transition.

        A plain function runs on a thread of its own, an async one on the loop that runs now, or on
        the library's when none does. What it raises is logged; it never delays a call. It is told
        as long as somebody keeps the breaker: one of a key is let go at once if it is not assigned,
        which `CircuitBreakerManager.subscribe` does not depend on.
        """
        callback = Callback(listener, "circuit breaker listener")
        audience = self._audience or self.__dict__.setdefault("_audience", _Audience())
        audience.listeners.append(added := (listener, callback))
        _every.add(self)
        try:
            self._subscribe(audience)
        except RuntimeError:
            # There are no threads to tell it.
            audience.listeners.remove(added)
            raise

    def remove_listener(self, listener: Listener) -> None:
        """Ends what `add_listener` began; unknown listeners are ignored."""
        audience = self._audience
        if audience is None:
            return
        for index, (known, _) in enumerate(audience.listeners):
            if known == listener:
                del audience.listeners[index]
                break
        else:
            return
        if not audience.listeners:
            audience.subscription = None
            audience.unheard.append(True)
            # Another thread may have added one meanwhile.
            self._subscribe(audience)

    def _subscribe(self, audience: _Audience) -> None:
        if not audience.listeners:
            return
        try:
            audience.unheard.pop()
        except IndexError:
            return
        try:
            audience.subscription = self._native.listen(_teller(self))
        except RuntimeError:
            audience.unheard.append(True)
            raise

    def subscribe(self, listener: EventListener) -> None:
        """Has `listener(event)` told of all that happens from now on, calls too: see
        CircuitBreakerEvent.

        A plain function runs on a thread of its own, an async one on the loop that runs now, or on
        the library's when none does. What it raises is logged. It can neither delay nor break a call:
        one that falls more than about a thousand events behind loses the oldest, and is told how
        many. It is told as long as somebody keeps the breaker.
        """
        self._made_subscribers().add(self._native, listener)

    def subscribe_transitions(self, listener: EventListener) -> None:
        """As `subscribe`, to transitions only: calls cost nothing then."""
        self._made_subscribers().add_of_transitions(self._native, listener)

    def _made_subscribers(self) -> Subscribers:
        _every.add(self)
        return self._subscribers or self.__dict__.setdefault("_subscribers", Subscribers())

    def unsubscribe(self, listener: EventListener) -> None:
        """Ends what `subscribe` or `subscribe_transitions` began; unknown listeners are ignored."""
        if self._subscribers is not None:
            self._subscribers.remove(listener)

    def record_success(self) -> Done:
        """Counts a call that succeeded elsewhere."""
        self._native.record_success()
        return Done()

    def record_failure(self) -> Done:
        """Counts a call that failed elsewhere."""
        self._native.record_failure()
        return Done()

    def force_open(self, reason: str = "told to") -> Done:
        """Refuses every call until `force_close()` or `reset()`; logs the reason."""
        _logger.info("circuit breaker %r is forced open: %s", self.name, reason)
        self._native.force_open()
        return Done()

    def force_close(self, reason: str = "told to") -> Done:
        """Closes the breaker, which goes on judging calls; logs the reason."""
        _logger.info("circuit breaker %r is closed by force: %s", self.name, reason)
        self._native.force_close()
        return Done()

    def reset(self) -> Done:
        """Closes the breaker and forgets what it has counted."""
        self._native.reset()
        return Done()

    def disable(self) -> Done:
        """Lets every call pass and counts none, until `enable()`."""
        self._native.disable()
        return Done()

    def metrics_only(self) -> Done:
        """Lets every call pass and counts them, until `enable()`."""
        self._native.metrics_only()
        return Done()

    def enable(self) -> Done:
        """Ends `disable()` and `metrics_only()`."""
        self._native.enable()
        return Done()

    def reconfigure(self, config: CircuitBreakerConfig | None = None, **changes: Any) -> Done:
        """Changes the settings at once, and keeps the state and what was counted."""
        config = replace(checked(config) or self._config, **changes)
        self._native.reconfigure(config)
        self._configure(config)
        return Done()

    async def ready(self, timeout: float | None = None) -> None:
        """Waits until the breaker may admit a call, at once while it is closed.

        It is a hint, and takes nothing: of many who wait no more than `half_open_requests` get through
        as probes, and who is refused may wait again. One that is forced open may be waited for
        without end. On a ramp, where chance decides about each call, it does not wait.

        Raises TimeoutError after `timeout` seconds. Cancelling it leaves nothing behind.
        """
        waiting = self._native.ready(timeout, asyncio.get_running_loop())
        if not await _waited(waiting):
            raise self._late("ready", timeout)

    async def wait_until_closed(self, timeout: float | None = None) -> None:
        """Waits until calls pass freely: until the breaker is CLOSED, DISABLED or METRICS_ONLY.

        It makes no call of its own: somebody's probes must succeed, or somebody must close it.

        Raises TimeoutError after `timeout` seconds. Cancelling it leaves nothing behind.
        """
        waiting = self._native.closed(timeout, asyncio.get_running_loop())
        if not await _waited(waiting):
            raise self._late("closed", timeout)

    def ready_sync(self, timeout: float | None = None) -> None:
        """As `ready`, for a thread, which waits here.

        Raises RuntimeError where an event loop runs, which must not stand still.
        """
        _check_no_loop("ready")
        if not self._native.wait_ready(timeout):
            raise self._late("ready", timeout)

    def wait_until_closed_sync(self, timeout: float | None = None) -> None:
        """As `wait_until_closed`, for a thread, which waits here.

        Raises RuntimeError where an event loop runs, which must not stand still.
        """
        _check_no_loop("wait_until_closed")
        if not self._native.wait_closed(timeout):
            raise self._late("closed", timeout)

    def _late(self, what: str, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"circuit breaker {self.name!r}: not {what} within {timeout} s")

    def __call__(self, function: _F, /) -> _F:
        """Guards a function, an async function, a generator, an async generator or a method."""
        if isinstance(function, (staticmethod, classmethod)):
            return cast(_F, type(function)(self(function.__func__)))
        kind = kind_of(function)
        if kind & ASYNC_GENERATOR:
            return cast(_F, self._guard_async_generator(function))
        if kind == GENERATOR:
            return cast(_F, self._guard_generator(function))
        guarded = self._guard(function, kind)
        return cast(_F, functools.update_wrapper(guarded, function))

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Calls `function` once through the breaker; await the answer of an async one."""
        kind = kind_of(function)
        is_generator = kind == GENERATOR or kind & ASYNC_GENERATOR
        guarded = self(function) if is_generator else self._guard(function, kind)
        return cast(_R, guarded(*args, **kwargs))

    def _guard(self, function: Callable[..., Any], kind: int) -> Callable[..., Any]:
        if not callable(function):
            raise TypeError(f"a circuit breaker guards functions, not {function!r}")
        asked = function
        if kind and not _makes_coroutines(function):
            function = _awaiting(function)
        return _native.guard(function, asked, self._native, self, kind != 0)

    def _guard_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            permit = self._native.acquire_unwatched()
            try:
                generator = function(*args, **kwargs)
                item = next(generator)
                while True:
                    permit.pause()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        permit.ignore()
                        generator.close()
                        raise
                    except BaseException as error:
                        permit.resume()
                        item = generator.throw(error)
                    else:
                        permit.resume()
                        item = generator.send(sent)
            except StopIteration as end:
                permit.succeed(end.value)
                return end.value
            except BaseException as error:
                permit.fail(error)
                raise

        return guarded

    def _guard_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            permit = self._native.acquire_unwatched()
            try:
                generator = function(*args, **kwargs)
                item = await _first(generator)
                while True:
                    permit.pause()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        permit.ignore()
                        await generator.aclose()
                        raise
                    except BaseException as error:
                        permit.resume()
                        item = await generator.athrow(error)
                    else:
                        permit.resume()
                        item = await generator.asend(sent)
            except StopAsyncIteration:
                permit.succeed(None)
            except BaseException as error:
                permit.fail(error)
                raise

        return guarded

    def _judge_at_its_end(self, permit: _native.CircuitBreakerPermit, awaitable: Any) -> Any:
        if inspect.iscoroutine(awaitable):
            return self._judged(permit, awaitable)
        if isinstance(awaitable, asyncio.Future):

            def settle(future: asyncio.Future[Any]) -> None:
                if future.cancelled():
                    permit.cancel()
                # Not by `exception()`: of an error that nobody asked for the loop tells.
                elif (error := future._exception) is not None:
                    permit.fail(error)
                else:
                    permit.succeed(future.result())

            awaitable.add_done_callback(settle)
            return awaitable
        kind = _JudgedItems if hasattr(awaitable, "__aiter__") else _Judged
        return kind(self, permit, awaitable)

    async def _judged(self, permit: _native.CircuitBreakerPermit, awaitable: Awaitable[Any]) -> Any:
        try:
            result = await awaitable
        except BaseException as error:
            permit.fail(error)
            raise
        permit.succeed(result)
        return result

    def __enter__(self) -> CircuitBreaker:
        permit = self._native.acquire()
        entered = self._entered
        if entered is None:
            entered = self.__dict__.setdefault("_entered", {})
        entered[permit] = None
        _blocks.set((self, permit, _blocks.get()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        permit = self._leave()
        if permit is None:
            return
        if error is None:
            permit.success()
        else:
            permit.fail(error)

    async def __aenter__(self) -> CircuitBreaker:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _leave(self) -> _native.CircuitBreakerPermit | None:
        """The permit of the block that ends: this context's innermost, else the newest of all.

        A block is left in another context than it was entered in where a framework runs the two
        halves of a dependency in contexts of their own, or another task closes a generator.
        """
        block = _blocks.get()
        if block is not None and block[0] is self:
            _blocks.set(block[2])
            permit: _native.CircuitBreakerPermit | None = block[1]
        else:
            permit = self._innermost()
        entered = self._entered or {}
        if permit is not None:
            try:
                del entered[permit]
                return permit
            except KeyError:
                pass  # a block that was left elsewhere has taken it, and left its own
        try:
            return entered.popitem()[0]
        except KeyError:
            return None

    def _innermost(self) -> _native.CircuitBreakerPermit | None:
        """Takes this breaker's innermost block off the context's stack, from below others'."""
        passed: list[_Block] = []
        block = _blocks.get()
        while block is not None and block[0] is not self:
            passed.append(block)
            block = block[2]
        if block is None:
            return None
        rest = block[2]
        for breaker, permit, _ in reversed(passed):
            rest = (breaker, permit, rest)
        _blocks.set(rest)
        return block[1]


ConnectionCircuitBreaker = CircuitBreaker


def _for_json(seen: HistogramSnapshot | None) -> dict[str, Any] | None:
    return seen and {
        "count": seen.count,
        "sum": seen.sum,
        "mean": seen.mean,
        "p50": seen.quantile(0.5),
        "p90": seen.quantile(0.9),
        "p99": seen.quantile(0.99),
        "buckets": [list(bucket) for bucket in seen.cumulative()],
    }


def _teller(breaker: CircuitBreaker) -> Callable[[str, str], None]:
    """Tells the breaker's listeners as long as somebody else keeps it alive."""
    alive = ref(breaker)

    def tell(old: str, new: str) -> None:
        breaker = alive()
        if breaker is not None and breaker._audience is not None:
            metrics = breaker.metrics
            for _, callback in tuple(breaker._audience.listeners):
                callback(STATES[old], STATES[new], metrics)

    return tell


async def _waited(waiting: _native.CircuitBreakerWaiting | None) -> bool:
    if waiting is None:
        return True
    try:
        return await waiting.future
    finally:
        waiting.leave()


def _check_no_loop(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name}_sync() would stop the event loop here: await {name}() instead")


class _Judged:
    """An awaitable whose end is judged, and which otherwise is what it was."""

    def __init__(
        self, breaker: CircuitBreaker, permit: _native.CircuitBreakerPermit, awaitable: Any
    ) -> None:
        self._judged_breaker = breaker
        self._judged_permit = permit
        self._judged_awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        breaker, permit = self._judged_breaker, self._judged_permit
        return breaker._judged(permit, self._judged_awaitable).__await__()

    async def __aenter__(self) -> Any:
        breaker, permit = self._judged_breaker, self._judged_permit
        return await breaker._judged(permit, self._judged_awaitable.__aenter__())

    def __aexit__(self, *error: Any) -> Any:
        return self._judged_awaitable.__aexit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judged_awaitable, name)


class _JudgedItems(_Judged):
    """One that can be gone through too."""

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        permit = self._judged_permit
        try:
            async for item in self._judged_awaitable:
                permit.pause()
                try:
                    yield item
                except GeneratorExit:
                    permit.ignore()
                    raise
                finally:
                    permit.resume()
        except BaseException as error:
            permit.fail(error)
            raise
        permit.succeed(None)


def _makes_coroutines(function: Callable[..., Any]) -> bool:
    """Whether each call of this async function gives a coroutine of its own."""
    if type(function) is not FunctionType:
        function = getattr(function, "__func__", function)
        function = inspect.unwrap(function, stop=_is_not_guarded)
    code = function.__code__ if isinstance(function, FunctionType) else None
    return isinstance(code, CodeType) and bool(code.co_flags & COROUTINE)


def _is_not_guarded(function: object) -> bool:
    return not isinstance(function, _native.GuardedFunction)


def _first(generator: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """Begins a generator that its owner ends: a loop that ends all that began on it would end both
    at once, which the second must fail at."""
    known = _asyncgen_hooks()[0]
    _set_asyncgen_hooks(None)
    try:
        return generator.__anext__()
    finally:
        _set_asyncgen_hooks(known)


def _awaiting(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return call


def judge_by(
    native: _native.CircuitBreaker | _native.KeyedCircuitBreakers, config: CircuitBreakerConfig
) -> None:
    """Has the calls of a breaker, or of all of a group, judged as these settings say."""
    neutral: tuple[type[BaseException], ...] = (RejectionError, *config.excluded_exceptions)
    native.judge_by(neutral, config.is_failure, config.retry_after)


@in_forked_child
def _forget_calls_in_flight() -> None:
    for breaker in tuple(_every):
        breaker._native.forget_calls_in_flight()
        audience = breaker._audience
        if audience is not None and not audience.unheard:
            # What carried the news to them was a thread of the parent's.
            audience.subscription = breaker._native.listen(_teller(breaker))
        if breaker._subscribers is not None:
            breaker._subscribers.begin_anew(breaker._native)
