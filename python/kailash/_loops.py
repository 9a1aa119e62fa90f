"""Event loops on threads of the library's own."""

from __future__ import annotations

import asyncio
import threading
from weakref import WeakSet

from kailash._process import at_exit, in_forked_child

__all__ = ["LoopThread", "library_loop"]

_PATIENCE = 1.0

_running: WeakSet[LoopThread] = WeakSet()


class LoopThread:
    """A thread that runs one event loop until it is stopped."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _running.add(self)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            # A task that ignores its cancellation is left behind; nothing here can end it.
            self._cancel_tasks()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=_PATIENCE))

    def stop(self) -> None:
        """Tells the loop to end; does not wait for it."""
        _running.discard(self)
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            pass  # closed already

    def join(self, timeout: float) -> None:
        """Waits for the thread to end."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)


_parents: list[LoopThread] = []
_library: LoopThread | None = None
_library_lock = threading.Lock()


def library_loop() -> asyncio.AbstractEventLoop:
    """The loop for async functions of users whose own loop has ended."""
    global _library
    with _library_lock:
        if _library is None:
            _library = LoopThread("kailash-loop")
        return _library.loop


@in_forked_child
def _forget() -> None:
    global _library, _library_lock
    _library, _library_lock = None, threading.Lock()
    # Kept, never closed: a loop that ends here would take its files out of the parent's selector.
    _parents.extend(_running)
    _running.clear()


@at_exit
def _stop() -> None:
    running = list(_running)
    for thread in running:
        thread.stop()
    for thread in running:
        thread.join(_PATIENCE)
