"""A model in shadow is compared on a sample of cells, and changes nothing that is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.store import Store
from flows.submit import submit
from tasks.request import AcquisitionResult

Night = Callable[[str, str | None], AcquisitionResult]


@pytest.fixture
def night(tiny: Path, tiny_unet: Path, config: PipelineConfig, prefect_home: Path, tmp_path: Path) -> Night:
    """Process the tiny acquisition in a store of that name, with some model in shadow."""

    def run(place: str, shadow: str | None) -> AcquisitionResult:
        from flows.nightly import nightly

        workspace = Workspace(
            workspace=tmp_path / "workspace", store=str(tmp_path / place), unet=str(tiny_unet), shadow=shadow,
            shadow_cells=2, mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        )  # fmt: skip
        submit(str(tiny / "stack.tif"), "night", Store.open(tmp_path / place))
        (result,) = nightly(config=config, workspace=workspace)
        return result

    return run


@pytest.fixture(scope="session")
def other_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network that was never trained."""
    from cmseg_core.organelles.model import OrganelleModel, save_model
    from cmseg_core.organelles.network import build_unet
    from cmseg_core.schema import C_MEROLAE

    network = build_unet(len(C_MEROLAE), 32, width=4, depth=2, seed=99)
    return save_model(OrganelleModel(network, C_MEROLAE, 32), tmp_path_factory.mktemp("other") / "other.keras")


def published(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("acquisitions")}


def test_agreement_is_told_and_the_result_is_the_same(night: Night, other_unet: Path, tmp_path: Path) -> None:
    alone, beside = night("alone", None), night("beside", str(other_unet))
    assert alone.shadow is None and beside.shadow is not None
    assert beside.shadow.cells == 2 and beside.shadow.version == "file"
    known = [value for value in beside.shadow.iou.values() if value is not None]
    assert known and all(0 <= value < 1 for value in known)
    assert published(Store.open(tmp_path / "alone")) == published(Store.open(tmp_path / "beside"))
    assert "in shadow agrees on 2 cells" in str(beside.shadow)


def test_the_model_itself_is_no_shadow(night: Night, tiny_unet: Path) -> None:
    assert night("same", str(tiny_unet)).shadow is None


def test_a_shadow_that_is_not_there_takes_nothing(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    result = night("absent", "challenger")
    assert (result.state, result.shadow) == ("published", None)
    assert "was not compared" in caplog.text
