"""Python keeps what the vectors promise: the same files that Rust runs."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from kailash import _native
from kailash.core.resilience.bulkhead import (
    BulkheadFullError,
    BulkheadPartition,
    PartitionConfig,
    PartitionType,
)
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
)
from kailash.core.resilience.clock import ManualClock
from kailash.core.resilience.config import ConfigError
from kailash.core.resilience.health_monitor import HealthCheck, HealthMonitor, HealthStatus
from waiting import until

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


def vectors(feature: str) -> list[Any]:
    files = sorted((VECTORS / feature).glob("*.json"))
    assert len(files) >= 4, f"no vectors of {feature}"
    return [pytest.param(json.loads(file.read_text()), id=file.stem) for file in files]


def cases(feature: str) -> list[Any]:
    files = sorted((VECTORS / feature).glob("*.json"))
    every = [case for file in files for case in json.loads(file.read_text())]
    assert len(every) >= 19, f"no cases of {feature}"
    return [pytest.param(case, id=case["name"]) for case in every]


class Breaker:
    """One breaker on a clock of the test's, steered by the words of a script."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.clock = ManualClock()
        config = CircuitBreakerConfig(**{"jitter_enabled": False, **settings})
        self.breaker = CircuitBreaker(config, clock=self.clock)
        self.in_flight: dict[str, _native.CircuitBreakerPermit] = {}

    def acquire(self) -> _native.CircuitBreakerPermit:
        return self.breaker._native.acquire()

    def end(self, permit: _native.CircuitBreakerPermit, how: str) -> None:
        if how[0] == "R":
            permit.failure(float(how[1:]))
            return
        outcomes = {"S": "success", "F": "failure", "I": "ignore", "C": "cancel"}
        getattr(permit, outcomes[how])()

    def sooner_or_later(self, word: str) -> None:
        """Tries until chance does what the word asks for."""
        for _ in range(100_000):
            try:
                permit = self.acquire()
            except CircuitBreakerError:
                if word == "O":
                    return
                continue
            if word == "O":
                # It says nothing about the dependency, so nothing has changed.
                permit.ignore()
            elif word[0] == "(":
                self.in_flight[word[1:]] = permit
                return
            else:
                self.end(permit, word)
                return
        raise AssertionError("chance never did it")

    def step(self, word: str) -> None:
        if word[0] == "w" and word[1:].replace(".", "").isdigit():
            self.clock.advance(float(word[1:]))
        elif word[0] == "~":
            self.sooner_or_later(word[1:])
        elif word[0] == "(":
            self.in_flight[word[1:]] = self.acquire()
        elif ")" in word:
            call, how = word.split(")")
            self.end(self.in_flight.pop(call), how)
        elif word[0] == "+":
            {"S": self.breaker.record_success, "F": self.breaker.record_failure}[word[1:]]()
        elif word[0] == "!":
            getattr(self.breaker, word[1:])()
        elif "=" in word:
            self.expect(*word.split("="))
        elif word == "O":
            with pytest.raises(CircuitBreakerError):
                self.acquire()
        else:
            how, _, seconds = word.partition("/")
            permit = self.acquire()
            self.clock.advance(float(seconds or 0))
            self.end(permit, how)

    def expect(self, what: str, expected: str) -> None:
        seen = self.breaker._native.snapshot()
        if what == "":
            is_forced = seen["forced"] and seen["state"] == "open"
            state = "forced" if is_forced and expected == "forced" else seen["state"]
            assert state == expected
        elif what == "retry":
            assert seen["retry_after"] == pytest.approx(float(expected), abs=1e-6)
        elif what in ("cause", "would"):
            found = seen["cause" if what == "cause" else "would_open"]
            assert (found or "none") == expected
        elif what == "share":
            assert str(seen["ramp_share"] or "none") == expected
        else:
            name = {
                "calls": "total_calls",
                "failures": "failed_calls",
                "slow": "slow_calls",
                "rejections": "rejected_calls",
                "openings": "openings",
            }[what]
            assert str(seen[name]) == expected


