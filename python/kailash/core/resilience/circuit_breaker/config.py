"""The settings of a circuit breaker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kailash import _native
from kailash._kinds import COROUTINE, ITERABLE_COROUTINE, kind_of
from kailash.core.resilience.circuit_breaker.state import CircuitState
from kailash.core.resilience.config import ConfigTypeError

__all__ = ["FIELDS", "JUDGES", "CircuitBreakerConfig", "checked"]


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """The settings of a circuit breaker; durations in seconds, checked when it is made.

    `excluded_exceptions` count neither as success nor as failure, nor do groups of nothing else.
    `is_failure` is asked about each result and each other exception, and answers whether it counts as a
    failure. `None` switches off a rate, slow calls, or the counting of cancelled calls. `window="time"`
    makes the rates look at the last `window_duration` instead of the last `window_size` calls. With
    `overdue_calls_enabled` a call counts as slow while it still runs, and as failed too if it fails in
    the end. No call is slow unless both `slow_call_threshold` and `slow_call_rate_threshold` are set.
    With `ramp_enabled` a growing share of the calls passes before the breaker closes. `retry_after` is
    asked about each failure how many seconds the dependency wants to be left alone, if it says so: that
    is then how long an opening lasts.
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
        for judge in ("is_failure", "retry_after"):
            function = getattr(self, judge)
            # What an async one answers is a coroutine, which is true whatever it would say.
            is_async = kind_of(function) & (COROUTINE | ITERABLE_COROUTINE)
            if is_async or not (function is None or callable(function)):
                raise ConfigTypeError(judge, function, "a function that is not async, or None")
        _native.check_circuit_breaker_config(self)
        object.__setattr__(self, "initial_state", CircuitState(self.initial_state))


FIELDS = tuple(each.name for each in fields(CircuitBreakerConfig))

# Those that Python judges by, and Rust does not know.
JUDGES = ("excluded_exceptions", "is_failure", "retry_after")


def checked(config: CircuitBreakerConfig | None) -> CircuitBreakerConfig | None:
    """The same, if it is one. Raises ConfigTypeError otherwise."""
    if config is not None and not isinstance(config, CircuitBreakerConfig):
        raise ConfigTypeError("config", config, "a CircuitBreakerConfig")
    return config
