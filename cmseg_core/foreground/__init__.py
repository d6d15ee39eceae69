"""Cells against background: Segment Anything on sections, and a classical baseline beside it."""

from cmseg_core.foreground.evidence import CellEvidence, find_cells
from cmseg_core.foreground.sam import SamModel, load_sam, save_sam

__all__ = ["CellEvidence", "SamModel", "find_cells", "load_sam", "save_sam"]
