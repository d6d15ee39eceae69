"""A tiny acquisition with its truth, an untrained network, and Prefect as it runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from cmseg_core.storage.store import Store
from flows.environment import prepare

VOXEL_SIZE = VoxelSize(z=60, y=50, x=50)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prefect's own server of this process, with its database in a passing folder."""
    folder = tmp_path_factory.mktemp("prefect")
    prepare(Workspace(workspace=folder))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated acquisition of three cells with coarse voxels."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_acquisition(draw_field(3, cells=3, voxel_size=VOXEL_SIZE), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained: what it says is of no worth, but always the same."""
    from cmseg_core.organelles.model import OrganelleModel, save_model
    from cmseg_core.organelles.network import build_unet
    from cmseg_core.schema import C_MEROLAE

    network = build_unet(len(C_MEROLAE), 32, width=4, depth=2)
    path = tmp_path_factory.mktemp("unet") / "tiny.keras"
    return save_model(OrganelleModel(network, C_MEROLAE, 32), path)


@pytest.fixture(scope="session")
def config() -> PipelineConfig:
    """Settings that need no Segment Anything model."""
    return PipelineConfig.model_validate({"foreground": {"method": "threshold", "cell_diameter_px": 32}})


@pytest.fixture
def make_request(
    prefect_home: Path, tiny: Path, tiny_unet: Path, config: PipelineConfig, tmp_path: Path
) -> Callable[..., Any]:
    """Build a request for the tiny acquisition; arguments replace its fields."""
    from tasks.request import AcquisitionRequest

    def make(**fields: Any) -> AcquisitionRequest:
        usual = {
            "name": "tiny",
            "source": str(tiny / "stack.tif"),
            "truth_cells": str(tiny / "cells.tif"),
            "truth_organelles": str(tiny / "organelles.tif"),
            "config": config,
            "store": str(tmp_path / "store"),
            "out": tmp_path / "out",
            "unet": str(tiny_unet),
            "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
            "workspace": tmp_path / "workspace",
        }
        return AcquisitionRequest(**{**usual, **fields})

    return make


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A local folder; the S3 service for tests that are parametrized with it. All nights of tests/faults are on S3."""
    on_s3 = getattr(request, "param", "folder") == "s3"
    return request.getfixturevalue("s3_store") if on_s3 else Store.open(tmp_path / "store")


@pytest.fixture
def local(store: Store, tiny_unet: Path, prefect_home: Path, tmp_path: Path) -> Workspace:
    """A workspace on the store under test."""
    return Workspace(
        workspace=tmp_path / "workspace",
        store=store.uri,
        s3_endpoint=store.endpoint,
        unet=str(tiny_unet),
        mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
