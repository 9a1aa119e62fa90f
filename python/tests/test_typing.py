"""What type checkers see: decorated functions keep their signatures, and the stubs tell the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = '''
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import ParamSpec, TypeVar, assert_type
from kailash.core.resilience.bulkhead import execute_with_bulkhead
from kailash.core.resilience.circuit_breaker import (
    CircuitBreaker, CircuitBreakerConfig, CircuitBreakerEvent, CircuitState, KeyedSnapshot,
    get_circuit_breaker, get_circuit_breaker_manager,
)

breaker = get_circuit_breaker("b", failure_threshold=2)
hosts = get_circuit_breaker_manager().keyed("host", CircuitBreakerConfig(), capacity=1000)

@breaker
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode()

@breaker
def add(a: int, b: int = 0) -> int:
    return a + b

@breaker
def rows(n: int) -> Iterator[int]:
    yield n

@breaker
async def lines() -> AsyncIterator[str]:
    yield "x"

@breaker
def echo(n: int) -> Generator[int, str, bytes]:
    yield len((yield n))
    return b""

@breaker
async def stream(n: int) -> AsyncGenerator[int, str]:
    yield n

async def told(event: CircuitBreakerEvent) -> None:
    assert_type(event.ran, float | None)

@hosts["example.org"]
async def page(path: str) -> str:
    return path

class Client:
    @breaker
    async def get(self, path: str) -> str:
        return path

    @breaker
    def all(self, *paths: str, **options: int) -> Iterator[str]:
        yield from paths

    @classmethod
    @breaker
    def make(cls, size: int) -> "Client":
        return cls()

    @staticmethod
    @breaker
    async def ping(host: str) -> float:
        return 0.1

    @property
    @breaker
    def size(self) -> int:
        return 1

P = ParamSpec("P")
R = TypeVar("R")

def logged(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    return breaker(function)

@logged
async def twice(a: int, *, b: str) -> list[int]:
    return [a]

def size(data: bytes) -> int:
    return len(data)

async def main() -> None:
    assert_type(await fetch("u", tries=2), bytes)
    assert_type(add(1, 2), int)
    assert_type(rows(1), Iterator[int])
    async for line in lines():
        assert_type(line, str)
    assert_type(echo(1), Generator[int, str, bytes])
    assert_type(stream(1), AsyncGenerator[int, str])
    assert_type(await Client().get("p"), str)
    assert_type(await Client.get(Client(), "p"), str)
    assert_type(Client().all("p", limit=1), Iterator[str])
    assert_type(Client.make(size=1), Client)
    assert_type(await Client.ping("h"), float)
    assert_type(Client().size, int)
    assert_type(await twice(1, b="x"), list[int])
    assert_type(await breaker.call(fetch, "u"), bytes)
    assert_type(breaker.call(add, 1), int)
    assert_type(await execute_with_bulkhead("database", fetch, "u"), bytes)
    assert_type(await execute_with_bulkhead("database", size, b"x", priority=1), int)
    assert_type(breaker.state, CircuitState)
    get_circuit_breaker_manager().define("p", base="api", failure_threshold=1)
    assert_type(get_circuit_breaker_manager().preset("p"), CircuitBreakerConfig)
    assert_type(hosts.durations.quantile(0.99), float)
    breaker.subscribe(told)
    get_circuit_breaker_manager().subscribe(print)
    assert_type(hosts["a"], CircuitBreaker)
    assert_type(hosts.find("a"), CircuitBreaker | None)
    assert_type(await hosts["a"].call(fetch, "u"), bytes)
    assert_type(await page("/"), str)
    assert_type(hosts.snapshot(), KeyedSnapshot)
    await breaker.reset()
    await breaker.ready(timeout=1.5)
    await breaker.wait_until_closed()
    breaker.ready_sync(timeout=2)
    async with breaker as same:
        assert_type(same.name, str)
'''

WRONG = '''
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ParamSpec, TypeVar
import kailash.core.resilience.circuit_breaker as cb
breaker = cb.get_circuit_breaker("b")
hosts = cb.get_circuit_breaker_manager().keyed("host")

@breaker
async def fetch(url: str) -> bytes:
    return url.encode()

@breaker
def add(a: int) -> int:
    return a

@breaker
async def lines() -> AsyncIterator[str]:
    yield "x"

class Client:
    @breaker
    async def get(self, path: str) -> str:
        return path

    @classmethod
    @breaker
    def make(cls, size: int) -> "Client":
        return cls()

P = ParamSpec("P")
R = TypeVar("R")

def logged(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    return breaker(function)

@logged
async def twice(a: int, *, b: str) -> list[int]:
    return [a]

async def main() -> None:
    [n async for n in lines(1)]
fetch(5)
add("x")
add(1, 2)
breaker.call(add, "x")
breaker(5)
Client().get(1)
Client.make("x")
twice(1, b=2)
breaker.ready_sync("soon")
hosts[5]
list(hosts)
breaker.subscribe(lambda: None)
'''


def errors(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def run_mypy(path: Path) -> tuple[int, str]:
    return errors(["mypy", "--strict", "--config-file=", "--cache-dir", str(path.parent / "cache"), str(path)])


def run_pyright(path: Path) -> tuple[int, str]:
    settings = path.with_suffix(".json")
    settings.write_text(json.dumps({"include": [path.name], "typeCheckingMode": "strict"}))
    return errors(["pyright", "-p", str(settings), "--pythonpath", sys.executable])


@pytest.mark.parametrize("checker", [run_mypy, run_pyright], ids=["mypy", "pyright"])
def test_decorated_functions_keep_their_signatures(checker: object, tmp_path: Path) -> None:
    assert callable(checker)
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(PROGRAM)
    wrong.write_text(WRONG)
    code, output = checker(right)
    assert code == 0, output
    code, output = checker(wrong)
    assert code != 0
    for line in range(len(WRONG.splitlines()) - 12, len(WRONG.splitlines()) + 1):
        assert f"wrong.py:{line}:" in output, f"line {line} is wrong, and nothing says so:\n{output}"


def test_the_package_is_typed_and_its_stubs_are_true() -> None:
    code, output = errors(["mypy"])
    assert code == 0, output
    code, output = errors(["mypy.stubtest", "kailash"])
    assert code == 0, output
