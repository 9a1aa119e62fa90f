"""Circuit breakers: stop calling a dependency that fails, and find out gently when it is back."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from types import FunctionType, TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, cast
from weakref import WeakSet, ref

from kailash import _native
from kailash._process import in_forked_child
from kailash._callbacks import BatchCallback, Callback, Done
from kailash.core.resilience.clock import ManualClock
from kailash.core.resilience.config import ConfigError, ConfigTypeError
from kailash.core.resilience.histogram import HistogramSnapshot
from kailash.core.resilience.rejection import RejectionError

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerCounts",
    "CircuitBreakerError",
    "CircuitBreakerEvent",
    "CircuitBreakerManager",
    "CircuitBreakerMetrics",
    "CircuitState",
    "ConfigError",
    "ConfigTypeError",
    "ConnectionCircuitBreaker",
    "KeyCounts",
    "KeyedCircuitBreakers",
    "KeyedConfig",
    "KeyedSeries",
    "KeyedSnapshot",
    "get_circuit_breaker",
    "get_circuit_breaker_manager",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_F = TypeVar("_F", bound=Callable[..., Any])


class CircuitState(Enum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


_STATES = {state.value: state for state in CircuitState}


class CircuitBreakerError(RejectionError):
    """A circuit breaker refused a call."""

    # Its parts are its arguments: name, state, retry_after, cause, forced. Raising one runs no
    # Python, and its message is made only for who reads it.

    def __str__(self) -> str:
        return _native.rejection_message(self) if self._is_whole() else super().__str__()

    @property
    def name(self) -> str:
        """The breaker's name."""
        return str(self._part(0, ""))

    @property
    def state(self) -> CircuitState:
        """OPEN, or HALF_OPEN when all probes are in flight."""
        return _STATES[self._part(1, "open")]

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call is worth trying; None where only another event decides."""
        return cast("float | None", self._part(2, None))

    @property
    def cause(self) -> str | None:
        """Why the breaker opened."""
        return cast("str | None", self._part(3, None))

    @property
    def forced(self) -> bool:
        """Whether someone told it to open."""
        return bool(self._part(4, False))

    def _part(self, index: int, default: Any) -> Any:
        return self.args[index] if self._is_whole() else default

    def _is_whole(self) -> bool:
        return len(self.args) == 5


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """The settings of a circuit breaker; durations in seconds, checked when it is made.

    `excluded_exceptions` count neither as success nor as failure. `is_failure` is asked about each
    result and each other exception, and answers whether it counts as a failure. `None` switches off
    a rate, slow calls, or the counting of cancelled calls. `window="time"` makes the rates look at
    the last `window_duration` instead of the last `window_size` calls. With `overdue_calls_enabled` a
    call counts as slow while it still runs; with `ramp_enabled` a growing share of the calls passes
    before the breaker closes. `retry_after` is asked about each failure how many seconds the
    dependency wants to be left alone, if it says so: that is then how long an opening lasts.
    """

    failure_threshold: int = 5
    success_threshold: int = 3
    recovery_timeout: float = 60.0
    half_open_requests: int = 3
    error_rate_threshold: float | None = 0.5
    window_size: int = 100
    excluded_exceptions: Sequence[type[BaseException]] = field(default_factory=list)
    min_calls_before_evaluation: int = 10
    slow_call_threshold: float | None = 5.0
    slow_call_rate_threshold: float | None = 0.8
    max_wait_duration_in_half_open: float = 60.0
    exponential_backoff_multiplier: float = 2.0
    jitter_enabled: bool = True
    max_jitter_percentage: float = 0.1
    max_recovery_timeout: float = 600.0
    cancelled_counts_after: float | None = 1.0
    is_failure: Callable[[Any], bool] | None = None
    window: Literal["count", "time"] = "count"
    window_duration: float = 60.0
    overdue_calls_enabled: bool = False
    ramp_enabled: bool = False
    initial_state: CircuitState = CircuitState.CLOSED
    retry_after: Callable[[Any], float | None] | None = None

    def __post_init__(self) -> None:
        excluded = self.excluded_exceptions
        allowed = "a list of exception classes"
        if isinstance(excluded, type) or not isinstance(excluded, Sequence):
            raise ConfigTypeError("excluded_exceptions", excluded, allowed)
        for each in excluded:
            if not (isinstance(each, type) and issubclass(each, BaseException)):
                raise ConfigTypeError("excluded_exceptions", each, allowed)
        # A copy: whoever owns the list may change it later.
        object.__setattr__(self, "excluded_exceptions", list(excluded))
        if self.is_failure is not None and not callable(self.is_failure):
            raise ConfigTypeError("is_failure", self.is_failure, "a function or None")
        if self.retry_after is not None and not callable(self.retry_after):
            raise ConfigTypeError("retry_after", self.retry_after, "a function or None")
        _native.check_circuit_breaker_config(self)
        object.__setattr__(self, "initial_state", CircuitState(self.initial_state))


_FIELDS = tuple(each.name for each in fields(CircuitBreakerConfig))
# Those that Python judges by, and Rust does not know.
_JUDGES = ("excluded_exceptions", "is_failure", "retry_after")

# The preset that all others build on.
_ROOT = "default"


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


_METRICS = tuple(each.name for each in fields(CircuitBreakerMetrics))


@dataclass(frozen=True)
class CircuitBreakerCounts:
    """What breakers have counted since they were made. No reset sets it back: this is for metrics."""

    calls: int = 0
    failures: int = 0
    slow_calls: int = 0
    rejections: int = 0
    openings: int = 0


@dataclass(frozen=True)
class KeyedConfig:
    """The settings of a group of keys; durations in seconds, checked when it is made.

    `breaker` has those of each breaker. Keys beyond `capacity` (1 to 16,777,216) have those that were
    idle longest forgotten; breakers that must not be forgotten may take the group beyond it. A key
    that was not asked for in `idle_timeout` is forgotten, and one with failures or slow calls in its
    window in `failures_kept` (less than `idle_timeout` counts as equal), however full the group is.
    `series` keys (0 to 1,000) have a metric series of their own, the rest being one.
    """

    breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    capacity: int = 1_000_000
    idle_timeout: float = 600.0
    failures_kept: float = 86_400.0
    series: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.breaker, CircuitBreakerConfig):
            raise ConfigTypeError("breaker", self.breaker, "a CircuitBreakerConfig")
        _native.check_keyed_config(self)


_KEYED_FIELDS = tuple(each.name for each in fields(KeyedConfig) if each.name != "breaker")


@dataclass(frozen=True)
class KeyedSnapshot:
    """A group of keys at one moment.

    `keys` have a breaker now, of which `open` (forced ones too) and `half_open` are not closed.
    `forgotten` breakers were forgotten since the group was made; `counts` has all, these too.
    """

    keys: int
    open: int
    half_open: int
    forgotten: int
    counts: CircuitBreakerCounts


@dataclass(frozen=True)
class KeyCounts:
    """One key's metric series: `breaker` is its name, `GROUP/KEY`.

    `counts` is what it has counted since it was made, `since_listed` since it got its series, which
    is for counters of metrics.
    """

    breaker: str
    state: CircuitState
    counts: CircuitBreakerCounts
    since_listed: CircuitBreakerCounts


@dataclass(frozen=True)
class KeyedSeries:
    """What a group of keys shows as metrics: a series for each of a few keys, one for all others.

    `listed` are the keys with the most refusals and failures, the worst first. All counters only
    grow, and `listed` (since they are) and `other` always add up to `total`.
    """

    total: CircuitBreakerCounts
    listed: list[KeyCounts]
    other: CircuitBreakerCounts


@dataclass(frozen=True)
class CircuitBreakerEvent:
    """Something that happened to a circuit breaker; durations in seconds.

    A "transition" is one from `old_state` to `new_state`, with its `cause`, whether it was `forced`,
    and the `wait` of an opening. A call was "rejected", or has "ended": with this `outcome`, after it
    `ran` so long (None where calls are not timed), and `is_slow` if that is as long as
    `slow_call_threshold`; `retry_after` is what a failure asked for. A listener that is too slow is
    told how many events are "lost" to it; `breaker` is empty where they may have been any breaker's.
    """

    breaker: str
    kind: Literal["transition", "rejected", "ended", "lost"]
    old_state: CircuitState | None = None
    new_state: CircuitState | None = None
    cause: str | None = None
    forced: bool = False
    wait: float | None = None
    outcome: Literal["success", "failure", "ignored", "cancelled"] | None = None
    ran: float | None = None
    is_slow: bool = False
    retry_after: float | None = None
    lost: int = 0


# The blocks of `with breaker:` that the current task or thread is inside, the innermost first.
_Block = tuple["CircuitBreaker", _native.CircuitBreakerPermit, Any]
_blocks: ContextVar[_Block | None] = ContextVar("kailash_circuit_breaker_blocks", default=None)

_every: WeakSet[CircuitBreaker] = WeakSet()

Listener = Callable[[CircuitState, CircuitState, CircuitBreakerMetrics], object]


EventListener = Callable[[CircuitBreakerEvent], object]


class _Audience:
    """Who is told of a breaker's transitions."""

    def __init__(self) -> None:
        self.listeners: list[tuple[Listener, Callback]] = []
        # Popped by whoever adds the first listener.
        self.unheard = [True]
        self.subscription: _native.CircuitBreakerSubscription | None = None


