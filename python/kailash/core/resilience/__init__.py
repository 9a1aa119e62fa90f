"""Circuit breakers, bulkhead partitions and health monitoring."""

from kailash.core.resilience.bulkhead import (
    BulkheadFullError,
    BulkheadManager,
    BulkheadPartition,
    BulkheadRejectionError,
    PartitionConfig,
    PartitionType,
    execute_with_bulkhead,
    get_bulkhead_manager,
)
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitBreakerManager,
    CircuitState,
    ConnectionCircuitBreaker,
    get_circuit_breaker,
)
from kailash.core.resilience.config import ConfigError, ConfigTypeError
from kailash.core.resilience.rejection import RejectionError

__all__ = [
    "BulkheadFullError",
    "BulkheadManager",
    "BulkheadPartition",
    "BulkheadRejectionError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerError",
    "CircuitBreakerManager",
    "CircuitState",
    "ConfigError",
    "ConfigTypeError",
    "ConnectionCircuitBreaker",
    "PartitionConfig",
    "PartitionType",
    "RejectionError",
    "execute_with_bulkhead",
    "get_bulkhead_manager",
    "get_circuit_breaker",
]
