"""Circuit breakers by key."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any
from weakref import WeakSet

from kailash import _native
from kailash._callbacks import Done
from kailash._process import in_forked_child
from kailash.core.resilience.circuit_breaker.breaker import (
    CircuitBreaker,
    CircuitBreakerCounts,
    judge_by,
)
from kailash.core.resilience.circuit_breaker.config import JUDGES, CircuitBreakerConfig, checked
from kailash.core.resilience.circuit_breaker.state import STATES, CircuitState
from kailash.core.resilience.config import ConfigError, ConfigTypeError
from kailash.core.resilience.histogram import HistogramSnapshot

__all__ = [
    "KEYED_FIELDS",
    "KeyCounts",
    "KeyedCircuitBreakers",
    "KeyedConfig",
    "KeyedSeries",
    "KeyedSnapshot",
    "said_of",
]


@dataclass(frozen=True)
class KeyedConfig:
    """The settings of a group of keys; durations in seconds, checked when it is made.

    `breaker` has those of each breaker. `capacity` (1 to 16,777,216) is how many closed breakers are
    kept, and how many others besides; beyond it whichever was idle longest is forgotten, of the closed
    a clean one first, of the others a half-open one. Breakers that must not be forgotten may take the
    group beyond it. A key that was not asked for in `idle_timeout` is forgotten, and one with failures
    or slow calls in its window, or in an opening whose wait is over, in `failures_kept` (less than
    `idle_timeout` counts as equal); beyond `capacity` they go sooner.
    `series` keys (0 to 1,000) have a metric series of their own, the rest being one.
    """

    breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    capacity: int = 1_000_000
    idle_timeout: float = 600.0
    failures_kept: float = 86_400.0
    series: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.breaker, CircuitBreakerConfig):
            raise ConfigTypeError("breaker", self.breaker, "a CircuitBreakerConfig")
        _native.check_keyed_config(self)


KEYED_FIELDS = tuple(each.name for each in fields(KeyedConfig) if each.name != "breaker")


@dataclass(frozen=True)
class KeyedSnapshot:
    """A group of keys at one moment.

    `keys` have a breaker now, of which `open` (forced ones too) and `half_open` are not closed.
    `forgotten` breakers were forgotten since the group was made; `counts` has all, these too.
    """

    keys: int
    open: int
    half_open: int
    forgotten: int
    counts: CircuitBreakerCounts


@dataclass(frozen=True)
class KeyCounts:
    """One key's metric series: `breaker` is its name, `GROUP/KEY`.

    `counts` is what it has counted since it was made, `since_listed` since it got its series, which
    is for counters of metrics.
    """

    breaker: str
    state: CircuitState
    counts: CircuitBreakerCounts
    since_listed: CircuitBreakerCounts


@dataclass(frozen=True)
class KeyedSeries:
    """What a group of keys shows as metrics: a series for each of a few keys, one for all others.

    `listed` are the keys with the most refusals and failures, the worst first. All counters only
    grow, and `listed` (since they are) and `other` always add up to `total`.
    """

    total: CircuitBreakerCounts
    listed: list[KeyCounts]
    other: CircuitBreakerCounts


_every_group: WeakSet[KeyedCircuitBreakers] = WeakSet()


class KeyedCircuitBreakers:
    """The breakers of one group, such as hosts or tenants, each by its key.

    One bad host of ten is refused, the other nine are not. `hosts[key]` is the breaker of a key, to
    be used as any: it is called `GROUP/KEY`, is made when its key is first asked for, and is
    forgotten when its key has not been asked for in a while. It is never forgotten while it is open or
    a probe is in flight, while someone has told it to be so, or while somebody holds it (so while a
    call is in flight, or a function lives that it guards). Failures and slow calls in its window are
    remembered for longer: see `KeyedConfig`.

    Ask for it again for each call rather than keep it. Each time it is a new handle on the same
    breaker, not equal to the last, and what `add_listener` and `subscribe` of a handle began ends with
    it: `CircuitBreakerManager.subscribe` tells of all keys. How long calls take is known of the group,
    not of each key: `avg_call_duration` is that of all keys together.

    A group is true also while it is empty. Its keys can be counted and asked for, but not gone
    through: `series()` lists some.

    `CircuitBreakerManager.keyed` makes one. Any thread and any event loop may use it.
    """

    def __init__(self, native: _native.KeyedCircuitBreakers, name: str, config: KeyedConfig) -> None:
        self._native = native
        self._name = name
        self._configure(config)
        _every_group.add(self)

    def _configure(self, config: KeyedConfig) -> None:
        self._config = config
        judge_by(self._native, config.breaker)

    def __repr__(self) -> str:
        return f"<KeyedCircuitBreakers {self._name!r} of {len(self)}>"

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def config(self) -> KeyedConfig:
        """The settings in force."""
        return self._config

    def __getitem__(self, key: str) -> CircuitBreaker:
        return self._of_key(self._native.get(key))

    def __contains__(self, key: str) -> bool:
        return self._native.holds(key)

    def __len__(self) -> int:
        return self._native.len()

    def __bool__(self) -> bool:
        return True

    # Else Python would ask for the keys 0, 1 and so on.
    __iter__ = None

    def get(self, key: str) -> CircuitBreaker:
        """The breaker of this key, made if there is none: the same as `hosts[key]`."""
        return self._of_key(self._native.get(key))

    def find(self, key: str) -> CircuitBreaker | None:
        """The breaker of this key, if there is one. To ask is no use of the key."""
        found = self._native.find(key)
        return None if found is None else self._of_key(found)

    def remove(self, key: str) -> CircuitBreaker | None:
        """Forgets the breaker of this key, whatever its state; who holds it can go on using it."""
        removed = self._native.remove(key)
        return None if removed is None else self._of_key(removed)

    def _of_key(self, native: _native.CircuitBreaker) -> CircuitBreaker:
        breaker = _KeyedCircuitBreaker.__new__(_KeyedCircuitBreaker)
        breaker._native = native
        breaker._group = self
        return breaker

    def forget_idle(self) -> int:
        """Forgets all keys that were idle too long, and answers how many.

        New keys have it done bit by bit, so only a group that gets none may want to be told.
        """
        return self._native.forget_idle()

    def reconfigure(
        self,
        config: CircuitBreakerConfig | None = None,
        *,
        capacity: int | None = None,
        idle_timeout: float | None = None,
        failures_kept: float | None = None,
        series: int | None = None,
    ) -> Done:
        """Changes these settings of all breakers, those to come too, and keeps states and counts."""
        said = said_of(config, capacity, idle_timeout, failures_kept, series)
        wanted = replace(self._config, **said)
        self._native.reconfigure(wanted)
        self._configure(wanted)
        return Done()

    def reset_all(self) -> Done:
        """Closes all breakers from any state and forgets what they have counted."""
        self._native.reset_all()
        return Done()

    def snapshot(self) -> KeyedSnapshot:
        """What all keys together are at this moment. It looks at each."""
        seen = self._native.snapshot()
        seen["counts"] = CircuitBreakerCounts(**seen["counts"])
        return KeyedSnapshot(**seen)

    @property
    def durations(self) -> HistogramSnapshot:
        """How long the calls of all keys together took since the last `reset_all()`: empty unless
        the manager was told to `record_durations`."""
        return self._native.durations()

    @property
    def all_durations(self) -> HistogramSnapshot:
        """As `durations`, but no reset sets it back: this is for metrics."""
        return self._native.all_durations()

    def series(self) -> KeyedSeries:
        """The group as metrics: as many keys as `series` says at most, and one for all others."""
        seen = self._native.series()
        return KeyedSeries(
            total=CircuitBreakerCounts(**seen["total"]),
            listed=[
                KeyCounts(
                    breaker=key["breaker"],
                    state=STATES[key["state"]],
                    counts=CircuitBreakerCounts(**key["counts"]),
                    since_listed=CircuitBreakerCounts(**key["since_listed"]),
                )
                for key in seen["listed"]
            ],
            other=CircuitBreakerCounts(**seen["other"]),
        )


class _KeyedCircuitBreaker(CircuitBreaker):
    """The breaker of one key. What counts as a failure is the group's to say."""

    _group: KeyedCircuitBreakers

    @property
    def config(self) -> CircuitBreakerConfig:
        return replace(self._group.config.breaker, **self._native.config())

    def reconfigure(self, config: CircuitBreakerConfig | None = None, **changes: Any) -> Done:
        known = self.config
        wanted = replace(checked(config) or known, **changes)
        for judge in JUDGES:
            if getattr(wanted, judge) != getattr(known, judge):
                raise ConfigError(judge, getattr(wanted, judge), "that of the group")
        self._native.reconfigure(wanted)
        return Done()


def said_of(
    config: CircuitBreakerConfig | None,
    capacity: int | None,
    idle_timeout: float | None,
    failures_kept: float | None,
    series: int | None,
) -> dict[str, Any]:
    """The fields of a KeyedConfig that somebody said something about."""
    said = {
        "breaker": checked(config),
        "capacity": capacity,
        "idle_timeout": idle_timeout,
        "failures_kept": failures_kept,
        "series": series,
    }
    return {name: value for name, value in said.items() if value is not None}


@in_forked_child
def _forget_calls_in_flight() -> None:
    for group in tuple(_every_group):
        group._native.forget_calls_in_flight()
