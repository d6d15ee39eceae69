"""Measurements and surfaces of one cell."""

from __future__ import annotations

import numpy as np
from prefect import task

from cmseg_core.instances.regions import CellRegion
from cmseg_core.morphology.measure import measure_cell
from cmseg_core.morphology.meshes import cell_scene
from cmseg_core.schema import MeshConfig, Taxonomy, VoxelSize
from cmseg_core.storage.stages import StageRef
from cmseg_core.tracking.registry import ResolvedModel
from tasks.models import stage_classifier
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, opened, stage_output

REVISION = 3


@task(name="measure", task_run_name="measure-{region.cell_id}", timeout_seconds=HOUR, **RESUMABLE)
def measure(
    *,
    region: CellRegion,
    labelled: StageRef,
    origin: tuple[int, int, int],
    voxel_size: VoxelSize,
    taxonomy: Taxonomy,
    mesh: MeshConfig,
    stage_model: ResolvedModel | None,
    store: StoreAddress,
) -> StageRef:
    """Measure a cell and mesh its organelles: ``row.json`` and ``model.glb``.

    Without a `stage_model` the rule tells the stage of the cell cycle.
    """
    inputs = {"organelles": labelled.key} | ({"stage": stage_model.sha256} if stage_model else {})
    settings = {"region": region, "origin": origin, "voxel_size": voxel_size, "taxonomy": taxonomy, "mesh": mesh}
    output = stage_output(store, "measure", inputs, settings, REVISION)
    if not output.complete:
        found = opened(labelled, store)
        labels, confidence = (np.asarray(found.array(name)[:]) for name in ("labels", "confidence"))
        judged = {name: found.summary[name] for name in ("disagreement", "expected_iou")}
        classifier = stage_classifier(stage_model) if stage_model else None
        row = measure_cell(labels, confidence, taxonomy, voxel_size, region, origin, classifier=classifier, **judged)
        output.write_json("row.json", row)
        output.write_bytes("model.glb", cell_scene(labels, taxonomy, voxel_size, origin, mesh))
        output.commit()
    return output.reference
