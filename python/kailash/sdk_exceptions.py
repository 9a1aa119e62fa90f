"""What nodes and workflows raise."""

__all__ = [
    "KailashException",
    "NodeConfigurationError",
    "NodeException",
    "NodeExecutionError",
    "NodeNotFoundError",
    "NodeValidationError",
    "WorkflowException",
    "WorkflowValidationError",
]


class KailashException(Exception):
    """The root of all of these."""


class NodeException(KailashException):
    """A node has a problem."""


class NodeConfigurationError(NodeException, ValueError):
    """A node's settings are wrong; the text names the setting and what is allowed."""


class NodeValidationError(NodeException, ValueError):
    """A node was given something it cannot work with."""


class NodeExecutionError(NodeException):
    """A node failed: no answer, or a statement that the database refused."""


class WorkflowException(KailashException):
    """A workflow has a problem."""


class WorkflowValidationError(WorkflowException, ValueError):
    """A plan is wrong; the text names the place."""


class NodeNotFoundError(WorkflowException, KeyError):
    """A workflow has no node of this id."""

    def __str__(self) -> str:
        # A KeyError shows its argument quoted.
        return str(self.args[0]) if self.args else ""
