"""What the calls of something give, of which `inspect` tells for functions alone."""

from __future__ import annotations

import functools
import inspect
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, WrapperDescriptorType
from typing import Any

__all__ = [
    "ASYNC_GENERATOR",
    "COROUTINE",
    "GENERATOR",
    "ITERABLE_COROUTINE",
    "kind_of",
]

COROUTINE = inspect.CO_COROUTINE
# Of a generator that `types.coroutine` has marked, which is there to be awaited.
ITERABLE_COROUTINE = inspect.CO_ITERABLE_COROUTINE
GENERATOR = inspect.CO_GENERATOR
ASYNC_GENERATOR = inspect.CO_ASYNC_GENERATOR

_KINDS = COROUTINE | ITERABLE_COROUTINE | GENERATOR | ASYNC_GENERATOR

# Their calls give no coroutine and no generator. To call a class makes an object, whatever calling
# that may do.
_PLAIN = {BuiltinFunctionType, WrapperDescriptorType, type}


def kind_of(function: Any) -> int:
    """The flags above of the code that a call of this runs; 0 where a call gives what it gives."""
    if type(function) is FunctionType and not function.__dict__:
        # Nothing is marked on it.
        return function.__code__.co_flags & _KINDS
    if type(function) in _PLAIN:
        return 0
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            break
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        kind = code.co_flags & _KINDS
        # It may be marked as one that gives coroutines.
        is_marked = kind in (0, GENERATOR) and inspect.iscoroutinefunction(function)
        return COROUTINE if is_marked else kind
    if isinstance(function, FunctionType):
        # A mock that passes for one.
        return 0
    if inspect.iscoroutinefunction(function):
        return COROUTINE
    return kind_of(getattr(type(function), "__call__", None)) if callable(function) else 0
