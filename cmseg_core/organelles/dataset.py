"""Labelled cells, the cubes made of them, and batches of sections drawn from the cubes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.organelles.augmentation import AugmentationConfig, cut_window, random_greys
from cmseg_core.organelles.isolation import isolate_cell, resin_grey
from cmseg_core.preprocess.bilateral import bilateral_sections
from cmseg_core.preprocess.resample import CubeGrid, resize, working_shape
from cmseg_core.schema import PreprocessConfig, Stage, Taxonomy, VoxelSize

RARE_SHARE = 0.5
"""Share of the sections drawn by class rather than by cell."""
EMPTY_SHARE = 0.03
"""Share of the sections drawn from those without any cell voxel."""
MOST_WORKERS = 8
"""Threads that draw batches: half of the processors, and no more than this. An accelerator takes batches faster than
one thread makes them."""

Batch = tuple[NDArray[np.float32], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class LabelledCell:
    """A crop and its labels.

    Attributes
    ----------
    image : ndarray of uint8, shape (z, y, x)
        Windowed to 8 bit and median filtered as the crops of the pipeline are.
    labels : ndarray of uint8, shape (z, y, x)
        Class ids; 0 outside the cell.
    voxel_size : VoxelSize
    stage : int, optional
        Cell-cycle stage, 1 to 5.
    name : str
    others : ndarray of bool, shape (z, y, x), optional
        Other cells in the crop, which are replaced by resin.
    field : bool
        A whole field rather than one cell: it keeps its scale, and windows are cut from it.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    voxel_size: VoxelSize
    stage: Stage | None = None
    name: str = "cell"
    others: NDArray[np.bool_] | None = None
    field: bool = False

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape != self.labels.shape:
            reason = f"image and labels have the shapes {self.image.shape} and {self.labels.shape}"
            raise InputError(self.name, reason, "give two stacks of one shape (z, y, x)")
        if self.image.dtype != np.uint8 or self.labels.dtype != np.uint8:
            reason = f"image and labels are {self.image.dtype} and {self.labels.dtype}"
            raise InputError(self.name, reason, "convert both to 8 bit")


