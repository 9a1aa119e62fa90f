"""What a circuit breaker may be."""

from enum import Enum

__all__ = ["STATES", "CircuitState"]


class CircuitState(Enum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


STATES = {state.value: state for state in CircuitState}