class _Subscribers:
    """Who is told of all that happens, each by a subscription of its own, so that none harms others."""

    def __init__(self) -> None:
        self._known: list[_Subscriber] = []

    def add(self, source: _Source, listener: EventListener) -> None:
        subscriber = _Subscriber(listener)
        subscriber.begin(source)
        self._known.append(subscriber)

    def remove(self, listener: EventListener) -> None:
        for index, subscriber in enumerate(self._known):
            if subscriber.listener == listener:
                del self._known[index]
                subscriber.end()
                return

    def begin_anew(self, source: _Source) -> None:
        """In a forked child: what carried the news to them was a thread of the parent's."""
        for subscriber in self._known:
            subscriber.begin(source)


_Source = _native.CircuitBreaker | _native.CircuitBreakerManager


class _Subscriber:
    def __init__(self, listener: EventListener) -> None:
        self.listener = listener
        self._tell = BatchCallback(listener, "circuit breaker subscriber")
        self._subscription: _native.CircuitBreakerSubscription | None = None
        self._is_over = False

    def begin(self, source: _Source) -> None:
        self._subscription = source.subscribe(_batch_teller(self))

    def end(self) -> None:
        self._is_over = True
        self._subscription = None
        self._tell.close()

    def tell(self, events: list[dict[str, Any]], done: Callable[[], None]) -> None:
        self._tell(self._read(events), done)

    def _read(self, events: list[dict[str, Any]]) -> Iterator[CircuitBreakerEvent]:
        for event in events:
            if self._is_over:
                return
            for state in ("old_state", "new_state"):
                if state in event:
                    event[state] = _STATES[event[state]]
            yield CircuitBreakerEvent(**event)