@pytest.mark.parametrize("case", cases("circuit_breaker"))
def test_circuit_breaker(case: dict[str, Any]) -> None:
    run = Breaker(case["config"])
    for place, word in enumerate(case["script"].split(), 1):
        try:
            run.step(word)
        except AssertionError as error:
            raise AssertionError(f"word {place} ({word}): {error}") from None


class Overloaded(Exception):
    """What a refusal by the partition becomes where the breaker is to count it."""


class Failed(Exception):
    """What the work of a call raises."""


class Layers:
    """A breaker on a clock of the test's, around a partition and a timeout, inside retries."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.clock = ManualClock()
        counts = case.get("counts", {})
        self.counts_full = counts.get("full") == "failure"
        excluded = [TimeoutError] if counts.get("timeout") == "ignored" else []
        config = CircuitBreakerConfig(
            jitter_enabled=False, excluded_exceptions=excluded, **case["breaker"]
        )
        self.breaker = CircuitBreaker(config, clock=self.clock)
        settings = case.get("partition")
        self.partition = settings and BulkheadPartition(
            PartitionConfig(name="vector", partition_type=PartitionType.CUSTOM, **settings)
        )
        self.timeout = case.get("timeout")
        self.retries = {"attempts": 1, "delay": 0, "refusals": False, **case.get("retries", {})}
        self.attempt = self.breaker(self.within)
        self.attempt_blocking = self.breaker(self.within_blocking)

    async def within(self, work: Callable[[], Any]) -> None:
        try:
            async with self.partition or nullcontext():
                await work()
        except BulkheadFullError:
            if self.counts_full:
                raise Overloaded from None
            raise

    def within_blocking(self, work: Callable[[], Any]) -> None:
        try:
            with self.partition or nullcontext():
                work()
        except BulkheadFullError:
            if self.counts_full:
                raise Overloaded from None
            raise

    async def work(self, letter: str) -> None:
        if letter == "F":
            raise Failed
        if letter == "T":
            # The timeout is over at once, by a clock that says how long it took.
            assert self.timeout is not None
            self.clock.advance(self.timeout)
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        assert letter == "S", f"an attempt ran that was to be {letter!r}"

    async def call(self, letters: str) -> str:
        """One call whose attempts' work ends as the letters say; what the attempts came to."""
        came_to = ""
        while len(came_to) < self.retries["attempts"]:
            if came_to:
                self.clock.advance(self.retries["delay"])
            expected = letters[len(came_to) : len(came_to) + 1]
            came_to += await outcome(self.attempt(lambda: self.work(expected)))
            again = "FTO" if self.retries["refusals"] else "FT"
            if came_to[-1] not in again:
                break
        return came_to

    def expect(self, what: str, expected: str) -> None:
        seen = self.breaker._native.snapshot()
        names = {"": "state", "calls": "total_calls", "failures": "failed_calls"}
        assert str(seen[names.get(what, "rejected_calls")]) == expected


def letter(error: BaseException | None) -> str:
    known: list[tuple[Any, str]] = [
        (type(None), "S"),
        (Failed, "F"),
        (TimeoutError, "T"),
        ((BulkheadFullError, Overloaded), "B"),
        (CircuitBreakerError, "O"),
        (asyncio.CancelledError, "C"),
    ]
    for kind, name in known:
        if isinstance(error, kind):
            return name
    raise AssertionError(error)


async def outcome(call: Any) -> str:
    try:
        await call
    except Exception as error:
        return letter(error)
    return letter(None)


