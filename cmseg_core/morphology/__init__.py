"""What a segmented cell measures, which stage of the cell cycle it is in, and its surfaces."""

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.morphology.measure import column_names, measure_cell, unmeasured_cell
from cmseg_core.morphology.meshes import cell_scene, crowd_scene
from cmseg_core.morphology.stage import cell_cycle_stage

__all__ = [
    "cell_colours",
    "cell_cycle_stage",
    "cell_scene",
    "column_names",
    "crowd_scene",
    "measure_cell",
    "unmeasured_cell",
]
