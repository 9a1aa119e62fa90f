"""Health monitoring: checks on schedules of their own, and alerts when they fail in a row."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import uuid4

from kailash import _native
from kailash._callbacks import Callback, Done
from kailash._process import at_exit, in_forked_child
from kailash.core.resilience.config import ConfigError, ConfigTypeError
from kailash.core.resilience.health_check import (
    BuiltInCheck,
    CustomHealthCheck,
    DatabaseHealthCheck,
    HealthCheck,
    HealthCheckResult,
    HealthStatus,
    HTTPHealthCheck,
    MemoryHealthCheck,
    RedisHealthCheck,
    Runner,
    result_of,
)

__all__ = [
    "AlertLevel",
    "CustomHealthCheck",
    "DatabaseHealthCheck",
    "HTTPHealthCheck",
    "HealthAlert",
    "HealthCheck",
    "HealthCheckManager",
    "HealthCheckResult",
    "HealthMetrics",
    "HealthMonitor",
    "HealthStatus",
    "HealthSummary",
    "MemoryHealthCheck",
    "RedisHealthCheck",
    "get_health_manager",
    "get_health_monitor",
    "quick_health_check",
    "register_custom_health_check",
    "register_database_health_check",
    "register_memory_health_check",
]

_STATUSES = {status.value: status for status in HealthStatus}


def _now() -> datetime:
    return datetime.now(UTC)


class AlertLevel(Enum):
    """How urgent an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    FATAL = "fatal"


@dataclass(frozen=True)
class HealthMetrics:
    """What the runs of one check came to."""

    total_checks: int = 0
    successful_checks: int = 0
    failed_checks: int = 0
    avg_response_time_ms: float = 0.0
    max_response_time_ms: float = 0.0
    uptime_percentage: float = 100.0
    consecutive_failures: int = 0
    last_successful_check: datetime | None = None
    last_failed_check: datetime | None = None


@dataclass(frozen=True)
class HealthAlert:
    """One incident: a check that failed too often in a row, until it succeeds again."""

    alert_id: str = field(default_factory=lambda: str(uuid4()))
    service_name: str = ""
    level: AlertLevel = AlertLevel.INFO
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    timestamp: datetime = field(default_factory=_now)
    resolved_at: datetime | None = None
    failures: int = 0

    @property
    def resolved(self) -> bool:
        """Whether the incident is over."""
        return self.resolved_at is not None


def _alert(found: dict[str, Any]) -> HealthAlert:
    return HealthAlert(**found | {"level": AlertLevel(found["level"])})


