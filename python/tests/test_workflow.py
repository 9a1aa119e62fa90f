"""What workflows promise to Python."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
import uuid
from decimal import Decimal
from typing import Any

import pytest
from kailash.core.resilience.bulkhead import (
    BulkheadFullError,
    PartitionConfig,
    PartitionType,
    current_partition,
    get_bulkhead_manager,
)
from kailash.core.resilience.circuit_breaker import CircuitState, get_circuit_breaker
from kailash.nodes import AsyncNode, Node, NodeParameter, NodeRegistry, register_node
from kailash.runtime.local import LocalRuntime
from kailash.sdk_exceptions import (
    NodeConfigurationError,
    NodeNotFoundError,
    WorkflowValidationError,
)
from kailash.workflow.builder import WorkflowBuilder
from waiting import until


class Calling(Node):
    """Calls a function with its inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def run(self, **inputs: Any) -> Any:
        return self.function(**inputs)


def run(builder: WorkflowBuilder, **settings: Any) -> dict[str, Any]:
    results, run_id = LocalRuntime().execute(builder.build(), **settings)
    assert str(uuid.UUID(run_id)) == run_id
    return results


def test_nodes_run_one_after_another() -> None:
    builder = WorkflowBuilder()
    rows = {"connection_string": "sqlite::memory:", "query": "SELECT 41 AS n"}
    assert builder.add_node("SQLDatabaseNode", "rows", rows) == "rows"
    builder.add_node(Calling(lambda rows: {"next": rows[0]["n"] + 1}), "add")
    builder.add_node("SwitchNode", "enough", {"condition": "next == 42"})
    builder.add_connection("rows", "data", "add", "rows").add_connection("add", "result", "enough", "input")
    results = run(builder)
    assert results["add"] == {"next": 42} and results["enough"]["condition_result"] is True
    assert list(results) == ["rows", "add", "enough"]


