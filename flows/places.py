"""Where the store and the registry of a workspace are."""

from __future__ import annotations

from cmseg_core.schema import Workspace
from cmseg_core.tracking.connection import default_tracking_uri
from tasks.request import StoreAddress


def store_address(workspace: Workspace) -> StoreAddress:
    """The store that a workspace uses: the one it names, else its own folder ``store``."""
    uri = workspace.store or str(workspace.workspace / "store")
    return StoreAddress(uri=uri, endpoint=workspace.s3_endpoint, region=workspace.s3_region)


def tracking_uri(workspace: Workspace) -> str:
    """The tracking server that a workspace uses: the one it names, else its own SQLite file."""
    return workspace.mlflow_tracking_uri or default_tracking_uri(workspace.workspace)