class HealthMonitor:
    """Runs checks on their schedules, remembers the newest results, and raises alerts.

    `check_interval` is in seconds; `alert_threshold` is how many failures in a row raise an alert.
    Any thread and any event loop may use it.
    """

    def __init__(self, check_interval: float = 30.0, alert_threshold: int = 3) -> None:
        self.check_interval = check_interval
        self.alert_threshold = alert_threshold
        self._starts_itself = False
        self._is_wanted = False
        self._checks: dict[str, HealthCheck] = {}
        self._runners: dict[str, Runner] = {}
        self._callbacks: list[tuple[AlertCallback, Callback]] = []
        _native.check_health_monitor_config(self)
        self._native_monitor: _native.HealthMonitor | None = None
        self._building = threading.Lock()
        weakref.finalize(self, _close_all, self._runners).atexit = False
        _every.add(self)

    @property
    def _inner(self) -> _native.HealthMonitor:
        """The monitor in Rust: built when it is first needed, in a forked child once more."""
        native = self._native_monitor
        return self._build() if native is None else native

    def _build(self) -> _native.HealthMonitor:
        with self._building:
            if self._native_monitor is not None:
                return self._native_monitor
            native = _native.HealthMonitor(self)
            tell = weakref.WeakMethod(self._tell)
            native.on_alert(lambda found: (method := tell()) and method(found))
            for name, check in list(self._checks.items()):
                self._register(native, name, check)
            if self._is_wanted:
                native.start()
            self._native_monitor = native
            return native

    def _register(
        self, native: _native.HealthMonitor, name: str, check: HealthCheck
    ) -> None:
        runner = None
        if isinstance(check, BuiltInCheck) and type(check).check_health is BuiltInCheck.check_health:
            checker = check.make()
        else:
            runner = Runner(check)
            checker = _native.python_check(runner.start, runner.cancel)
        native.register(name, checker, check)
        old = self._runners.pop(name, None)
        if old is not None:
            old.close()
        if runner is not None:
            self._runners[name] = runner

    @property
    def health_checks(self) -> dict[str, HealthCheck]:
        """The checks by their name."""
        return dict(self._checks)

    def register_check(self, service_name: str, health_check: HealthCheck) -> None:
        """Adds a check under a name, in place of one that had it.

        On the monitor of `get_health_monitor()` this starts monitoring: the check runs at once, then
        at every interval.
        """
        if not isinstance(service_name, str):
            raise TypeError(f"a check's name is a text, not {service_name!r}")
        if not isinstance(health_check, HealthCheck):
            raise TypeError(f"a health check is a HealthCheck, not {health_check!r}")
        self._register(self._inner, service_name, health_check)
        self._checks[service_name] = health_check
        if self._starts_itself and not self._is_wanted:
            self.start_monitoring()

    def unregister_check(self, service_name: str) -> bool:
        """Takes a check away and resolves its alert; False if there is none of that name."""
        self._checks.pop(service_name, None)
        runner = self._runners.pop(service_name, None)
        if runner is not None:
            runner.close()
        return self._inner.unregister(service_name)

    async def get_health_status(self, service_name: str) -> HealthCheckResult:
        """The newest result of a check. Raises ValueError if there is none of that name.

        A check runs for this only if it has no result yet, or if nobody monitors it and its result
        is older than its interval.
        """
        return result_of(service_name, await self._inner.status(service_name))

    async def get_all_health_status(self) -> dict[str, HealthCheckResult]:
        """The newest result of every check by its name."""
        found = await self._inner.statuses()
        return {name: result_of(name, result) for name, result in found.items()}

    async def get_overall_health(self) -> HealthStatus:
        """How all of them are together.

        UNHEALTHY if a critical check is; DEGRADED if any other is unhealthy or any is degraded;
        UNKNOWN if none is registered.
        """
        return _STATUSES[await self._inner.overall()]

    async def check_now(self, service_name: str) -> HealthCheckResult:
        """Runs a check now and answers its result. Raises ValueError if there is none of that name."""
        return result_of(service_name, await self._inner.check_now(service_name))

    async def check_service_health(self, service_name: str) -> HealthCheckResult:
        """The same as `check_now`."""
        return await self.check_now(service_name)

    async def get_metrics(self, service_name: str) -> HealthMetrics | None:
        """What the runs of a check came to; None if there is none of that name."""
        return (await self.get_all_metrics()).get(service_name)

    async def get_all_metrics(self) -> dict[str, HealthMetrics]:
        """What the runs of every check came to, by its name."""
        found = self._inner.totals()
        return {name: HealthMetrics(**totals) for name, totals in found.items()}

    async def get_alerts(self, resolved: bool | None = None) -> list[HealthAlert]:
        """The alerts, oldest first: all, only the resolved, or only the unresolved ones."""
        return [_alert(found) for found in self._inner.alerts(resolved)]

    @property
    def alerts(self) -> list[HealthAlert]:
        """All alerts, oldest first."""
        return [_alert(found) for found in self._inner.alerts(None)]

    def register_alert_callback(self, callback: AlertCallback) -> None:
        """Has `callback(alert)` told when an alert is raised, and, at level INFO, when it is resolved.

        A plain function runs on a thread of its own, an async one on the loop that runs now, or on
        the library's when none does. What it raises is logged; it delays neither the checks nor the
        other callbacks.
        """
        self._callbacks.append((callback, Callback(callback, "alert callback")))

    def unregister_alert_callback(self, callback: AlertCallback) -> None:
        """Ends what `register_alert_callback` began; unknown callbacks are ignored."""
        for index, (known, _) in enumerate(self._callbacks):
            if known == callback:
                del self._callbacks[index]
                return

    def _tell(self, found: dict[str, Any]) -> None:
        alert = _alert(found)
        for _, callback in tuple(self._callbacks):
            callback(alert)

    @property
    def is_monitoring(self) -> bool:
        """Whether the checks run on their schedules."""
        return self._is_wanted

    def start_monitoring(self) -> Done:
        """Runs every check at once, then at its intervals."""
        self._is_wanted = True
        self._inner.start()
        return Done()

    def stop_monitoring(self) -> Done:
        """Ends the schedules; results and alerts stay."""
        self._is_wanted = self._starts_itself = False
        if self._native_monitor is not None:
            self._native_monitor.stop()
        return Done()

    def reconfigure(
        self, check_interval: float | None = None, alert_threshold: int | None = None
    ) -> None:
        """Changes the settings at once; checks, results and alerts stay."""
        before = self.check_interval, self.alert_threshold
        if check_interval is not None:
            self.check_interval = check_interval
        if alert_threshold is not None:
            self.alert_threshold = alert_threshold
        try:
            self._inner.reconfigure(self)
        except BaseException:
            self.check_interval, self.alert_threshold = before
            raise


