"""Every command uses the services of its workspace where they are up."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cmseg_core.errors import InputError
from cmseg_core.schema import Workspace

_APART = {"up", "down", "demo"}
"""Commands that have services of their own."""
_ALONE = {"run", "phantom", "doctor"}
"""Commands that do their work where the services are down."""


def join(tokens: Sequence[str]) -> None:
    """Set the variables under which the services are reached.

    Where the user names another store, MLflow or Prefect, that one is used, with the user's own credentials.

    Raises
    ------
    InputError
        Where the services are down, and the command would go past them to some other place.
    """
    command = next((token for token in tokens if not token.startswith("-")), None)
    if command is None or command in _APART or {"--help", "-h", "--version"} & set(tokens):
        return
    workspace = Workspace().workspace
    if not (workspace / "stack" / "environment.json").is_file():  # spares most commands the import
        return
    from deployments.stack import Stack

    stack = Stack(workspace)
    if stack.is_up():
        for group in stack.environment():
            if next(iter(group)) not in os.environ:
                os.environ.update(group)
    elif command not in _ALONE and not {"CMSEG_STORE", "CMSEG_MLFLOW_TRACKING_URI"} & set(os.environ):
        raise InputError(workspace, "its services are down", "start them with `cmseg up`")
