"""Circuit breakers: stop calling a dependency that fails, and find out gently when it is back."""

from kailash.core.resilience.circuit_breaker.breaker import (
    CircuitBreaker,
    CircuitBreakerCounts,
    CircuitBreakerMetrics,
    ConnectionCircuitBreaker,
)
from kailash.core.resilience.circuit_breaker.config import CircuitBreakerConfig
from kailash.core.resilience.circuit_breaker.event import CircuitBreakerEvent
from kailash.core.resilience.circuit_breaker.keyed import (
    KeyCounts,
    KeyedCircuitBreakers,
    KeyedConfig,
    KeyedSeries,
    KeyedSnapshot,
)
from kailash.core.resilience.circuit_breaker.manager import (
    CircuitBreakerManager,
    get_circuit_breaker,
    get_circuit_breaker_manager,
)
from kailash.core.resilience.circuit_breaker.rejected import CircuitBreakerError
from kailash.core.resilience.circuit_breaker.state import CircuitState
from kailash.core.resilience.config import ConfigError, ConfigTypeError

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerCounts",
    "CircuitBreakerError",
    "CircuitBreakerEvent",
    "CircuitBreakerManager",
    "CircuitBreakerMetrics",
    "CircuitState",
    "ConfigError",
    "ConfigTypeError",
    "ConnectionCircuitBreaker",
    "KeyCounts",
    "KeyedCircuitBreakers",
    "KeyedConfig",
    "KeyedSeries",
    "KeyedSnapshot",
    "get_circuit_breaker",
    "get_circuit_breaker_manager",
]