AlertCallback = Callable[[HealthAlert], object]

_every: weakref.WeakSet[HealthMonitor] = weakref.WeakSet()

def _close_all(runners: dict[str, Runner]) -> None:
    for runner in list(runners.values()):
        runner.close()


_monitor = HealthMonitor()
_monitor._starts_itself = True


def get_health_monitor(
    check_interval: float | None = None, alert_threshold: int | None = None
) -> HealthMonitor:
    """The monitor of this process, changed to these settings where they are given.

    Registering a check on it starts monitoring it.
    """
    if check_interval is not None or alert_threshold is not None:
        _monitor.reconfigure(check_interval, alert_threshold)
    return _monitor


async def quick_health_check(service_name: str) -> bool:
    """Whether a check of the process's monitor is healthy; False if there is none of that name."""
    try:
        return (await get_health_monitor().get_health_status(service_name)).is_healthy
    except ValueError:
        return False


@dataclass(frozen=True)
class HealthSummary:
    """The results of all checks of a manager at one moment."""

    total_checks: int
    healthy_checks: int
    degraded_checks: int
    unhealthy_checks: int
    overall_status: HealthStatus
    details: list[HealthCheckResult]


_HISTORY = 1_000
_SETTINGS = ("enabled", "default_interval", "parallel_checks", "max_concurrent_checks")

StatusCallback = Callable[[str, HealthCheckResult], object]


