"""What a circuit breaker raises when it refuses a call."""

from __future__ import annotations

from typing import Any, cast

from kailash import _native
from kailash.core.resilience.circuit_breaker.state import STATES, CircuitState
from kailash.core.resilience.rejection import RejectionError

__all__ = ["CircuitBreakerError"]


class CircuitBreakerError(RejectionError):
    """A circuit breaker refused a call."""

    # Its parts are its arguments: name, state, retry_after, cause, forced. Raising one runs no
    # Python, and its message is made only for who reads it.

    def __str__(self) -> str:
        return _native.rejection_message(self) if self._is_whole() else super().__str__()

    @property
    def name(self) -> str:
        """The breaker's name."""
        return str(self._part(0, ""))

    @property
    def state(self) -> CircuitState:
        """OPEN, or HALF_OPEN when all probes are in flight."""
        return STATES[self._part(1, "open")]

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call is worth trying; None where only another event decides."""
        return cast("float | None", self._part(2, None))

    @property
    def cause(self) -> str | None:
        """Why the breaker opened."""
        return cast("str | None", self._part(3, None))

    @property
    def forced(self) -> bool:
        """Whether someone told it to open."""
        return bool(self._part(4, False))

    def _part(self, index: int, default: Any) -> Any:
        return self.args[index] if self._is_whole() else default

    def _is_whole(self) -> bool:
        return len(self.args) == 5
