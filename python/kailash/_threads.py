"""Threads for the sync work of one owner, started on demand."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from weakref import WeakSet

from kailash import _native
from kailash._process import at_exit, in_forked_child

__all__ = ["Threads"]

_IDLE = 10.0
_PATIENCE = 1.0

Job = Callable[[], Callable[[], object] | None]

_every: WeakSet[Threads] = WeakSet()

# Held while a thread is started: so that those that are found at exit can be joined. A handler of
# signals may come to start one within.
_starting = threading.RLock()


class Threads:
    """At most so many threads, which end when they have been idle for a while."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._forget()
        _every.add(self)

    def _forget(self) -> None:
        self._jobs = _native.JobQueue(self._most)
        self._numbers = itertools.count(1)
        self._threads: set[threading.Thread] = set()

    @property
    def count(self) -> int:
        """The threads there are."""
        return len(self._threads)

    def resize(self, most: int) -> None:
        """Changes how many threads there may be; surplus ones end after their job."""
        self._most = most
        for missing in range(self._jobs.resize(most), 0, -1):
            try:
                self._start()
            except RuntimeError:
                # The work goes on in the threads there are.
                for _ in range(missing):
                    self._jobs.without_thread(None)
                return

    def submit(self, job: Job) -> None:
        """Has a thread run `job`, which must not raise. RuntimeError if none can be started.

        What `job` answers, if anything, is called once the thread counts as free for the next: so
        that whoever learns there that the job is done finds the thread ready.
        """
        if self._jobs.put(job):
            try:
                self._start()
            except RuntimeError:
                if self._jobs.without_thread(job):
                    raise

    def _start(self) -> None:
        name = f"{self._name}-{next(self._numbers)}"
        thread = threading.Thread(target=self._work, args=(self._jobs,), name=name, daemon=True)
        with _starting:
            # First, as it may end before it is known to have started.
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                raise

    def _work(self, jobs: _native.JobQueue) -> None:
        while (job := jobs.get(_IDLE)) is not None:
            tell = job()
            jobs.come()
            if tell is not None:
                tell()
            del job, tell
        self._threads.discard(threading.current_thread())

    def close(self) -> list[threading.Thread]:
        """Tells the threads to end once they are done; answers those that there are."""
        self._jobs.close()
        return list(self._threads)


@in_forked_child
def _forget_threads() -> None:
    global _starting
    _starting = threading.RLock()
    for threads in tuple(_every):
        threads._forget()


@at_exit
def _stop() -> None:
    end = time.monotonic() + _PATIENCE
    with _starting:
        there = [thread for threads in tuple(_every) for thread in threads.close()]
    for thread in there:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