class HealthCheckManager:
    """Runs checks when it is asked to, and remembers the thousand newest results of each.

    `config` may hold `enabled` (whether `run_all_health_checks` runs any), `default_interval`
    (seconds), `parallel_checks` and `max_concurrent_checks`.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        config = dict(config or {})
        for setting in config:
            if setting not in _SETTINGS:
                raise ConfigError("config", setting, ", ".join(_SETTINGS))
        self.config = config
        self.enabled = bool(config.get("enabled", True))
        self.parallel_checks = bool(config.get("parallel_checks", True))
        self.max_concurrent_checks = config.get("max_concurrent_checks", 10)
        most = self.max_concurrent_checks
        if isinstance(most, bool) or not isinstance(most, int):
            raise ConfigTypeError("max_concurrent_checks", most, "a whole number")
        if most < 1:
            raise ConfigError("max_concurrent_checks", most, "1 or more")
        self._monitor = HealthMonitor(check_interval=config.get("default_interval", 30.0))
        self._history: dict[str, deque[HealthCheckResult]] = {}
        self._callbacks: list[Callback] = []

    @property
    def health_checks(self) -> dict[str, HealthCheck]:
        """The checks by their name."""
        return self._monitor.health_checks

    @property
    def last_results(self) -> dict[str, HealthCheckResult]:
        """The newest result of each check that has run."""
        return {name: results[-1] for name, results in self._history.items() if results}

    def register_health_check(
        self, health_check: HealthCheck, interval: float | None = None
    ) -> None:
        """Adds a check under its own name, with an interval of its own if one is given."""
        if interval is not None:
            health_check.check_interval = interval
        self._monitor.register_check(health_check.name, health_check)
        self._history[health_check.name] = deque(maxlen=_HISTORY)

    async def run_health_check(self, check_name: str) -> HealthCheckResult:
        """Runs a check now. Raises ValueError if there is none of that name."""
        result = await self._monitor.check_now(check_name)
        history = self._history[check_name]
        changed = bool(history) and history[-1].status is not result.status
        history.append(result)
        if changed:
            for callback in tuple(self._callbacks):
                callback(check_name, result)
        return result

    async def run_all_health_checks(self) -> list[HealthCheckResult]:
        """Runs every check now, at most `max_concurrent_checks` at the same time."""
        if not self.enabled:
            return []
        most = self.max_concurrent_checks if self.parallel_checks else 1
        slots = asyncio.Semaphore(most)

        async def run(name: str) -> HealthCheckResult:
            async with slots:
                return await self.run_health_check(name)

        return list(await asyncio.gather(*(run(name) for name in self.health_checks)))

    async def get_health_summary(self) -> HealthSummary:
        """Runs every check now and counts the results; the whole is as bad as the worst."""
        results = await self.run_all_health_checks()
        counts = {status: 0 for status in HealthStatus}
        for result in results:
            counts[result.status] += 1
        worst = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)
        overall = next((status for status in worst if counts[status]), HealthStatus.UNKNOWN)
        return HealthSummary(
            total_checks=len(results),
            healthy_checks=counts[HealthStatus.HEALTHY],
            degraded_checks=counts[HealthStatus.DEGRADED],
            unhealthy_checks=counts[HealthStatus.UNHEALTHY],
            overall_status=overall,
            details=results,
        )

    def add_status_change_callback(self, callback: StatusCallback) -> None:
        """Has `callback(name, result)` told when a check's status is another than before."""
        self._callbacks.append(Callback(callback, "status callback"))

    def get_health_history(
        self, check_name: str, limit: int | None = None
    ) -> list[HealthCheckResult]:
        """The results of a check, oldest first; with a limit, only the newest of them."""
        history = list(self._history.get(check_name, ()))
        return history if limit is None else history[max(0, len(history) - limit) :]

    async def shutdown(self) -> None:
        """Takes all checks away, and ends their loops."""
        for name in self.health_checks:
            self._monitor.unregister_check(name)


_health_manager = HealthCheckManager()


def get_health_manager() -> HealthCheckManager:
    """The process's manager of checks."""
    return _health_manager


async def register_database_health_check(
    name: str, database_node: Any, interval: float = 30.0
) -> None:
    """Adds the check of a database, by its URL or a SQLDatabaseNode, to the process's manager."""
    get_health_manager().register_health_check(DatabaseHealthCheck(name, database_node), interval)


async def register_memory_health_check(
    name: str,
    warning_threshold: float = 80.0,
    critical_threshold: float = 95.0,
    interval: float = 30.0,
) -> None:
    """Adds a check of the memory to the process's manager."""
    check = MemoryHealthCheck(name, warning_threshold, critical_threshold)
    get_health_manager().register_health_check(check, interval)


async def register_custom_health_check(
    name: str, check_func: Callable[[], Any], interval: float = 30.0, timeout: float = 10.0
) -> None:
    """Adds a check by a function to the process's manager."""
    check = CustomHealthCheck(name, check_func, timeout=timeout)
    get_health_manager().register_health_check(check, interval)


@in_forked_child
def _forget_monitors() -> None:
    for monitor in tuple(_every):
        monitor._native_monitor = None
        monitor._building = threading.Lock()
        monitor._runners.clear()


@at_exit
def _stop_monitors() -> None:
    for monitor in tuple(_every):
        if monitor._native_monitor is not None:
            monitor._native_monitor.stop()
