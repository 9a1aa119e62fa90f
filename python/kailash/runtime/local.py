"""Runs workflows in this process."""

from __future__ import annotations

from typing import Any

from kailash import _native
from kailash.core.resilience.bulkhead import get_bulkhead_manager
from kailash.core.resilience.circuit_breaker import get_circuit_breaker_manager
from kailash.workflow.graph import Workflow

__all__ = ["LocalRuntime"]


class LocalRuntime:
    """Runs workflows, with the circuit breakers and partitions of this process.

    Independent nodes run at the same time, each behind the policies that it names. A node that fails
    does not raise: its result is `{"failed": True, "error": .., "error_type": ..}`, that of those
    which depend on it `{"skipped": True, "because": id}`, and the others go on.
    """

    def execute(
        self,
        workflow: Workflow,
        parameters: dict[str, dict[str, Any]] | None = None,
        *,
        inputs: dict[str, Any] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], str]:
        """Runs a workflow once, and blocks until it has: results by node id, and the run's id.

        `parameters` are inputs by node id, over those of its configuration; `inputs` are values for
        the expressions of all nodes. Works with and without a running event loop, which it blocks.
        """
        checked, parameters, inputs = _prepared(workflow, parameters, inputs)
        return checked.execute(*_registries(), parameters, inputs)

    async def execute_async(
        self,
        workflow: Workflow,
        parameters: dict[str, dict[str, Any]] | None = None,
        *,
        inputs: dict[str, Any] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], str]:
        """The same without blocking the loop; cancelling it ends the run."""
        checked, parameters, inputs = _prepared(workflow, parameters, inputs)
        return await checked.execute_async(*_registries(), parameters, inputs)


def _prepared(
    workflow: Workflow,
    parameters: dict[str, dict[str, Any]] | None,
    inputs: dict[str, Any] | None,
) -> tuple[_native.CheckedWorkflow, dict[str, dict[str, Any]], dict[str, Any]]:
    if not isinstance(workflow, Workflow):
        raise TypeError(f"a workflow is what WorkflowBuilder.build() answers, not {workflow!r}")
    parameters = parameters or {}
    for node_id, given in parameters.items():
        if node_id not in workflow.nodes:
            known = ", ".join(workflow.nodes)
            raise ValueError(f"parameters: unknown node {node_id!r}, known are {known}")
        if not isinstance(given, dict):
            raise TypeError(f"parameters[{node_id!r}] is a dict of inputs, not {given!r}")
    return workflow.checked(), parameters, inputs or {}


def _registries() -> tuple[_native.CircuitBreakerManager, _native.BulkheadManager]:
    return get_circuit_breaker_manager()._native, get_bulkhead_manager()._native
