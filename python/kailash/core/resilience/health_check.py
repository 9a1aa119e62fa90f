"""Health checks: those of the library, and what a check of one's own is."""

from __future__ import annotations

import asyncio
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

from kailash import _native
from kailash._loops import LoopThread
from kailash.core.resilience.config import ConfigError, ConfigTypeError

__all__ = [
    "BuiltInCheck",
    "CheckAnswer",
    "CustomHealthCheck",
    "DatabaseHealthCheck",
    "HTTPHealthCheck",
    "HealthCheck",
    "HealthCheckResult",
    "HealthStatus",
    "MemoryHealthCheck",
    "RedisHealthCheck",
    "Runner",
    "result_of",
]


class HealthStatus(Enum):
    """How something is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


_STATUSES = {status.value: status for status in HealthStatus}
_MESSAGES = {
    HealthStatus.HEALTHY: "Service is healthy",
    HealthStatus.DEGRADED: "Service is degraded but functional",
    HealthStatus.UNHEALTHY: "Service is unhealthy",
    HealthStatus.UNKNOWN: "Service status unknown",
}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class HealthCheckResult:
    """What a run of a check found; `age` is in seconds, and 0 where the run has just ended."""

    check_id: str = field(default_factory=lambda: str(uuid4()))
    service_name: str = ""
    status: HealthStatus = HealthStatus.UNKNOWN
    response_time_ms: float = 0.0
    timestamp: datetime | None = field(default_factory=_now)
    details: dict[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    message: str = ""
    age: float = 0.0
    error_class: str | None = None
    critical: bool = True
    consecutive_failures: int = 0

    def __post_init__(self) -> None:
        if not self.message:
            self.message = self.error_message or _MESSAGES[self.status]

    @property
    def is_healthy(self) -> bool:
        """Whether the service can be used: HEALTHY or DEGRADED."""
        return self.status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED)

    @property
    def check_name(self) -> str:
        """The same as `service_name`."""
        return self.service_name

    @property
    def error(self) -> str | None:
        """The same as `error_message`."""
        return self.error_message

    @property
    def metadata(self) -> dict[str, Any]:
        """The same as `details`."""
        return self.details


CheckAnswer = HealthCheckResult | dict[str, Any] | bool


class HealthCheck(ABC):
    """A check of one's own: a subclass says in `check_health` how its service is.

    `check_health` may be async or not, and answers a HealthCheckResult, a dict with `status` and
    perhaps `message`, `error` and `metadata`, or a bool; an exception is UNHEALTHY. It runs on a
    thread of the monitor's, an async one on a loop that lasts while the check is registered, so it
    may block. With `run_on="caller"` it runs on the loop that registers it, and must not block.

    `timeout`, `check_interval` (None: the monitor's) are in seconds; `timeout` holds whatever the
    check does. `alert_threshold` (None: the monitor's) is how many failures in a row raise an alert.
    """

    def __init__(
        self,
        name: str,
        timeout: float = 5.0,
        critical: bool = True,
        *,
        check_interval: float | None = None,
        alert_threshold: int | None = None,
        run_on: Literal["monitor", "caller"] = "monitor",
    ) -> None:
        if not isinstance(name, str):
            raise ConfigTypeError("name", name, "a text")
        if run_on not in ("monitor", "caller"):
            raise ConfigError("run_on", run_on, "'monitor' or 'caller'")
        self.name = name
        self.timeout = timeout
        self.critical = critical
        self.check_interval = check_interval
        self.alert_threshold = alert_threshold
        self.run_on = run_on
        _native.check_health_check_config(self)

    @property
    def check_name(self) -> str:
        """The same as `name`."""
        return self.name

    @abstractmethod
    def check_health(self) -> CheckAnswer | Awaitable[CheckAnswer]:
        """Finds out how the service is."""


class BuiltInCheck(HealthCheck):
    """A check that Rust runs, unless a subclass brings its own `check_health`."""

    def make(self) -> _native.HealthChecker:
        """The check in Rust, with a connection of its own."""
        raise NotImplementedError

    async def check_health(self) -> CheckAnswer:
        """Runs the check once, within its timeout."""
        found = await _native.run_check(self.make(), self.timeout)
        return result_of(self.name, found | {"critical": self.critical})


class DatabaseHealthCheck(BuiltInCheck):
    """Whether a database answers a query: PostgreSQL, MySQL, MariaDB or SQLite by its URL.

    In place of the URL it takes a SQLDatabaseNode. `query` is a cheap one of the library's by default.
    """

    def __init__(
        self, name: str, connection_string: Any, *, query: str | None = None, **settings: Any
    ) -> None:
        super().__init__(name, **settings)
        url = getattr(connection_string, "connection_string", connection_string)
        if not isinstance(url, str):
            # The value is not told: whatever it is, it may hold a password.
            kind = type(connection_string).__name__
            raise ConfigTypeError("connection_string", kind, "a URL or a SQLDatabaseNode")
        if query is not None and not isinstance(query, str):
            raise ConfigTypeError("query", query, "a statement")
        self.connection_string = url
        self.query = query
        self.make()

    def make(self) -> _native.HealthChecker:
        """The check in Rust, with a connection of its own."""
        return _native.sql_check(self.connection_string, self.query)


_REDIS_SETTINGS = ("url", "host", "port", "db", "username", "password", "ssl")


class RedisHealthCheck(BuiltInCheck):
    """Whether a Redis server answers PING.

    `redis_config` holds `url`, or any of `host`, `port`, `db`, `username`, `password` and `ssl`.
    """

    def __init__(self, name: str, redis_config: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)
        redis_config = {} if redis_config is None else redis_config
        if not isinstance(redis_config, dict):
            kind = type(redis_config).__name__
            raise ConfigTypeError("redis_config", kind, "a dict")
        for setting in redis_config:
            if setting not in _REDIS_SETTINGS:
                raise ConfigError("redis_config", setting, ", ".join(_REDIS_SETTINGS))
        self.redis_config = dict(redis_config)
        self.make()

    def make(self) -> _native.HealthChecker:
        """The check in Rust, with a connection of its own."""
        config = self.redis_config
        host, port, db = config.get("host", "localhost"), config.get("port", 6379), config.get("db", 0)
        for setting, value, kind in (("host", host, str), ("port", port, int), ("db", db, int)):
            if not isinstance(value, kind) or isinstance(value, bool):
                allowed = "a text" if kind is str else "a whole number"
                raise ConfigTypeError(f"redis_config[{setting!r}]", value, allowed)
        if not 0 < port < 65_536:
            raise ConfigError("redis_config['port']", port, "1 to 65535")
        if not 0 <= db < 2**31:
            raise ConfigError("redis_config['db']", db, "0 or more")
        username, password = config.get("username"), config.get("password")
        url = config.get("url")
        if config.get("ssl") and url is None:
            account = f"{quote(username or '', '')}:{quote(password, '')}@" if password else ""
            url = f"rediss://{account}{host}:{port}/{db}"
        return _native.redis_check(url, host, port, db, username, password)


class HTTPHealthCheck(BuiltInCheck):
    """Whether an HTTP service answers a GET with a status that is expected: one, or one of a list."""

    def __init__(
        self,
        name: str,
        url: str,
        expected_status: int | Iterable[int] = 200,
        *,
        headers: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(name, **settings)
        if not isinstance(url, str):
            raise ConfigTypeError("url", type(url).__name__, "a URL")
        self.url = url
        self.expected_status = expected_status
        self.headers = dict(headers or {})
        self.make()

    def make(self) -> _native.HealthChecker:
        """The check in Rust, with a connection of its own."""
        expected = self.expected_status
        statuses = [expected] if isinstance(expected, int) else list(expected)
        for status in statuses:
            if not isinstance(status, int) or isinstance(status, bool):
                raise ConfigTypeError("expected_status", status, "whole numbers")
            if not 100 <= status <= 599:
                raise ConfigError("expected_status", status, "100 to 599")
        return _native.http_check(self.url, statuses, list(self.headers.items()))


class MemoryHealthCheck(BuiltInCheck):
    """How much of the machine's memory is in use: the thresholds are in percent."""

    def __init__(
        self,
        name: str,
        warning_threshold: float = 80.0,
        critical_threshold: float = 95.0,
        **settings: Any,
    ) -> None:
        super().__init__(name, **settings)
        for threshold, value in (
            ("warning_threshold", warning_threshold),
            ("critical_threshold", critical_threshold),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigTypeError(threshold, value, "a number")
            if not 0 < value <= 100:
                raise ConfigError(threshold, value, "above 0 and up to 100")
        if critical_threshold < warning_threshold:
            allowed = f"at least warning_threshold ({warning_threshold})"
            raise ConfigError("critical_threshold", critical_threshold, allowed)
        self.warning_threshold = warning_threshold
        self.critical_threshold = critical_threshold

    def make(self) -> _native.HealthChecker:
        """The check in Rust, with a connection of its own."""
        return _native.memory_check(self.warning_threshold / 100, self.critical_threshold / 100)


class CustomHealthCheck(HealthCheck):
    """A check by a function, async or not.

    It answers as `HealthCheck.check_health` does; anything else, None among it, is healthy.
    """

    def __init__(self, name: str, check_function: Callable[[], Any], **settings: Any) -> None:
        super().__init__(name, **settings)
        if not callable(check_function):
            raise ConfigTypeError("check_function", check_function, "a function")
        self.check_function = check_function

    async def check_health(self) -> CheckAnswer:
        """Calls the function."""
        answer = self.check_function()
        if inspect.isawaitable(answer):
            answer = await answer
        return answer if isinstance(answer, (bool, dict, HealthCheckResult)) else True


class Runner:
    """Runs one registered Python check: on a loop of its own, or on its caller's."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check
        self._caller = None
        if check.run_on == "caller":
            try:
                self._caller = asyncio.get_running_loop()
            except RuntimeError:
                raise ConfigError("run_on", "caller", "'monitor' where no loop is running") from None
        self._thread: LoopThread | None = None
        self._job: _native.HealthJob | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self, job: _native.HealthJob) -> None:
        """Begins a run; called on the courier's thread."""
        if self._job is not None:
            job.finish("unhealthy", "timeout: an earlier run has not ended", "{}")
            return
        loop = self._caller
        if loop is None:
            if self._is_closed:
                job.finish("unknown", "not run: the check is no longer registered", "{}")
                return
            if self._thread is None:
                self._thread = LoopThread(f"kailash-check-{self._check.name}")
            loop = self._thread.loop
        self._job = job
        try:
            loop.call_soon_threadsafe(self._begin, loop, job)
        except RuntimeError:
            self._job = None
            job.finish("unknown", "not run: its loop has closed", "{}")

    def _begin(self, loop: asyncio.AbstractEventLoop, job: _native.HealthJob) -> None:
        if job.is_wanted():
            self._task = loop.create_task(self._run(job))
        else:
            self._job = None

    async def _run(self, job: _native.HealthJob) -> None:
        try:
            answer: Any = self._check.check_health()
            if inspect.isawaitable(answer):
                answer = await answer
            job.finish(*_outcome(answer))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            job.finish("unhealthy", _describe(error), "{}")
        finally:
            self._job = self._task = None

    def cancel(self) -> None:
        """Ends a run that took too long; called on the courier's thread."""
        task = self._task
        if task is not None:
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # its loop has closed

    def close(self) -> None:
        """Ends the check's loop."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.stop()


def _describe(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _outcome(answer: object) -> tuple[str, str, str]:
    """The status's word, the message and the details of what a check answered."""
    if isinstance(answer, bool):
        return ("healthy", "", "{}") if answer else ("unhealthy", "the check says no", "{}")
    if isinstance(answer, HealthCheckResult):
        message = "" if answer.message == _MESSAGES[answer.status] else answer.message
        details = dict(answer.details)
        return answer.status.value, answer.error_message or message, _to_json(details)
    if isinstance(answer, dict):
        rest = dict(answer)
        status = rest.pop("status", HealthStatus.UNKNOWN)
        word = status.value if isinstance(status, HealthStatus) else str(status).lower()
        if word not in _STATUSES:
            return "unhealthy", f"the check answered with the unknown status {word!r}", "{}"
        parts = [rest.pop("message", None), rest.pop("error", None)]
        details = rest.pop("metadata", None) or {}
        message = ": ".join(str(part) for part in parts if part)
        return word, message, _to_json({**rest, **details})
    kind = type(answer).__name__
    return "unhealthy", f"the check answered with {kind}, not a result, a dict or a bool", "{}"


def _to_json(details: dict[str, Any]) -> str:
    try:
        return json.dumps({str(name): value for name, value in details.items()}, default=str)
    except (TypeError, ValueError):
        return json.dumps({str(name): str(value) for name, value in details.items()})


def result_of(name: str, found: dict[str, Any]) -> HealthCheckResult:
    """The result that Rust found."""
    status = _STATUSES[found["status"]]
    message: str = found["message"]
    return HealthCheckResult(
        service_name=found.get("service_name", name),
        status=status,
        response_time_ms=found["response_time_ms"],
        timestamp=found["timestamp"],
        details=found["details"],
        error_message=None if status is HealthStatus.HEALTHY else message or _MESSAGES[status],
        message=message,
        age=found["age"],
        error_class=found["error_class"],
        critical=found.get("critical", True),
        consecutive_failures=found.get("consecutive_failures", 0),
    )
