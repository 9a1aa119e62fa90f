"""Workflows."""

from kailash.workflow.builder import WorkflowBuilder
from kailash.workflow.graph import Workflow

__all__ = ["Workflow", "WorkflowBuilder"]
