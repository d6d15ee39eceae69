"""Labelled cells cut out of a labelled field, as the pipeline cuts its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.instances.regions import CellRegion, crop_box, describe_cells
from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.schema import OrganellesConfig, Stage, VoxelSize

LEAST_SHARE = 0.30
"""A cell with a smaller share of the size of a usual cell of the field is but a slice that its border left over."""
LEAST_VOLUME_UM3 = 0.10


def cut_cells(
    image: np.ndarray,
    cells: np.ndarray,
    organelles: np.ndarray,
    voxel_size: VoxelSize,
    stages: Mapping[int, Stage] | None = None,
    margin_nm: float = OrganellesConfig().margin_nm,
    name: str = "field",
) -> list[LabelledCell]:
    """Cut every cell out of a labelled field.

    Parameters
    ----------
    image : ndarray of uint8, shape (z, y, x)
        Windowed to 8 bit and median filtered, as the pipeline does it.
    cells : ndarray of unsigned integers, shape (z, y, x)
        Cell ids; 0 between cells.
    organelles : ndarray of integers, shape (z, y, x)
        Class ids.
    voxel_size : VoxelSize
    stages : mapping of int to int, optional
        Cell id to cell-cycle stage.
    margin_nm : float
        Width of the surroundings kept round a cell's box.
    name : str
        Of the field; a cell is called ``name/id``.

    Returns
    -------
    list of LabelledCell
        In the order of their ids, with copies of their crops. Left out is what the border of the field cut to less
        than `LEAST_SHARE` of a usual cell, and anything below `LEAST_VOLUME_UM3`. Neighbours are kept in the image and
        named in ``others``, since they are replaced where a cell becomes a cube.

    Raises
    ------
    InputError
        Where the shapes differ.
    """
    if not image.shape == cells.shape == organelles.shape:
        shapes = f"image, cells and organelles have the shapes {image.shape}, {cells.shape} and {organelles.shape}"
        raise InputError(name, shapes, "give three stacks of one shape (z, y, x)")
    cut = []
    for region in _worth_cutting(describe_cells(cells, voxel_size)):
        box = crop_box(region, image.shape, voxel_size, margin_nm)
        ids = cells[box]
        own = ids == region.cell_id
        cut.append(
            LabelledCell(
                image=image[box].copy(),
                labels=np.where(own, organelles[box], 0).astype(np.uint8),
                voxel_size=voxel_size,
                stage=(stages or {}).get(region.cell_id),
                name=f"{name}/{region.cell_id}",
                others=(ids > 0) & ~own,
            )
        )
    return cut


def _worth_cutting(regions: Sequence[CellRegion]) -> list[CellRegion]:
    """Cells large enough to learn from; whole cells say how large a cell usually is, where there are any."""
    whole = [r.volume_um3 for r in regions if not r.touches_border] or [r.volume_um3 for r in regions]
    if not whole:
        return []
    least = max(LEAST_VOLUME_UM3, LEAST_SHARE * float(np.median(whole)))
    return [r for r in regions if r.volume_um3 >= (least if r.touches_border else LEAST_VOLUME_UM3)]
