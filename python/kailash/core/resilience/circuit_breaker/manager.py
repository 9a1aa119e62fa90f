"""Circuit breakers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from kailash import _native
from kailash._callbacks import Done
from kailash._process import in_forked_child
from kailash.core.resilience.circuit_breaker.breaker import CircuitBreaker, Listener
from kailash.core.resilience.circuit_breaker.config import (
    FIELDS,
    JUDGES,
    CircuitBreakerConfig,
    checked,
)
from kailash.core.resilience.circuit_breaker.event import EventListener, Subscribers
from kailash.core.resilience.circuit_breaker.keyed import (
    KEYED_FIELDS,
    KeyedCircuitBreakers,
    KeyedConfig,
    said_of,
)
from kailash.core.resilience.circuit_breaker.rejected import CircuitBreakerError
from kailash.core.resilience.clock import ManualClock

__all__ = ["CircuitBreakerManager", "get_circuit_breaker", "get_circuit_breaker_manager"]


# The preset that all others build on.
_ROOT = "default"

_managers: WeakSet[CircuitBreakerManager] = WeakSet()


class CircuitBreakerManager:
    """Circuit breakers by name: the same name gives the same breaker. `clock` is for tests."""

    def __init__(self, *, clock: ManualClock | None = None) -> None:
        self._native = _native.CircuitBreakerManager(clock)
        self._breakers: dict[str, CircuitBreaker] = {}
        self._groups: dict[str, KeyedCircuitBreakers] = {}
        self._callbacks: list[Listener] = []
        self._subscribers = Subscribers()
        # What was defined: the base that was said, and what Python judges by.
        self._presets: dict[str, tuple[str | None, dict[str, Any]]] = {}
        _managers.add(self)

    def get_or_create(
        self, name: str, config: CircuitBreakerConfig | None = None
    ) -> CircuitBreaker:
        """The breaker of this name, made with `config` if there is none yet.

        Without `config` it takes the settings that `define` gave its name, else the preset `default`.

        Raises ValueError if it exists with other settings.
        """
        known = self.get_circuit_breaker(name)
        if known is None:
            wanted = checked(config) or self._settings_of(name)
            made = CircuitBreaker._over(self._native.get_or_create(name, wanted), wanted)
            # Of two threads that come here at once, the second takes what the first has made.
            known = self._breakers.setdefault(name, made)
            if known is made:
                for callback in self._callbacks:
                    known.add_listener(callback)
                return known
        if config is not None and known.config != checked(config):
            differing = _differing(FIELDS, known.config, config)
            raise ValueError(_differences(f"circuit breaker {name!r}", differing))
        return known

    def keyed(
        self,
        group: str,
        config: CircuitBreakerConfig | None = None,
        *,
        capacity: int | None = None,
        idle_timeout: float | None = None,
        failures_kept: float | None = None,
        series: int | None = None,
    ) -> KeyedCircuitBreakers:
        """The breakers of one group, such as hosts or tenants, each by its key.

        The group is made with these settings if there is none of this name: `config` for each
        breaker, else those that `define` gave its name, else the preset `default`, and what
        KeyedConfig says of the others. If it exists, what is said must be what it has. Raises
        ValueError otherwise: `reconfigure()` changes it.
        """
        said = said_of(config, capacity, idle_timeout, failures_kept, series)
        known = self._groups.get(group)
        if known is not None and not said:
            return known
        if known is None:
            wanted = KeyedConfig(**{"breaker": self._settings_of(group), **said})
            made = KeyedCircuitBreakers(self._native.keyed(group, wanted), group, wanted)
            # Of two threads that come here at once, the second takes what the first has made.
            known = self._groups.setdefault(group, made)
            if known is made:
                return known
        has = known.config
        wanted = replace(has, **said)
        if has != wanted:
            differing = _differing(FIELDS, has.breaker, wanted.breaker)
            differing += _differing(KEYED_FIELDS, has, wanted)
            raise ValueError(_differences(f"group of circuit breakers {group!r}", differing))
        return known

    def groups(self) -> list[KeyedCircuitBreakers]:
        """All groups of keys, by name."""
        return [self._groups[name] for name in sorted(self._groups)]

    def remove_group(self, group: str) -> KeyedCircuitBreakers | None:
        """Takes a group of keys out of the registry; who holds it can go on using it."""
        self._native.remove_group(group)
        return self._groups.pop(group, None)

    def create_circuit_breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        pattern: str | None = None,
    ) -> CircuitBreaker:
        """Like `get_or_create`, with the settings of the preset that `pattern` names."""
        if config is None and pattern is not None:
            config = self.preset(pattern)
        return self.get_or_create(name, config)

    def get_circuit_breaker(self, name: str) -> CircuitBreaker | None:
        """The breaker of this name, if there is one."""
        known = self._breakers.get(name)
        if known is None and (native := self._native.get(name)) is not None:
            config = replace(self._settings_of(name), **native.config())
            known = self._breakers.setdefault(name, CircuitBreaker._over(native, config))
        return known

    async def execute_with_circuit_breaker(
        self,
        name: str,
        func: Callable[[], Any],
        fallback: Callable[[], Any] | None = None,
    ) -> Any:
        """Calls `func` through the breaker of this name, and `fallback` instead if it refuses.

        What other breakers refuse within `func` is raised.
        """
        breaker = self.get_or_create(name)
        try:
            permit = breaker._native.acquire()
        except CircuitBreakerError:
            if fallback is None:
                raise
            return await _result(fallback())
        try:
            result = await _result(func())
        except BaseException as error:
            permit.fail(error)
            raise
        permit.succeed(result)
        return result

    def get_all_status(self) -> dict[str, dict[str, Any]]:
        """The status of each breaker by its name; those of keys are not among them."""
        found = ((name, self.get_circuit_breaker(name)) for name in self._native.names())
        return {name: breaker.get_status() for name, breaker in found if breaker is not None}

    def get_all_circuit_states(self) -> dict[str, dict[str, Any]]:
        """The same as `get_all_status`."""
        return self.get_all_status()

    def force_open_circuit_breaker(self, name: str) -> bool:
        """Forces the breaker of this name open; False if there is none."""
        if (breaker := self.get_circuit_breaker(name)) is None:
            return False
        breaker.force_open()
        return True

    def reset_circuit_breaker(self, name: str) -> bool:
        """Resets the breaker of this name; False if there is none."""
        if (breaker := self.get_circuit_breaker(name)) is None:
            return False
        breaker.reset()
        return True

    def reset_all(self) -> Done:
        """Resets every breaker, those of keys too."""
        for name in self._native.names():
            self.reset_circuit_breaker(name)
        for group in self.groups():
            group.reset_all()
        return Done()

    def set_default_config(self, config: CircuitBreakerConfig) -> None:
        """Changes the settings of breakers that are made from now on without any.

        They are the preset `default`, which all others build on.
        """
        config = checked(config) or CircuitBreakerConfig()
        self.define(_ROOT, **{name: getattr(config, name) for name in FIELDS})

    def define(self, name: str, *, base: str | None = None, **settings: Any) -> None:
        """Defines a preset: the settings of the breaker of this name, if it is made without any, and
        a base for other presets.

        `settings` are fields of CircuitBreakerConfig; what they don't say is the base's. `base` names
        another preset: `default` if not said, `database`, `api`, `cache`, or one that was defined.
        These may be defined anew, a preset that names its own name as its base builds on the one that
        came with the library. Breakers that exist keep their settings.

        Raises ValueError when a base is unknown, bases go round in a circle, or a value is out of
        range, here or in a preset that builds on this one; nothing has changed then.
        """
        said = CircuitBreakerConfig(**settings)
        self._native.define(name, base, said, list(settings))
        judges = {each: getattr(said, each) for each in JUDGES if each in settings}
        self._presets[name] = base, judges

    def preset(self, name: str) -> CircuitBreakerConfig:
        """The settings of a preset: one that was defined, or default, database, api or cache.

        Raises ValueError, with the names there are, if there is none of this name.
        """
        settings = self._native.preset(name)
        step: str | None = name
        while step is not None:
            base, judges = self._presets.get(step, (None, {}))
            settings = {**judges, **settings}
            # One that is its own base builds on the library's, which says nothing of judges.
            above = _ROOT if base in (None, step) else base
            step = None if step == _ROOT else above
        return CircuitBreakerConfig(**settings)

    def _settings_of(self, name: str) -> CircuitBreakerConfig:
        """Those of a breaker of this name that is made without any."""
        return self.preset(name if name in self._presets else _ROOT)

    def subscribe(self, listener: EventListener) -> None:
        """As `CircuitBreaker.subscribe`, to all breakers, those of keys and those to come too.

        It is told as long as somebody keeps the manager.
        """
        self._subscribers.add(self._native, listener)

    def subscribe_transitions(self, listener: EventListener) -> None:
        """As `subscribe`, to transitions only: calls cost nothing then."""
        self._subscribers.add_of_transitions(self._native, listener)

    def unsubscribe(self, listener: EventListener) -> None:
        """Ends what `subscribe` or `subscribe_transitions` began; unknown listeners are ignored."""
        self._subscribers.remove(listener)

    def record_durations(self) -> None:
        """Records from now on how long calls take: 2 KiB for each breaker by name and for each group
        of keys. Every call is timed then."""
        self._native.record_durations()

    def stop_recording_durations(self) -> None:
        """Ends `record_durations`, and keeps what was recorded."""
        self._native.stop_recording_durations()

    def add_global_callback(self, callback: Listener) -> None:
        """Has `callback` told of each transition of every breaker, also of those made later.

        Those of keys are not among them.
        """
        self._callbacks.append(callback)
        for breaker in tuple(self._breakers.values()):
            breaker.add_listener(callback)


async def _result(outcome: Any) -> Any:
    return await outcome if inspect.isawaitable(outcome) else outcome


_Differing = list[tuple[str, Any, Any]]


def _differing(names: Sequence[str], known: object, wanted: object) -> _Differing:
    """The fields in which two configs differ: name, value here, value there."""
    pairs = ((name, getattr(known, name), getattr(wanted, name)) for name in names)
    return [(name, here, there) for name, here, there in pairs if here != there]


def _differences(what: str, differing: _Differing) -> str:
    old = ", ".join(f"{name}={here!r}" for name, here, _ in differing)
    new = ", ".join(f"{name}={there!r}" for name, _, there in differing)
    return f"{what} exists with {old}, not {new}; reconfigure() changes it"


_manager = CircuitBreakerManager()


def get_circuit_breaker_manager() -> CircuitBreakerManager:
    """The circuit breakers of this process, which workflows use too."""
    return _manager


def get_circuit_breaker(
    name: str, config: CircuitBreakerConfig | None = None, **settings: Any
) -> CircuitBreaker:
    """The process's breaker of this name, made with these settings if there is none yet.

    What neither they nor `config` say is what `define` gave its name, else the preset `default`. If
    it exists, what is said must be what it has. Raises ValueError otherwise: `breaker.reconfigure()`
    changes it.
    """
    if settings:
        base = checked(config)
        if base is None:
            known = _manager.get_circuit_breaker(name)
            base = _manager._settings_of(name) if known is None else known.config
        config = replace(base, **settings)
    return _manager.get_or_create(name, config)


@in_forked_child
def _forget_calls_in_flight() -> None:
    # Of breakers too that Python has not seen.
    _manager._native.forget_calls_in_flight()
    for manager in tuple(_managers):
        manager._subscribers.begin_anew(manager._native)