class Tasks:
    """Calls as tasks of a loop."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.calls: dict[str, tuple[asyncio.Task[None], asyncio.Future[str]]] = {}
        self.running: set[str] = set()

    async def begin(self, call: str, waits: bool) -> None:
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            self.running.add(call)
            await self.layers.work(await end)

        task = asyncio.ensure_future(self.layers.attempt(work))
        self.calls[call] = task, end
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done() and (call not in self.running) == waits

    async def end(self, call: str, how: str) -> None:
        task, end = self.calls.pop(call)
        if how == "C":
            task.cancel()
        else:
            await until(lambda: call in self.running)
            end.set_result(how)
        await asyncio.wait([task])
        assert letter(asyncio.CancelledError() if task.cancelled() else task.exception()) == how

    async def make(self, letters: str) -> str:
        return await self.layers.call(letters)


class Threads:
    """Calls as threads."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.calls: dict[str, tuple[Future[str], queue.Queue[str]]] = {}
        self.pool = ThreadPoolExecutor(4)

    def blocking(self, work: Callable[[], str]) -> str:
        def end() -> None:
            how = work()
            if how == "F":
                raise Failed
            assert how == "S", how

        try:
            self.layers.attempt_blocking(end)
        except Exception as error:
            return letter(error)
        return letter(None)

    async def begin(self, call: str, waits: bool) -> None:
        begun, end = threading.Event(), queue.Queue[str]()

        def work() -> str:
            begun.set()
            return end.get(timeout=20)

        self.calls[call] = self.pool.submit(self.blocking, work), end
        assert begun.wait(20)

    async def end(self, call: str, how: str) -> None:
        thread, end = self.calls.pop(call)
        end.put(how)
        assert thread.result(20) == how

    async def make(self, letters: str) -> str:
        return self.blocking(lambda: letters)


async def check_layers(layers: Layers, calls: Tasks | Threads, script: str) -> None:
    for place, word in enumerate(script.split(), 1):
        try:
            if word[0] == "w":
                layers.clock.advance(float(word[1:]))
            elif word[0] in "(?":
                await calls.begin(word[1:], word[0] == "?")
            elif ")" in word:
                await calls.end(*word.split(")"))
            elif word == "+F":
                layers.breaker.record_failure()
            elif "=" in word:
                layers.expect(*word.split("="))
            else:
                assert await calls.make(word) == word
        except AssertionError as error:
            raise AssertionError(f"word {place} ({word}): {error}") from error


@pytest.mark.parametrize("case", cases("circuit_breaker_layers"))
async def test_circuit_breaker_layers(case: dict[str, Any]) -> None:
    layers = Layers(case)
    await check_layers(layers, Tasks(layers), case["script"])
    waits = case.get("partition", {}).get("queue_size") or "timeout" in case or "retries" in case
    if not waits:
        layers = Layers(case)
        calls = Threads(layers)
        with calls.pool:
            await check_layers(layers, calls, case["script"])


class Loop:
    """What a partition knows of a loop."""

    def __init__(self) -> None:
        self.due: list[Callable[[], Any]] = []
        self.timers: list[Callable[[], Any]] = []

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> None:
        self.due.append(lambda: callback(*args))

    def call_at(self, when: float, callback: Callable[[], Any], context: Any) -> None:
        self.timers.append(callback)

    def time(self) -> float:
        return 0


