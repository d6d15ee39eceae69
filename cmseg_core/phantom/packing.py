"""Cells pressed into a crowd that fits a box."""

from __future__ import annotations

import numpy as np

from cmseg_core.phantom.cells import CellAnatomy


def pack(
    cells: list[CellAnatomy], extent_nm: tuple[float, float, float], rng: np.random.Generator, press: float = 0.03
) -> list[CellAnatomy]:
    """Place cells so that neighbours touch, with every centre inside the box.

    Cells fall towards the middle of the box while the spheres of their lobes push each other apart, which ends in a
    touching crowd whether the box is roomy or tight; in a tight one the borders cut cells.

    Parameters
    ----------
    cells : list of CellAnatomy
        Cells at any centre.
    extent_nm : tuple of float
        Size of the box (z, y, x) in nm; its corner is the origin.
    rng : numpy.random.Generator
        Source of the start positions.
    press : float
        Share of a radius by which neighbours are pressed into each other.

    Returns
    -------
    list of CellAnatomy
        The same cells, moved.
    """
    box = np.asarray(extent_nm, dtype=float)
    count = len(cells)
    radius = np.repeat([c.lobe_radius for c in cells], 2) * (1 - press)
    owner = np.repeat(np.arange(count), 2)
    offset = np.concatenate([c.lobes() - c.parameters[:3] for c in cells]) if cells else np.zeros((0, 3))
    centre = rng.uniform(0.1, 0.9, (count, 3)) * box
    middle = box / 2
    # In a thin box a cell cannot keep its centre away from the faces; half a radius inside is asked where it fits.
    inset = np.minimum(0.35 * np.median(radius) if count else 0.0, 0.45 * box)
    steps = 400
    for step in range(steps):
        lobes = centre[owner] + offset
        gap = lobes[:, None] - lobes[None]
        distance = np.linalg.norm(gap, axis=-1) + 1e-9
        overlap = np.clip(radius[:, None] + radius[None] - distance, 0, None)
        overlap[owner[:, None] == owner[None]] = 0
        push = (gap / distance[..., None] * overlap[..., None]).sum(axis=1)
        move = np.zeros_like(centre)
        np.add.at(move, owner, 0.28 * push)
        # Gravity fades, so that the last steps only resolve overlaps.
        pull = 0.02 * max(0.0, 1 - step / (0.8 * steps))
        centre = np.clip(centre + move + pull * (middle - centre), inset, box - inset)
    return [cell.moved(c) for cell, c in zip(cells, centre, strict=True)]


def roomy_extent(cells: list[CellAnatomy], fill: float = 0.52) -> float:
    """Edge in nm of the cube in which the cells take the share `fill` of the volume."""
    volume = sum(4 / 3 * np.pi * c.lobe_radius**3 * (1 + 0.9 * (c.parameters[15] / c.lobe_radius)) for c in cells)
    return float((volume / fill) ** (1 / 3))
