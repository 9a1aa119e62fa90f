"""What the nodes promise, each by itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import (
    PartitionConfig,
    PartitionType,
    execute_with_bulkhead,
    get_bulkhead_manager,
)
from kailash.core.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState
from kailash.nodes import (
    AsyncNode,
    HealthCheckNode,
    HTTPRequestNode,
    Node,
    NodeParameter,
    SQLDatabaseNode,
    SwitchNode,
)
from kailash.sdk_exceptions import (
    NodeConfigurationError,
    NodeExecutionError,
    NodeValidationError,
)
from servers import Redis, free_port


def test_rows_arrive_as_native_values(postgres_url: str) -> None:
    node = SQLDatabaseNode(connection_string=postgres_url)
    some = uuid.UUID("6f1c1f0e-0000-4000-8000-000000000001")
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    values = {
        "whole": 2**40,
        "number": 1.5,
        "exact": Decimal("12.340"),
        "text": "déjà",
        "raw": b"\x00\xff",
        "day": dt.date(2026, 1, 2),
        "clock": dt.time(3, 4, 5),
        "local": dt.datetime(2026, 1, 2, 3, 4, 5),
        "moment": moment,
        "some": some,
        "yes": True,
        "nothing": None,
        "many": [1, 2, 3],
        "json": {"a": [1, None]},
    }
    kinds = (
        "bigint float8 numeric text bytea date time timestamp timestamptz uuid bool text int[] jsonb"
    ).split()
    casts = [f"CAST(%({name})s AS {kind}) AS {name}" for name, kind in zip(values, kinds, strict=True)]
    answer = node.execute(query="SELECT " + ", ".join(casts), params=values)
    assert answer["data"] == [values]
    assert answer["row_count"] == 1 and answer["columns"] == list(values)
    assert answer["execution_time"] > 0
    row = answer["data"][0]
    assert isinstance(row["exact"], Decimal) and str(row["exact"]) == "12.340"
    assert row["moment"].utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("SELECT CAST(%s AS int) + CAST(%s AS int) AS n, '%%s?' AS t", [1, 2]),
        ("SELECT CAST(%(a)s AS int) + CAST(%(b)s AS int) AS n, '%%s?' AS t", {"a": 1, "b": 2}),
        ("SELECT CAST(? AS int) + CAST(? AS int) AS n, '%s?' AS t", (1, 2)),
        ("SELECT CAST(:a AS int) + CAST(:b AS int) AS n, '%s?' AS t -- :c", {"a": 1, "b": 2}),
        ("SELECT CAST($1 AS int) + CAST($2 AS int) AS n, '%s?' AS t", [1, 2]),
    ],
)
def test_every_style_of_placeholder_works_on_every_driver(
    postgres_url: str, query: str, parameters: Any
) -> None:
    for url in (postgres_url, "sqlite::memory:"):
        row = SQLDatabaseNode(url).execute(query=query, parameters=parameters)["data"][0]
        assert row["n"] == 3 and "?" in row["t"]


def test_a_file_of_sqlite_and_a_transaction(tmp_path: Path) -> None:
    node = SQLDatabaseNode(f"sqlite://{tmp_path}/orders.db")
    node.execute(query="CREATE TABLE orders (id INTEGER PRIMARY KEY, total TEXT)")
    inserted = node.execute(query="INSERT INTO orders VALUES (?, ?)", params=[1, "9.90"])
    assert inserted["row_count"] == 1 and inserted["data"] == []
    wrong = [
        {"query": "INSERT INTO orders VALUES (2, 'x')"},
        {"query": "INSERT INTO orders VALUES (1, 'again')"},
    ]
    with pytest.raises(NodeExecutionError, match="statement 2"):
        node.execute(statements=wrong)
    assert node.execute(query="SELECT count(*) AS n FROM orders")["data"] == [{"n": 1}]


def test_what_is_wrong_is_told_by_its_kind(postgres_url: str) -> None:
    node = SQLDatabaseNode(postgres_url)
    with pytest.raises(TypeError, match="parms"):
        node.execute(query="SELECT 1", parms=[1])
    with pytest.raises(TypeError, match="poolsize"):
        SQLDatabaseNode(postgres_url, poolsize=5)
    with pytest.raises(TypeError, match="breaker"):
        SQLDatabaseNode(postgres_url, breaker="db")
    with pytest.raises(NodeConfigurationError):
        SQLDatabaseNode("oracle://user:hunter2@x")
    with pytest.raises(NodeExecutionError, match="nowhere"):
        node.execute(query="SELECT * FROM nowhere")
    with pytest.raises(NodeValidationError):
        node.execute(query="SELECT %s", params=[])
    with pytest.raises(TypeError, match="set"):
        node.execute(query="SELECT %s", params=[{1}])
    with pytest.raises(NodeExecutionError, match='"where"'):
        node.execute(query="SELECT point(1, 2) AS \"where\"")
    with pytest.raises(TimeoutError):
        SQLDatabaseNode(postgres_url, timeout=0.05).execute(query="SELECT pg_sleep(5)")


def test_no_password_is_in_an_error() -> None:
    node = SQLDatabaseNode(f"postgresql://user:hunter2@127.0.0.1:{free_port()}/db")
    with pytest.raises(NodeExecutionError) as caught:
        node.execute(query="SELECT 1")
    assert "hunter2" not in str(caught.value) and "hunter2" not in repr(node)


async def test_a_node_can_be_awaited_and_cancelled(postgres_url: str) -> None:
    node: Any = SQLDatabaseNode(postgres_url)
    answers = await asyncio.gather(*(node.execute_async(query="SELECT 1 AS n") for _ in range(5)))
    assert [answer["data"] for answer in answers] == [[{"n": 1}]] * 5
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(node.execute_async(query="SELECT pg_sleep(30)"), 0.1)


async def test_a_partition_bounds_the_connections_of_the_nodes_inside(postgres_url: str) -> None:
    config = PartitionConfig("narrow", PartitionType.DATABASE, max_connections=2)
    get_bulkhead_manager().configure_partition(config)
    node = SQLDatabaseNode(postgres_url)

    def backend() -> int:
        answer = node.execute(query="SELECT pg_backend_pid() AS pid, pg_sleep(0.02)::text AS s")
        return int(answer["data"][0]["pid"])

    backends = await asyncio.gather(*(execute_with_bulkhead("narrow", backend) for _ in range(12)))
    assert 1 <= len(set(backends)) <= 2


def test_http_answers_are_returned_and_no_answer_raises(http_url: str) -> None:
    node = HTTPRequestNode()
    answer = node.execute(url=f"{http_url}/x", method="POST", json={"n": 1})
    assert (answer["status_code"], answer["success"]) == (200, True)
    response = answer["response"]
    assert response["content"] == {"method": "POST", "path": "/x", "sent": 7}
    assert response["content_type"] == "application/json" and response["response_time_ms"] > 0
    assert response["url"] == f"{http_url}/x" and response["headers"]["content-type"]
    refused = node.execute(url=f"{http_url}/status/503")
    assert (refused["status_code"], refused["success"]) == (503, False)
    with pytest.raises(NodeExecutionError):
        node.execute(url=f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(NodeValidationError):
        node.execute(url="ftp://x")
    with pytest.raises(TypeError, match="methd"):
        node.execute(url=http_url, methd="GET")


def test_a_breaker_can_judge_a_nodes_answer(http_url: str) -> None:
    config = CircuitBreakerConfig(failure_threshold=2, is_failure=lambda answer: not answer["success"])
    guard, node = CircuitBreaker(config), HTTPRequestNode()
    for _ in range(2):
        guard.call(node.execute, url=f"{http_url}/status/500")
    assert guard.state is CircuitState.OPEN


def test_a_switch_decides() -> None:
    switch = SwitchNode(condition="input.total > 100.0")
    answer = switch.execute(input={"total": 120.0})
    assert answer["condition_result"] is True and answer["true_output"] == {"total": 120.0}
    with pytest.raises(NodeConfigurationError):
        SwitchNode(condition="total >")


def test_a_health_check_node_asks_its_services(postgres_url: str, redis_server: Redis) -> None:
    down = {"host": "127.0.0.1", "port": free_port()}
    services = [
        {"name": "db", "type": "database", "connection_string": postgres_url},
        {"name": "cache", "type": "redis", "redis_config": redis_server.config},
        {"name": "old", "type": "redis", "redis_config": down, "critical": False},
    ]
    answer = HealthCheckNode(services=services).execute()
    assert answer["overall_status"] == "degraded"
    assert (answer["healthy_count"], answer["unhealthy_count"]) == (2, 1)
    assert answer["services"]["db"]["status"] == "healthy" and answer["total_latency"] > 0
    services[2]["critical"] = True
    assert HealthCheckNode(services=services).execute()["overall_status"] == "unhealthy"


class Scale(Node):
    def get_parameters(self) -> dict[str, NodeParameter]:
        return {
            "number": NodeParameter("number", int),
            "by": NodeParameter("by", int, required=False, default=2),
        }

    def run(self, **inputs: Any) -> Any:
        return inputs["number"] * inputs["by"]


def test_a_node_of_ones_own_checks_its_inputs() -> None:
    assert Scale().execute(number=3) == {"result": 6}
    assert Scale(by=5).execute(number=3) == {"result": 15}
    with pytest.raises(TypeError, match="numbr"):
        Scale().execute(numbr=3)
    with pytest.raises(NodeValidationError, match="number is missing"):
        Scale().execute()
    with pytest.raises(NodeValidationError, match="number is str"):
        Scale().execute(number="3")


async def test_an_async_node_runs_with_and_without_a_loop() -> None:
    class Wait(AsyncNode):
        async def async_run(self, **inputs: Any) -> Any:
            await asyncio.sleep(0)
            return {"got": inputs["n"]}

    assert await Wait().execute_async(n=1) == {"got": 1}
    assert await asyncio.to_thread(Wait().execute, n=2) == {"got": 2}
