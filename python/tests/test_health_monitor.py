"""What health monitoring promises to Python."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kailash.core.resilience import health_monitor
from kailash.core.resilience.health_monitor import (
    AlertLevel,
    CustomHealthCheck,
    DatabaseHealthCheck,
    HealthAlert,
    HealthCheck,
    HealthCheckManager,
    HealthCheckResult,
    HealthMonitor,
    HealthStatus,
    HTTPHealthCheck,
    MemoryHealthCheck,
    RedisHealthCheck,
    get_health_monitor,
    quick_health_check,
)
from servers import Redis, free_port
from waiting import until

HEALTHY, DEGRADED = HealthStatus.HEALTHY, HealthStatus.DEGRADED
UNHEALTHY, UNKNOWN = HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN


@pytest.fixture
def monitor() -> Iterator[HealthMonitor]:
    monitor = HealthMonitor(check_interval=30, alert_threshold=2)
    yield monitor
    monitor.stop_monitoring()
    for name in monitor.health_checks:
        monitor.unregister_check(name)


class Answering(HealthCheck):
    """Answers what it is told to, and counts how often."""

    def __init__(self, answer: Any, name: str = "answering", **settings: Any) -> None:
        super().__init__(name, **settings)
        self.answer = answer
        self.runs = 0

    async def check_health(self) -> Any:
        self.runs += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


async def answered(monitor: HealthMonitor, answer: Any) -> HealthCheckResult:
    monitor.register_check("it", Answering(answer))
    return await monitor.get_health_status("it")


@pytest.mark.parametrize(
    ("make", "field", "kind"),
    [
        (lambda: HealthMonitor(check_interval=0), "check_interval", ValueError),
        (lambda: HealthMonitor(check_interval=float("inf")), "check_interval", ValueError),
        (lambda: HealthMonitor(check_interval="30"), "check_interval", TypeError),  # type: ignore[arg-type]
        (lambda: HealthMonitor(alert_threshold=0), "alert_threshold", ValueError),
        (lambda: HealthMonitor(alert_threshold=1.5), "alert_threshold", TypeError),  # type: ignore[arg-type]
        (lambda: Answering(True, timeout=0), "timeout", ValueError),
        (lambda: Answering(True, critical=1), "critical", TypeError),
        (lambda: Answering(True, run_on="moon"), "run_on", ValueError),
        (lambda: Answering(True, check_interval=-1), "check_interval", ValueError),
        (lambda: DatabaseHealthCheck("d", "oracle://x"), "connection_string", ValueError),
        (lambda: DatabaseHealthCheck("d", 5), "connection_string", TypeError),
        (lambda: RedisHealthCheck("r", {"hots": "x"}), "redis_config", ValueError),
        (lambda: RedisHealthCheck("r", {"port": 0}), "redis_config['port']", ValueError),
        (lambda: RedisHealthCheck("r", {"port": "1"}), "redis_config['port']", TypeError),
        (lambda: HTTPHealthCheck("h", "ftp://x"), "url", ValueError),
        (lambda: HTTPHealthCheck("h", "http://x", 99), "expected_status", ValueError),
        (lambda: HTTPHealthCheck("h", "http://x", []), "expected_status", ValueError),
        (lambda: MemoryHealthCheck("m", 90, 80), "critical_threshold", ValueError),
        (lambda: MemoryHealthCheck("m", 0), "warning_threshold", ValueError),
        (lambda: CustomHealthCheck("c", 5), "check_function", TypeError),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_setting_is_named(make: Any, field: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        make()
    error: Any = caught.value
    assert error.field == field and error.allowed


def test_no_password_is_in_the_error_of_a_wrong_url() -> None:
    for wrong in ("mongodb://user:hunter2@db/x", "postgres://user:hunter2@[bad/x"):
        with pytest.raises(ValueError) as caught:
            DatabaseHealthCheck("d", wrong)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        RedisHealthCheck("r", {"url": "http://user:hunter2@cache"})
    assert "hunter2" not in str(caught.value)


async def test_the_checks_of_servers_find_real_ones_healthy(
    monitor: HealthMonitor, postgres_url: str, redis_server: Redis, http_url: str
) -> None:
    monitor.register_check("db", DatabaseHealthCheck("db", connection_string=postgres_url))
    monitor.register_check("cache", RedisHealthCheck("cache", redis_config=redis_server.config))
    monitor.register_check("api", HTTPHealthCheck("api", http_url, expected_status=[200, 204]))
    monitor.register_check("memory", MemoryHealthCheck("memory", 99.8, 99.9))
    results = await monitor.get_all_health_status()
    assert set(results) == {"db", "cache", "api", "memory"}
    for name, result in results.items():
        assert result.status is HEALTHY, result
        assert (result.service_name, result.is_healthy) == (name, True)
        assert result.response_time_ms > 0 and result.error_message is None
    assert await monitor.get_overall_health() is HEALTHY


async def test_a_status_that_is_not_expected_is_unhealthy(
    monitor: HealthMonitor, http_url: str
) -> None:
    monitor.register_check("api", HTTPHealthCheck("api", f"{http_url}/status/503"))
    result = await monitor.get_health_status("api")
    assert result.status is UNHEALTHY and result.error_class == "status"
    assert result.error and "503" in result.error


async def test_nobody_listening_is_told_as_refused(monitor: HealthMonitor) -> None:
    url = f"postgresql://user:hunter2@127.0.0.1:{free_port()}/db"
    monitor.register_check("db", DatabaseHealthCheck("db", url))
    result = await monitor.get_health_status("db")
    assert result.status is UNHEALTHY and result.error_class == "refused"
    assert "hunter2" not in repr(result)


async def test_a_server_that_accepts_and_stays_silent_ends_at_the_timeout(
    monitor: HealthMonitor, redis_server: Redis
) -> None:
    monitor.register_check("cache", RedisHealthCheck("cache", redis_server.config, timeout=0.2))
    assert (await monitor.check_now("cache")).is_healthy
    with redis_server.silent():
        began = time.monotonic()
        result = await monitor.check_now("cache")
        assert time.monotonic() - began < 5
    assert result.status is UNHEALTHY and str(result.error_class).startswith("timeout")


async def test_a_built_in_check_can_be_run_by_itself(http_url: str) -> None:
    check = HTTPHealthCheck("api", http_url, critical=False)
    result: Any = await check.check_health()
    assert (result.status, result.service_name, result.critical) == (HEALTHY, "api", False)


async def test_a_check_may_answer_in_each_of_the_ways(monitor: HealthMonitor) -> None:
    result = await answered(monitor, {"status": "healthy", "message": "all well", "metadata": {"n": 1}})
    assert (result.status, result.message, result.metadata) == (HEALTHY, "all well", {"n": 1})
    assert result.error is None
    result = await answered(monitor, {"status": HealthStatus.DEGRADED, "error": "slow", "lag": 3})
    assert (result.status, result.error, result.details) == (DEGRADED, "slow", {"lag": 3})
    assert result.is_healthy
    result = await answered(monitor, {"status": "UNHEALTHY", "error": "down"})
    assert (result.status, result.error_message, result.is_healthy) == (UNHEALTHY, "down", False)
    assert (await answered(monitor, True)).status is HEALTHY
    assert (await answered(monitor, False)).status is UNHEALTHY
    own = HealthCheckResult(status=DEGRADED, error_message="nearly full", details={"used": 0.9})
    result = await answered(monitor, own)
    assert (result.status, result.error, result.details) == (DEGRADED, "nearly full", {"used": 0.9})


async def test_nonsense_and_exceptions_are_unhealthy(monitor: HealthMonitor) -> None:
    result = await answered(monitor, {"status": "fine"})
    assert result.status is UNHEALTHY and "fine" in str(result.error)
    result = await answered(monitor, None)
    assert result.status is UNHEALTHY and "NoneType" in str(result.error)
    result = await answered(monitor, ConnectionError("password=hunter2 was refused"))
    assert result.status is UNHEALTHY and "ConnectionError" in str(result.error)
    assert "hunter2" not in repr(result)
    assert (await answered(monitor, SystemExit(1))).status is UNHEALTHY


async def test_functions_are_checks_too(monitor: HealthMonitor) -> None:
    async def degraded() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"status": "degraded"}

    threads = []
    monitor.register_check("sync", CustomHealthCheck("sync", lambda: threads.append(threading.get_ident())))
    monitor.register_check("async", CustomHealthCheck("async", degraded))
    results = await monitor.get_all_health_status()
    assert results["sync"].status is HEALTHY and results["async"].status is DEGRADED
    assert threads[0] != threading.get_ident()


async def test_a_check_that_blocks_harms_neither_the_loop_nor_the_others(
    monitor: HealthMonitor,
) -> None:
    release = threading.Event()

    class Blocking(HealthCheck):
        def check_health(self) -> bool:
            release.wait(20)
            return True

    class BlockingAsync(HealthCheck):
        async def check_health(self) -> bool:
            release.wait(20)
            return True

    monitor.register_check("sync", Blocking("sync", timeout=0.2))
    monitor.register_check("async", BlockingAsync("async", timeout=0.2))
    monitor.register_check("fine", Answering(True))
    began = time.monotonic()
    results = await monitor.get_all_health_status()
    assert time.monotonic() - began < 5
    assert results["fine"].status is HEALTHY
    for name in ("sync", "async"):
        assert results[name].status is UNHEALTHY and results[name].error_class == "timeout"
    again = await monitor.check_now("sync")
    assert "earlier run" in str(again.error)
    release.set()
    await until_healthy(monitor, "sync")
    await until_healthy(monitor, "async")


async def until_healthy(monitor: HealthMonitor, name: str) -> None:
    end = time.monotonic() + 20
    while not (await monitor.check_now(name)).is_healthy:
        assert time.monotonic() < end


async def test_an_async_check_keeps_its_loop_and_is_cancelled_at_its_timeout(
    monitor: HealthMonitor,
) -> None:
    loops, cancelled = [], []

    class Hanging(HealthCheck):
        hangs = False

        async def check_health(self) -> bool:
            loops.append(asyncio.get_running_loop())
            try:
                if self.hangs:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return True

    check = Hanging("hanging", timeout=0.2)
    monitor.register_check("hanging", check)
    assert (await monitor.check_now("hanging")).is_healthy
    check.hangs = True
    assert (await monitor.check_now("hanging")).error_class == "timeout"
    await until(lambda: cancelled)
    check.hangs = False
    await until_healthy(monitor, "hanging")
    assert len(set(loops)) == 1 and loops[0] is not asyncio.get_running_loop()
    monitor.unregister_check("hanging")
    await until(lambda: loops[0].is_closed())


async def test_a_check_can_run_on_the_loop_of_its_caller(monitor: HealthMonitor) -> None:
    mine = asyncio.get_running_loop()

    class OnMine(HealthCheck):
        async def check_health(self) -> bool:
            return asyncio.get_running_loop() is mine

    monitor.register_check("mine", OnMine("mine", run_on="caller"))
    assert (await monitor.get_health_status("mine")).is_healthy


async def test_a_fresh_result_is_read_without_a_run(monitor: HealthMonitor) -> None:
    check = Answering(True)
    monitor.register_check("it", check)
    results = await asyncio.gather(*(monitor.get_health_status("it") for _ in range(50)))
    assert check.runs == 1 and all(result.is_healthy for result in results)
    await monitor.get_overall_health()
    later = await monitor.get_health_status("it")
    assert check.runs == 1 and later.age > 0 and later.timestamp is not None
    await monitor.check_now("it")
    assert check.runs == 2
    metrics = await monitor.get_metrics("it")
    assert metrics is not None and (metrics.total_checks, metrics.uptime_percentage) == (2, 100)


@pytest.mark.parametrize(
    ("answers", "overall"),
    [
        ([], UNKNOWN),
        ([(True, True), (True, False)], HEALTHY),
        ([(False, True), (True, False)], UNHEALTHY),
        ([(False, False), (True, True)], DEGRADED),
        ([({"status": "degraded"}, True)], DEGRADED),
    ],
)
async def test_the_whole_is_as_bad_as_its_parts_matter(
    monitor: HealthMonitor, answers: list[tuple[Any, bool]], overall: HealthStatus
) -> None:
    for n, (answer, critical) in enumerate(answers):
        monitor.register_check(f"check {n}", Answering(answer, critical=critical))
    assert await monitor.get_overall_health() is overall


async def test_an_unknown_name_is_a_value_error_that_lists_the_names(monitor: HealthMonitor) -> None:
    monitor.register_check("known", Answering(True))
    with pytest.raises(ValueError, match="known"):
        await monitor.get_health_status("unknown")
    assert not monitor.unregister_check("unknown")
    with pytest.raises(TypeError):
        monitor.register_check("x", lambda: True)  # type: ignore[arg-type]


def test_any_loop_in_any_thread_reads_the_same_monitor(monitor: HealthMonitor) -> None:
    check, found = Answering(True), []
    monitor.register_check("it", check)

    def read() -> None:
        found.append(asyncio.run(monitor.get_overall_health()))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [HEALTHY] * 8 and check.runs == 1


async def test_an_outage_is_one_alert_raised_once_and_resolved_once() -> None:
    monitor = HealthMonitor(check_interval=0.02, alert_threshold=3)
    check, told = Answering(False), []
    loop = asyncio.get_running_loop()
    release = threading.Event()

    async def on_loop(alert: HealthAlert) -> None:
        assert asyncio.get_running_loop() is loop
        told.append(alert)

    def hanging(alert: HealthAlert) -> None:
        release.wait(20)

    def raising(alert: HealthAlert) -> None:
        raise ZeroDivisionError

    threaded: list[HealthAlert] = []
    for callback in (hanging, raising, on_loop, threaded.append):
        monitor.register_alert_callback(callback)
    monitor.register_check("it", check)
    assert check.runs == 0, "a monitor made by hand waits for its start"
    await monitor.start_monitoring()
    await until(lambda: check.runs >= 10 and told and threaded)
    assert len(told) == len(threaded) == 1
    assert (told[0].level, told[0].service_name, told[0].failures) == (AlertLevel.CRITICAL, "it", 3)
    assert told[0].message and not told[0].resolved
    assert await monitor.get_alerts(resolved=False) == [told[0]]
    check.answer = True
    await until(lambda: len(told) == 2)
    assert (told[1].level, told[1].alert_id) == (AlertLevel.INFO, told[0].alert_id)
    assert told[1].resolved and await monitor.get_alerts(resolved=False) == []
    assert len(await monitor.get_alerts(resolved=True)) == len(monitor.alerts) == 1
    await monitor.stop_monitoring()
    runs = check.runs
    await asyncio.sleep(0.1)
    assert check.runs <= runs + 1
    release.set()
    monitor.unregister_check("it")


async def test_a_check_that_is_not_critical_warns() -> None:
    monitor, told = HealthMonitor(check_interval=0.02, alert_threshold=1), []
    monitor.register_alert_callback(told.append)
    monitor.register_check("it", Answering(False, critical=False))
    monitor.start_monitoring()
    await until(lambda: told)
    assert told[0].level is AlertLevel.WARNING
    monitor.unregister_check("it")
    monitor.stop_monitoring()


async def test_the_monitor_of_the_process_starts_itself_and_keeps_its_checks() -> None:
    monitor = get_health_monitor()
    assert get_health_monitor(check_interval=0.02, alert_threshold=2) is monitor
    check = Answering(True)
    monitor.register_check("of the process", check)
    await until(lambda: check.runs >= 3)
    assert monitor.is_monitoring and await quick_health_check("of the process")
    assert not await quick_health_check("no such check")
    with pytest.raises(ValueError):
        get_health_monitor(alert_threshold=0)
    assert (monitor.check_interval, monitor.alert_threshold) == (0.02, 2)
    get_health_monitor(check_interval=30)
    assert "of the process" in monitor.health_checks
    monitor.unregister_check("of the process")
    monitor.stop_monitoring()


async def test_a_monitor_that_nobody_holds_ends_with_its_threads() -> None:
    monitor, check = HealthMonitor(check_interval=0.02), Answering(True, name="forgotten")
    monitor.register_check("forgotten", check)
    monitor.start_monitoring()
    await until(lambda: check.runs >= 2)
    del monitor
    gc.collect()
    await until(lambda: not any("forgotten" in thread.name for thread in threading.enumerate()))
    assert len(health_monitor._every) <= 2


async def test_a_manager_runs_checks_when_asked_and_remembers() -> None:
    manager, told = HealthCheckManager({"max_concurrent_checks": 2}), []
    manager.add_status_change_callback(lambda name, result: told.append((name, result.status)))
    check = Answering(True, name="a")
    manager.register_health_check(check, interval=60)
    manager.register_health_check(Answering({"status": "degraded"}, name="b"))
    assert (await manager.run_health_check("a")).is_healthy
    summary = await manager.get_health_summary()
    assert (summary.total_checks, summary.healthy_checks, summary.degraded_checks) == (2, 1, 1)
    assert summary.overall_status is DEGRADED
    check.answer = False
    await manager.run_health_check("a")
    await until(lambda: told == [("a", UNHEALTHY)])
    assert [result.is_healthy for result in manager.get_health_history("a")] == [True, True, False]
    assert len(manager.get_health_history("a", limit=1)) == 1
    assert manager.last_results["a"].status is UNHEALTHY
    with pytest.raises(ValueError):
        await manager.run_health_check("no such")
    with pytest.raises(ValueError):
        HealthCheckManager({"max_concurrent_checks": 0})
    with pytest.raises(ValueError):
        HealthCheckManager({"paralel_checks": True})
    await manager.shutdown()