@dataclass(frozen=True, eq=False)
class Cube:
    """A labelled cell on the grid that the network sees: isotropic voxels, uint8 image and labels of one shape."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    name: str
    stage: Stage | None


def cube_of(cell: LabelledCell, section_size: int, preprocess: PreprocessConfig) -> Cube:
    """Bring a labelled cell to the network's grid.

    A cell becomes a cube of `section_size` voxels a side, centred and padded with the resin's grey. A field gets
    isotropic voxels as long as its shortest edge and keeps its extent (:func:`field_shape`).

    Parameters
    ----------
    cell : LabelledCell
    section_size : int
    preprocess : PreprocessConfig
        How images are resampled and denoised. Labels are resampled by nearest neighbour.

    Returns
    -------
    Cube
    """
    own = cell.labels > 0
    image = isolate_cell(cell.image, own, cell.others)
    if cell.field:
        shape = field_shape(cell)
        image = resize(image, shape, preprocess.interpolation)
        labels = resize(cell.labels, shape, "nearest")
    else:
        grid = CubeGrid(image.shape, cell.voxel_size, section_size)
        image = grid.to_cube(image, preprocess.interpolation, resin_grey(cell.image, own, cell.others))
        labels = grid.to_cube(cell.labels, "nearest", 0)
    return Cube(denoise(image, preprocess), labels, cell.name, cell.stage)


def field_shape(field: LabelledCell) -> tuple[int, int, int]:
    """Voxels of a field on the grid of the network; a single section stays one, whatever its thickness."""
    depth, rows, columns = working_shape(field.image.shape, field.voxel_size, min(field.voxel_size.zyx))
    return 1 if len(field.image) == 1 else depth, rows, columns


def denoise(image: NDArray[np.uint8], preprocess: PreprocessConfig) -> NDArray[np.uint8]:
    """Apply the bilateral filter to the sections of a cube, where the settings ask for it."""
    if preprocess.bilateral_spatial_sigma == 0:
        return image
    return bilateral_sections(image, preprocess.bilateral_spatial_sigma, preprocess.bilateral_range_sigma)


def section_axes(shape: tuple[int, int, int], section_size: int) -> tuple[int, ...]:
    """Axes across which a volume is cut into sections.

    A volume thinner than half a section, such as a few neighbouring sections or one alone, is cut across its thin axis
    only: sections across the others would be little more than their own mirror images.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the volume: z, y, x.
    section_size : int
        Edge of the network's sections.

    Returns
    -------
    tuple of int
        At least one; all three for a cube.
    """
    narrow = [min(edge for a, edge in enumerate(shape) if a != axis) for axis in range(3)]
    least = min(section_size / 2, max(narrow))
    return tuple(axis for axis in range(3) if narrow[axis] >= least)


def section_stack(volume: NDArray[np.uint8], axis: int, index: int, channels: int) -> NDArray[np.uint8]:
    """A section with its neighbours as channels, repeated at the ends: shape (height, width, channels)."""
    around = np.clip(np.arange(index - channels // 2, index + channels // 2 + 1), 0, volume.shape[axis] - 1)
    return np.ascontiguousarray(np.moveaxis(volume.take(around, axis=axis), axis, -1))


class SectionSampler:
    """Draws batches of sections from cubes, along the axes that :func:`section_axes` gives each of them.

    Half of the sections are drawn by class, every foreground class alike, so that small organelles are seen as often
    as large ones; the rest are drawn among all sections with a cell in them, and few among the empty ones. Of a
    section larger than the window, the window is then cut round a voxel of the class that was drawn.
    Batch `n` depends on the seed and `n` alone.

    Parameters
    ----------
    cubes : sequence of Cube
    taxonomy : Taxonomy
    section_size : int
        Edge of the windows. Larger sections are cut, smaller ones are reflected at their edges.
    batch_size : int
    seed : int
    augmentation : AugmentationConfig, optional
        None takes the sections as they are.
    channels : int
        1, or an odd number of neighbouring sections.
    name : str
        Of the set, for people.

    Raises
    ------
    InputError
        Where there are no cubes, no foreground, or a class id is not in the taxonomy.
    """

    def __init__(
        self,
        cubes: Sequence[Cube],
        taxonomy: Taxonomy,
        section_size: int,
        *,
        batch_size: int,
        seed: int,
        augmentation: AugmentationConfig | None = None,
        channels: int = 1,
        name: str = "training set",
    ) -> None:
        if not cubes:
            raise InputError(name, "holds no cell", "add labelled cells")
        self.cubes, self.section_size, self.channels = tuple(cubes), section_size, channels
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.places, present = _table_of_sections(self.cubes, len(taxonomy), section_size)
        by_class = {label: np.flatnonzero(present[:, label]) for label in range(1, len(taxonomy))}
        self._by_class = [(label, rows) for label, rows in by_class.items() if len(rows)]
        self._with_cell = np.flatnonzero(present[:, 1:].any(axis=1))
        self._empty = np.flatnonzero(~present[:, 1:].any(axis=1))
        if not len(self._with_cell):
            raise InputError(name, "has no labelled voxel", "label the cells with ids above 0")

    def batch(self, number: int) -> Batch:
        """Batch `number`: float32 (batch, size, size, channels) in 0..1, and int32 labels (batch, size, size)."""
        rng = np.random.default_rng((self.seed, number))
        size = self.section_size
        images = np.empty((self.batch_size, size, size, self.channels), dtype=np.float32)
        labels = np.empty((self.batch_size, size, size), dtype=np.int32)
        for i in range(self.batch_size):
            row, wanted = self._draw(rng)
            cube, axis, index = self.places[row]
            volume = self.cubes[cube]
            section = section_stack(volume.image, axis, index, self.channels)
            truth = np.ascontiguousarray(volume.labels.take(index, axis=axis))
            around = None if wanted is None or max(truth.shape) <= size else _any_voxel(rng, truth == wanted)
            section, labels[i] = cut_window(rng, section, truth, size, self.augmentation, around)
            images[i] = (
                section / np.float32(255)
                if self.augmentation is None
                else random_greys(rng, section, self.augmentation)
            )
        return images, labels

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Batches `first` to ``first + count - 1``, made by threads while the ones before are used."""
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2))
        with ThreadPoolExecutor(workers, thread_name_prefix="sections") as pool:
            waiting: deque[Future[Batch]] = deque()
            for number in range(first, first + count):
                waiting.append(pool.submit(self.batch, number))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _draw(self, rng: np.random.Generator) -> tuple[int, int | None]:
        """Row of a section, and the class that it was drawn for, if for any."""
        kind, wanted = rng.random(), None
        if kind < EMPTY_SHARE and len(self._empty):
            rows = self._empty
        elif kind < EMPTY_SHARE + RARE_SHARE:
            wanted, rows = self._by_class[int(rng.integers(len(self._by_class)))]
        else:
            rows = self._with_cell
        return int(rows[int(rng.integers(len(rows)))]), wanted


def _any_voxel(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[int, int]:
    places = np.flatnonzero(mask)
    return divmod(int(places[int(rng.integers(len(places)))]), mask.shape[1])


def _table_of_sections(
    cubes: Sequence[Cube], classes: int, section_size: int
) -> tuple[list[tuple[int, int, int]], NDArray[np.bool_]]:
    """Every section as (cube, axis, index), and which classes each one shows: bool (sections, classes)."""
    places: list[tuple[int, int, int]] = []
    present: list[NDArray[np.bool_]] = []
    for number, cube in enumerate(cubes):
        highest = int(cube.labels.max())
        if highest >= classes:
            mend = f"use the ids 0 to {classes - 1} of the taxonomy"
            raise InputError(cube.name, f"has the class id {highest}", mend)
        depth, rows, columns = cube.labels.shape
        shown = [_sections_showing(cube.labels == label) for label in range(classes)]
        for axis in section_axes((depth, rows, columns), section_size):
            places += [(number, axis, index) for index in range(cube.labels.shape[axis])]
            present.append(np.stack([where[axis] for where in shown], axis=1))
    return places, np.concatenate(present)


def _sections_showing(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Which sections across each axis hold any voxel of a mask."""
    projected = np.any(mask, axis=0)
    return [np.atleast_1d(one) for one in (np.any(mask, axis=(1, 2)), projected.any(axis=1), projected.any(axis=0))]
