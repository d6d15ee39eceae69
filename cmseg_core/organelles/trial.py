"""A labelled cell labelled anew in every way that is compared: each direction, all three, and uncalibrated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cmseg_core.organelles.calibration import apply_temperature
from cmseg_core.organelles.dataset import LabelledCell, cube_of
from cmseg_core.organelles.fusion import FusedProbabilities
from cmseg_core.organelles.inference import CellSegmentation, on_cell, section_probabilities
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.schema import OrganellesConfig, PreprocessConfig


@dataclass(frozen=True, eq=False)
class Trial:
    """What a model makes of one labelled cell.

    Attributes
    ----------
    fused : CellSegmentation
        From all directions, as the pipeline does it.
    single : tuple of CellSegmentation
        From the sections across z, y and x alone.
    uncalibrated : CellSegmentation
        As `fused`, with a temperature of 1.
    """

    fused: CellSegmentation
    single: tuple[CellSegmentation, ...]
    uncalibrated: CellSegmentation


def try_cell(
    cell: LabelledCell, model: OrganelleModel, config: OrganellesConfig, preprocess: PreprocessConfig
) -> Trial:
    """Label a labelled cell or field; the network sees every section once.

    Parameters
    ----------
    cell : LabelledCell
        Its labels serve for the resin's grey alone.
    model : OrganelleModel
    config : OrganellesConfig
        Rule of fusion and filter; all three directions are taken, whatever it says.
    preprocess : PreprocessConfig

    Returns
    -------
    Trial
    """
    config = config.model_copy(update={"directions": 3})
    volume = cube_of(cell, model.section_size, preprocess).image
    raw = replace(model, temperature=1.0)

    def empty(directions: int) -> FusedProbabilities:
        return FusedProbabilities(volume.shape, len(model.taxonomy), directions, config.fusion)

    fused, uncalibrated, single = empty(3), empty(3), [empty(1) for _ in range(3)]
    for axis, start, _, probabilities in section_probabilities(volume, raw, config):
        if probabilities is not None:
            calibrated = apply_temperature(probabilities, model.temperature)
            fused.add(axis, start, calibrated)
            single[axis].add(axis, start, calibrated)
            uncalibrated.add(axis, start, probabilities)

    def finished(one: FusedProbabilities) -> CellSegmentation:
        return on_cell(one, cell, model, config, preprocess)

    return Trial(finished(fused), tuple(finished(one) for one in single), finished(uncalibrated))
