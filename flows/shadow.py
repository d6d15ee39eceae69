"""A challenger beside the champion: it labels some cells of an acquisition again, and nobody's result changes."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence

import numpy as np

from cmseg_core.evaluation.overlap import ClassCounts
from cmseg_core.instances.regions import CellRegion
from cmseg_core.schema import Taxonomy
from cmseg_core.storage.stages import StageRef
from cmseg_core.tracking.registry import resolve_model
from tasks.check import Checked
from tasks.models import organelle_model
from tasks.organelles import organelles
from tasks.request import AcquisitionRequest, Shadow
from tasks.stage import opened

log = logging.getLogger("cmseg.flows")


def shadowed(
    request: AcquisitionRequest,
    checked: Checked,
    regions: Sequence[CellRegion],
    labelled: Mapping[int, StageRef],
    preprocessed: StageRef,
    separated: StageRef,
    taxonomy: Taxonomy,
) -> Shadow | None:
    """Label a sample of cells with the model in shadow, and compare with what is published.

    Returns
    -------
    Shadow or None
        None where no model is in shadow, it is the one that labelled the cells, or it knows other classes. What fails
        here is told and takes nothing from the result.
    """
    if request.shadow is None or not labelled:
        return None
    try:
        model = resolve_model(request.shadow, "unet", request.tracking_uri, request.workspace / "models")
        if model.sha256 == checked.models["unet"].sha256:
            return None
        if organelle_model(model).taxonomy.names != taxonomy.names:
            log.warning("%s knows other classes and is not put in shadow", model.reference)
            return None
        counts = ClassCounts(taxonomy)
        known = [region for region in regions if region.cell_id in labelled]
        # The same cells whenever the acquisition is processed again.
        sample = random.Random(checked.run_key).sample(known, min(request.shadow_cells, len(known)))
        for region in sample:
            again = organelles(
                region=region,
                preprocessed=preprocessed,
                separated=separated,
                voxel_size=checked.acquisition.voxel_size,
                unet=model,
                config=request.config.organelles,
                preprocess=request.config.preprocess,
                store=request.address,
                limit=request.network_limit,
            )
            published, other = (
                np.asarray(opened(one, request.address).array("labels")[:]) for one in (labelled[region.cell_id], again)
            )
            counts.add(published, other)
    except Exception as error:
        log.warning("%s: the model in shadow, %s, was not compared: %s", request.name, request.shadow, error)
        return None
    agreement = {kind.name: counts.iou()[kind.name] for kind in taxonomy.foreground}
    found = Shadow(reference=model.reference, version=model.version, cells=len(sample), iou=agreement)
    log.info("%s: %s", request.name, found)
    return found
