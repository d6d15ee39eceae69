"""The classical baseline: a threshold on the smoothed grey levels."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu


def threshold_foreground(volume: np.ndarray, cell_diameter_px: int) -> np.ndarray:
    """Cells against background by Otsu's threshold (Otsu 1979).

    The background is taken to be the phase that is smoother: resin has less texture than cells, whichever of the two
    is brighter. Holes smaller than a cell are closed section by section.

    Parameters
    ----------
    volume : ndarray of uint8, shape (z, y, x)
        On the working grid.
    cell_diameter_px : int
        Diameter of a cell in voxels.

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
        255 in cells, 0 elsewhere.
    """
    smooth = ndimage.gaussian_filter(volume, 1.5, output=np.float32)
    if float(np.ptp(smooth)) < 1:
        return np.zeros(volume.shape, np.uint8)
    bright = smooth > threshold_otsu(smooth)
    texture = np.abs(volume - smooth)
    edges = ndimage.gaussian_gradient_magnitude(smooth, 1.0)
    core_bright, core_dark = (ndimage.binary_erosion(phase, iterations=2) for phase in (bright, ~bright))
    roughness = [float((texture + edges)[core].mean()) if core.any() else np.inf for core in (core_dark, core_bright)]
    cells = ~bright if roughness[1] <= roughness[0] else bright
    cells = ndimage.binary_opening(cells, iterations=1)
    largest_hole = 0.25 * np.pi * cell_diameter_px**2
    return np.stack([_closed(section, largest_hole) for section in cells])


def _closed(section: np.ndarray, largest_hole: float) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~section).view(np.uint8), connectivity=4)
    rows, columns = section.shape
    for i in range(1, count):
        left, top, width, height, area = stats[i]
        inner = left > 0 and top > 0 and left + width < columns and top + height < rows
        if inner and area < largest_hole:
            section = section | (labels == i)
    return section.astype(np.uint8) * 255
