"""What is wrong with a configuration."""

from __future__ import annotations

__all__ = ["ConfigError", "ConfigTypeError"]


def _message(field: str, value: object, allowed: str) -> str:
    try:
        shown = repr(value)
    except Exception:
        # A whole number of more digits than Python writes, for one.
        shown = object.__repr__(value)
    return f"{field}: {shown} is not allowed, {allowed} is"


class ConfigError(ValueError):
    """A configuration value that is not allowed.

    `field` is its name, `value` what was given, `allowed` what is allowed instead.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(field, value, allowed)
        self.field = field
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return _message(self.field, self.value, self.allowed)


class ConfigTypeError(TypeError):
    """A configuration value of the wrong type, with `field`, `value` and `allowed`."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(field, value, allowed)
        self.field = field
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return _message(self.field, self.value, self.allowed)
