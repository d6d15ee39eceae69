"""Cells told apart in blocks: the same whatever the blocks, and taken up again where it was broken off."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmseg_core.phantom import draw_field
from cmseg_core.schema import ForegroundConfig, InstancesConfig, VoxelSize
from cmseg_core.storage.stages import StageRef
from cmseg_core.tracking.registry import ResolvedModel, packaged_model

VOXEL = VoxelSize(z=64, y=50, x=50)
CLASSICAL = ForegroundConfig(method="threshold", cell_diameter_px=32)
Separate = Callable[..., Any]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A field that makes several blocks of the working grid along every axis."""
    field = draw_field(5, cells=14, shape=(76, 96, 98), voxel_size=VOXEL)
    return field.render(0, 76)[0]


@pytest.fixture(scope="module")
def sam() -> ResolvedModel:
    path = packaged_model("sam")
    return ResolvedModel(role="sam", reference="packaged", version="", sha256="0" * 64, path=str(path))


@pytest.fixture
def separate(prefect_home: Path, image: np.ndarray, tmp_path: Path) -> Separate:
    from prefect import flow

    from flows.separation import find_and_separate
    from tasks.request import StoreAddress
    from tasks.stage import opened, stage_output

    store = StoreAddress(uri=str(tmp_path / "store"))

    def preprocessed() -> StageRef:
        output = stage_output(store, "preprocess", {"test": "image"}, {}, 1)
        if not output.complete:
            output.create_array("image", image.shape, np.uint8)[:] = image
            output.commit()
        return output.reference

    def run(edge: int, config: ForegroundConfig = CLASSICAL, sam: ResolvedModel | None = None, **options: Any) -> Any:
        """Cells on the working and on the native grid, and the cells' descriptions."""
        whole = flow(name="separate", validate_parameters=False, **options)(find_and_separate)
        _, separated = whole(
            preprocessed=preprocessed(),
            shape=image.shape,
            voxel_size=VOXEL,
            config=config,
            instances=InstancesConfig(),
            sam=sam,
            edge=edge,
            store=store,
        )
        found = opened(separated, store)
        return (
            np.asarray(found.array("working")[:]),
            np.asarray(found.array("cells")[:]),
            found.read_json("regions.json"),
        )

    run.store = tmp_path / "store"  # type: ignore[attr-defined]
    return run


def forget(store: Path, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(store / "work" / stage)


def same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:2], two[:2], strict=True)) and one[2] == two[2]


def test_the_partition_does_not_depend_on_the_blocks(separate: Separate) -> None:
    whole = separate(256)
    assert whole[0].max() >= 8 and min(whole[0].shape) > 64
    for edge in (64, 128):
        forget(separate.store, "foreground", "landscape", "instances")
        assert same(separate(edge), whole)


def test_in_memory_and_in_blocks_it_is_the_same(separate: Separate, image: np.ndarray) -> None:
    from cmseg_core.foreground.evidence import find_cells
    from cmseg_core.instances.regions import describe_cells
    from cmseg_core.instances.watershed import separate_cells
    from cmseg_core.preprocess.regrid import covering_voxel, shrink
    from cmseg_core.preprocess.resample import working_shape

    pixel = CLASSICAL.cell_diameter_nm / CLASSICAL.cell_diameter_px
    grid = working_shape(image.shape, VOXEL, pixel)
    small = np.stack(list(shrink(lambda start, stop: image[start:stop], image.shape, grid)))
    mask = find_cells(small, pixel, CLASSICAL, None).foreground >= 128
    voxel = covering_voxel(image.shape, grid, VOXEL)
    labels = separate_cells(mask, voxel, InstancesConfig(), cell_diameter_nm=CLASSICAL.cell_diameter_nm)
    found = separate(64)
    np.testing.assert_array_equal(found[0], labels)
    described = describe_cells(labels, voxel)
    assert [entry["volume_um3"] for entry in found[2]] == [region.volume_um3 for region in described]
    assert [entry["neck_ratio"] for entry in found[2]] == [region.neck_ratio for region in described]


def test_sections_seen_in_runs_give_what_the_whole_volume_gives(separate: Separate, sam: ResolvedModel) -> None:
    config = ForegroundConfig(cell_diameter_px=32, points_per_side=4)
    whole = separate(256, config, sam)
    forget(separate.store, "foreground", "landscape", "instances")
    assert same(separate(64, config, sam), whole)
    assert whole[0].any()


def test_beside_a_gpu_sections_are_seen_in_another_process_and_alike(
    separate: Separate, sam: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import foreground, gpu

    config = ForegroundConfig(cell_diameter_px=32, points_per_side=4, directions=1)
    whole = separate(256, config, sam)
    forget(separate.store, "looks", "foreground", "landscape", "instances")
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    foreground._finder.cache_clear()
    assert same(separate(256, config, sam), whole)
    assert foreground._finder.cache_info().misses == 0, "the model was loaded in this process"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("step", ["draw_landscape", "find_basins", "sum_cells"])
def test_after_a_failure_only_the_missing_blocks_are_computed(
    separate: Separate, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    import tasks.instances

    expected = separate(64)
    forget(separate.store, "landscape", "basins", "join", "instances")
    real, calls = getattr(tasks.instances, step), []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("a fault in the third block")
        return real(*arguments, **named)

    monkeypatch.setattr(tasks.instances, step, failing)
    with pytest.raises(ZeroDivisionError, match="third block"):
        separate(64)
    blocks = len(calls)
    assert blocks >= 8
    assert same(separate(64), expected)
    assert len(calls) == blocks + 1


def test_cells_that_end_where_blocks_do_fail_loudly(separate: Separate, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.instances

    real = tasks.instances.join_blocks

    def apart(**given: Any) -> StageRef:
        """As if every block were a volume of its own."""
        found = tasks.instances.opened(given["basins"], given["store"])
        output = tasks.instances.opened(real(**given), given["store"])
        for number, block in enumerate(given["blocks"]):
            table = tasks.instances.unpack(tasks.instances.BasinTable, found.read_part(block.name))
            cell = np.full(len(table.peak) + 1, number + 1, np.uint32)
            cell[0] = 0
            output.write_bytes(f"{block.name}.npz", tasks.instances.pack(tasks.instances.CellOfLabel(cell)))
        return output.reference

    monkeypatch.setattr(tasks.instances, "join_blocks", apart)
    with pytest.raises(RuntimeError, match="seam of two blocks"):
        separate(64)


def test_two_dask_workers_give_what_one_process_gives(separate: Separate) -> None:
    distributed = pytest.importorskip("distributed")
    from prefect_dask import DaskTaskRunner

    expected = separate(64)
    forget(separate.store, "threshold", "foreground", "landscape", "basins", "join", "instances")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = separate(64, task_runner=DaskTaskRunner(address=cluster.scheduler_address))
    assert same(found, expected)
