"""Which masks are cells: stated rules in physical units."""

from __future__ import annotations

import numpy as np

from cmseg_core.foreground.masks import Masks
from cmseg_core.schema import ForegroundConfig

NESTED = 0.85
"""Share of a mask inside a larger cell beyond which it is an organelle of that cell."""
CLUMP = 0.60
"""Share of a mask taken by two or more smaller ones, side by side, beyond which it is a clump."""


def cell_masks(masks: Masks, config: ForegroundConfig) -> Masks:
    """Keep the masks of cells.

    By size, a mask whose equivalent diameter is too small for a cell is debris or an organelle, one too large is
    background or a clump. By nesting, one that lies inside a larger cell is an organelle; one that holds several
    others of at least a quarter of its size side by side is a clump.

    Parameters
    ----------
    masks : Masks
        Of one section, on the working grid.
    config : ForegroundConfig

    Returns
    -------
    Masks
        The largest first.
    """
    area = masks.areas().astype(np.float64)
    diameter = np.sqrt(4 * area / np.pi) / config.cell_diameter_px
    sized = np.flatnonzero((diameter >= config.min_diameter_fraction) & (diameter <= config.max_diameter_fraction))
    sized = sized[np.argsort(-area[sized], kind="stable")]
    candidates, size = masks.take(sized), area[sized]
    shared = candidates.shared(candidates)
    kept: list[int] = []
    for i in range(len(sized)):
        if any(shared[i, k] > NESTED * size[i] for k in kept):
            continue
        parts = [j for j in range(i + 1, len(sized)) if shared[i, j] > NESTED * size[j] and size[j] > size[i] / 4]
        if len(_apart(parts, shared, size)) >= 2:
            taken = np.count_nonzero(candidates.take(parts).covered() & candidates.take([i]).covered())
            if taken > CLUMP * size[i]:
                continue
        kept.append(i)
    return candidates.take(kept)


def _apart(parts: list[int], shared: np.ndarray, size: np.ndarray) -> list[int]:
    chosen: list[int] = []
    for j in parts:
        if all(shared[j, k] < 0.2 * min(size[j], size[k]) for k in chosen):
            chosen.append(j)
    return chosen
