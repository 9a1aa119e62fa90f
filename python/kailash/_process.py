"""What a process owes the library: a clean child after a fork, and no thread left at exit."""

import atexit
import logging
import os
from collections.abc import Callable
from typing import TypeVar

from kailash import _native

_logger = logging.getLogger("kailash")

_Callback = TypeVar("_Callback", bound=Callable[[], object])

_in_child: list[Callable[[], object]] = []
_at_exit: list[Callable[[], object]] = []


def in_forked_child(callback: _Callback) -> _Callback:
    """Has `callback` run in each forked child, after the runtime of the parent is forgotten."""
    _in_child.append(callback)
    return callback


def at_exit(callback: _Callback) -> _Callback:
    """Has `callback` run when the interpreter ends, before the runtime's threads stop."""
    _at_exit.append(callback)
    return callback


def _after_fork_in_child() -> None:
    _native.after_fork_in_child()
    _native.forget_connections()
    for callback in _in_child:
        callback()


def _end() -> None:
    for callback in reversed(_at_exit):
        try:
            callback()
        except BaseException:
            # The runtime's threads must stop all the same: they use the interpreter.
            _logger.exception("what ends with the process failed")
    _native.shut_down()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_end)
