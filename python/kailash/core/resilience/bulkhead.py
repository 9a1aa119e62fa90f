"""Bulkheads: partitions that keep one kind of work from starving another."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from asyncio import CancelledError, current_task, get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from types import CoroutineType, FunctionType, MethodType, TracebackType, coroutine
from typing import Any, Literal, TypeVar, cast, overload
from weakref import WeakKeyDictionary, WeakSet, ref

from kailash import _native
from kailash._callbacks import Callback
from kailash._process import in_forked_child
from kailash._threads import Threads
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    get_circuit_breaker_manager,
)
from kailash.core.resilience.config import ConfigError, ConfigTypeError
from kailash.core.resilience.rejection import RejectionError

__all__ = [
    "BulkheadFullError",
    "BulkheadManager",
    "BulkheadPartition",
    "BulkheadRejectionError",
    "CeilingMetrics",
    "Drained",
    "PartitionConfig",
    "PartitionEvent",
    "PartitionMetrics",
    "PartitionType",
    "ResourceType",
    "current_partition",
    "execute_with_bulkhead",
    "get_bulkhead_manager",
]

_R = TypeVar("_R")
_F = TypeVar("_F", bound=Callable[..., Any])


class PartitionType(Enum):
    """What a partition is for; a type only chooses defaults."""

    CPU_BOUND = "cpu_bound"
    IO_BOUND = "io_bound"
    CRITICAL = "critical"
    BACKGROUND = "background"
    CUSTOM = "custom"
    DATABASE = "database"
    API = "api"


class ResourceType(Enum):
    """What a partition limits."""

    THREADS = "threads"
    CONNECTIONS = "connections"
    MEMORY = "memory"
    SEMAPHORE = "semaphore"


class BulkheadRejectionError(RejectionError):
    """A partition refused a call."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BulkheadFullError(BulkheadRejectionError):
    """A call got no slot of a partition, and never started."""

    # The parts are the exception's arguments, so that raising one runs no Python.

    @property
    def partition(self) -> str:
        """The partition's name."""
        return str(self._part(1, ""))

    @property
    def active(self) -> int:
        """Calls that held a slot at that moment."""
        return int(self._part(2, 0))

    @property
    def queued(self) -> int:
        """Calls that waited at that moment."""
        return int(self._part(3, 0))

    @property
    def reason(self) -> str:
        """Why: busy, ceiling, queue_full, waited, evicted, hopeless, no_thread or closed."""
        return str(self._part(4, ""))

    def _part(self, index: int, default: Any) -> Any:
        return self.args[index] if index < len(self.args) else default


@dataclass(frozen=True)
class PartitionConfig:
    """How a partition is set up, checked when it is made; what is None is the type's default.

    `timeout` is in seconds and covers waiting and running. `priority` is that of a call which names
    none: 1 is the most urgent, 10 the least. `max_connections` is the size of the connection pool
    that SQL nodes use inside the partition. `queue_order` says who is first within a priority:
    "fifo", or "adaptive_lifo" for the last come once the queue has not been empty for 100 ms.
    `reject_hopeless` refuses a call that would wait, or waits, once it has less time left than half of
    the newest calls took. `circuit_breaker_enabled` puts the breaker
    `bulkhead.<name>` around the partition's calls.
    """

    name: str
    partition_type: PartitionType
    max_concurrent_operations: int | None = None
    max_threads: int | None = None
    max_connections: int | None = None
    timeout: float | None = None
    priority: int | None = None
    queue_size: int | None = None
    isolation_level: str = "strict"
    circuit_breaker_enabled: bool = False
    metrics_enabled: bool = True
    resource_limits: dict[ResourceType, int] = field(default_factory=dict)
    evict_lower_priority: bool = True
    queue_order: Literal["fifo", "adaptive_lifo"] = "fifo"
    reject_hopeless: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.partition_type, PartitionType):
            raise ConfigTypeError("partition_type", self.partition_type, "a PartitionType")
        defaults = _native.partition_defaults(self.partition_type.value)
        for name in ("max_concurrent_operations", "timeout", "priority", "queue_size"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults[name])
        if not isinstance(self.circuit_breaker_enabled, bool):
            allowed = "True or False"
            raise ConfigTypeError("circuit_breaker_enabled", self.circuit_breaker_enabled, allowed)
        # Names of the original that choose nothing here: only what holds anyway is taken.
        for name, only in (
            ("isolation_level", "strict"),
            ("metrics_enabled", True),
            ("resource_limits", {}),
        ):
            if getattr(self, name) != only:
                raise ConfigError(name, getattr(self, name), repr(only))
        _native.check_partition_config(self)

    @property
    def _type_word(self) -> str:
        return self.partition_type.value

    @property
    def _threads(self) -> int:
        assert self.max_concurrent_operations is not None
        return self.max_threads or min(self.max_concurrent_operations, 10_000)