def _batch_teller(
    subscriber: _Subscriber,
) -> Callable[[list[dict[str, Any]], Callable[[], None]], None]:
    """Tells a subscriber as long as somebody else keeps it alive."""
    alive = ref(subscriber)

    def tell(events: list[dict[str, Any]], done: Callable[[], None]) -> None:
        subscriber = alive()
        if subscriber is not None:
            subscriber.tell(events, done)

    return tell


class CircuitBreaker:
    """A circuit breaker: a decorator, a context manager, and a handle to see and steer it.

    As a decorator it takes functions, async functions, generators, async generators and methods,
    and keeps their kind. `with` and `async with` guard a block. A call that it refuses raises
    `CircuitBreakerError`. A block may be left in another context or thread than it was entered in.
    Any thread and any event loop may use it. `clock` is for tests.
    """

    # Made when they are first needed: a breaker of a key may live for one call.
    _audience: _Audience | None = None
    _subscribers: _Subscribers | None = None
    # The permits of all blocks that run, the newest last.
    _entered: dict[_native.CircuitBreakerPermit, None] | None = None

    def __init__(
        self,
        config: CircuitBreakerConfig | None = None,
        *,
        name: str = "circuit_breaker",
        clock: ManualClock | None = None,
    ) -> None:
        config = _checked(config) or CircuitBreakerConfig()
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
        _judge_by(self._native, config)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state.value}>"

    # -------------------------------------------------------------- to see it

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
        return _STATES[self._native.state()]

    @property
    def metrics(self) -> CircuitBreakerMetrics:
        """What it has counted so far."""
        counted = self._native.snapshot()
        return CircuitBreakerMetrics(**{name: counted[name] for name in _METRICS})

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

        `cause` is why it opened last, `openings` how often it did, `would_open` why it would have
        opened in METRICS_ONLY, and `ramp_share` which share of the calls passes during a ramp.
        `durations` has count, sum, mean, p50, p90, p99 and cumulative buckets, each an upper bound and
        how many calls took no longer, or is None: see the property.
        """
        counted = self._native.snapshot()
        settings = self.config
        config: dict[str, Any] = {name: getattr(settings, name) for name in _FIELDS}
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
        the library's when none does. What it raises is logged; it never delays a call.
        """
        callback = Callback(listener, "circuit breaker listener")
        audience = self._audience or self.__dict__.setdefault("_audience", _Audience())
        audience.listeners.append((listener, callback))
        _every.add(self)
        self._subscribe(audience)

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
        audience.subscription = self._native.listen(_teller(self))

    def subscribe(self, listener: EventListener) -> None:
        """Has `listener(event)` told of all that happens from now on, calls too: see
        CircuitBreakerEvent.

        A plain function runs on a thread of its own, an async one on the loop that runs now, or on
        the library's when none does. What it raises is logged. It can neither delay nor break a call:
        one that falls more than about a thousand events behind loses the oldest, and is told how
        many. It is told as long as somebody keeps the breaker.
        """
        subscribers = self._subscribers
        if subscribers is None:
            subscribers = self.__dict__.setdefault("_subscribers", _Subscribers())
        subscribers.add(self._native, listener)
        _every.add(self)

    def unsubscribe(self, listener: EventListener) -> None:
        """Ends what `subscribe` began; unknown listeners are ignored."""
        if self._subscribers is not None:
            self._subscribers.remove(listener)

    # -------------------------------------------------------------- to steer it

    def record_success(self) -> Done:
        """Counts a call that succeeded elsewhere."""
        self._native.record_success()
        return Done()

    def record_failure(self) -> Done:
        """Counts a call that failed elsewhere."""
        self._native.record_failure()
        return Done()

    def force_open(self, reason: str = "told to") -> Done:
        """Refuses every call until `force_close()` or `reset()`."""
        del reason
        self._native.force_open()
        return Done()

    def force_close(self, reason: str = "told to") -> Done:
        """Closes the breaker, which goes on judging calls."""
        del reason
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
        config = replace(_checked(config) or self._config, **changes)
        self._native.reconfigure(config)
        self._configure(config)
        return Done()

    # -------------------------------------------------------------- to wait for it

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

    # -------------------------------------------------------------- to call through it

    def __call__(self, function: _F, /) -> _F:
        """Guards a function, an async function, a generator, an async generator or a method."""
        if isinstance(function, (staticmethod, classmethod)):
            return cast(_F, type(function)(self(function.__func__)))
        if inspect.isasyncgenfunction(function):
            return cast(_F, self._guard_async_generator(function))
        if inspect.isgeneratorfunction(function):
            return cast(_F, self._guard_generator(function))
        guarded = self._guard(function)
        return cast(_F, functools.update_wrapper(guarded, function))

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Calls `function` once through the breaker; await the answer of an async one."""
        is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        guarded = self(function) if is_generator else self._guard(function)
        return cast(_R, guarded(*args, **kwargs))

    def _guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise TypeError(f"a circuit breaker guards functions, not {function!r}")
        is_async = _is_async(function)
        if is_async and not _makes_coroutines(function):
            function = _awaiting(function)
        return _native.guard(function, self._native, self, is_async)

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
                item = await generator.__anext__()
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
                elif (error := future.exception()) is not None:
                    permit.fail(error)
                else:
                    permit.succeed(future.result())

            awaitable.add_done_callback(settle)
            return awaitable
        return _Judged(self, permit, awaitable)

    async def _judged(self, permit: _native.CircuitBreakerPermit, awaitable: Awaitable[Any]) -> Any:
        try:
            result = await awaitable
        except BaseException as error:
            permit.fail(error)
            raise
        permit.succeed(result)
        return result

    # -------------------------------------------------------------- to guard a block

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
                callback(_STATES[old], _STATES[new], metrics)

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


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _makes_coroutines(function: Callable[..., Any]) -> bool:
    """Whether each call of this async function gives a coroutine of its own."""
    function = getattr(function, "__func__", function)
    function = inspect.unwrap(function, stop=lambda it: not isinstance(it, _native.GuardedFunction))
    return isinstance(function, FunctionType) and bool(
        function.__code__.co_flags & inspect.CO_COROUTINE
    )


def _awaiting(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return call


def _checked(config: CircuitBreakerConfig | None) -> CircuitBreakerConfig | None:
    if config is not None and not isinstance(config, CircuitBreakerConfig):
        raise ConfigTypeError("config", config, "a CircuitBreakerConfig")
    return config


def _judge_by(
    native: _native.CircuitBreaker | _native.KeyedCircuitBreakers, config: CircuitBreakerConfig
) -> None:
    neutral: tuple[type[BaseException], ...] = (RejectionError, *config.excluded_exceptions)
    native.judge_by(neutral, config.is_failure, config.retry_after)


_every_group: WeakSet[KeyedCircuitBreakers] = WeakSet()


class KeyedCircuitBreakers:
    """The breakers of one group, such as hosts or tenants, each by its key.

    One bad host of ten is refused, the other nine are not. `hosts[key]` is the breaker of a key, to
    be used as any: it is called `GROUP/KEY`, is made when its key is first asked for, and is
    forgotten when its key has not been asked for in a while. It is never forgotten while it is
    anything but closed, while somebody holds it (so while a call is in flight, or a function lives
    that it guards), or while its window holds failures or slow calls that may yet trip it.

    Ask for it again for each call rather than keep it. How long calls take is known of the group, not
    of each key: `avg_call_duration` is that of all keys together.

    `CircuitBreakerManager.keyed` makes one. Any thread and any event loop may use it.
    """

    def __init__(self, native: _native.KeyedCircuitBreakers, name: str, config: KeyedConfig) -> None:
        self._native = native
        self._name = name
        self._configure(config)
        _every_group.add(self)

    def _configure(self, config: KeyedConfig) -> None:
        self._config = config
        _judge_by(self._native, config.breaker)

    def __repr__(self) -> str:
        return f"<KeyedCircuitBreakers {self._name!r} of {len(self)}>"

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def config(self) -> KeyedConfig:
        """The settings in force."""
        return self._config

    def __getitem__(self, key: str) -> CircuitBreaker:
        return self._of_key(self._native.get(key))

    def __contains__(self, key: str) -> bool:
        return self._native.holds(key)

    def __len__(self) -> int:
        return self._native.len()

    def get(self, key: str) -> CircuitBreaker:
        """The breaker of this key, made if there is none: the same as `hosts[key]`."""
        return self._of_key(self._native.get(key))

    def find(self, key: str) -> CircuitBreaker | None:
        """The breaker of this key, if there is one. To ask is no use of the key."""
        found = self._native.find(key)
        return None if found is None else self._of_key(found)

    def remove(self, key: str) -> CircuitBreaker | None:
        """Forgets the breaker of this key, whatever its state; who holds it can go on using it."""
        removed = self._native.remove(key)
        return None if removed is None else self._of_key(removed)

    def _of_key(self, native: _native.CircuitBreaker) -> CircuitBreaker:
        breaker = _KeyedCircuitBreaker.__new__(_KeyedCircuitBreaker)
        breaker._native = native
        breaker._group = self
        return breaker

    def forget_idle(self) -> int:
        """Forgets all keys that were idle too long, and answers how many.

        New keys have it done bit by bit, so only a group that gets none may want to be told.
        """
        return self._native.forget_idle()

    def reconfigure(
        self,
        config: CircuitBreakerConfig | None = None,
        *,
        capacity: int | None = None,
        idle_timeout: float | None = None,
        failures_kept: float | None = None,
        series: int | None = None,
    ) -> Done:
        """Changes these settings of all breakers, those to come too, and keeps states and counts."""
        said = _said(config, capacity, idle_timeout, failures_kept, series)
        wanted = replace(self._config, **said)
        self._native.reconfigure(wanted)
        self._configure(wanted)
        return Done()

    def reset_all(self) -> Done:
        """Closes all breakers from any state and forgets what they have counted."""
        self._native.reset_all()
        return Done()

    def snapshot(self) -> KeyedSnapshot:
        """What all keys together are at this moment. It looks at each."""
        seen = self._native.snapshot()
        seen["counts"] = CircuitBreakerCounts(**seen["counts"])
        return KeyedSnapshot(**seen)

    @property
    def durations(self) -> HistogramSnapshot:
        """How long the calls of all keys together took since the last `reset_all()`: empty unless
        the manager was told to `record_durations`."""
        return self._native.durations()

    @property
    def all_durations(self) -> HistogramSnapshot:
        """As `durations`, but no reset sets it back: this is for metrics."""
        return self._native.all_durations()

    def series(self) -> KeyedSeries:
        """The group as metrics: as many keys as `series` says at most, and one for all others."""
        seen = self._native.series()
        return KeyedSeries(
            total=CircuitBreakerCounts(**seen["total"]),
            listed=[
                KeyCounts(
                    breaker=key["breaker"],
                    state=_STATES[key["state"]],
                    counts=CircuitBreakerCounts(**key["counts"]),
                    since_listed=CircuitBreakerCounts(**key["since_listed"]),
                )
                for key in seen["listed"]
            ],
            other=CircuitBreakerCounts(**seen["other"]),
        )


class _KeyedCircuitBreaker(CircuitBreaker):
    """The breaker of one key. What counts as a failure is the group's to say."""

    _group: KeyedCircuitBreakers

    @property
    def config(self) -> CircuitBreakerConfig:
        return replace(self._group.config.breaker, **self._native.config())

    def reconfigure(self, config: CircuitBreakerConfig | None = None, **changes: Any) -> Done:
        known = self.config
        wanted = replace(_checked(config) or known, **changes)
        for judge in _JUDGES:
            if getattr(wanted, judge) != getattr(known, judge):
                raise ConfigError(judge, getattr(wanted, judge), "that of the group")
        self._native.reconfigure(wanted)
        return Done()


