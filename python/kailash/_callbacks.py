"""Functions of users that are told news: each on its own, so that none can harm the others."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any
from weakref import WeakSet, ref

from kailash._kinds import COROUTINE, ITERABLE_COROUTINE, kind_of
from kailash._loops import library_loop
from kailash._process import at_exit, in_forked_child
from kailash._threads import Threads

__all__ = ["BatchCallback", "Callback", "Done"]

_logger = logging.getLogger("kailash")

_MOST_PENDING = 1_000
_PATIENCE = 1.0
_LONG = 1e9

_every: WeakSet[Callback] = WeakSet()

# Whether the interpreter is ending: the loops and threads that would tell are going away.
_is_ending = False


class Done:
    """What is done already, for those who write `await` before it."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class Callback:
    """Calls a function with each piece of news, in order, without ever making the teller wait.

    A plain function runs on a thread of its own, an async one on the loop that ran when it was
    registered, or on the library's once that has ended. What it raises is logged. When a thousand
    pieces wait, further ones are dropped and the log says so.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        if not callable(function):
            raise TypeError(f"a {what} is a function, not {function!r}")
        self._function = function
        self._what = what
        self._context = contextvars.copy_context()
        self._is_async = bool(kind_of(function) & (COROUTINE | ITERABLE_COROUTINE))
        self._loop: asyncio.AbstractEventLoop | None = None
        if self._is_async:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                pass  # registered outside of any loop: the library's will do
        self._forget_thread()
        _every.add(self)

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._pending: deque[tuple[Any, ...]] = deque()
        self._thread: threading.Thread | None = None

    def _forget_parent(self) -> None:
        self._forget_thread()
        # The parent's may be entered, by a thread that is not here to leave it.
        self._context = self._context.copy()
        if self._loop is not None and self._loop.is_running():
            # So it says for good, as the thread that ran it is not here, or has left it.
            self._loop = None

    def __call__(self, *news: Any) -> None:
        if _is_ending:
            return
        if self._is_async:
            self._tell_loop(news)
        else:
            self._tell_thread(news)

    def _tell_loop(self, news: tuple[Any, ...]) -> None:
        loop = self._loop
        if loop is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self._begin, loop, news)
                return
            except RuntimeError:
                pass  # it ended meanwhile
        self._tell_library_loop(news)

    def _tell_library_loop(self, news: tuple[Any, ...]) -> None:
        loop = library_loop()
        try:
            loop.call_soon_threadsafe(self._begin, loop, news)
        except RuntimeError:
            pass  # the interpreter is ending

    def _begin(self, loop: asyncio.AbstractEventLoop, news: tuple[Any, ...]) -> None:
        task = loop.create_task(self._call_async(news), context=self._context.copy())
        # A loop knows its tasks weakly, but its timers well, until it is closed. One that it leaves
        # behind must go then: whoever waits for its end learns by that.
        held = ref(loop.call_later(_LONG, task.done))

        def end(task: asyncio.Task[Any]) -> None:
            if (timer := held()) is not None:
                timer.cancel()
            self._end(task, news)

        task.add_done_callback(end)

    def _end(self, task: asyncio.Task[Any], news: tuple[Any, ...]) -> None:
        """Its task is done, or was cancelled."""

    async def _call_async(self, news: tuple[Any, ...]) -> None:
        try:
            await self._function(*news)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            _logger.exception("%s %r failed", self._what, self._function)

    def _tell_thread(self, news: tuple[Any, ...]) -> None:
        with self._lock:
            if len(self._pending) >= _MOST_PENDING:
                _logger.error("%s %r is too slow: news dropped", self._what, self._function)
                return
            self._pending.append(news)
            if self._thread is not None:
                return
            name = f"kailash-{self._what.replace(' ', '-')}"
            thread = threading.Thread(target=self._drain, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._pending.clear()
                self._has_no_thread(error)
                return
            self._thread = thread

    def _has_no_thread(self, error: RuntimeError) -> None:
        # Who ends the interpreter wants to hear no more; else the system grants no more threads.
        if not _is_ending:
            _logger.error("%s %r was not told: %s", self._what, self._function, error)

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._thread = None
                    return
                news = self._pending.popleft()
            self._call(news)

    def _call(self, news: tuple[Any, ...]) -> None:
        try:
            self._context.run(self._function, *news)
        except BaseException:
            _logger.exception("%s %r failed", self._what, self._function)

    def join(self, timeout: float) -> None:
        """Waits until what was told so far has been worked off."""
        with self._lock:
            # Under the lock it has been started.
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the task that runs, rather than what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class BatchCallback(Callback):
    """As Callback, for news that comes often: a batch and what to call once all of it was told.

    Its teller waits for that before the next batch, so that nothing piles up here, and a plain
    function keeps its thread for a while. When a loop ends within a batch, the library's tells the
    rest.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        super().__init__(function, what)
        self._threads = Threads(f"kailash-{what.replace(' ', '-')}", 1)

    def __call__(self, batch: Iterator[Any], done: Callable[[], object]) -> None:
        super().__call__(batch, done)

    def _tell_thread(self, news: tuple[Any, ...]) -> None:
        batch, done = news

        def job() -> None:
            for each in batch:
                self._call((each,))
            done()

        try:
            self._threads.submit(job)
        except RuntimeError as error:
            self._has_no_thread(error)

    async def _call_async(self, news: tuple[Any, ...]) -> None:
        batch, done = news
        for each in batch:
            await super()._call_async((each,))
        done()

    def _end(self, task: asyncio.Task[Any], news: tuple[Any, ...]) -> None:
        is_over = not task.cancelled() and task.exception() is None
        if not is_over and not _is_ending:
            # The iterator stands where the task has left it, which may not even have begun.
            self._tell_library_loop(news)

    def close(self) -> None:
        """Lets its thread end once it has told what it has."""
        self._threads.close()


@in_forked_child
def _forget_threads() -> None:
    for callback in tuple(_every):
        callback._forget_parent()


@at_exit
def _finish() -> None:
    global _is_ending
    _is_ending = True
    for callback in tuple(_every):
        callback.join(_PATIENCE)
