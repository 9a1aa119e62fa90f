"""What breakers by key promise."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import weakref
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import BulkheadFullError
from kailash.core.resilience.circuit_breaker import (
    CircuitBreakerConfig,
    CircuitBreakerCounts,
    CircuitBreakerError,
    CircuitBreakerManager,
    CircuitState,
    ConfigError,
    ConfigTypeError,
    KeyedCircuitBreakers,
    KeyedConfig,
)
from kailash.core.resilience.clock import ManualClock
from waiting import until_sync

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def hosts_on(
    clock: ManualClock, group: dict[str, Any] | None = None, **settings: Any
) -> KeyedCircuitBreakers:
    config = CircuitBreakerConfig(**{"failure_threshold": 1, "jitter_enabled": False, **settings})
    return CircuitBreakerManager(clock=clock).keyed("host", config, **(group or {}))


def hosts(**settings: Any) -> KeyedCircuitBreakers:
    return hosts_on(ManualClock(), **settings)


def test_one_bad_key_is_refused_and_the_others_are_not() -> None:
    each = hosts()
    with pytest.raises(ZeroDivisionError), each["bad"]:
        1 / 0  # noqa: B018
    assert [each["bad"].state, each["good"].state] == [OPEN, CLOSED]
    with pytest.raises(CircuitBreakerError) as refused:
        each["bad"].call(int)
    assert refused.value.name == "host/bad" == each.get("bad").name
    assert each["good"].call(int) == 0
    assert len(each) == 2 and "bad" in each and "new" not in each and each.find("new") is None


async def test_the_breaker_of_a_key_is_used_as_any() -> None:
    each = hosts()

    @each["a"]
    def add(a: int, b: int = 0) -> int:
        return a + b

    @each["a"]
    async def fetch(url: str) -> str:
        await asyncio.sleep(0)
        return url

    @each["a"]
    def rows() -> Any:
        yield 1

    assert add(1, b=2) == 3 and await fetch("u") == "u" and list(rows()) == [1]
    with each["a"]:
        pass
    async with each["a"]:
        pass
    assert await each["a"].call(fetch, "v") == "v"
    each["a"].record_success()
    assert each["a"].metrics.successful_calls == 8
    each["a"].force_open()
    with pytest.raises(CircuitBreakerError):
        add(1)
    with pytest.raises(CircuitBreakerError):
        next(rows())
    with pytest.raises(CircuitBreakerError):
        await fetch("u")
    each["a"].reset()
    await each["a"].ready()
    assert each["a"].get_status()["name"] == "host/a"
    assert repr(each["a"]) == "<CircuitBreaker 'host/a' closed>"
    assert repr(each) == "<KeyedCircuitBreakers 'host' of 1>"


async def test_all_keys_are_judged_alike() -> None:
    each = hosts(
        failure_threshold=2,
        excluded_exceptions=[KeyError],
        is_failure=lambda outcome: isinstance(outcome, Exception) or outcome == 500,
        retry_after=lambda outcome: 7.0,
    )

    def fail(error: BaseException) -> None:
        raise error

    for neutral in (KeyError(), BulkheadFullError("full")):
        with pytest.raises(type(neutral)):
            each["a"].call(fail, neutral)
    assert each["a"].metrics.failed_calls == 0
    assert each["a"].call(lambda: 500) == 500

    @each["a"]
    async def get() -> int:
        return 500

    assert await get() == 500
    assert each["a"].state is OPEN and each["b"].state is CLOSED
    assert each["a"].get_status()["time_until_recovery"] == 7.0


def test_what_is_guarded_already_obeys_new_settings() -> None:
    each = hosts(failure_threshold=2)
    guarded = each["a"](lambda: 1)
    held = each["b"]
    each.reconfigure(
        CircuitBreakerConfig(failure_threshold=1, is_failure=lambda result: True),
        idle_timeout=3,
    )
    assert guarded() == 1 and each["a"].state is OPEN
    assert held.config.failure_threshold == 1 == each.config.breaker.failure_threshold
    assert each.config.idle_timeout == 3 and each.config.capacity == 1_000_000
    each["c"].call(int)
    assert each["c"].state is OPEN


def test_one_key_may_have_limits_of_its_own_but_no_judge() -> None:
    each = hosts()
    held = each["a"]
    held.reconfigure(failure_threshold=9)
    assert (each["a"].config.failure_threshold, each["b"].config.failure_threshold) == (9, 1)
    assert each["a"].get_status()["config"]["failure_threshold"] == 9
    with pytest.raises(ConfigError, match=r"^excluded_exceptions: .* that of the group is$"):
        held.reconfigure(excluded_exceptions=[KeyError])
    each.reconfigure(CircuitBreakerConfig(failure_threshold=3))
    assert held.config == each["b"].config == CircuitBreakerConfig(failure_threshold=3)


def test_idle_keys_are_forgotten_but_none_that_is_open_or_held() -> None:
    clock = ManualClock()
    group = {"idle_timeout": 60, "failures_kept": 120}
    each = hosts_on(clock, group, failure_threshold=2, window="time")
    for key in ("idle", "asked", "open", "held", "guarding", "failed"):
        each[key].call(int)
    each["open"].force_open()
    each["failed"].record_failure()
    held, guarded = each["held"], each["guarding"](int)
    clock.advance(59)
    for key in ("asked", "open"):
        each[key]
    clock.advance(1)
    assert each.forget_idle() == 1 and "idle" not in each
    clock.advance(60)
    assert each.forget_idle() == 2, "the one asked for later, and the one whose failure is old"
    assert each.snapshot().forgotten == 3
    del held, guarded
    assert each.forget_idle() == 2 and len(each) == 1 and "open" in each
    assert each["idle"].metrics.successful_calls == 0, "it is made anew"
    assert each.snapshot().counts == CircuitBreakerCounts(calls=7, failures=1, openings=1)


def test_a_group_holds_no_more_keys_than_its_capacity() -> None:
    each = hosts_on(ManualClock(), {"capacity": 10})
    for n in range(1000):
        each[f"key {n}"].call(int)
    assert len(each) == 10 == each.snapshot().keys and each.snapshot().counts.calls == 1000


def test_a_breaker_that_is_held_works_on_after_its_key_was_removed() -> None:
    each = hosts()
    held = each["a"]
    guarded = held(lambda: 1 / 0)
    removed = each.remove("a")
    assert removed is not None and removed.name == "host/a" and each.remove("a") is None
    assert "a" not in each
    with pytest.raises(ZeroDivisionError):
        guarded()
    assert held.state is OPEN is removed.state and each["a"].state is CLOSED
    with pytest.raises(CircuitBreakerError):
        guarded()
    held.reset()
    assert held.config == each.config.breaker and held.metrics.failed_calls == 0


def test_a_held_breaker_outlives_its_group() -> None:
    manager = CircuitBreakerManager()
    held = manager.keyed("host", CircuitBreakerConfig(is_failure=lambda result: True))["a"]
    assert manager.remove_group("host") is not None and manager.remove_group("host") is None
    gc.collect()
    held.call(int)
    assert held.metrics.failed_calls == 1
    assert manager.keyed("host").config == KeyedConfig(), "a new one"


def test_few_keys_have_a_series_and_all_others_one() -> None:
    each = hosts_on(ManualClock(), {"series": 2}, failure_threshold=100, error_rate_threshold=None)
    for n in range(10):
        for _ in range(n):
            each[f"{n}"].record_failure()
    series = each.series()
    assert [key.breaker for key in series.listed] == ["host/9", "host/8"]
    assert series.listed[0].state is CLOSED and series.listed[0].counts.failures == 9
    assert series.total.failures == 45 == series.other.failures, "they have their series from now on"
    each["9"].record_failure()
    series = each.series()
    assert series.listed[0].since_listed == CircuitBreakerCounts(calls=1, failures=1)
    assert (series.total.failures, series.other.failures) == (46, 45)


def test_a_snapshot_counts_the_states_of_all_keys() -> None:
    clock = ManualClock()
    each = hosts_on(clock)
    for key in ("a", "b", "c"):
        each[key].record_failure()
    each["d"].record_success()
    clock.advance(60)
    each["c"].force_open()
    seen = each.snapshot()
    assert (seen.keys, seen.open, seen.half_open, seen.forgotten) == (4, 1, 2, 0)
    assert dataclasses.asdict(seen)["counts"]["calls"] == 4
    each.reset_all()
    assert each.snapshot().open == each.snapshot().half_open == 0


def test_the_mean_duration_is_that_of_the_group() -> None:
    clock = ManualClock()
    each = hosts_on(clock)
    each["a"].call(clock.advance, 1)
    each["b"].call(clock.advance, 3)
    assert each["a"].metrics.avg_call_duration == 2 == each["c"].metrics.avg_call_duration
    each["a"].reset()
    assert each["a"].metrics.avg_call_duration == 2
    each.reset_all()
    assert each["a"].metrics.avg_call_duration == 0


def test_the_same_name_is_the_same_group() -> None:
    manager = CircuitBreakerManager()
    each = manager.keyed("host", CircuitBreakerConfig(failure_threshold=2), capacity=50)
    assert manager.keyed("host") is each
    assert manager.keyed("host", CircuitBreakerConfig(failure_threshold=2), capacity=50) is each
    exists = r"^group of circuit breakers 'host' exists with capacity=50, not"
    with pytest.raises(ValueError, match=rf"{exists} capacity=9;"):
        manager.keyed("host", capacity=9)
    other = manager.keyed("a tenant")
    assert manager.groups() == [other, each]
    manager.set_default_config(CircuitBreakerConfig(failure_threshold=7))
    assert manager.keyed("shard").config.breaker.failure_threshold == 7
    each["a"].force_open()
    manager.reset_all()
    assert each["a"].state is CLOSED and manager.get_all_status() == {}


def test_what_is_not_said_of_a_group_that_exists_is_not_compared() -> None:
    manager = CircuitBreakerManager()
    each = manager.keyed("host", capacity=5)
    manager.set_default_config(CircuitBreakerConfig(failure_threshold=7))
    manager.define("host", base="api")
    assert manager.keyed("host", capacity=5) is each
    each.reconfigure(idle_timeout=3)
    assert manager.keyed("host", CircuitBreakerConfig()) is each
    exists = "^group of circuit breakers 'host' exists with {}, not {}; reconfigure"
    with pytest.raises(ValueError, match=exists.format("capacity=5", "capacity=6")):
        manager.keyed("host", capacity=6)
    with pytest.raises(ValueError, match=exists.format("failure_threshold=5", "failure_threshold=7")):
        manager.keyed("host", CircuitBreakerConfig(failure_threshold=7))
    assert each.config == KeyedConfig(capacity=5, idle_timeout=3), "nothing has changed"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"capacity": 0}, ConfigError),
        ({"capacity": 2**40}, ConfigError),
        ({"capacity": "many"}, ConfigTypeError),
        ({"idle_timeout": 0}, ConfigError),
        ({"failures_kept": -1}, ConfigError),
        ({"series": 1001}, ConfigError),
        ({"series": True}, ConfigTypeError),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], kind: type[Exception]) -> None:
    (field,) = settings
    manager = CircuitBreakerManager()
    with pytest.raises(kind, match=f"^{field}: "):
        manager.keyed("host", **settings)
    each = manager.keyed("host")
    with pytest.raises(kind, match=f"^{field}: "):
        each.reconfigure(**settings)
    assert each.config == KeyedConfig()


def test_keys_are_texts_and_settings_are_configs() -> None:
    each = hosts()
    with pytest.raises(TypeError):
        each[5]  # type: ignore[index]
    with pytest.raises(ConfigTypeError, match=r"^config: "):
        CircuitBreakerManager().keyed("host", {"failure_threshold": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigTypeError, match=r"^breaker: "):
        KeyedConfig(5)  # type: ignore[arg-type]


async def test_a_listener_hears_of_the_key_while_its_breaker_is_held() -> None:
    each, heard = hosts(), []
    held = each["a"]
    held.add_listener(lambda old, new, metrics: heard.append(new))
    each["a"].force_open()
    until_sync(lambda: heard == [OPEN])


async def test_what_a_handle_tells_ends_with_it_and_what_the_manager_tells_does_not() -> None:
    manager = CircuitBreakerManager()
    each, of_handles, of_manager = manager.keyed("host"), [], []
    manager.subscribe(of_manager.append)
    each["a"].add_listener(lambda old, new, metrics: of_handles.append(new))
    each["a"].subscribe(of_handles.append)
    gc.collect()
    each["a"].force_open()
    until_sync(lambda: [event.new_state for event in of_manager] == [OPEN])
    assert of_handles == []


def test_a_group_is_true_and_is_no_sequence() -> None:
    each = hosts()
    assert each and len(each) == 0
    each["a"]
    assert each and len(each) == 1 and "a" in each
    with pytest.raises(TypeError, match="'KeyedCircuitBreakers' object is not iterable"):
        list(each)
    with pytest.raises(TypeError, match="not iterable"):
        for _ in each:
            pass
    assert len(each) == 1 and each["a"] is not each["a"]


def test_a_group_that_nobody_uses_is_collected_with_all_that_it_knew() -> None:
    class Token:
        pass

    token = Token()
    each = hosts(is_failure=lambda result, token=token: False)
    each["a"](int)()
    each.mine = each["b"](lambda: each)  # type: ignore[attr-defined]
    gone = weakref.ref(token), weakref.ref(each)
    del token, each

    def is_gone() -> bool:
        gc.collect()
        return gone[0]() is None and gone[1]() is None

    until_sync(is_gone)


def test_a_hundred_thousand_transient_breakers_leave_nothing_behind() -> None:
    each = hosts()
    before = len(gc.get_objects())
    for n in range(100_000):
        each[f"{n % 10}"].call(int)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert each.snapshot().counts.calls == 100_000


def test_any_number_of_threads_and_loops_share_a_group() -> None:
    each = hosts(failure_threshold=1_000_000, error_rate_threshold=None)

    def work(seed: int) -> None:
        for n in range(500):
            with each[f"{(n + seed) % 7}"]:
                pass

    def on_a_loop(seed: int) -> None:
        async def call() -> None:
            for n in range(500):
                async with each[f"{(n * seed) % 7}"]:
                    await asyncio.sleep(0)

        asyncio.run(call())

    threads = [threading.Thread(target=it, args=(n,)) for n, it in enumerate([work, on_a_loop] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert each.snapshot().counts.calls == 4000 and len(each) == 7
