"""Secrets in the environment reach no output, no log, no result and no error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cmseg_core.storage.store import Store
from deployments.object_store import ObjectStoreService

TRACKER, PREFECT, WRONG = "planted-with-the-tracker", "planted-with-prefect", "planted-as-a-wrong-key"


def test_planted_secrets_come_out_nowhere(
    alone: Callable[..., Any],
    s3: ObjectStoreService,
    s3_store: Store,
    phantom: Path,
    unet: Path,
    threshold: Path,
    tmp_path: Path,
) -> None:
    workspace = tmp_path / "workspace"
    place = {
        **s3.environment(),
        "CMSEG_STORE": s3_store.uri,
        "CMSEG_WORKSPACE": str(workspace),
        "CMSEG_UNET": str(unet),
        "PREFECT_API_AUTH_STRING": f"cmseg:{PREFECT}",
    }
    unreachable = {
        "CMSEG_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_TRACKING_USERNAME": "cmseg",
        "MLFLOW_TRACKING_PASSWORD": TRACKER,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    in_address = {"CMSEG_MLFLOW_TRACKING_URI": f"http://cmseg:{TRACKER}@127.0.0.1:9"}
    blank = tmp_path / "blank.tif"
    tifffile.imwrite(blank, np.zeros((12, 40, 40), np.uint8), photometric="minisblack")

    done = [
        alone("submit", phantom, "--name", "good", **place),
        alone("submit", blank, "--name", "blank", "--voxel-size", 40, 40, 40, **place),
        alone("nightly", "--config", threshold, "--debug", "--json", **place),
        alone("status", "--storage", "--verify", **place),
        alone("review", "--to", tmp_path / "look", **place),
        alone("doctor", **(place | unreachable)),
    ]
    assert [one.status for one in done[:5]] == [0, 0, 3, 0, 0], [one.err for one in done]
    failed = [
        alone("models", "list", "--debug", **(place | unreachable)),
        alone("models", "list", **(place | unreachable)),
        alone("models", "list", "--debug", **(place | in_address)),
        alone("status", **(place | {"CMSEG_S3_ENDPOINT": f"http://cmseg:{TRACKER}@127.0.0.1:9"})),
        alone("nightly", "--debug", **(place | {"AWS_SECRET_ACCESS_KEY": WRONG})),
        alone("status", **(place | {"AWS_SECRET_ACCESS_KEY": WRONG})),
    ]
    assert all(one.status in (1, 2) for one in failed), [(one.status, one.err) for one in failed]
    assert "access was refused" in failed[-1].complaint()

    secrets = [secret.encode() for secret in (TRACKER, PREFECT, WRONG, s3.secret_key)]
    told = {f"command {n}": (one.out + one.err).encode() for n, one in enumerate((*done, *failed))}
    kept = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stored = {key: s3_store.get(key) for key in s3_store.list()}
    assert any("logs/fault-" in path for path in kept) and any(key.endswith("reason.json") for key in stored)
    leaks = [name for name, data in (told | kept | stored).items() for secret in secrets if secret in data]
    assert leaks == [], [(one.out + one.err)[:1500] for one in (*done, *failed)][5:]
