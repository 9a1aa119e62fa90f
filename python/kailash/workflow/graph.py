"""Workflows, and how nodes of Python's run in them."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from kailash import _native
from kailash._loops import library_loop
from kailash._threads import Threads
from kailash.core.resilience.bulkhead import in_partition
from kailash.core.resilience.circuit_breaker import get_circuit_breaker_manager
from kailash.nodes import AsyncNode, Node
from kailash.nodes.base import BuiltInNode

__all__ = ["PythonNode", "Workflow", "add_to_plan"]

_MOST_THREADS = 256

_threads = Threads("kailash-node", _MOST_THREADS)


class PythonNode:
    """A node of one's own in a plan: sync ones run on threads, async ones on the library's loop."""

    def __init__(self, node: Node, config: dict[str, Any]) -> None:
        self.node = node
        self.config = config
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, job: _native.NodeJob) -> None:
        """Begins a run; called on the courier's thread."""
        if isinstance(self.node, AsyncNode) or isinstance(self.node, BuiltInNode):
            loop = library_loop()
            loop.call_soon_threadsafe(self._begin, loop, job)
        else:
            try:
                _threads.submit(lambda: contextvars.Context().run(self._run, job))
            except RuntimeError as error:
                job.fail(error, self._is_excluded(error))

    def _is_excluded(self, error: BaseException) -> bool:
        """Whether the breaker that the node names takes this exception for neutral."""
        breaker = get_circuit_breaker_manager().get_circuit_breaker(self.config.get("breaker", ""))
        return breaker is not None and isinstance(error, tuple(breaker.config.excluded_exceptions))

    def _run(self, job: _native.NodeJob) -> None:
        if not job.begin():
            return
        try:
            with in_partition(job.partition):
                job.finish(self.node.execute(**job.inputs()))
        except BaseException as error:
            job.fail(error, self._is_excluded(error))

    def _begin(self, loop: asyncio.AbstractEventLoop, job: _native.NodeJob) -> None:
        key = job.key
        task = loop.create_task(self._run_async(job), context=contextvars.Context())
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _run_async(self, job: _native.NodeJob) -> None:
        node: Any = self.node
        if not job.begin():
            return
        try:
            with in_partition(job.partition):
                job.finish(await node.execute_async(**job.inputs()))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            job.fail(error, self._is_excluded(error))

    def cancel(self, job: _native.NodeJob) -> None:
        """Ends a run that nobody waits for; called on the courier's thread. A thread goes on."""
        task = self._tasks.get(job.key)
        if task is not None:
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # its loop has closed


def add_to_plan(
    plan: _native.WorkflowPlan, node_id: str, what: str | PythonNode, config: dict[str, Any]
) -> None:
    """Adds a node to a plan in Rust."""
    if isinstance(what, str):
        plan.add_node(what, node_id, config)
        return
    policies, rest = _native.split_policies(config)
    parameters = what.node.get_parameters()
    # What it was made with it has already; only its inputs may be connected or have expressions.
    inputs = {name: value for name, value in rest.items() if name in parameters}
    names = list(parameters) or None
    plan.add_python_node(node_id, what.start, what.cancel, names, inputs, policies)


class Workflow:
    """A plan that was checked; `LocalRuntime().execute(workflow)` runs it."""

    def __init__(
        self,
        nodes: dict[str, tuple[str | PythonNode, dict[str, Any]]],
        connections: list[tuple[str, str, str, str]],
        checked: _native.CheckedWorkflow | None = None,
    ) -> None:
        self._nodes = nodes
        self._connections = connections
        self._checked = checked
        self._generation = _native.process_generation()

    @property
    def nodes(self) -> list[str]:
        """The ids of its nodes, in the order they were added."""
        return list(self._nodes)

    @property
    def connections(self) -> list[tuple[str, str, str, str]]:
        """Source, output, target and input of each connection."""
        return list(self._connections)

    def plan(self) -> _native.WorkflowPlan:
        """The same plan once more, with connections of this process."""
        plan = _native.WorkflowPlan()
        for node_id, (what, config) in self._nodes.items():
            add_to_plan(plan, node_id, what, config)
        for connection in self._connections:
            plan.add_connection(*connection)
        return plan

    def checked(self) -> _native.CheckedWorkflow:
        """The plan in Rust."""
        if self._checked is None or self._generation != _native.process_generation():
            self._checked = self.plan().build()
            self._generation = _native.process_generation()
        return self._checked
