"""What a report shows: facts and arrays gathered by the caller, in one immutable value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from cmseg_core.schema import C_MEROLAE, Taxonomy, VoxelSize

Direction = Literal["z", "y", "x"]
DIRECTIONS: tuple[Direction, ...] = ("z", "y", "x")


class Sliceable(Protocol):
    """A volume that gives NumPy arrays when indexed: an array, a Zarr array, a section source."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class SectionView:
    """One section with what was found on it.

    Attributes
    ----------
    direction : {"z", "y", "x"}
        Axis that the section is perpendicular to. Rows and columns are the two other axes, in the order z, y, x.
    position : int
        Index of the section along that axis.
    raw : ndarray of uint8, shape (rows, columns)
        Grey values.
    pixel_nm : tuple of float
        Height and width of a pixel in nanometres.
    foreground : ndarray of bool, shape (rows, columns), optional
        What lies in a cell.
    cells : ndarray of integers, shape (rows, columns), optional
        Cell ids; 0 outside.
    organelles : ndarray of uint8, shape (rows, columns), optional
        Class ids of the taxonomy.

    Raises
    ------
    ValueError
        Where the arrays differ in shape or `raw` is not an 8-bit section.
    """

    direction: Direction
    position: int
    raw: np.ndarray
    pixel_nm: tuple[float, float]
    foreground: np.ndarray | None = None
    cells: np.ndarray | None = None
    organelles: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.raw.ndim != 2 or self.raw.dtype != np.uint8:
            raise ValueError(f"a section is a 2D uint8 array, not {self.raw.dtype} of shape {self.raw.shape}")
        for name in ("foreground", "cells", "organelles"):
            labels = getattr(self, name)
            if labels is not None and labels.shape != self.raw.shape:
                raise ValueError(f"{name} has shape {labels.shape}, the section {self.raw.shape}")


def middle_sections(
    voxel_size: VoxelSize,
    image: Sliceable,
    *,
    foreground: Sliceable | None = None,
    cells: Sliceable | None = None,
    organelles: Sliceable | None = None,
) -> tuple[SectionView, SectionView, SectionView]:
    """Cut the middle section in each of the three directions.

    Parameters
    ----------
    voxel_size : VoxelSize
        In nanometres.
    image : array-like of uint8, shape (z, y, x)
        Anything that gives a NumPy array when indexed; only the three sections are read.
    foreground, cells, organelles : array-like, shape (z, y, x), optional
        As in :class:`SectionView`.

    Returns
    -------
    tuple of SectionView
        Perpendicular to z, to y and to x.
    """
    views = []
    for axis, direction in enumerate(DIRECTIONS):
        position = image.shape[axis] // 2
        index = tuple(position if a == axis else slice(None) for a in range(3))
        labels = {
            name: np.asarray(volume[index])
            for name, volume in (("foreground", foreground), ("cells", cells), ("organelles", organelles))
            if volume is not None
        }
        height, width = (size for a, size in enumerate(voxel_size.zyx) if a != axis)
        views.append(SectionView(direction, position, np.asarray(image[index]), (height, width), **labels))
    return views[0], views[1], views[2]


@dataclass(frozen=True)
class ReportContext:
    """Everything a report shows.

    Attributes
    ----------
    name : str
        Name of the acquisition; the title.
    shape : tuple of int
        Voxels along z, y, x.
    voxel_size : VoxelSize
        In nanometres.
    dtype : str
        Type of the samples as acquired.
    source : str
        Where the stack came from.
    sha256 : str
        Hash of the stack's content.
    taxonomy : Taxonomy
        Names and colours of the classes.
    quality : sequence of mapping
        Checks of the acquisition: ``name``, ``figure``, ``limit``, ``passed``, ``detail``.
    sections : sequence of SectionView
        Sections of the acquisition, in the order in which they are shown.
    cells : sequence of mapping
        Rows of ``cells.csv``.
    previews : mapping of int to sequence of SectionView
        Cell id to sections of its crop, with their organelles.
    models : mapping of int to bytes
        Cell id to a GLB with one node a class, in micrometres, XYZ, in the acquisition's frame.
    crowd : bytes, optional
        GLB of all cells in place, one node ``cell_<id>`` each.
    evaluation : mapping, optional
        Content of ``evaluation.json`` where there was truth to score against.
    provenance : mapping
        ``versions``, ``models``, ``keys`` and ``config``, as in the manifest.
    quarantined_cells : mapping of str to str
        Cell id to the reason why it has no organelles.
    warnings : sequence of str
        Sentences that a reader must see first.
    """

    name: str
    shape: tuple[int, int, int]
    voxel_size: VoxelSize
    dtype: str
    source: str
    sha256: str
    taxonomy: Taxonomy = C_MEROLAE
    quality: Sequence[Mapping[str, Any]] = ()
    sections: Sequence[SectionView] = ()
    cells: Sequence[Mapping[str, Any]] = ()
    previews: Mapping[int, Sequence[SectionView]] = field(default_factory=dict)
    models: Mapping[int, bytes] = field(default_factory=dict)
    crowd: bytes | None = None
    evaluation: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    quarantined_cells: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