@dataclass(frozen=True)
class PartitionMetrics:
    """What a partition is doing and has done so far; durations in seconds.

    Half of the calls waited no longer for their slots than `wait_p50` and held them no longer than
    `run_p50`, 99 of 100 no longer than the p99; these four are at most an eighth too long.
    """

    total_operations: int = 0
    successful_operations: int = 0
    failed_operations: int = 0
    rejected_operations: int = 0
    queued_operations: int = 0
    active_operations: int = 0
    avg_execution_time: float = 0.0
    max_execution_time: float = 0.0
    timed_out_operations: int = 0
    peak_active_operations: int = 0
    wait_p50: float = 0.0
    wait_p99: float = 0.0
    run_p50: float = 0.0
    run_p99: float = 0.0


@dataclass(frozen=True)
class PartitionEvent:
    """Something that happened to a partition.

    `reason` says why a call was rejected, `ran` for how many seconds one held its slot that ended.
    `limit` and `limit_before` are those of a limit_changed. A listener that is too slow is told how
    many events are `lost` to it.
    """

    partition: str
    kind: Literal[
        "rejected", "queued", "started", "ended", "timed_out", "limit_changed", "closed", "lost"
    ]
    reason: str | None = None
    ran: float | None = None
    limit: int | None = None
    limit_before: int | None = None
    lost: int | None = None


@dataclass(frozen=True)
class Drained:
    """How a partition's end went: who waited and was turned away, and who still ran at last."""

    partition: str
    turned_away: int
    left: int


@dataclass(frozen=True)
class CeilingMetrics:
    """How full the ceiling over all partitions of a manager is.

    `held_up` partitions have calls that wait for nothing but the ceiling.
    """

    active: int
    limit: int
    held_up: int
    peak_active: int


Listener = Callable[[PartitionEvent], object]

# The call that the current task or thread makes in a slot: a tuple of its own for each.
_Within = tuple["BulkheadPartition"]
_current: ContextVar[_Within | None] = ContextVar("kailash_partition", default=None)
_set, _reset = _current.set, _current.reset

# The blocks that it is in: the partition, its permit, the call that the block is in, the block around.
_Block = tuple["BulkheadPartition", _native.BulkheadPermit, _Within | None, Any]
_blocks: ContextVar[_Block | None] = ContextVar("kailash_partition_blocks", default=None)
_enter = _blocks.set

_every: WeakSet[BulkheadPartition] = WeakSet()


def current_partition() -> BulkheadPartition | None:
    """The partition in whose slot the current task or thread runs."""
    within, block = _current.get(), _blocks.get()
    while block is not None and block[2] is not within:
        block = block[3]
    innermost = block or within
    return innermost and innermost[0]


