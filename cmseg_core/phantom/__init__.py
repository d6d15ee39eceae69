"""Simulated FIB-SEM acquisitions of crowded *C. merolae* cells, with exact ground truth.

:mod:`~cmseg_core.phantom.cells` draws the anatomy of a cell, :mod:`~cmseg_core.phantom.packing` presses cells into a
crowd, :mod:`~cmseg_core.phantom.appearance` draws how an acquisition looks, and :mod:`~cmseg_core.phantom.field`
renders any slab of the field from these, so that a volume never has to fit into memory.
"""

from cmseg_core.phantom.appearance import DEFECTS, Look, draw_look
from cmseg_core.phantom.field import Field, draw_field
from cmseg_core.phantom.write import write_acquisition

__all__ = ["DEFECTS", "Field", "Look", "draw_field", "draw_look", "write_acquisition"]
