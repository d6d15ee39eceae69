"""The finished result: every file of the output folder, the manifest last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from prefect import task

from cmseg_core.instances.regions import CellRegion, crop_box
from cmseg_core.morphology.colours import cell_colours
from cmseg_core.morphology.measure import unmeasured_cell
from cmseg_core.morphology.meshes import crowd_scene
from cmseg_core.morphology.table import to_csv, to_parquet
from cmseg_core.preprocess.regrid import covering_voxel
from cmseg_core.report.context import ReportContext, middle_sections
from cmseg_core.report.report import render_report
from cmseg_core.schema import Frozen, PipelineConfig, Taxonomy, VoxelSize
from cmseg_core.storage import manifest, omezarr
from cmseg_core.storage.stages import StageRef
from tasks.check import Checked, versions
from tasks.instances import regions_of
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, opened

CROWD_VOXELS = 192
"""Longest side of the grid on which the scene of all cells is meshed."""
FAILED = "failed:organelles"
FILLS = 0.9
"""Share of the field above which a cell is said to fill it."""
MUCH_DEBRIS = 20
"""Pieces that were dropped, beyond which it is worth a line."""


class Made(Frozen):
    """The outputs of all stages of one acquisition."""

    ingest: StageRef
    preprocess: StageRef
    foreground: StageRef
    instances: StageRef
    organelles: dict[int, StageRef]
    measure: dict[int, StageRef]
    assemble: StageRef
    evaluate: StageRef | None = None
    quarantined_cells: dict[str, str] = {}

    def stage_keys(self) -> dict[str, str]:
        """Stage to key, for the manifest; the stages of single cells are named after the cell."""
        keys = {name: getattr(self, name).key for name in ("ingest", "preprocess", "foreground", "instances")}
        keys |= {f"organelles/{cell}": ref.key for cell, ref in self.organelles.items()}
        keys |= {f"measure/{cell}": ref.key for cell, ref in self.measure.items()}
        keys["assemble"] = self.assemble.key
        return keys | ({"evaluate": self.evaluate.key} if self.evaluate else {})


@task(name="deliver", task_run_name="deliver-{destination}", timeout_seconds=4 * HOUR, **RESUMABLE)
def deliver(
    *,
    checked: Checked,
    made: Made,
    config: PipelineConfig,
    taxonomy: Taxonomy,
    store: StoreAddress,
    destination: str,
    scratch: Path,
    out: Path | None,
) -> str:
    """Put the result together and publish it in one step.

    Parameters
    ----------
    checked : Checked
    made : Made
    config : PipelineConfig
    taxonomy : Taxonomy
    store : StoreAddress
    destination : str
        Name of the result.
    scratch : Path
        Folder for passing files.
    out : Path, optional
        Folder to publish; None publishes below ``acquisitions/<name>`` of the store.

    Returns
    -------
    str
        Where the result is.
    """
    target = out if out is not None else scratch / "result"
    with manifest.staging(target) as folder:
        Delivery(checked, made, config, taxonomy, store, folder).write()
        if out is not None:
            return str(manifest.publish_folder(folder, out))
        opened_store = store.open()
        prefix = f"acquisitions/{destination}"
        opened_store.upload_tree(folder, prefix)
        return opened_store.uri_of(prefix)


class Delivery:
    """Writes the files of one result into a folder.

    Parameters
    ----------
    checked, made, config, taxonomy, store
        As for :func:`deliver`.
    folder : Path
        Empty.
    """

    def __init__(
        self,
        checked: Checked,
        made: Made,
        config: PipelineConfig,
        taxonomy: Taxonomy,
        store: StoreAddress,
        folder: Path,
    ) -> None:
        self.checked, self.made, self.config, self.taxonomy = checked, made, config, taxonomy
        self.store, self.folder = store, folder
        self.voxel_size = checked.acquisition.voxel_size
        self.raw = opened(made.ingest, store).array("raw")
        self.image = opened(made.preprocess, store).array("image")
        separated = opened(made.instances, store)
        self.cells, self.mask, self.working = (separated.array(n) for n in ("cells", "foreground", "working"))
        self.confidence = separated.array("confidence")
        self.organelles = opened(made.assemble, store).array("organelles")
        self.regions = regions_of(made.instances, store)
        self.dropped = int(separated.summary["dropped"])
        self.quality = opened(made.ingest, store).read_json("qc.json")
        self.evaluation = opened(made.evaluate, store).read_json("evaluation.json") if made.evaluate else None

    def write(self) -> None:
        """Write everything, the manifest last."""
        self._write_volume()
        rows = [self._row(region) for region in self.regions]
        (self.folder / "cells.csv").write_bytes(to_csv(rows, self.taxonomy))
        (self.folder / "cells.parquet").write_bytes(to_parquet(rows, self.taxonomy))
        for region in self.regions:
            self._write_cell(region)
        _write_json(self.folder / "qc.json", self.quality)
        if self.evaluation is not None:
            _write_json(self.folder / "evaluation.json", self.evaluation)
        provenance = self._provenance()
        (self.folder / "report.html").write_text(render_report(self._context(rows, provenance)), encoding="utf-8")
        manifest.build(
            self.folder,
            self.checked.acquisition,
            provenance["config"],
            provenance["keys"],
            provenance["versions"],
            provenance["models"],
            self.made.quarantined_cells,
        )

    def _write_volume(self) -> None:
        root = self.folder / "volume.ome.zarr"
        shape = self.checked.shape
        omezarr.write_image(
            root, _reader(self.raw), shape, self.raw.dtype, self.voxel_size, self.checked.acquisition.name
        )
        cell_count = max((region.cell_id for region in self.regions), default=0)
        colours = {i + 1: _hex(rgb) for i, rgb in enumerate(cell_colours(cell_count))}
        classes = {kind.id: kind.colour for kind in self.taxonomy.foreground}
        for name, array, palette in (
            ("cells", self.cells, colours),
            ("foreground", self.mask, {1: "#ffffff"}),
            ("confidence", self.confidence, None),
            ("organelles", self.organelles, classes),
        ):
            omezarr.write_labels(root, name, _reader(array), shape, array.dtype, self.voxel_size, palette)

    def _row(self, region: CellRegion) -> dict[str, Any]:
        reference = self.made.measure.get(region.cell_id)
        if reference is None:
            return unmeasured_cell(region, self.taxonomy, FAILED)
        return opened(reference, self.store).read_json("row.json")

    def _box(self, region: CellRegion) -> tuple[slice, slice, slice]:
        return crop_box(region, self.checked.shape, self.voxel_size, self.config.organelles.margin_nm)

    def _write_cell(self, region: CellRegion) -> None:
        folder = self.folder / "cells" / str(region.cell_id)
        folder.mkdir(parents=True)
        _write_tiff(folder / "image.tif", np.asarray(self.image[self._box(region)]), self.voxel_size)
        if region.cell_id in self.made.organelles:
            labelled = opened(self.made.organelles[region.cell_id], self.store)
            for name, array in (("organelles", "labels"), ("confidence", "confidence")):
                _write_tiff(folder / f"{name}.tif", np.asarray(labelled.array(array)[:]), self.voxel_size)
        if region.cell_id in self.made.measure:
            (folder / "model.glb").write_bytes(self._model(region.cell_id))

    def _model(self, cell_id: int) -> bytes:
        return opened(self.made.measure[cell_id], self.store).read_bytes("model.glb")

    def _provenance(self) -> dict[str, Any]:
        models = {
            role: {"reference": model.reference, "version": model.version, "sha256": model.sha256}
            for role, model in sorted(self.checked.models.items())
        }
        settings = self.config.model_dump(mode="json") | {"taxonomy": self.taxonomy.model_dump(mode="json")}
        keys = {"run": self.checked.run_key, **self.made.stage_keys()}
        return {"versions": versions(), "models": models, "keys": keys, "config": settings}

    def _context(self, rows: list[dict[str, Any]], provenance: Mapping[str, Any]) -> ReportContext:
        acquisition = self.checked.acquisition
        volumes = {"foreground": self.mask, "cells": self.cells, "organelles": self.organelles}
        return ReportContext(
            name=acquisition.name,
            shape=self.checked.shape,
            voxel_size=self.voxel_size,
            dtype=self.checked.dtype,
            source=acquisition.source,
            sha256=acquisition.sha256,
            taxonomy=self.taxonomy,
            quality=self.quality["checks"],
            sections=middle_sections(self.voxel_size, self.image, **volumes),
            cells=rows,
            previews={r.cell_id: self._preview(r) for r in self.regions if r.cell_id in self.made.organelles},
            models={cell: self._model(cell) for cell in self.made.measure},
            crowd=self._crowd() if self.regions else None,
            evaluation=self.evaluation,
            provenance=provenance,
            quarantined_cells=self.made.quarantined_cells,
            warnings=self._warnings(),
        )

    def _preview(self, region: CellRegion) -> tuple[Any, ...]:
        labels = opened(self.made.organelles[region.cell_id], self.store).array("labels")
        image = np.asarray(self.image[self._box(region)])
        return middle_sections(self.voxel_size, image, organelles=np.asarray(labels[:]))

    def _crowd(self) -> bytes:
        step = max(1, -(-max(self.working.shape) // CROWD_VOXELS))
        small = np.asarray(self.working[::step, ::step, ::step])
        colours = cell_colours(max(region.cell_id for region in self.regions))
        return crowd_scene(small, covering_voxel(self.checked.shape, small.shape, self.voxel_size), colours)

    def _warnings(self) -> list[str]:
        lines = [check["detail"] for check in self.quality["checks"] if not check["passed"]]
        if not self.regions:
            lines.append("No cell was found in this field.")
        field_um3 = math.prod(self.checked.shape) * self.voxel_size.volume_um3
        lines += [
            f"Cell {region.cell_id} fills {region.volume_um3 / field_um3:.0%} of the field, so that its border was not "
            "seen: is the field smaller than a cell?"
            for region in self.regions
            if region.volume_um3 > FILLS * field_um3
        ]
        if self.dropped > max(len(self.regions), MUCH_DEBRIS):
            least = self.config.instances.min_volume_um3
            lines.append(f"{self.dropped} pieces under {least:g} µm³ were dropped as debris.")
        if failed := len(self.made.quarantined_cells):
            lines.append(f"{failed} of {len(self.regions)} cells have no organelles: their processing failed.")
        return lines


def _reader(array: Any) -> omezarr.Read:
    return lambda start, stop: np.asarray(array[start:stop])


def _hex(rgb: np.ndarray) -> str:
    return f"#{rgb.tobytes().hex()}"


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _write_tiff(path: Path, volume: np.ndarray, voxel_size: VoxelSize) -> None:
    """An ImageJ stack that carries its voxel size, and no time or name of software."""
    tifffile.imwrite(
        path,
        volume,
        imagej=True,
        resolution=(1000 / voxel_size.x, 1000 / voxel_size.y),
        metadata={"axes": "ZYX", "spacing": voxel_size.z / 1000, "unit": "um"},
        compression="zlib",
        software=False,
        datetime=False,
    )