def test_what_is_wrong_with_a_plan_is_named() -> None:
    builder = WorkflowBuilder()
    builder.add_node("SwitchNode", "a", {"condition": "true"})
    with pytest.raises(WorkflowValidationError, match="'nowhere'|\"nowhere\""):
        builder.add_connection("nowhere", "result", "a", "input")
    with pytest.raises(WorkflowValidationError, match='"a"'):
        builder.add_node("SwitchNode", "a", {"condition": "true"})
    with pytest.raises(WorkflowValidationError, match="SwichNode.*SwitchNode"):
        builder.add_node("SwichNode", "b")
    with pytest.raises(WorkflowValidationError, match="conditon"):
        builder.add_node("SQLDatabaseNode", "b", {"connection_string": "sqlite::memory:", "conditon": 1})
    with pytest.raises(WorkflowValidationError, match="retries"):
        builder.add_node(Calling(dict), "b", {"retries": -1})
    with pytest.raises(NodeNotFoundError, match='"nowhere"'):
        builder.get_node("nowhere")
    with pytest.raises(TypeError):
        builder.add_node(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        LocalRuntime().execute(builder)  # type: ignore[arg-type]
    builder.add_node("SwitchNode", "b", {"condition": "true"})
    builder.add_connection("a", "true_output", "b", "input").add_connection("b", "result", "a", "input")
    with pytest.raises(WorkflowValidationError, match="a -> b|b -> a"):
        builder.build()
    builder = WorkflowBuilder()
    builder.add_node(Calling(dict), "a", {"partition": "no such"})
    with pytest.raises(WorkflowValidationError, match="no such"):
        run(builder)


def test_a_failed_node_skips_those_after_it_and_no_other() -> None:
    def fail() -> None:
        raise ConnectionError("password=hunter2 refused")

    builder = WorkflowBuilder()
    builder.add_node(Calling(fail), "fails")
    builder.add_node(Calling(lambda **_: 1), "after")
    builder.add_node(Calling(lambda: 2), "other")
    builder.add_connection("fails", "result", "after", "input")
    results = run(builder)
    assert results["fails"]["failed"] is True and results["fails"]["error_type"] == "ConnectionError"
    assert "hunter2" not in results["fails"]["error"]
    assert results["after"] == {"skipped": True, "because": "fails"}
    assert results["other"] == {"result": 2}


def test_values_pass_through_as_they_are() -> None:
    values = {
        "n": 2**70, "f": 1.5, "t": "x", "b": b"\0", "d": Decimal("1.50"), "none": None, "yes": True,
        "day": dt.date(2026, 1, 1), "at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "list": [1, [2]],
        "id": uuid.uuid4(), "map": {"a": {"b": 1}},
    }
    seen: dict[str, Any] = {}
    builder = WorkflowBuilder()
    builder.add_node(Calling(lambda: values), "from")
    builder.add_node(Calling(lambda **given: seen.update(given["x"])), "to")
    builder.add_connection("from", "result", "to", "x")
    run(builder)
    assert seen == {**values, "n": Decimal(2**70)} and str(seen["d"]) == "1.50"
    builder = WorkflowBuilder()
    builder.add_node(Calling(lambda: {"thing": object()}), "odd")
    assert run(builder)["odd"]["error_type"] == "TypeError"


def test_independent_nodes_run_at_the_same_time_and_off_the_loop() -> None:
    meet = threading.Barrier(4, timeout=20)
    builder = WorkflowBuilder()
    for n in range(4):
        builder.add_node(Calling(lambda: meet.wait() >= 0), f"n{n}")
    assert all(result == {"result": True} for result in run(builder).values())


async def test_it_runs_inside_a_loop_blocking_or_not() -> None:
    class Waits(AsyncNode):
        async def async_run(self, **inputs: Any) -> Any:
            await asyncio.sleep(0.01)
            return "waited"

    builder = WorkflowBuilder()
    builder.add_node(Waits, "waits")
    workflow = builder.build()
    expected = {"waits": {"result": "waited"}}
    assert LocalRuntime().execute(workflow)[0] == expected
    runs = await asyncio.gather(*(LocalRuntime().execute_async(workflow) for _ in range(5)))
    assert [results for results, _ in runs] == [expected] * 5
    assert len({run_id for _, run_id in runs}) == 5


async def test_an_async_node_that_takes_too_long_is_cancelled() -> None:
    cancelled = []

    class Hangs(AsyncNode):
        async def async_run(self, **inputs: Any) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    builder = WorkflowBuilder()
    builder.add_node(Hangs, "hangs", {"timeout": 0.05})
    results, _ = await LocalRuntime().execute_async(builder.build())
    assert results["hangs"]["error_type"] == "TimeoutError"
    await until(lambda: cancelled)


def test_policies_stand_around_a_node_of_ones_own() -> None:
    calls = []

    def flaky() -> str:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError
        return "third"

    builder = WorkflowBuilder()
    builder.add_node(Calling(flaky), "flaky", {"retries": 3, "retry_delay": 0.001})
    builder.add_node(Calling(lambda: 1 / 0), "falls", {"fallback": {"n": 0}})
    results = run(builder)
    assert results["flaky"] == {"result": "third"} and len(calls) == 3
    assert results["falls"]["n"] == 0 and "division" in results["falls"]["fallback_because"]


def test_the_breakers_and_partitions_are_those_of_the_process() -> None:
    guard = get_circuit_breaker("of workflows", failure_threshold=2)

    def fail() -> None:
        raise ConnectionError

    builder = WorkflowBuilder()
    builder.add_node(Calling(fail), "fails", {"breaker": "of workflows"})
    for _ in range(2):
        assert run(builder)["fails"]["error_type"] == "ConnectionError"
    assert guard.state is CircuitState.OPEN
    assert run(builder)["fails"]["error_type"] == "CircuitBreakerError"

    def where() -> Any:
        partition = current_partition()
        return partition and partition.name

    builder = WorkflowBuilder()
    builder.add_node(Calling(where), "where", {"partition": "background"})
    assert run(builder)["where"] == {"result": "background"}
    background = get_bulkhead_manager().get_partition("background")
    taken = 0
    while True:
        try:
            background.acquire()
        except BulkheadFullError:
            break
        taken += 1
    builder = WorkflowBuilder()
    builder.add_node(Calling(where), "where", {"partition": "background", "timeout": 5})
    thread_results: list[Any] = []
    thread = threading.Thread(target=lambda: thread_results.append(run(builder)))
    thread.start()
    for _ in range(taken):
        background.release()
    thread.join(20)
    assert thread_results[0]["where"] == {"result": "background"}


async def test_a_node_that_timed_out_keeps_its_slot_until_its_thread_is_done() -> None:
    config = PartitionConfig("narrow nodes", PartitionType.CUSTOM, max_concurrent_operations=1)
    narrow, release = get_bulkhead_manager().configure_partition(config), threading.Event()
    builder = WorkflowBuilder()
    builder.add_node(
        Calling(lambda: release.wait(20)), "hangs", {"partition": narrow.name, "timeout": 0.05}
    )
    results, _ = await LocalRuntime().execute_async(builder.build())
    assert results["hangs"]["error_type"] == "TimeoutError"
    assert narrow.metrics.active_operations == 1
    with pytest.raises(BulkheadFullError):
        narrow.acquire()
    release.set()
    await until(lambda: narrow.metrics.active_operations == 0)
    narrow.acquire()
    narrow.release()


def test_a_refusal_inside_a_node_is_neutral_to_its_breaker() -> None:
    inner, outer = get_circuit_breaker("wf inner"), get_circuit_breaker("wf outer", failure_threshold=1)
    inner.force_open()
    builder = WorkflowBuilder()
    builder.add_node(Calling(inner(lambda: 1)), "n", {"breaker": "wf outer", "retries": 5})
    assert run(builder)["n"]["error_type"] == "CircuitBreakerError"
    assert outer.metrics.total_calls == 0 and inner.metrics.rejected_calls == 1


def test_what_a_breaker_excludes_is_neutral_in_a_workflow_too() -> None:
    guard = get_circuit_breaker("wf excluding", failure_threshold=1, excluded_exceptions=[LookupError])
    builder = WorkflowBuilder()
    builder.add_node(Calling(lambda: {}["missing"]), "n", {"breaker": "wf excluding"})
    assert run(builder)["n"]["error_type"] == "KeyError"
    assert guard.metrics.total_calls == 0
    builder = WorkflowBuilder()
    builder.add_node(Calling(lambda: 1 / 0), "n", {"breaker": "wf excluding"})
    assert run(builder)["n"]["error_type"] == "ZeroDivisionError"
    assert guard.state is CircuitState.OPEN


def test_parameters_expressions_and_get_node() -> None:
    class Greet(Node):
        def get_parameters(self) -> dict[str, NodeParameter]:
            return {"name": NodeParameter("name", str), "sign": NodeParameter("sign", str, False, "!")}

        def run(self, **inputs: Any) -> Any:
            return f"{inputs['name']}{inputs['sign']}"

    builder = WorkflowBuilder()
    builder.add_node(Greet, "greet", {"name": "${who}"})
    builder.add_node("SQLDatabaseNode", "db", {"connection_string": "sqlite::memory:"})
    assert run(builder, inputs={"who": "Ada"}, parameters={"db": {"query": "SELECT 1 AS n"}})[
        "greet"
    ] == {"result": "Ada!"}
    assert builder.get_node("db").execute(query="SELECT 2 AS n")["data"] == [{"n": 2}]
    assert builder.get_node("greet").execute(name="Bo", sign="?") == {"result": "Bo?"}
    with pytest.raises(TypeError):
        builder.get_node("db").execute(qwery="SELECT 1")
    with pytest.raises(ValueError, match="dbb"):
        run(builder, parameters={"dbb": {}})


def test_types_of_ones_own_are_registered_by_name() -> None:
    @register_node()
    class TripleNode(Node):
        def run(self, **inputs: Any) -> Any:
            return 3 * inputs["n"]

    builder = WorkflowBuilder()
    node_id = builder.add_node("TripleNode", config={"n": 2})
    assert run(builder)[node_id] == {"result": 6}
    assert NodeRegistry.get("TripleNode") is TripleNode and "SQLDatabaseNode" in NodeRegistry.list_nodes()
    with pytest.raises(NodeConfigurationError):
        register_node("SwitchNode")(TripleNode)
    with pytest.raises(TypeError):
        register_node()(dict)  # type: ignore[type-var]
