"""Touching cells told apart: markers, marker watershed and what can be said of each cell from its shape."""

from cmseg_core.instances.regions import CellRegion, crop_box, describe_cells
from cmseg_core.instances.watershed import separate_cells

__all__ = ["CellRegion", "crop_box", "describe_cells", "separate_cells"]
