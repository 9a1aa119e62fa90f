"""Threads for the sync work of one owner, started on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from weakref import WeakSet

from kailash._process import at_exit, in_forked_child

__all__ = ["Threads"]

_IDLE = 10.0
_PATIENCE = 1.0

_every: WeakSet[Threads] = WeakSet()


class Threads:
    """At most so many threads, which end when they have been idle for a while."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._forget()
        _every.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._started = 0
        # Threads that have no job in the queue waiting for them, and jobs that no thread waits for.
        self._idle = 0
        self._backlog = 0
        self._threads: set[threading.Thread] = set()

    @property
    def count(self) -> int:
        """The threads there are."""
        return len(self._threads)

    def resize(self, most: int) -> None:
        """Changes how many threads there may be; surplus ones end after their job."""
        with self._lock:
            self._most = most
            missing = min(self._backlog, most - len(self._threads))
            self._backlog -= max(missing, 0)
        for _ in range(missing):
            self._start()

    def submit(self, job: Callable[[], object]) -> None:
        """Has a thread run `job`, which must not raise. RuntimeError if none can be started."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                starts = False
            elif len(self._threads) < self._most:
                starts = True
            else:
                self._backlog += 1
                starts = False
        if starts:
            self._start()
        self._jobs.put(job)

    def _start(self) -> None:
        with self._lock:
            self._started += 1
            name = f"{self._name}-{self._started}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.add(thread)

    def _work(self) -> None:
        jobs, lock = self._jobs, self._lock
        while True:
            try:
                job = jobs.get(timeout=_IDLE)
            except Empty:
                with lock:
                    # Not idle means that a job is on its way to this thread.
                    if not self._idle:
                        continue
                    self._idle -= 1
                    self._threads.discard(threading.current_thread())
                    return
            if job is None:
                with lock:
                    self._threads.discard(threading.current_thread())
                return
            job()
            del job
            with lock:
                if self._backlog:
                    self._backlog -= 1
                elif len(self._threads) > self._most:
                    self._threads.discard(threading.current_thread())
                    return
                else:
                    self._idle += 1

    def close(self) -> list[threading.Thread]:
        """Tells the threads to end once they are done; answers those that there are."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        return threads


@in_forked_child
def _forget_threads() -> None:
    for threads in tuple(_every):
        threads._forget()


@at_exit
def _stop() -> None:
    end = time.monotonic() + _PATIENCE
    for thread in [thread for threads in tuple(_every) for thread in threads.close()]:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
