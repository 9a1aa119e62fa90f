"""What a circuit breaker tells of, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ref

from kailash import _native
from kailash._callbacks import BatchCallback
from kailash.core.resilience.circuit_breaker.state import STATES, CircuitState

__all__ = ["CircuitBreakerEvent", "EventListener", "Subscribers"]


@dataclass(frozen=True)
class CircuitBreakerEvent:
    """Something that happened to a circuit breaker; durations in seconds.

    A "transition" is one from `old_state` to `new_state`, with its `cause`, whether it was `forced`,
    and the `wait` of an opening. A call was "rejected", or has "ended": with this `outcome`, after it
    `ran` so long (None where calls are not timed), and `is_slow` if that is as long as
    `slow_call_threshold`; `retry_after` is what a failure asked for. A listener that is too slow is
    told how many events are "lost" to it; `breaker` is empty where they may have been any breaker's.
    """

    breaker: str
    kind: Literal["transition", "rejected", "ended", "lost"]
    old_state: CircuitState | None = None
    new_state: CircuitState | None = None
    cause: str | None = None
    forced: bool = False
    wait: float | None = None
    outcome: Literal["success", "failure", "ignored", "cancelled"] | None = None
    ran: float | None = None
    is_slow: bool = False
    retry_after: float | None = None
    lost: int = 0


EventListener = Callable[[CircuitBreakerEvent], object]

_Source = _native.CircuitBreaker | _native.CircuitBreakerManager


class Subscribers:
    """Who is told of what happens, each by a subscription of its own, so that none harms others."""

    def __init__(self) -> None:
        self._known: list[_Subscriber] = []

    def add(self, source: _Source, listener: EventListener) -> None:
        self._add(source, _Subscriber(listener))

    def add_of_transitions(self, source: _Source, listener: EventListener) -> None:
        self._add(source, _SubscriberOfTransitions(listener))

    def _add(self, source: _Source, subscriber: _Subscriber) -> None:
        subscriber.begin(source)
        self._known.append(subscriber)

    def remove(self, listener: EventListener) -> None:
        for index, subscriber in enumerate(self._known):
            if subscriber.listener == listener:
                del self._known[index]
                subscriber.end()
                return

    def begin_anew(self, source: _Source) -> None:
        """In a forked child: what carried the news to them was a thread of the parent's."""
        for subscriber in self._known:
            subscriber.begin(source)


class _Subscriber:
    def __init__(self, listener: EventListener) -> None:
        self.listener = listener
        self._tell = BatchCallback(listener, "circuit breaker subscriber")
        self._subscription: _native.CircuitBreakerSubscription | None = None
        self._is_over = False

    def begin(self, source: _Source) -> None:
        self._subscription = source.subscribe(_batch_teller(self))

    def end(self) -> None:
        self._is_over = True
        self._subscription = None
        self._tell.close()

    def tell(self, events: list[dict[str, Any]], done: Callable[[], None]) -> None:
        self._tell(self._read(events), done)

    def _read(self, events: list[dict[str, Any]]) -> Iterator[CircuitBreakerEvent]:
        for event in events:
            if self._is_over:
                return
            for state in ("old_state", "new_state"):
                if state in event:
                    event[state] = STATES[event[state]]
            yield CircuitBreakerEvent(**event)


class _SubscriberOfTransitions(_Subscriber):
    def begin(self, source: _Source) -> None:
        self._subscription = source.subscribe_transitions(_batch_teller(self))


def _batch_teller(
    subscriber: _Subscriber,
) -> Callable[[list[dict[str, Any]], Callable[[], None]], None]:
    """Tells a subscriber as long as somebody else keeps it alive."""
    alive = ref(subscriber)

    def tell(events: list[dict[str, Any]], done: Callable[[], None]) -> None:
        subscriber = alive()
        if subscriber is not None:
            subscriber.tell(events, done)

    return tell