class Calls:
    """One partition on a clock of the test's, and the calls that ask for its slots."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.clock, self.loop, self.now = ManualClock(), Loop(), 0.0
        self.settings = {"name": "vector", "partition_type": PartitionType.CUSTOM, **settings}
        self.config = PartitionConfig(**self.settings)
        self.partition = _native.BulkheadPartition(self.config, self.clock)
        self.running: dict[str, _native.BulkheadPermit] = {}
        self.waiting: dict[str, tuple[_native.BulkheadWaiting, Future[None], float]] = {}
        self.news: dict[str, str] = {}

    def look(self, call: str) -> None:
        if call not in self.waiting or not self.waiting[call][1].done():
            return
        self.take(call)

    def take(self, call: str) -> None:
        try:
            self.running[call] = self.waiting.pop(call)[0].take()
            self.news[call] = "started"
        except BulkheadFullError as full:
            self.news[call] = full.reason

    def settle(self) -> None:
        while self.loop.due:
            self.loop.due.pop(0)()

    def step(self, step: dict[str, Any]) -> None:
        self.news = {}
        at = step.get("at", self.now)
        self.clock.advance(at - self.now)
        self.now = at
        for call, (_, _, deadline) in list(self.waiting.items()):
            if deadline <= self.now:
                self.take(call)
        self.settle()
        self.do(step["do"], step.get("call", ""), step)
        self.settle()

    def do(self, what: str, call: str, step: dict[str, Any]) -> None:
        if what == "try_acquire":
            try:
                self.running[call] = self.partition.acquire()
                self.news[call] = "started"
            except BulkheadFullError as full:
                self.news[call] = full.reason
        elif what == "acquire":
            timeout = step.get("timeout")
            limit = timeout if timeout is not None else self.config.timeout
            assert limit is not None
            try:
                waiting = self.partition.enqueue(step.get("priority"), timeout)
            except BulkheadFullError as full:
                self.news[call] = full.reason
                return
            future = Future[None]()
            waiting.tell(self.loop, future, None)
            future.add_done_callback(lambda _: self.look(call))
            self.waiting[call] = waiting, future, self.now + limit
            self.look(call)
            self.news.setdefault(call, "waiting")
        elif what == "release":
            self.running.pop(call).release()
        elif what == "cancel":
            self.waiting.pop(call)[0].leave()
        elif what == "configure":
            self.settings |= step["config"]
            self.config = PartitionConfig(**self.settings)
            self.partition.reconfigure(self.config)
        elif what == "close":
            self.partition.close()
        else:
            assert what == "wait", what


@pytest.mark.parametrize("vector", vectors("bulkhead"))
def test_bulkhead(vector: dict[str, Any]) -> None:
    for refused in vector.get("refused", []):
        field = refused["field"]
        with pytest.raises(ConfigError) as caught:
            settings = {"name": "vector", "partition_type": PartitionType.CUSTOM}
            PartitionConfig(**{**settings, **refused["config"]})
        assert caught.value.field == field
    if "steps" not in vector:
        return
    config = vector.get("config", {})
    if config.get("timeout", 0) is None:
        pytest.skip("Python's partitions always have a timeout")
    calls = Calls(config)
    for place, step in enumerate(vector["steps"], 1):
        calls.step(step)
        about = f"step {place} ({step})"
        if "then" in step:
            assert calls.news == step["then"], about
        seen = calls.partition.snapshot()
        for count in ("active", "queued"):
            if count in step:
                assert seen[count] == step[count], about


class Told(HealthCheck):
    """A check that finds what it is told."""

    status = "unknown"

    async def check_health(self) -> dict[str, str]:
        return {"status": self.status}


@pytest.mark.parametrize("vector", vectors("health"))
async def test_health(vector: dict[str, Any]) -> None:
    monitor = HealthMonitor(**{"check_interval": 3600, **vector.get("monitor", {})})
    told: list[Any] = []
    monitor.register_alert_callback(told.append)
    checks = {name: Told(name, **settings) for name, settings in vector["checks"].items()}
    for name, check in checks.items():
        monitor.register_check(name, check)
    known = 0
    for place, step in enumerate(vector["steps"], 1):
        for name, status in step["results"].items():
            checks[name].status = status
            assert (await monitor.check_now(name)).status is HealthStatus(status)
        about, expected = f"step {place} ({step})", step["news"]
        await until(lambda: len(told) >= known + len(expected))
        news = [
            {"check": alert.service_name, "news": "resolved"}
            if alert.resolved
            else {"check": alert.service_name, "news": "raised", "level": alert.level.value}
            for alert in told[known:]
        ]
        assert news == expected, about
        known = len(told)
        assert (await monitor.get_overall_health()).value == step["overall"], about
    await asyncio.sleep(0.01)
    assert len(told) == known, "more was told than happened"
    for name in checks:
        monitor.unregister_check(name)
