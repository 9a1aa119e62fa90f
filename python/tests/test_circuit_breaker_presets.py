"""What presets of one's own promise."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kailash.core.resilience.circuit_breaker import (
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitState,
    ConfigError,
    ConfigTypeError,
    get_circuit_breaker,
    get_circuit_breaker_manager,
)
from kailash.runtime.local import LocalRuntime
from kailash.workflow.builder import WorkflowBuilder

# A value other than the default for each field, so that none can be forgotten.
OTHER: dict[str, Any] = {
    "failure_threshold": 7,
    "success_threshold": 4,
    "recovery_timeout": 0.1,
    "half_open_requests": 2,
    "error_rate_threshold": None,
    "window_size": 50,
    "excluded_exceptions": [KeyError],
    "min_calls_before_evaluation": 3,
    "slow_call_threshold": None,
    "slow_call_rate_threshold": 0.25,
    "max_wait_duration_in_half_open": 7.5,
    "exponential_backoff_multiplier": 3.0,
    "jitter_enabled": False,
    "max_jitter_percentage": 0.2,
    "max_recovery_timeout": 100.0,
    "cancelled_counts_after": None,
    "is_failure": bool,
    "window": "time",
    "window_duration": 5.5,
    "overdue_calls_enabled": True,
    "ramp_enabled": True,
    "initial_state": CircuitState.METRICS_ONLY,
    "retry_after": float,
}


def test_the_presets_that_come_with_the_library() -> None:
    manager = CircuitBreakerManager()
    assert manager.preset("default") == CircuitBreakerConfig() == manager.preset("database")
    assert manager.preset("api") == CircuitBreakerConfig(failure_threshold=3, recovery_timeout=30)
    assert manager.preset("cache") == CircuitBreakerConfig(failure_threshold=2, recovery_timeout=15)
    assert manager.get_or_create("api").config == CircuitBreakerConfig(), "bases, not breakers"


def test_a_preset_says_what_its_base_leaves_open() -> None:
    manager = CircuitBreakerManager()
    manager.define("payments", base="api", half_open_requests=1)
    manager.define("refunds", base="payments", failure_threshold=9)
    assert manager.get_or_create("payments").config == CircuitBreakerConfig(
        failure_threshold=3, recovery_timeout=30, half_open_requests=1
    )
    made = manager.create_circuit_breaker("other", pattern="refunds")
    assert made.config == manager.preset("refunds") == CircuitBreakerConfig(
        failure_threshold=9, recovery_timeout=30, half_open_requests=1
    )
    assert manager.keyed("payments").config.breaker == manager.preset("payments")
    assert manager.get_or_create("anything").config == CircuitBreakerConfig()


@pytest.mark.parametrize("field", OTHER)
def test_each_field_can_be_said_and_is_handed_down(field: str) -> None:
    assert set(OTHER) == set(CircuitBreakerConfig.__dataclass_fields__)
    manager = CircuitBreakerManager()
    manager.define("base", **{field: OTHER[field]})
    manager.define("own", base="base")
    assert manager.preset("own") == CircuitBreakerConfig(**{field: OTHER[field]})
    default = getattr(CircuitBreakerConfig(), field)
    assert default != OTHER[field]
    manager.define("own", base="base", **{field: default})
    assert manager.preset("own") == CircuitBreakerConfig(), "what is said holds, the default too"


def test_what_counts_as_a_failure_is_handed_down_too() -> None:
    manager = CircuitBreakerManager()
    manager.define("default", excluded_exceptions=[KeyError], is_failure=lambda outcome: True)
    manager.define("api", base="api", excluded_exceptions=[])
    manager.define("payments", base="api", failure_threshold=1)
    payments = manager.get_or_create("payments")
    assert payments.config.excluded_exceptions == [] and payments.config.is_failure is not None
    assert payments.config.recovery_timeout == 30, "the library's api is below one's own"
    payments.call(int)
    assert payments.state is CircuitState.OPEN
    assert manager.preset("cache").excluded_exceptions == [KeyError]


def test_all_build_on_the_default() -> None:
    manager = CircuitBreakerManager()
    manager.set_default_config(CircuitBreakerConfig(window_size=7, failure_threshold=4))
    assert manager.get_or_create("a").config == CircuitBreakerConfig(
        window_size=7, failure_threshold=4
    )
    assert manager.preset("api").window_size == 7 and manager.preset("api").failure_threshold == 3
    manager.define("default")
    assert manager.preset("default") == CircuitBreakerConfig()
    assert manager.get_or_create("a").config.window_size == 7, "what exists keeps its settings"


def test_what_is_wrong_with_a_preset_is_said_and_changes_nothing() -> None:
    manager = CircuitBreakerManager()
    manager.define("a", failure_threshold=2)
    manager.define("b", base="a")
    unknown = re.escape('preset "c": unknown base "databse", did you mean "database"? (there are')
    with pytest.raises(ValueError, match=f"^{unknown}"):
        manager.define("c", base="databse")
    circle = "bases go round in a circle: a -> b -> a"
    with pytest.raises(ValueError, match=f"^{circle}$"):
        manager.define("a", base="b")
    with pytest.raises(ConfigError, match=r"^failure_threshold: 0 is not allowed"):
        manager.define("a", failure_threshold=0)
    with pytest.raises(ConfigTypeError, match=r"^excluded_exceptions: "):
        manager.define("a", excluded_exceptions=KeyError)
    with pytest.raises(TypeError, match="failure_treshold"):
        manager.define("a", failure_treshold=1)
    with pytest.raises(TypeError):
        manager.define("a", base=5)  # type: ignore[arg-type]
    assert manager.preset("b") == CircuitBreakerConfig(failure_threshold=2)
    for get in (manager.preset, lambda name: manager.create_circuit_breaker("x", pattern=name)):
        with pytest.raises(ValueError, match=r'^unknown preset "none" \(there are a, api, b, cache'):
            get("none")


def test_the_process_has_presets_that_workflows_use_too() -> None:
    name = "preset of a workflow"
    get_circuit_breaker_manager().define(name, base="cache", excluded_exceptions=[KeyError])
    builder = WorkflowBuilder()
    builder.add_node("SwitchNode", "n", {"condition": "true", "breaker": name})
    LocalRuntime().execute(builder.build())
    config = get_circuit_breaker(name).config
    assert (config.failure_threshold, config.excluded_exceptions) == (2, [KeyError])


def test_settings_that_are_said_go_over_those_that_the_name_was_given() -> None:
    name, manager = "preset below what is said", get_circuit_breaker_manager()
    manager.define(name, base="api", half_open_requests=1)
    made = get_circuit_breaker(name, failure_threshold=9)
    assert made.config == CircuitBreakerConfig(
        failure_threshold=9, recovery_timeout=30, half_open_requests=1
    )
    manager.define(name, base="cache")
    assert get_circuit_breaker(name, failure_threshold=9) is made, "what is not said is not compared"
    differing = "exists with failure_threshold=9, not failure_threshold=8;"
    with pytest.raises(ValueError, match=differing):
        get_circuit_breaker(name, failure_threshold=8)
    plain = CircuitBreakerConfig(half_open_requests=2)
    with pytest.raises(ValueError, match="not recovery_timeout=60.0, half_open_requests=2"):
        get_circuit_breaker(name, plain, failure_threshold=9)
    whole = get_circuit_breaker(f"{name}, whole", plain, failure_threshold=9)
    assert whole.config == CircuitBreakerConfig(half_open_requests=2, failure_threshold=9)
