"""Time in tests."""

from kailash._native import ManualClock

__all__ = ["ManualClock"]
