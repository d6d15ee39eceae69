"""A few labelled cells that stand for many: what a training shows of itself, at a bounded cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cmseg_core.organelles.dataset import LabelledCell, field_shape
from cmseg_core.schema import Taxonomy


def choose_cells(cells: Sequence[LabelledCell], taxonomy: Taxonomy, count: int) -> list[LabelledCell]:
    """Choose cells so that every class appears that appears in any, as far as `count` allows.

    For each class, the rarest first, the cell with most of it is taken where no cell taken before shows the class. The
    rest is filled up with cells spread evenly over the others.

    Parameters
    ----------
    cells : sequence of LabelledCell
    taxonomy : Taxonomy
    count : int
        At most so many are chosen.

    Returns
    -------
    list of LabelledCell
        In the order of `cells`.
    """
    if len(cells) <= count:
        return list(cells)
    voxels = np.stack([np.bincount(cell.labels.ravel(), minlength=len(taxonomy)) for cell in cells])
    chosen: set[int] = set()
    for label in np.argsort(voxels.sum(axis=0), kind="stable"):
        if len(chosen) < count and voxels[:, label].any() and not voxels[list(chosen), label].any():
            chosen.add(int(voxels[:, label].argmax()))
    others = [number for number in range(len(cells)) if number not in chosen]
    spread = np.linspace(0, len(others) - 1, count - len(chosen)).astype(int)
    return [cells[number] for number in sorted(chosen | {others[place] for place in spread})]


def window_of(cell: LabelledCell, voxels: int) -> LabelledCell:
    """Cut a large field down to the window that shows most classes, and of these most of what is labelled.

    Parameters
    ----------
    cell : LabelledCell
        A cell stays as it is: the network sees it in a cube of its own size.
    voxels : int
        The window has at most so many on the grid of the network; its long edges are cut first.

    Returns
    -------
    LabelledCell
    """
    shape = field_shape(cell) if cell.field else (1, 1, 1)
    if math.prod(shape) <= voxels:
        return cell
    native = cell.labels.shape
    edges = [max(1, n * edge // whole) for n, edge, whole in zip(native, _edges(shape, voxels), shape, strict=True)]
    starts = [sorted({*range(0, n - edge, edge), n - edge}) for n, edge in zip(native, edges, strict=True)]
    boxes = [
        tuple(slice(start, start + edge) for start, edge in zip(corner, edges, strict=True))
        for corner in itertools.product(*starts)
    ]
    box = max(boxes, key=lambda box: (len(np.unique(cell.labels[box])), np.count_nonzero(cell.labels[box])))
    others = None if cell.others is None else np.ascontiguousarray(cell.others[box])
    image, labels = np.ascontiguousarray(cell.image[box]), np.ascontiguousarray(cell.labels[box])
    return replace(cell, image=image, labels=labels, others=others)


def _edges(shape: Sequence[int], voxels: int) -> list[int]:
    """Edges of a box of at most `voxels`: short edges are kept, the long ones share what is left alike."""
    edges, left = list(shape), float(voxels)
    for rank, axis in enumerate(np.argsort(shape)):
        edges[axis] = max(1, min(shape[axis], math.floor(left ** (1 / (len(shape) - rank)) + 1e-9)))
        left /= edges[axis]
    return edges
