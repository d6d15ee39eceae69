"""Evidence of cells in a volume, section by section in one or three directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import edt
import numpy as np
from scipy import ndimage

from cmseg_core.foreground.generator import MaskGenerator
from cmseg_core.foreground.masks import Masks
from cmseg_core.foreground.sam import SamModel
from cmseg_core.foreground.threshold import threshold_foreground
from cmseg_core.foreground.walk import Walk
from cmseg_core.schema import ForegroundConfig


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
    """Find cells on the isotropic working grid.

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
    generator = MaskGenerator(sam, config)
    found = [_along(np.moveaxis(volume, axis, 0), pixel_nm, generator, progress) for axis in range(config.directions)]
    probability, interior = ([np.moveaxis(pair[which], 0, axis) for axis, pair in enumerate(found)] for which in (0, 1))
    if len(found) == 1:
        return CellEvidence(np.ascontiguousarray(probability[0]), np.ascontiguousarray(interior[0]))
    return CellEvidence(_median(*probability), _median(*interior))


def _median(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _along(
    volume: np.ndarray,
    pixel_nm: float,
    generator: MaskGenerator,
    progress: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability (uint8) and interior (float32, nm) of the sections along the first axis, made consistent along it."""
    probability = np.empty(volume.shape, np.uint8)
    interior = np.empty(volume.shape, np.float32)
    for index, masks in enumerate(Walk(generator, volume).masks()):
        probability[index], interior[index] = flatten(masks)
        if progress is not None:
            progress(1)
    interior *= pixel_nm
    sigma = generator.config.z_smoothing_nm / pixel_nm
    if sigma > 0:
        ndimage.gaussian_filter1d(probability, sigma, axis=0, output=probability, mode="nearest")
        ndimage.gaussian_filter1d(interior, sigma, axis=0, output=interior, mode="nearest")
    return probability, interior


def flatten(masks: Masks) -> tuple[np.ndarray, np.ndarray]:
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