def _said(
    config: CircuitBreakerConfig | None,
    capacity: int | None,
    idle_timeout: float | None,
    failures_kept: float | None,
    series: int | None,
) -> dict[str, Any]:
    """The fields of a KeyedConfig that somebody said something about."""
    said = {
        "breaker": _checked(config),
        "capacity": capacity,
        "idle_timeout": idle_timeout,
        "failures_kept": failures_kept,
        "series": series,
    }
    return {name: value for name, value in said.items() if value is not None}


_managers: WeakSet[CircuitBreakerManager] = WeakSet()


class CircuitBreakerManager:
    """Circuit breakers by name: the same name gives the same breaker. `clock` is for tests."""

    def __init__(self, *, clock: ManualClock | None = None) -> None:
        self._native = _native.CircuitBreakerManager(clock)
        self._breakers: dict[str, CircuitBreaker] = {}
        self._groups: dict[str, KeyedCircuitBreakers] = {}
        self._callbacks: list[Listener] = []
        self._subscribers = _Subscribers()
        # What was defined: the base that was said, and what Python judges by.
        self._presets: dict[str, tuple[str | None, dict[str, Any]]] = {}
        _managers.add(self)

    def get_or_create(
        self, name: str, config: CircuitBreakerConfig | None = None
    ) -> CircuitBreaker:
        """The breaker of this name, made with `config` if there is none yet.

        Without `config` it takes the settings that `define` gave its name, else the preset `default`.

        Raises ValueError if it exists with other settings.
        """
        known = self.get_circuit_breaker(name)
        if known is None:
            wanted = _checked(config) or self._settings_of(name)
            made = CircuitBreaker._over(self._native.get_or_create(name, wanted), wanted)
            # Of two threads that come here at once, the second takes what the first has made.
            known = self._breakers.setdefault(name, made)
            if known is made:
                for callback in self._callbacks:
                    known.add_listener(callback)
                return known
        if config is not None and known.config != _checked(config):
            differing = _differing(_FIELDS, known.config, config)
            raise ValueError(_differences(f"circuit breaker {name!r}", differing))
        return known

    def keyed(
        self,
        group: str,
        config: CircuitBreakerConfig | None = None,
        *,
        capacity: int | None = None,
        idle_timeout: float | None = None,
        failures_kept: float | None = None,
        series: int | None = None,
    ) -> KeyedCircuitBreakers:
        """The breakers of one group, such as hosts or tenants, each by its key.

        The group is made with these settings if there is none of this name: `config` for each
        breaker, and what KeyedConfig says of the others. Without settings, or with equal ones, it is
        the one that exists. Raises ValueError for others: `reconfigure()` changes them.
        """
        said = _said(config, capacity, idle_timeout, failures_kept, series)
        known = self._groups.get(group)
        if known is not None and not said:
            return known
        if "breaker" not in said:
            said["breaker"] = self._settings_of(group)
        wanted = KeyedConfig(**said)
        if known is None:
            made = KeyedCircuitBreakers(self._native.keyed(group, wanted), group, wanted)
            # Of two threads that come here at once, the second takes what the first has made.
            known = self._groups.setdefault(group, made)
        if known.config != wanted:
            has = known.config
            differing = _differing(_FIELDS, has.breaker, wanted.breaker)
            differing += _differing(_KEYED_FIELDS, has, wanted)
            raise ValueError(_differences(f"group of circuit breakers {group!r}", differing))
        return known

    def groups(self) -> list[KeyedCircuitBreakers]:
        """All groups of keys, by name."""
        return [self._groups[name] for name in sorted(self._groups)]

    def remove_group(self, group: str) -> KeyedCircuitBreakers | None:
        """Takes a group of keys out of the registry; who holds it can go on using it."""
        self._native.remove_group(group)
        return self._groups.pop(group, None)

    def create_circuit_breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        pattern: str | None = None,
    ) -> CircuitBreaker:
        """Like `get_or_create`, with the settings of the preset that `pattern` names."""
        if config is None and pattern is not None:
            config = self.preset(pattern)
        return self.get_or_create(name, config)

    def get_circuit_breaker(self, name: str) -> CircuitBreaker | None:
        """The breaker of this name, if there is one."""
        known = self._breakers.get(name)
        if known is None and (native := self._native.get(name)) is not None:
            config = replace(self._settings_of(name), **native.config())
            known = self._breakers.setdefault(name, CircuitBreaker._over(native, config))
        return known

    async def execute_with_circuit_breaker(
        self,
        name: str,
        func: Callable[[], Any],
        fallback: Callable[[], Any] | None = None,
    ) -> Any:
        """Calls `func` through the breaker of this name, and `fallback` instead if it refuses.

        What other breakers refuse within `func` is raised.
        """
        breaker = self.get_or_create(name)
        try:
            permit = breaker._native.acquire()
        except CircuitBreakerError:
            if fallback is None:
                raise
            return await _result(fallback())
        try:
            result = await _result(func())
        except BaseException as error:
            permit.fail(error)
            raise
        permit.succeed(result)
        return result

    def get_all_status(self) -> dict[str, dict[str, Any]]:
        """The status of each breaker by its name; those of keys are not among them."""
        found = ((name, self.get_circuit_breaker(name)) for name in self._native.names())
        return {name: breaker.get_status() for name, breaker in found if breaker is not None}

    def get_all_circuit_states(self) -> dict[str, dict[str, Any]]:
        """The same as `get_all_status`."""
        return self.get_all_status()

    def force_open_circuit_breaker(self, name: str) -> bool:
        """Forces the breaker of this name open; False if there is none."""
        if (breaker := self.get_circuit_breaker(name)) is None:
            return False
        breaker.force_open()
        return True

    def reset_circuit_breaker(self, name: str) -> bool:
        """Resets the breaker of this name; False if there is none."""
        if (breaker := self.get_circuit_breaker(name)) is None:
            return False
        breaker.reset()
        return True

    def reset_all(self) -> Done:
        """Resets every breaker, those of keys too."""
        for name in self._native.names():
            self.reset_circuit_breaker(name)
        for group in self.groups():
            group.reset_all()
        return Done()

    def set_default_config(self, config: CircuitBreakerConfig) -> None:
        """Changes the settings of breakers that are made from now on without any.

        They are the preset `default`, which all others build on.
        """
        config = _checked(config) or CircuitBreakerConfig()
        self.define(_ROOT, **{name: getattr(config, name) for name in _FIELDS})

    def define(self, name: str, *, base: str | None = None, **settings: Any) -> None:
        """Defines a preset: the settings of the breaker of this name, if it is made without any, and
        a base for other presets.

        `settings` are fields of CircuitBreakerConfig; what they don't say is the base's. `base` names
        another preset: `default` if not said, `database`, `api`, `cache`, or one that was defined.
        These may be defined anew, a preset that names its own name as its base builds on the one that
        came with the library. Breakers that exist keep their settings.

        Raises ValueError when a base is unknown, bases go round in a circle, or a value is out of
        range, here or in a preset that builds on this one; nothing has changed then.
        """
        said = CircuitBreakerConfig(**settings)
        self._native.define(name, base, said, list(settings))
        judges = {each: getattr(said, each) for each in _JUDGES if each in settings}
        self._presets[name] = base, judges

    def preset(self, name: str) -> CircuitBreakerConfig:
        """The settings of a preset: one that was defined, or default, database, api or cache.

        Raises ValueError, with the names there are, if there is none of this name.
        """
        settings = self._native.preset(name)
        step: str | None = name
        while step is not None:
            base, judges = self._presets.get(step, (None, {}))
            settings = {**judges, **settings}
            # One that is its own base builds on the library's, which says nothing of judges.
            above = _ROOT if base in (None, step) else base
            step = None if step == _ROOT else above
        return CircuitBreakerConfig(**settings)

    def _settings_of(self, name: str) -> CircuitBreakerConfig:
        """Those of a breaker of this name that is made without any."""
        return self.preset(name if name in self._presets else _ROOT)

    def subscribe(self, listener: EventListener) -> None:
        """As `CircuitBreaker.subscribe`, to all breakers, those of keys and those to come too.

        It is told as long as somebody keeps the manager.
        """
        self._subscribers.add(self._native, listener)

    def unsubscribe(self, listener: EventListener) -> None:
        """Ends what `subscribe` began; unknown listeners are ignored."""
        self._subscribers.remove(listener)

    def record_durations(self) -> None:
        """Records from now on how long calls take: 2 KiB for each breaker by name and for each group
        of keys. Every call is timed then."""
        self._native.record_durations()

    def stop_recording_durations(self) -> None:
        """Ends `record_durations`, and keeps what was recorded."""
        self._native.stop_recording_durations()

    def add_global_callback(self, callback: Listener) -> None:
        """Has `callback` told of each transition of every breaker, also of those made later.

        Those of keys are not among them.
        """
        self._callbacks.append(callback)
        for breaker in tuple(self._breakers.values()):
            breaker.add_listener(callback)


