"""What histograms of durations promise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitBreakerManager,
    ConfigError,
    ConfigTypeError,
)
from kailash.core.resilience.clock import ManualClock
from kailash.core.resilience.histogram import HistogramSnapshot


def recorded() -> tuple[CircuitBreakerManager, ManualClock]:
    clock = ManualClock()
    manager = CircuitBreakerManager(clock=clock)
    manager.record_durations()
    return manager, clock


def seen(guard: CircuitBreaker) -> HistogramSnapshot:
    durations = guard.durations
    assert durations is not None
    return durations


def test_nothing_is_recorded_unless_somebody_asks() -> None:
    clock = ManualClock()
    manager = CircuitBreakerManager(clock=clock)
    guard = manager.get_or_create("api")
    guard.call(clock.advance, 1)
    assert guard.durations is None is guard.all_durations
    assert guard.get_status()["durations"] is None
    assert manager.keyed("host").durations.count == 0
    alone = CircuitBreaker()
    alone.call(int)
    assert alone.durations is None


def test_calls_are_counted_by_how_long_they_took() -> None:
    manager, clock = recorded()
    guard = manager.get_or_create("api", CircuitBreakerConfig(slow_call_threshold=None))
    for milliseconds in range(1, 101):
        guard.call(clock.advance, milliseconds / 1000)
    durations = seen(guard)
    assert durations.count == 100
    assert durations.sum == pytest.approx(5.05) and durations.mean == pytest.approx(0.0505)
    for share in (0.5, 0.9, 0.99, 1):
        assert share / 10 <= durations.quantile(share) <= share / 10 * 1.125
    buckets = durations.cumulative()
    assert buckets[-1][1] == 100 and buckets == sorted(buckets)
    for upper, count in buckets:
        assert count == sum(n / 1000 <= upper for n in range(1, 101))
    octaves = durations.octaves()
    assert len(octaves) == 31 and octaves[0][0] == 2.048e-06
    for upper, count in octaves:
        assert count == sum(n / 1000 <= upper for n in range(1, 101))
    assert repr(durations).startswith("<HistogramSnapshot of 100, mean 0.05")
    guard.call(clock.advance, 1)
    assert durations.count == 100, "it is of one moment"


async def test_every_kind_of_call_is_recorded_and_a_refusal_is_none() -> None:
    manager, clock = recorded()
    guard = manager.get_or_create("api", CircuitBreakerConfig(failure_threshold=2))

    @guard
    async def wait() -> None:
        clock.advance(1)

    @guard
    def rows() -> Any:
        clock.advance(1)
        yield
        clock.advance(2)

    @guard
    def fail() -> None:
        clock.advance(1)
        raise KeyError

    await wait()
    for _ in rows():
        clock.advance(100)
    with guard:
        clock.advance(1)
    async with guard:
        clock.advance(1)
    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
    with pytest.raises(CircuitBreakerError):
        fail()
    assert (seen(guard).count, seen(guard).sum) == (6, 8), "a generator's own time only"


def test_a_reset_leaves_what_is_for_metrics() -> None:
    manager, clock = recorded()
    guard = manager.get_or_create("api")
    guard.call(clock.advance, 1)
    guard.reset()
    guard.call(clock.advance, 2)
    everything = guard.all_durations
    assert seen(guard).sum == 2 and everything is not None and everything.sum == 3
    manager.stop_recording_durations()
    guard.call(clock.advance, 4)
    assert seen(guard).sum == 2, "kept, and no more"
    manager.record_durations()
    guard.call(clock.advance, 4)
    assert seen(guard).sum == 6


def test_the_status_has_them_ready_for_json() -> None:
    manager, clock = recorded()
    guard = manager.get_or_create("api")
    guard.call(clock.advance, 1)
    guard.call(clock.advance, 3)
    status = json.loads(json.dumps(guard.get_status()))["durations"]
    assert (status["count"], status["sum"], status["mean"]) == (2, 4, 2)
    assert 1 <= status["p50"] <= 1.125 and 3 <= status["p90"] == status["p99"] <= 3.375
    assert [count for _, count in status["buckets"]] == [1, 2]


def test_keys_share_those_of_their_group() -> None:
    manager, clock = recorded()
    hosts = manager.keyed("host")
    hosts["a"].call(clock.advance, 1)
    hosts["b"].call(clock.advance, 3)
    assert hosts["a"].durations is None
    assert (hosts.durations.count, hosts.durations.sum) == (2, 4)
    hosts.reset_all()
    assert hosts.durations.count == 0 and hosts.all_durations.count == 2


def test_a_share_is_a_number_from_0_to_1() -> None:
    manager, clock = recorded()
    durations = manager.keyed("host").durations
    assert durations.quantile(0.5) == 0 == durations.mean and durations.cumulative() == []
    with pytest.raises(ConfigTypeError, match=r"^share: "):
        durations.quantile("half")  # type: ignore[arg-type]
    for wrong in (float("nan"), -0.001, 1.001, float("inf")):
        with pytest.raises(ConfigError, match=r"^share: .* is not allowed, 0 to 1 is$") as caught:
            durations.quantile(wrong)
        assert caught.value.field == "share" and caught.value.value is wrong
    assert durations.quantile(0) == durations.quantile(1) == 0