class BulkheadPartition:
    """A number of slots for one kind of work, with a queue and threads of its own.

    `with partition:` holds a slot for a block and never waits, `async with partition:` waits in the
    queue. `@partition` has each call of a function made in a slot. Any thread and any event loop may
    use it.
    """

    def __init__(self, config: PartitionConfig) -> None:
        self._adopt(_native.BulkheadPartition(_checked(config)), config)

    @classmethod
    def _over(
        cls, native: _native.BulkheadPartition, config: PartitionConfig
    ) -> BulkheadPartition:
        partition = cls.__new__(cls)
        partition._adopt(native, config)
        return partition

    def _adopt(self, native: _native.BulkheadPartition, config: PartitionConfig) -> None:
        self._native = native
        self._config = config
        self._threads = Threads(f"kailash-{config.name}", config._threads)
        # What acquire() has taken.
        self._held: list[_native.BulkheadPermit] = []
        self._listeners: list[tuple[Listener, Callback]] = []
        # Empty once the native partition has been asked to tell.
        self._unheard = [True]
        self._configure(config)
        _every.add(self)

    def _configure(self, config: PartitionConfig) -> None:
        self._config = config
        self._threads.resize(config._threads)
        self._breaker: CircuitBreaker | None = None
        if config.circuit_breaker_enabled:
            name = f"bulkhead.{config.name}"
            self._breaker = get_circuit_breaker_manager().get_or_create(name)
        # Answers what an async function returned that needed no waiting at all, or the call to go on
        # with.
        self._begin = self._native.begin if self._breaker is None else _begin_nothing

    def __repr__(self) -> str:
        return f"<BulkheadPartition {self.name!r}>"

    @property
    def name(self) -> str:
        """The partition's name."""
        return self._config.name

    @property
    def config(self) -> PartitionConfig:
        """The configuration in force."""
        return self._config

    @property
    def metrics(self) -> PartitionMetrics:
        """What the partition is doing and has done so far."""
        seen = self._native.snapshot()
        return PartitionMetrics(
            total_operations=seen["run"],
            successful_operations=seen["succeeded"],
            failed_operations=seen["failed"],
            rejected_operations=seen["refused"],
            queued_operations=seen["queued"],
            active_operations=seen["active"],
            avg_execution_time=seen["avg_execution_time"],
            max_execution_time=seen["max_execution_time"],
            timed_out_operations=seen["timed_out"],
            peak_active_operations=seen["peak_active"],
            wait_p50=seen["wait_p50"],
            wait_p99=seen["wait_p99"],
            run_p50=seen["run_p50"],
            run_p99=seen["run_p99"],
        )

    def get_status(self) -> dict[str, Any]:
        """Everything about the partition now, ready for JSON."""
        seen = self._native.snapshot()
        ended = seen["succeeded"] + seen["failed"]
        config = self._config
        return {
            "name": config.name,
            "type": config.partition_type.value,
            "metrics": {
                "total_operations": seen["run"],
                "successful_operations": seen["succeeded"],
                "failed_operations": seen["failed"],
                "rejected_operations": seen["refused"],
                "active_operations": seen["active"],
                "queued_operations": seen["queued"],
                "timed_out_operations": seen["timed_out"],
                "peak_active_operations": seen["peak_active"],
                "avg_execution_time": seen["avg_execution_time"],
                "max_execution_time": seen["max_execution_time"],
                "success_rate": seen["succeeded"] / max(1, ended),
                "wait_p50": seen["wait_p50"],
                "wait_p99": seen["wait_p99"],
                "run_p50": seen["run_p50"],
                "run_p99": seen["run_p99"],
            },
            "config": {
                "max_concurrent_operations": config.max_concurrent_operations,
                "max_threads": config._threads,
                "max_connections": config.max_connections,
                "timeout": config.timeout,
                "priority": config.priority,
                "queue_size": config.queue_size,
                "evict_lower_priority": config.evict_lower_priority,
                "queue_order": config.queue_order,
                "reject_hopeless": config.reject_hopeless,
            },
            "resources": {
                "semaphore_available": max(0, seen["limit"] - seen["active"]),
                "queue_size": seen["queued"],
                "thread_pool_active": self._threads.count,
            },
            "circuit_breaker": self._breaker and self._breaker.get_status(),
            "timestamp": datetime.now(UTC).isoformat(),
        }

    def add_listener(self, listener: Listener) -> None:
        """Has `listener(event)` told of what happens from now on: see PartitionEvent.

        A plain function runs on a thread of its own, an async one on the loop that runs now, or on
        the library's when none does. What it raises is logged, and it never delays a call. A listener
        that is too slow loses events, which an event or the log says.
        """
        callback = Callback(listener, "partition listener")
        self._listeners.append((listener, callback))
        try:
            self._unheard.pop()
        except IndexError:
            return
        self._native.listen(_teller(self))

    def remove_listener(self, listener: Listener) -> None:
        """Ends what `add_listener` began; unknown listeners are ignored."""
        for index, (known, _) in enumerate(self._listeners):
            if known == listener:
                del self._listeners[index]
                return

    def acquire(self) -> None:
        """Takes a slot until `release()`; never waits. Raises BulkheadFullError if none is free."""
        self._held.append(self._native.acquire())

    def release(self) -> None:
        """Gives back a slot that `acquire()` took. Raises RuntimeError if there is none."""
        try:
            permit = self._held.pop()
        except IndexError:
            raise RuntimeError(
                f"partition {self.name!r}: released more often than acquired"
            ) from None
        permit.release()

    def __enter__(self) -> BulkheadPartition:
        permit = self._native.acquire()
        _enter((self, permit, _current.get(), _blocks.get()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error is None)

    async def __aenter__(self) -> BulkheadPartition:
        permit = self._native.take()
        if permit is None:
            loop, limit = get_running_loop(), self._config.timeout
            deadline = None if limit is None else loop.time() + limit
            permit = await self._wait(None, None, loop, deadline)
        _enter((self, permit, _current.get(), _blocks.get()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error is None)

    def _leave(self, succeeded: bool) -> None:
        """Gives back the slot of this partition's innermost block.

        A block that is left in another context than it was entered in is not there: its slot is
        free once that context is gone.
        """
        block = _blocks.get()
        passed: tuple[_Block, ...] = ()
        while block is not None and block[0] is not self:
            passed = (block, *passed)
            block = block[3]
        if block is None:
            return
        rest = block[3]
        for partition, permit, within, _ in passed:
            rest = (partition, permit, within, rest)
        _blocks.set(rest)
        block[1].done(succeeded)

    async def execute(
        self,
        func: Callable[..., Any],
        *args: Any,
        priority: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs a function in a slot, and answers what it returns.

        An async function is awaited here; a sync one runs in the partition's own threads, with the
        caller's context variables, and an awaitable that it returns is awaited here. `timeout` and
        `priority` are the partition's where they are None; a `timeout` of 0 never waits for a slot.

        Raises BulkheadFullError if the call got no slot, TimeoutError if it ran too long. A sync
        function cannot be stopped: it goes on, and keeps its slot until it returns.
        """
        begun = self._begin(self, func, args, kwargs, priority, timeout)
        kind = type(begun)
        if kind is _Waiting:
            return await self._go_on_queued(begun, func, args, kwargs, timeout)
        if kind is _Call:
            return await self._go_on(begun, func, args, kwargs, priority, timeout)
        return begun

    def __call__(self, function: _F, /) -> _F:
        """Has each call of a function or method made in a slot, with what is the partition's.

        A call of an async function waits in the queue, and its timeout covers waiting and running.
        A sync function runs in the thread that calls it. That thread waits in the queue too, unless
        it runs an event loop, which must not stand still: then a call for which no slot is free
        raises BulkheadFullError. The timeout covers its waiting only. An awaitable that it returns
        holds the slot until it was awaited.
        """
        if isinstance(function, (staticmethod, classmethod)):
            return cast(_F, type(function)(self(function.__func__)))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function!r} is a generator: hold a slot inside it with `with partition:`"
            )
        if not _is_async(function):

            @functools.wraps(function)
            def call_here(*args: Any, **kwargs: Any) -> Any:
                breaker = self._breaker
                here = self._execute_here if breaker is None else breaker(self._execute_here)
                return here(function, args, kwargs)

            return cast(_F, call_here)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            begun = self._begin(self, function, args, kwargs, None, None)
            kind = type(begun)
            if kind is _Waiting:
                return await self._go_on_queued(begun, function, args, kwargs, None)
            if kind is _Call:
                return await self._go_on(begun, function, args, kwargs, None, None)
            return begun

        return cast(_F, call)

    def _go_on(
        self,
        call: _native.BulkheadCall,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        priority: int | None,
        timeout: float | None,
    ) -> Awaitable[Any]:
        if call.permit is not None:
            return self._go_on_begun(call, timeout)
        run = self._run if _is_async(function) else self._run_in_thread
        if self._breaker is not None:
            run = self._breaker(run)
        return run(function, args, kwargs, priority, timeout)

    async def _go_on_queued(
        self,
        waiting: _native.BulkheadWaiting,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Any:
        loop, limit = get_running_loop(), timeout or self._config.timeout
        deadline = None if limit is None else loop.time() + limit
        future = loop.create_future()
        try:
            waiting.tell(loop, future, deadline)
            await future
            begun = waiting.begin(self, function, args, kwargs)
        except BaseException:
            # A slot that was handed over when the task was cancelled goes to the next.
            waiting.leave()
            raise
        if type(begun) is not _Call:
            return begun
        return await self._finish(begun, loop, deadline, limit)

    async def _go_on_begun(self, call: _native.BulkheadCall, timeout: float | None) -> Any:
        loop, limit = get_running_loop(), timeout or self._config.timeout
        deadline = None if limit is None else loop.time() + limit - call.ran
        return await self._finish(call, loop, deadline, limit)

    async def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        priority: int | None,
        timeout: float | None,
    ) -> Any:
        """Runs an async function, whose partition's breaker was asked."""
        begun = self._native.begin(self, function, args, kwargs, priority, timeout)
        kind = type(begun)
        if kind is _Waiting:
            return await self._go_on_queued(begun, function, args, kwargs, timeout)
        if kind is _Call:
            return await self._go_on_begun(begun, timeout)
        return begun

    async def _run_in_thread(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        priority: int | None,
        timeout: float | None,
    ) -> Any:
        loop, limit = get_running_loop(), timeout or self._config.timeout
        deadline = None if limit is None else loop.time() + limit
        permit = self._native.take()
        if permit is None:
            permit = await self._wait(priority, timeout, loop, deadline)
        outer = _set((self,))
        timer = None
        try:
            job = _Job(self._native, permit, function, args, kwargs, loop, limit)
            if deadline is not None:
                timer = _native.BulkheadDeadline(loop, deadline, job)
            # Last of all: the sooner the loop rests after it, the sooner the thread runs.
            try:
                self._threads.submit(job)
            except RuntimeError:
                job.withdraw()
                raise self._native.without_thread() from None
            try:
                result = await job.future
            except BaseException:
                job.give_up()
                raise
            if not hasattr(result, "__await__"):
                return result
            succeeded = False
            try:
                result = await self._within(loop, deadline, limit, result)
                succeeded = True
                return result
            finally:
                permit.done(succeeded)
        finally:
            if timer is not None:
                timer.cancel()
            _set_back(outer)

    def _execute_here(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        permit = self._native.take() or self._wait_here()
        outer = _set((self,))
        try:
            result = function(*args, **kwargs)
        except BaseException:
            permit.done(False)
            raise
        finally:
            _reset(outer)
        if not hasattr(result, "__await__"):
            permit.done(True)
        elif isinstance(result, asyncio.Future):
            result.add_done_callback(
                lambda future: permit.done(not future.cancelled() and future.exception() is None)
            )
        else:
            return self._hold(permit, result)
        return result

    def _wait_here(self) -> _native.BulkheadPermit:
        try:
            get_running_loop()
        except RuntimeError:
            return self._native.wait(None, None)
        return self._native.acquire()

    async def _hold(self, permit: _native.BulkheadPermit, awaitable: Awaitable[_R]) -> _R:
        """Awaits in a slot."""
        outer = _set((self,))
        succeeded = False
        try:
            result = await awaitable
            succeeded = True
            return result
        finally:
            permit.done(succeeded)
            _set_back(outer)

    async def _finish(
        self,
        call: _native.BulkheadCall,
        loop: asyncio.AbstractEventLoop,
        deadline: float | None,
        limit: float | None,
    ) -> Any:
        """Awaits what is left of a call."""
        permit, awaitable = call.permit, call.awaitable
        assert permit is not None
        succeeded = False
        try:
            if call.is_begun:
                awaitable = _rest(awaitable, call.first)
            result = await self._within(loop, deadline, limit, awaitable)
            succeeded = True
            return result
        finally:
            permit.done(succeeded)
            _set_back(call.outer)

    async def _within(
        self,
        loop: asyncio.AbstractEventLoop,
        deadline: float | None,
        limit: float | None,
        awaitable: Awaitable[_R],
    ) -> _R:
        """Awaits until the deadline, as `asyncio.timeout_at` does, without a timer for each call."""
        if deadline is None or limit is None:
            return await awaitable
        task = current_task(loop)
        if task is None:
            raise RuntimeError("a call with a timeout is awaited in a task")
        others, expiry = task.cancelling(), _Expiry(task)
        timer = _native.BulkheadDeadline(loop, deadline, expiry)
        try:
            return await awaitable
        except CancelledError:
            # Who else has cancelled the task has it cancelled still.
            if expiry.has_come and task.cancelling() <= others + 1:
                raise self._native.time_out(limit) from None
            raise
        except TimeoutError:
            if expiry.has_come:
                raise self._native.time_out(limit) from None
            raise
        finally:
            timer.cancel()
            if expiry.has_come:
                task.uncancel()

    async def _wait(
        self,
        priority: int | None,
        timeout: float | None,
        loop: asyncio.AbstractEventLoop,
        deadline: float | None,
    ) -> _native.BulkheadPermit:
        """Waits for a slot."""
        waiting, future = self._native.enqueue(priority, timeout), loop.create_future()
        try:
            waiting.tell(loop, future, deadline)
            await future
            return waiting.take()
        except BaseException:
            waiting.leave()
            raise

    async def shutdown(self, within: float = 30.0) -> Drained:
        """Admits nobody any more, and waits this many seconds at most until all calls have ended."""
        turned_away = self._native.close()
        left = await self._native.drained(within)
        self._threads.close()
        return Drained(self.name, turned_away, left)


_Call = _native.BulkheadCall
_Waiting = _native.BulkheadWaiting


def _begin_nothing(
    owner: BulkheadPartition,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    priority: int | None,
    timeout: float | None,
) -> Any:
    """For a partition whose breaker is to be asked first."""
    _check_admission(priority, timeout)
    return _Call()


_COROUTINE = inspect.CO_COROUTINE
_PLAIN: tuple[type, ...] = (FunctionType, MethodType)


@coroutine
def _rest(begun: CoroutineType[Any, Any, Any], first: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that has made its first step, and awaits `first`."""
    while True:
        try:
            yield first
        except GeneratorExit:
            begun.close()
            raise
        except BaseException as error:
            try:
                first = begun.throw(error)
            except StopIteration as end:
                return end.value
        else:
            return (yield from cast("Generator[Any, Any, Any]", begun))


class _Expiry:
    """Cancels a task whose time is over."""

    __slots__ = ("__weakref__", "_task", "has_come")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.has_come = False

    def expire(self) -> None:
        self.has_come = True
        self._task.cancel()


class _Job:
    """A sync call on its way through a partition's threads."""

    __slots__ = (
        "__weakref__",
        "_limit",
        "_loop",
        "_outcome",
        "_partition",
        "_permit",
        "_work",
        "future",
    )

    def __init__(
        self,
        partition: _native.BulkheadPartition,
        permit: _native.BulkheadPermit,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        limit: float | None,
    ) -> None:
        # Whoever pops it, the thread or the caller that gives up, has the work.
        self._work = [(contextvars.copy_context(), function, args, kwargs)]
        self._partition = partition
        self._permit = permit
        self._loop = loop
        self._limit = limit
        self.future: asyncio.Future[Any] = loop.create_future()

    def withdraw(self) -> bool:
        """Cancels the call if it has not begun; its slot is then free."""
        try:
            self._work.pop()
        except IndexError:
            return False
        self._permit.release()
        return True

    def expire(self) -> None:
        """Tells the caller that its time is over."""
        if self.future.done():
            return
        if self.withdraw():
            self.future.set_exception(self._partition.expire())
        elif self._limit is not None:
            self.future.set_exception(self._partition.time_out(self._limit))

    def give_up(self) -> None:
        """The caller wants nothing any more."""
        future = self.future
        self.withdraw()
        if future.done() and not future.cancelled() and future.exception() is None:
            _discard(future.result(), self._permit)

    def __call__(self) -> Callable[[], None] | None:
        try:
            context, function, args, kwargs = self._work.pop()
        except IndexError:
            return None
        permit = self._permit
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function, *args, **kwargs)
        except StopIteration as stop:
            # A future cannot carry one.
            error = RuntimeError("the function raised StopIteration")
            error.__cause__ = stop
        except BaseException as raised:
            error = raised
        # The caller finds the slot free when it learns the outcome, unless there is more to await.
        if error is not None or not hasattr(result, "__await__"):
            permit.done(error is None)
        self._outcome = result, error
        return self._tell

    def _tell(self) -> None:
        loop = self._loop
        _outcomes_of(loop).tell(loop, (self.future, self._permit, *self._outcome))
        del self._outcome


_Outcome = tuple[
    "asyncio.Future[Any]", _native.BulkheadPermit, Any, BaseException | None
]


class _Outcomes:
    """What threads have to tell one event loop, which is woken once for all there is."""

    __slots__ = ("_is_awaited", "_told")

    def __init__(self) -> None:
        self._told: deque[_Outcome] = deque()
        # Whether the loop will look. It takes this back before it does, so that nothing is missed.
        self._is_awaited = False

    def tell(self, loop: asyncio.AbstractEventLoop, outcome: _Outcome) -> None:
        self._told.append(outcome)
        if self._is_awaited:
            return
        self._is_awaited = True
        try:
            loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            # The loop has closed, and nobody waits.
            self._is_awaited = False
            for _, permit, result, _ in self._taken():
                _discard(result, permit)

    def _settle(self) -> None:
        self._is_awaited = False
        for future, permit, result, error in self._taken():
            if future.done():
                _discard(result, permit)
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

    def _taken(self) -> Iterator[_Outcome]:
        try:
            while True:
                yield self._told.popleft()
        except IndexError:
            return


_outcomes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Outcomes] = WeakKeyDictionary()


def _outcomes_of(loop: asyncio.AbstractEventLoop) -> _Outcomes:
    outcomes = _outcomes.get(loop)
    return _outcomes.setdefault(loop, _Outcomes()) if outcomes is None else outcomes


def _discard(result: Any, permit: _native.BulkheadPermit) -> None:
    """Drops what nobody waits for any more."""
    if inspect.iscoroutine(result):
        result.close()
    permit.done(False)


def _set_back(outer: contextvars.Token[Any]) -> None:
    try:
        _reset(outer)
    except ValueError:
        pass  # a coroutine that is closed in another context than it ran in


def _teller(partition: BulkheadPartition) -> Callable[[list[dict[str, Any]]], None]:
    """Tells the partition's listeners as long as somebody else keeps it alive."""
    alive = ref(partition)

    def tell(events: list[dict[str, Any]]) -> None:
        partition = alive()
        if partition is not None:
            for event in events:
                for _, callback in tuple(partition._listeners):
                    callback(PartitionEvent(**event))

    return tell


def _is_async(function: Callable[..., Any]) -> bool:
    if type(function) in _PLAIN and not function.__dict__:
        # Nothing is marked on it.
        return bool(function.__code__.co_flags & _COROUTINE)
    if not callable(function):
        if inspect.iscoroutine(function):
            function.close()
        raise TypeError(f"a partition runs functions, not {function!r}")
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & _COROUTINE:
        return True
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _check_admission(priority: int | None, timeout: float | None) -> None:
    if priority is not None:
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ConfigTypeError("priority", priority, "a whole number")
        if not 1 <= priority <= 10:
            raise ConfigError("priority", priority, "1 to 10")
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise ConfigTypeError("timeout", timeout, "a number of seconds")
        if not 0 <= timeout < float("inf"):
            raise ConfigError("timeout", timeout, "a finite number of seconds, 0 or more")


def _checked_ceiling(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise ConfigTypeError("ceiling", limit, "a whole number")
    if not 1 <= limit <= 1_000_000:
        raise ConfigError("ceiling", limit, "1 to 1000000")
    return limit


def _checked(config: PartitionConfig) -> PartitionConfig:
    if not isinstance(config, PartitionConfig):
        raise ConfigTypeError("config", config, "a PartitionConfig")
    return config


class BulkheadManager:
    """Partitions by name; critical, database, api, compute and background are there from the start."""

    def __init__(self) -> None:
        self._adopt(_native.BulkheadManager())

    def _adopt(self, native: _native.BulkheadManager) -> None:
        self._native = native
        self._partitions: dict[str, BulkheadPartition] = {}
        for name in native.names():
            self._find(name)
        _managers.add(self)

    def _find(self, name: str) -> BulkheadPartition:
        native = self._native.get(name)
        settings = native.config()
        settings["partition_type"] = PartitionType(settings["partition_type"])
        partition = BulkheadPartition._over(native, PartitionConfig(**settings))
        return self._partitions.setdefault(name, partition)

    @property
    def partitions(self) -> dict[str, BulkheadPartition]:
        """The partitions by their name."""
        return {name: self.get_partition(name) for name in self._native.names()}

    def configure_partition(self, config: PartitionConfig) -> BulkheadPartition:
        """Creates a partition, or replaces the whole configuration of the one of this name, live.

        Calls that run keep their slots, those that wait their places. A partition that was shut down
        is replaced by a new one.
        """
        native = self._native.configure(_checked(config))
        partition = self._partitions.get(config.name)
        if partition is not None and partition._native.is_closed():
            self._partitions.pop(config.name, None)
            partition = None
        if partition is None:
            made = BulkheadPartition._over(native, config)
            partition = self._partitions.setdefault(config.name, made)
        partition._configure(config)
        return partition

    def create_partition(self, config: PartitionConfig) -> BulkheadPartition:
        """Creates a partition. Raises ValueError if there is one of this name."""
        if _checked(config).name in self._native.names():
            raise ValueError(f"partition {config.name!r} exists already")
        return self.configure_partition(config)

    def get_partition(self, name: str) -> BulkheadPartition:
        """The partition of this name. Raises ValueError, with the names there are, if there is none."""
        return self._partitions.get(name) or self._find(name)

    @asynccontextmanager
    async def isolated_execution(self, partition_name: str) -> AsyncIterator[BulkheadPartition]:
        """Holds a slot of a partition for a block."""
        async with self.get_partition(partition_name) as partition:
            yield partition

    def get_all_status(self) -> dict[str, dict[str, Any]]:
        """The status of each partition by its name."""
        return {name: partition.get_status() for name, partition in self.partitions.items()}

    def under_ceiling(self, limit: int) -> BulkheadManager:
        """Partitions configured like these, new ones, of which no more than `limit` calls may run at
        once in all of them together: 1 to 1,000,000.

        Each partition's own limit and queue hold as before. When the ceiling is reached, calls wait
        in the queues of their partitions, and a call that ends lets the most urgent start of all that
        only the ceiling holds up. Every 20th start goes to the longest waiting.
        """
        manager = BulkheadManager.__new__(BulkheadManager)
        manager._adopt(self._native.under_ceiling(_checked_ceiling(limit)))
        return manager

    @property
    def ceiling(self) -> CeilingMetrics | None:
        """How full the ceiling is; None without one."""
        seen = self._native.ceiling()
        return None if seen is None else CeilingMetrics(**seen)

    def set_ceiling(self, limit: int) -> None:
        """Changes the ceiling live. ValueError if this manager was made without one.

        A lower one takes effect as calls end; a higher one starts waiters at once.
        """
        self._native.set_ceiling(_checked_ceiling(limit))

    async def shutdown_all(self, within: float = 30.0) -> list[Drained]:
        """Shuts all partitions down, in this many seconds at most."""
        return await asyncio.gather(
            *(each.shutdown(within) for each in self.partitions.values())
        )


_managers: WeakSet[BulkheadManager] = WeakSet()
_manager = BulkheadManager()
_partitions = _manager._partitions


def get_bulkhead_manager() -> BulkheadManager:
    """The partitions of this process, which workflows use too."""
    return _manager


@overload
async def execute_with_bulkhead(
    partition_name: str,
    func: Callable[..., Awaitable[_R]],
    *args: Any,
    priority: int | None = None,
    timeout: float | None = None,
    **kwargs: Any,
) -> _R: ...


@overload
async def execute_with_bulkhead(
    partition_name: str,
    func: Callable[..., _R],
    *args: Any,
    priority: int | None = None,
    timeout: float | None = None,
    **kwargs: Any,
) -> _R: ...


async def execute_with_bulkhead(
    partition_name: str,
    func: Callable[..., Any],
    *args: Any,
    priority: int | None = None,
    timeout: float | None = None,
    **kwargs: Any,
) -> Any:
    """Runs a function in a slot of the partition of this name: see `BulkheadPartition.execute`.

    Raises ValueError, with the names there are, if no partition has this name.
    """
    partition = _partitions.get(partition_name) or _manager.get_partition(partition_name)
    begun = partition._begin(partition, func, args, kwargs, priority, timeout)
    kind = type(begun)
    if kind is _Waiting:
        return await partition._go_on_queued(begun, func, args, kwargs, timeout)
    if kind is _Call:
        return await partition._go_on(begun, func, args, kwargs, priority, timeout)
    return begun


@contextmanager
def in_partition(name: str | None) -> Iterator[None]:
    """Makes a partition the current one for work whose slot somebody else holds."""
    if name is None:
        yield
        return
    outer = _current.get()
    _current.set((_manager.get_partition(name),))
    try:
        yield
    finally:
        _current.set(outer)


@in_forked_child
def _forget_calls_in_flight() -> None:
    rebuilt: set[int] = set()
    for manager in tuple(_managers):
        partitions = list(manager._partitions.values())
        rebuilt.update(map(id, partitions))
        manager._native.rebuild([partition._native for partition in partitions])
    for partition in tuple(_every):
        # The slots are the parent's; in the child they are gone with the partition they were of.
        partition._held.clear()
        if id(partition) not in rebuilt:
            partition._native.rebuild()
        if not partition._unheard:
            # What carried the news to them was a thread of the parent's.
            partition._native.listen(_teller(partition))
