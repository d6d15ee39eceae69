"""Evidence of cells in a volume, section by section in one or three directions.

Sections are looked at in runs of a fixed length, each with the neighbours it needs, and what is seen is combined box by
box. So a volume may be worked on piece by piece, by any number of processes, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import edt
import numpy as np
from scipy import ndimage

from cmseg_core.errors import InputError
from cmseg_core.foreground.generator import MaskGenerator
from cmseg_core.foreground.holes import close_holes
from cmseg_core.foreground.masks import Masks
from cmseg_core.foreground.reading import HeadReader
from cmseg_core.foreground.runs import LEAST_EVIDENCE, around, section_runs
from cmseg_core.foreground.sam import SamModel, as_colours
from cmseg_core.foreground.threshold import threshold_foreground
from cmseg_core.foreground.walk import Walk
from cmseg_core.schema import ForegroundConfig

_TRUNCATE = 4.0
"""Standard deviations at which the smoothing along an axis ends."""

Look = tuple[np.ndarray, np.ndarray]
"""Probability of a cell (uint8) and distance to the border of the voxel's own mask (float32, nm)."""


@dataclass(frozen=True, eq=False)
class CellEvidence:
    """What is known of cells before they are told apart.

    Attributes
    ----------
    foreground : ndarray of uint8, shape (z, y, x)
        Probability of a cell, 0 to 255.
    interior : ndarray of float32, shape (z, y, x), or None
        Distance in nm to the border of the mask of the voxel's own cell: touching cells have a valley between them.
        None where the method knows no single cells.
    """

    foreground: np.ndarray
    interior: np.ndarray | None


def find_cells(
    volume: np.ndarray,
    pixel_nm: float,
    config: ForegroundConfig,
    sam: SamModel | None,
    progress: Callable[[int], None] | None = None,
) -> CellEvidence:
    """Find cells on the isotropic working grid, in a volume that fits into memory.

    With ``directions=3`` the sections along z, y and x are all segmented, and a voxel gets the median of its three
    probabilities and of its three distances: one direction that misses a cell is outvoted by the two others, and an
    interface that lies in the plane of one direction's sections is seen by the other two.

    Parameters
    ----------
    volume : ndarray of uint8, shape (z, y, x)
    pixel_nm : float
        Edge of a voxel.
    config : ForegroundConfig
    sam : SamModel or None
        Needed for the method ``sam``.
    progress : callable, optional
        Called with the number of sections done since the last call.

    Returns
    -------
    CellEvidence
    """
    if config.method == "threshold":
        return CellEvidence(threshold_foreground(volume, config.cell_diameter_px), None)
    if sam is None:
        raise ValueError("the method 'sam' needs a model")
    finder = make_finder(sam, config)
    looks = []
    for axis in range(config.directions):
        sections = np.moveaxis(volume, axis, 0)
        probability, interior = np.empty(sections.shape, np.uint8), np.empty(sections.shape, np.float32)
        for start, stop in section_runs(len(sections), config):
            first, last = around(start, stop, len(sections))
            run = look(sections[first:last], start - first, stop - first, pixel_nm, finder)
            probability[start:stop], interior[start:stop] = run
            if progress is not None:
                progress(stop - start)
        looks.append((np.moveaxis(probability, 0, axis), np.moveaxis(interior, 0, axis)))
    evidence = combine(looks, pixel_nm, config)
    return CellEvidence(close_holes(evidence.foreground, LEAST_EVIDENCE, largest_hole(config)), evidence.interior)


def make_finder(sam: SamModel, config: ForegroundConfig) -> MaskGenerator | HeadReader:
    """What finds the cells of sections with a model, as the settings say.

    Raises
    ------
    InputError
        Where nothing is to be asked and the model has no head that could be read.
    """
    if config.prompts == "none" and sam.head is None:
        mend = "set foreground.prompts to grid, or name a model that `cmseg train --model sam` made"
        raise InputError("foreground.prompts", f"is none, and the model ({sam.name}) has no head", mend)
    if sam.head is not None and config.prompts in ("none", "automatic"):
        return HeadReader(sam)
    return MaskGenerator(sam, config)


def look(sections: np.ndarray, start: int, stop: int, pixel_nm: float, finder: MaskGenerator | HeadReader) -> Look:
    """See the cells of a run of sections.

    Parameters
    ----------
    sections : ndarray of uint8, shape (n, rows, columns)
        As :func:`cmseg_core.foreground.runs.around` says.
    start, stop : int
        The run among them.
    pixel_nm : float
    finder : MaskGenerator or HeadReader
        From :func:`make_finder`.

    Returns
    -------
    probability : ndarray of uint8, shape (stop - start, rows, columns)
    interior : ndarray of float32, shape (stop - start, rows, columns)
        In nanometres.
    """
    if isinstance(finder, HeadReader):
        context = finder.sam.context
        seen = finder.read([as_colours(sections, number, context) for number in range(start, stop)])
    else:
        seen = [flatten(masks) for masks in Walk(finder, sections).masks(start, stop)]
    probability, interior = (np.stack(parts) for parts in zip(*seen, strict=True))
    return probability, interior * np.float32(pixel_nm)


def combine(looks: Sequence[Look], pixel_nm: float, config: ForegroundConfig) -> CellEvidence:
    """What all directions together say of a box.

    Sections of one direction are made consistent along it first. Voxels nearer than :func:`combine_halo` to a side on
    which the volume goes on are not to be used.

    Parameters
    ----------
    looks : sequence of (probability, interior)
        One for each direction, axes z, y, x.
    pixel_nm : float
    config : ForegroundConfig

    Returns
    -------
    CellEvidence
    """
    sigma = config.z_smoothing_nm / pixel_nm

    def consistent(values: np.ndarray, axis: int) -> np.ndarray:
        if sigma <= 0:
            return values
        return ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="nearest", truncate=_TRUNCATE)

    probability, interior = ([consistent(pair[which], axis) for axis, pair in enumerate(looks)] for which in range(2))
    if len(looks) == 1:
        return CellEvidence(probability[0], interior[0])
    return CellEvidence(_median(*probability), _median(*interior))


def largest_hole(config: ForegroundConfig) -> int:
    """Widest hole in a cell that is closed, in pixels: half a cell, more than any organelle takes in a section."""
    return config.cell_diameter_px // 2


def combine_halo(pixel_nm: float, config: ForegroundConfig) -> int:
    """Voxels beyond which nothing decides what :func:`combine` says."""
    return int(_TRUNCATE * config.z_smoothing_nm / pixel_nm + 0.5)


def _median(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def flatten(masks: Masks) -> Look:
    """One picture of a section's masks.

    Parameters
    ----------
    masks : Masks
        Cells of one section.

    Returns
    -------
    probability : ndarray of uint8
        Of the likeliest mask at each pixel.
    interior : ndarray of float32
        Distance in pixels to the border of the mask that claims the pixel. The section's own border is none.
    """
    best, owner = masks.flat()
    probability = (255 / (1 + np.exp(-np.clip(best, -20, 20)))).astype(np.uint8)
    return probability, edt.edt(owner, black_border=False, parallel=1)
