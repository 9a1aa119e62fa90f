"""What all refusals have in common."""

__all__ = ["RejectionError"]


class RejectionError(Exception):
    """A layer refused a call before it began; the dependency behind it was never asked."""
