"""How long things took, in buckets that never grow."""

from kailash._native import HistogramSnapshot

__all__ = ["HistogramSnapshot"]
