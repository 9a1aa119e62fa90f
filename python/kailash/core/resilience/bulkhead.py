"""Bulkheads: partitions that keep one kind of work from starving another."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from types import CoroutineType, TracebackType, coroutine
from typing import Any, Literal, TypeVar, cast, overload
from weakref import WeakSet

from kailash import _native
from kailash._callbacks import Done
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
    "PartitionConfig",
    "PartitionMetrics",
    "PartitionType",
    "ResourceType",
    "current_partition",
    "execute_with_bulkhead",
    "get_bulkhead_manager",
]

_R = TypeVar("_R")


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
    """What a partition is doing and has done so far; durations in seconds."""

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


_current: ContextVar[BulkheadPartition | None] = ContextVar("kailash_partition", default=None)
_every: WeakSet[BulkheadPartition] = WeakSet()


def current_partition() -> BulkheadPartition | None:
    """The partition in whose slot the current task or thread runs."""
    return _current.get()


class BulkheadPartition:
    """A number of slots for one kind of work, with a queue and threads of its own.

    `with partition:` holds a slot for a block and never waits, `async with partition:` waits in the
    queue. Any thread and any event loop may use it.
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
        # What acquire() has taken, and the blocks of `with partition:`.
        self._held: list[_native.BulkheadPermit] = []
        self._breaker: CircuitBreaker | None = None
        self._configure(config)
        _every.add(self)

    def _configure(self, config: PartitionConfig) -> None:
        self._config = config
        self._threads.resize(config._threads)
        self._breaker = None
        if config.circuit_breaker_enabled:
            name = f"bulkhead.{config.name}"
            self._breaker = get_circuit_breaker_manager().get_or_create(name)

    def __repr__(self) -> str:
        return f"<BulkheadPartition {self.name!r}>"

    # -------------------------------------------------------------- to see it

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
            },
            "config": {
                "max_concurrent_operations": config.max_concurrent_operations,
                "max_threads": config._threads,
                "max_connections": config.max_connections,
                "timeout": config.timeout,
                "priority": config.priority,
                "queue_size": config.queue_size,
            },
            "resources": {
                "semaphore_available": max(0, seen["limit"] - seen["active"]),
                "queue_size": seen["queued"],
                "thread_pool_active": self._threads.count,
            },
            "circuit_breaker": self._breaker and self._breaker.get_status(),
            "timestamp": datetime.now(UTC).isoformat(),
        }

    # -------------------------------------------------------------- to hold a slot

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
        self._enter(self._native.acquire())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error is None)

    async def __aenter__(self) -> BulkheadPartition:
        self._enter(self._native.take() or await self._wait(None, self._config.timeout))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error is None)

    def _enter(self, permit: _native.BulkheadPermit) -> None:
        _blocks.set((self, permit, _current.get(), _blocks.get()))
        _current.set(self)

    def _leave(self, succeeded: bool) -> None:
        """Gives back the slot of this partition's innermost block.

        A block that is left in another context than it was entered in is not there: its slot is
        free once that context is gone.
        """
        passed: list[_Block] = []
        block = _blocks.get()
        while block is not None and block[0] is not self:
            passed.append(block)
            block = block[3]
        if block is None:
            return
        rest = block[3]
        for partition, permit, outer, _ in reversed(passed):
            rest = (partition, permit, outer, rest)
        _blocks.set(rest)
        if not passed:
            _current.set(block[2])
        block[1].done(succeeded)

    # -------------------------------------------------------------- to run in a slot

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
        if not callable(func):
            if inspect.iscoroutine(func):
                func.close()
            raise TypeError(f"a partition runs functions, not {func!r}")
        _check_admission(priority, timeout)
        breaker = self._breaker
        if breaker is None:
            return await self._execute(func, args, kwargs, priority, timeout)
        guarded = breaker(self._execute)
        return await guarded(func, args, kwargs, priority, timeout)

    async def _execute(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        priority: int | None,
        timeout: float | None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        limit = timeout or self._config.timeout
        deadline = None if limit is None else loop.time() + limit
        permit = self._native.take() or await self._wait(priority, timeout)
        outer = _current.get()
        _current.set(self)
        try:
            if not _is_async(function):
                return await self._run_in_thread(permit, function, args, kwargs, deadline, limit)
            succeeded = False
            try:
                result = await self._awaited(function(*args, **kwargs), deadline, limit)
                succeeded = True
                return result
            finally:
                permit.done(succeeded)
        finally:
            _current.set(outer)

    async def _awaited(
        self, awaitable: Awaitable[Any], deadline: float | None, limit: float | None
    ) -> Any:
        if isinstance(awaitable, CoroutineType):
            try:
                first = awaitable.send(None)
            except StopIteration as end:
                # Done without ever waiting, so that no timer was needed.
                return end.value
            awaitable = _rest(awaitable, first)
        return await self._within(deadline, limit, awaitable)

    async def _within(
        self, deadline: float | None, limit: float | None, awaitable: Awaitable[_R]
    ) -> _R:
        """Awaits until the deadline."""
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                return await awaitable
        except TimeoutError:
            if limit is None or not scope.expired():
                raise
            raise self._native.time_out(limit) from None

    async def _wait(self, priority: int | None, timeout: float | None) -> _native.BulkheadPermit:
        """Waits in the queue for a slot."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_native.BulkheadPermit] = loop.create_future()

        def look() -> None:
            if future.done():
                return
            try:
                permit = waiting.poll(self._native)
            except BaseException as full:
                future.set_exception(full)
            else:
                if permit is not None:
                    future.set_result(permit)

        def expire() -> None:
            if not future.done() and (full := waiting.expire()) is not None:
                future.set_exception(full)

        waiting = self._native.enqueue(priority, timeout, loop, look)
        look()
        timer = None
        limit = timeout or self._config.timeout
        if limit is not None and not future.done():
            timer = loop.call_later(limit, expire)
        try:
            return await future
        except BaseException:
            # A slot that had been handed over when the task was cancelled goes to the next.
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise
        finally:
            waiting.leave()
            if timer is not None:
                timer.cancel()

    async def _run_in_thread(
        self,
        permit: _native.BulkheadPermit,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float | None,
        limit: float | None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        job = _Job(permit, function, args, kwargs, loop, future)
        try:
            self._threads.submit(job)
        except RuntimeError:
            job.withdraw()
            raise self._native.without_thread() from None

        def expire() -> None:
            if future.done():
                return
            if job.withdraw():
                future.set_exception(self._native.expire())
            elif limit is not None:
                future.set_exception(self._native.time_out(limit))

        timer = None if deadline is None else loop.call_at(deadline, expire)
        try:
            result = await future
        except BaseException:
            job.withdraw()
            if future.done() and not future.cancelled() and future.exception() is None:
                _discard(future.result(), permit)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not hasattr(result, "__await__"):
            return result
        succeeded = False
        try:
            result = await self._awaited(result, deadline, limit)
            succeeded = True
            return result
        finally:
            permit.done(succeeded)

    async def shutdown(self) -> None:
        """Admits nobody any more, and waits up to 30 s until the running calls have ended."""
        self._native.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + 30
        while self._native.snapshot()["active"] and loop.time() < end:
            await asyncio.sleep(0.01)
        self._threads.close()


_Block = tuple[BulkheadPartition, _native.BulkheadPermit, BulkheadPartition | None, Any]
_blocks: ContextVar[_Block | None] = ContextVar("kailash_partition_blocks", default=None)


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


class _Job:
    """A sync call on its way through a partition's threads."""

    def __init__(
        self,
        permit: _native.BulkheadPermit,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
    ) -> None:
        # Whoever pops it, the thread or the caller that gives up, has the work.
        self._work = [(permit, contextvars.copy_context(), function, args, kwargs)]
        self._loop = loop
        self._future = future

    def withdraw(self) -> bool:
        """Cancels the call if it has not begun; its slot is then free."""
        try:
            permit = self._work.pop()[0]
        except IndexError:
            return False
        permit.release()
        return True

    def __call__(self) -> None:
        try:
            permit, context, function, args, kwargs = self._work.pop()
        except IndexError:
            return
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
        try:
            self._loop.call_soon_threadsafe(_settle, self._future, permit, result, error)
        except RuntimeError:
            _discard(result, permit)  # the loop has closed, and nobody waits


def _settle(
    future: asyncio.Future[Any],
    permit: _native.BulkheadPermit,
    result: Any,
    error: BaseException | None,
) -> None:
    if future.done():
        _discard(result, permit)
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _discard(result: Any, permit: _native.BulkheadPermit) -> None:
    """Drops what nobody waits for any more."""
    if inspect.iscoroutine(result):
        result.close()
    permit.done(False)


def _is_async(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
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


def _checked(config: PartitionConfig) -> PartitionConfig:
    if not isinstance(config, PartitionConfig):
        raise ConfigTypeError("config", config, "a PartitionConfig")
    return config


class BulkheadManager:
    """Partitions by name; critical, database, api, compute and background are there from the start."""

    def __init__(self) -> None:
        self._native = _native.BulkheadManager()
        self._partitions: dict[str, BulkheadPartition] = {}
        for name in self._native.names():
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

        Calls that run keep their slots, those that wait their places.
        """
        native = self._native.configure(_checked(config))
        partition = self._partitions.get(config.name)
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

    async def shutdown_all(self) -> None:
        """Shuts all partitions down."""
        await asyncio.gather(*(each.shutdown() for each in self.partitions.values()))


_managers: WeakSet[BulkheadManager] = WeakSet()
_manager = BulkheadManager()


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
    partition = _manager.get_partition(partition_name)
    return await partition.execute(func, *args, priority=priority, timeout=timeout, **kwargs)


@contextmanager
def in_partition(name: str | None) -> Iterator[None]:
    """Makes a partition the current one for work whose slot somebody else holds."""
    if name is None:
        yield
        return
    outer = _current.get()
    _current.set(_manager.get_partition(name))
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