async def _result(outcome: Any) -> Any:
    return await outcome if inspect.isawaitable(outcome) else outcome


_Differing = list[tuple[str, Any, Any]]


def _differing(names: Sequence[str], known: object, wanted: object) -> _Differing:
    """The fields in which two configs differ: name, value here, value there."""
    pairs = ((name, getattr(known, name), getattr(wanted, name)) for name in names)
    return [(name, here, there) for name, here, there in pairs if here != there]


def _differences(what: str, differing: _Differing) -> str:
    old = ", ".join(f"{name}={here!r}" for name, here, _ in differing)
    new = ", ".join(f"{name}={there!r}" for name, _, there in differing)
    return f"{what} exists with {old}, not {new}; reconfigure() changes it"


_manager = CircuitBreakerManager()


def get_circuit_breaker_manager() -> CircuitBreakerManager:
    """The circuit breakers of this process, which workflows use too."""
    return _manager


def get_circuit_breaker(
    name: str, config: CircuitBreakerConfig | None = None, **settings: Any
) -> CircuitBreaker:
    """The process's breaker of this name, made with these settings if there is none yet.

    Without settings, or with equal ones, it is the one that exists. Raises ValueError for others:
    `breaker.reconfigure()` changes them.
    """
    if settings:
        config = replace(_checked(config) or CircuitBreakerConfig(), **settings)
    return _manager.get_or_create(name, config)


@in_forked_child
def _forget_calls_in_flight() -> None:
    _manager._native.forget_calls_in_flight()
    for breaker in tuple(_every):
        breaker._native.forget_calls_in_flight()
        audience = breaker._audience
        if audience is not None and not audience.unheard:
            # What carried the news to them was a thread of the parent's.
            audience.subscription = breaker._native.listen(_teller(breaker))
        if breaker._subscribers is not None:
            breaker._subscribers.begin_anew(breaker._native)
    for manager in tuple(_managers):
        manager._subscribers.begin_anew(manager._native)
    for group in tuple(_every_group):
        group._native.forget_calls_in_flight()
