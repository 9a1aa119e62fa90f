"""Decisions as nodes."""

from __future__ import annotations

from kailash.nodes.base import BuiltInNode, register_node

__all__ = ["SwitchNode"]


@register_node()
class SwitchNode(BuiltInNode):
    """Sends its input one way or another.

    It decides by `condition`, a CEL expression over the fields of its input, or by `condition_field`,
    `operator` and `value`, or `cases`. It answers `condition_result`, and the input on `true_output`
    or `false_output`, or on `case_X` or `default`.
    """

    node_type = "SwitchNode"
