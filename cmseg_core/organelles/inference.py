"""Organelles of one cell, from sections across one axis or all three."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.organelles.dataset import LabelledCell, cube_of, denoise, section_axes, section_stack
from cmseg_core.organelles.fusion import FusedProbabilities, weights_of
from cmseg_core.organelles.isolation import dilate, isolate_cell, resin_grey
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.tiling import predict_tiled, sections_at_once
from cmseg_core.preprocess.median import median_3x3x3, mode_3x3x3
from cmseg_core.preprocess.resample import CubeGrid, resize
from cmseg_core.schema import OrganellesConfig, PreprocessConfig, Taxonomy, VoxelSize

REACH_VOXELS = 4
"""How far outside its mask a cell may still be found: the outline of the network is better than the mask's."""

FLIPS_OF_ONE = 4
"""Ways in which the sections are seen where no more than one direction can be taken, and nothing else is said."""

SEAM_VOXELS = 2
"""Cube voxels by which the sections that are looked at exceed that: one for rounding between grids, one for filters."""


@dataclass(frozen=True, eq=False)
class CellSegmentation:
    """Organelles of one cell on the native grid of its crop.

    Attributes
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids.
    confidence : ndarray of uint8, shape (z, y, x)
        Fused probability of the class in `labels` as it was after the filter, 0..255.
    disagreement : float
        Share of the cell's voxels in which the directions name different classes; 0 with one direction.
    expected_iou : dict
        Name of each foreground class to the IoU that its probabilities foretell; None where it was not found.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    disagreement: float
    expected_iou: dict[str, float | None]


def segment_cell(
    image: NDArray[np.uint8],
    own: NDArray[np.bool_] | None,
    others: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
    model: OrganelleModel,
    config: OrganellesConfig,
    preprocess: PreprocessConfig,
) -> CellSegmentation:
    """Label the organelles of one cell.

    The crop becomes a cube of the network's section size, its neighbours replaced by resin; sections across each axis
    are labelled and fused, the class ids filtered, and the result is brought back to the native grid.

    Parameters
    ----------
    image : ndarray of uint8, shape (z, y, x)
        Crop round the cell, windowed and median filtered.
    own, others : ndarray of bool, shape (z, y, x), or None
        The cell, and the union of the other cells. None: the whole crop is the cell's.
    voxel_size : VoxelSize
    model : OrganelleModel
    config : OrganellesConfig
    preprocess : PreprocessConfig

    Returns
    -------
    CellSegmentation
        Background in the other cells, and beyond four voxels outside `own`.

    Raises
    ------
    InputError
        Where the image is not 8 bit or the shapes differ.
    """
    _check(image, own, others)
    cell = np.ones(image.shape, dtype=np.bool_) if own is None else own
    grid = CubeGrid(image.shape, voxel_size, model.section_size)
    isolated = isolate_cell(image, cell, others)
    cube = denoise(grid.to_cube(isolated, preprocess.interpolation, resin_grey(image, cell, others)), preprocess)
    reach = None if own is None else dilate(grid.to_cube(dilate(own, REACH_VOXELS), "nearest", False), SEAM_VOXELS)
    fused = predict_volume(cube, model, config, reach)
    found = _native(fused, grid, model.taxonomy, config, preprocess)
    found.labels[_out_of_bounds(own, others, image.shape)] = 0
    return found


def label_cell(
    cell: LabelledCell, model: OrganelleModel, config: OrganellesConfig, preprocess: PreprocessConfig
) -> CellSegmentation:
    """Label a labelled cell or field anew, to be scored against its labels.

    The labels serve for the resin's grey alone; they neither bound the result nor mask anything but the neighbours
    that the cell names. A field keeps its scale, and its sections are tiled.

    Parameters
    ----------
    cell : LabelledCell
    model : OrganelleModel
    config : OrganellesConfig
    preprocess : PreprocessConfig

    Returns
    -------
    CellSegmentation
        On the grid of `cell`; background in its neighbours.
    """
    cube = cube_of(cell, model.section_size, preprocess)
    return on_cell(predict_volume(cube.image, model, config), cell, model, config, preprocess)


def on_cell(
    fused: FusedProbabilities,
    cell: LabelledCell,
    model: OrganelleModel,
    config: OrganellesConfig,
    preprocess: PreprocessConfig,
) -> CellSegmentation:
    """Bring the fused probabilities of a labelled cell or field, on the grid of its cube, to its own grid."""
    if cell.field:
        labels = fused.labels()
        shape, disagreement = cell.image.shape, fused.disagreement(labels)
        labels = _filtered(labels, config)
        found = CellSegmentation(
            resize(labels, shape, "nearest"),
            resize(fused.confidence(labels), shape, "nearest"),
            disagreement,
            _expected(fused, labels, model.taxonomy),
        )
    else:
        grid = CubeGrid(cell.image.shape, cell.voxel_size, model.section_size)
        found = _native(fused, grid, model.taxonomy, config, preprocess)
    if cell.others is not None:
        found.labels[cell.others] = 0
    return found


def predict_volume(
    volume: NDArray[np.uint8],
    model: OrganelleModel,
    config: OrganellesConfig,
    reach: NDArray[np.bool_] | None = None,
) -> FusedProbabilities:
    """Fused class probabilities of a volume with cubic voxels.

    Sections larger than the network's are tiled, and the tiles blended; smaller ones are mirrored at their edges. A
    volume that is thin along one axis is cut across that axis alone (:func:`section_axes`), and a model that has learnt
    from such volumes alone is shown no sections across the others.

    Parameters
    ----------
    volume : ndarray of uint8, shape (z, y, x)
        A cube of the network's section size, or any other.
    model : OrganelleModel
    config : OrganellesConfig
        Directions, rule of fusion, flips and batch size.
    reach : ndarray of bool, shape of `volume`, optional
        Sections before the first and after the last with one of its voxels are background unseen.

    Returns
    -------
    FusedProbabilities
    """
    classes = len(model.taxonomy)
    weights = weights_of(config.fusion, model.fusion, axes_of(volume, model, config), classes)
    fused = FusedProbabilities(volume.shape, classes, weights)
    for axis, start, stop, probabilities in section_probabilities(volume, model, config, reach):
        if probabilities is None:
            fused.add_background(axis, start, stop)
        else:
            fused.add(axis, start, probabilities)
    return fused


def section_probabilities(
    volume: NDArray[np.uint8],
    model: OrganelleModel,
    config: OrganellesConfig,
    reach: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[int, int, int, NDArray[np.float32] | None]]:
    """Class probabilities of the sections of each direction, a batch at a time.

    Parameters are those of :func:`predict_volume`.

    Yields
    ------
    axis, start, stop : int
        Sections `start` to ``stop - 1`` across `axis`; all sections of one direction come before those of the next.
    probabilities : ndarray of float32, shape (stop - start, height, width, classes), or None
        None for sections that are background unseen.
    """
    flips = config.flips or (FLIPS_OF_ONE if len(_possible_axes(volume, model, config)) == 1 else 1)
    for axis in axes_of(volume, model, config):
        length, (height, width) = volume.shape[axis], (n for a, n in enumerate(volume.shape) if a != axis)
        together, batch_size = sections_at_once(height, width, model.section_size, config.batch_size)
        first, last = (0, length) if reach is None else _span(reach, axis)
        yield axis, 0, first, None
        yield axis, last, length, None
        for start in range(first, last, together):
            stop = min(start + together, last)
            sections = np.stack([section_stack(volume, axis, i, model.channels) for i in range(start, stop)])
            yield axis, start, stop, predict_tiled(sections, model, batch_size, flips)


def axes_of(volume: NDArray[np.uint8], model: OrganelleModel, config: OrganellesConfig) -> tuple[int, ...]:
    """Axes across which the sections of a volume are cut: those that shape and model allow, or the first of them."""
    return _possible_axes(volume, model, config)[: config.directions]


def _possible_axes(volume: NDArray[np.uint8], model: OrganelleModel, config: OrganellesConfig) -> tuple[int, ...]:
    """Axes that the volume is not too thin for; of these, with the weights of the model, those that have any."""
    depth, rows, columns = volume.shape
    axes = section_axes((depth, rows, columns), model.section_size)
    if config.fusion != "model" or model.fusion is None:
        return axes
    weights = model.fusion
    return tuple(axis for axis in axes if weights[axis].any()) or axes


def _span(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First section with a voxel of the mask, and the one after the last; (0, 0) for an empty mask."""
    occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    return (int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else (0, 0)


def _native(
    fused: FusedProbabilities,
    grid: CubeGrid,
    taxonomy: Taxonomy,
    config: OrganellesConfig,
    preprocess: PreprocessConfig,
) -> CellSegmentation:
    """Labels on the grid of the crop; ids are carried there by nearest neighbour, probabilities are interpolated."""
    in_cube = fused.labels()
    disagreement = fused.disagreement(in_cube)
    in_cube = _filtered(in_cube, config)
    expected = _expected(fused, in_cube, taxonomy)
    if preprocess.interpolation == "linear":
        labels = _filtered(fused.labels_on(grid), config)
        return CellSegmentation(labels, fused.confidence_on(grid, labels), disagreement, expected)
    labels, confidence = (grid.to_native(volume, "nearest") for volume in (in_cube, fused.confidence(in_cube)))
    return CellSegmentation(labels, confidence, disagreement, expected)


def _expected(fused: FusedProbabilities, labels: NDArray[np.uint8], taxonomy: Taxonomy) -> dict[str, float | None]:
    foretold = fused.expected_iou(labels)
    return {c.name: None if np.isnan(foretold[c.id]) else float(foretold[c.id]) for c in taxonomy.foreground}


def _filtered(labels: NDArray[np.uint8], config: OrganellesConfig) -> NDArray[np.uint8]:
    if config.filter == "none":
        return labels
    return (median_3x3x3 if config.filter == "median" else mode_3x3x3)(labels)


def _out_of_bounds(
    own: NDArray[np.bool_] | None, others: NDArray[np.bool_] | None, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    outside = np.zeros(shape, dtype=np.bool_) if own is None else ~dilate(own, REACH_VOXELS)
    return outside if others is None else outside | others


def _check(image: NDArray[np.uint8], own: NDArray[np.bool_] | None, others: NDArray[np.bool_] | None) -> None:
    if image.ndim != 3 or image.dtype != np.uint8:
        raise InputError("crop", f"is {image.dtype} of shape {image.shape}", "give a uint8 stack (z, y, x)")
    for name, mask in (("own", own), ("others", others)):
        if mask is not None and (mask.shape != image.shape or mask.dtype != np.bool_):
            reason = f"is {mask.dtype} of shape {mask.shape}, the crop has {image.shape}"
            raise InputError(f"mask of {name}", reason, "give a bool mask of the crop's shape")
