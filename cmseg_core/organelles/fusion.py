"""The opinions of several directions on every voxel, made one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmseg_core.preprocess.resample import CubeGrid

_FULL = 65535
"""Probability 1 as uint16: a sixth of the memory of three float32 stacks, and 1e-5 of the voxels change their class."""


AXES = ("z", "y", "x")
"""Names of the directions, by the axis across which their sections are cut."""

Rule = Literal["model", "mean", "maximum"]
"""How directions are fused: weighted as the model says, all alike, or the highest of them."""

Weights = NDArray[np.float64]
"""What each direction counts for in each class, shape (3, classes): not negative, and of sum 1 over the directions."""


def equal_weights(classes: int) -> Weights:
    """The weights whose weighted mean is the mean: 1/3 everywhere."""
    return np.full((len(AXES), classes), 1 / len(AXES))


def weights_of(rule: Rule, fitted: Weights | None, axes: Sequence[int], classes: int) -> Weights | None:
    """What each direction counts for, where sections are cut across `axes` alone.

    Parameters
    ----------
    rule : {"model", "mean", "maximum"}
        ``model``: the fitted weights; equal ones where there are none.
    fitted : ndarray, shape (3, classes), or None
        The weights in the model's file.
    axes : sequence of int
        Axes across which sections are cut; the weights of the others go to these, in proportion, or in equal parts for
        a class whose weights are all on the others.
    classes : int

    Returns
    -------
    ndarray of float64, shape (3, classes), or None
        None for the maximum.
    """
    if rule == "maximum":
        return None
    taken = np.isin(np.arange(len(AXES)), axes)[:, None]
    chosen = equal_weights(classes) if rule == "mean" or fitted is None else fitted
    kept = np.where(taken, chosen, 0.0)
    kept = np.where(kept.sum(axis=0) > 0, kept, taken)
    return kept / kept.sum(axis=0)


def fuse(probabilities: NDArray[np.float32], weights: Weights | None) -> NDArray[np.float32]:
    """What the directions say together: float32 (voxels, classes), as :class:`FusedProbabilities` has it.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (voxels, directions, classes)
    weights : ndarray of float64, shape (directions, classes), or None
        None: the maximum.
    """
    if weights is None:
        return probabilities.max(axis=1)
    return np.einsum("vdc,dc->vc", probabilities, weights.astype(np.float32))


class FusedProbabilities:
    """Running weighted mean, or element-wise maximum, of class probabilities over directions.

    Only one array of classes x voxels is held, as uint16, whatever the number of directions.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the volume: z, y, x.
    classes : int
    weights : ndarray of float64, shape (3, classes), or None
        What a direction counts for in each class (:func:`weights_of`). None: each voxel gets the class with the highest
        probability of any direction.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, weights: Weights | None) -> None:
        # Whole numbers, so that the rounded parts of all directions cannot come to more than 16 bits hold.
        self._scale = None if weights is None else np.floor(weights * _FULL + 1e-3).astype(np.float32)
        self._score = np.zeros((*shape, classes), dtype=np.uint16)
        self._first = np.zeros(shape, dtype=np.uint8)
        self._differs = np.zeros(shape, dtype=np.bool_)
        self._first_axis: int | None = None

    def add(self, axis: int, start: int, probabilities: NDArray[np.float32]) -> None:
        """Add neighbouring sections of one direction.

        Parameters
        ----------
        axis : int
            Axis across which the sections are cut. The first axis added is the one others are compared with, and
            must be complete before the next begins.
        start : int
            Position of the first section along `axis`.
        probabilities : ndarray of float32, shape (sections, height, width, classes)
        """
        if self._first_axis is None:
            self._first_axis = axis
        place = (slice(None),) * axis + (slice(start, start + len(probabilities)),)
        score = np.moveaxis(self._score[place], axis, 0)
        scale = np.float32(_FULL) if self._scale is None else self._scale[axis]
        scaled = np.rint(probabilities * scale).astype(np.uint16)
        if self._scale is None:
            np.maximum(score, scaled, out=score)
        else:
            np.add(score, scaled, out=score)
        winner = probabilities.argmax(axis=-1).astype(np.uint8)
        first = np.moveaxis(self._first[place], axis, 0)
        if axis == self._first_axis:
            first[...] = winner
        else:
            differs = np.moveaxis(self._differs[place], axis, 0)
            differs |= winner != first

    def add_background(self, axis: int, start: int, stop: int) -> None:
        """Add the sections `start` to ``stop - 1`` of one direction as certain background."""
        height, width = (n for a, n in enumerate(self._first.shape) if a != axis)
        certain = np.eye(1, self._score.shape[-1], dtype=np.float32)[0]
        for index in range(start, stop):
            self.add(axis, index, np.broadcast_to(certain, (1, height, width, len(certain))))

    def labels(self) -> NDArray[np.uint8]:
        """Class of every voxel, the lower id where two are level: uint8 (z, y, x)."""
        return np.stack([section.argmax(axis=-1).astype(np.uint8) for section in self._score])

    def confidence(self, labels: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Share of a class in the fused probabilities, 0..255: uint8 (z, y, x).

        Parameters
        ----------
        labels : ndarray of uint8, shape (z, y, x), optional
            The class of every voxel, such as a filter left it; by default the winning one.
        """
        out = np.empty(self._score.shape[:3], dtype=np.uint8)
        for z, (section, target) in enumerate(zip(self._score, out, strict=True)):
            total = np.maximum(section.sum(axis=-1, dtype=np.uint32), 1)
            own = section.max(axis=-1) if labels is None else _own(section, labels[z])
            target[...] = np.rint(own * (255.0 / total))
        return out

    def labels_on(self, grid: CubeGrid) -> NDArray[np.uint8]:
        """Class of every voxel of the crop that the cube was made of: uint8 (z, y, x).

        The probabilities are interpolated, then the likeliest class is chosen, so that an outline may run between the
        voxels of the cube. One class is held at a time, whatever the size of the crop.
        """
        best = np.zeros(grid.crop_shape, dtype=np.uint16)
        labels = np.zeros(grid.crop_shape, dtype=np.uint8)
        for number, score in self._on(grid):
            labels[score > best] = number
            np.maximum(best, score, out=best)
        return labels

    def confidence_on(self, grid: CubeGrid, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Share of the class of every voxel of the crop in the interpolated probabilities, 0..255: uint8 (z, y, x)."""
        own = np.zeros(grid.crop_shape, dtype=np.uint16)
        total = np.zeros(grid.crop_shape, dtype=np.uint32)
        for number, score in self._on(grid):
            total += score
            np.copyto(own, score, where=labels == number)
        return np.rint(own * (np.float32(255) / np.maximum(total, 1))).astype(np.uint8)

    def _on(self, grid: CubeGrid) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        for number in range(self._score.shape[-1]):
            yield number, grid.to_native(np.ascontiguousarray(self._score[..., number]), "linear")

    def disagreement(self, labels: NDArray[np.uint8]) -> float:
        """Share of the voxels that are not background in which the directions name different classes."""
        foreground = labels > 0
        voxels = int(np.count_nonzero(foreground))
        return float(np.count_nonzero(self._differs & foreground) / voxels) if voxels else 0.0

    def expected_iou(self, labels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """IoU of each class that the probabilities themselves foretell: float64 (classes,), NaN where nothing has it.

        A voxel of class c is shared with the truth with its probability of c; the union is what is labelled c, and of
        the rest as much as is likely to be c. The expectation of the quotient is taken as that of its parts, which is
        close where many voxels are counted. It means something only as far as the probabilities are calibrated.

        Parameters
        ----------
        labels : ndarray of uint8, shape (z, y, x)
            The class of every voxel, as it was decided.
        """
        classes = self._score.shape[-1]
        shared, likely = np.zeros(classes), np.zeros(classes)
        for section, decided in zip(self._score, labels, strict=True):
            total = np.maximum(section.sum(axis=-1, dtype=np.uint32), 1)
            likely += np.tensordot(1.0 / total, section, axes=2)
            shared += np.bincount(decided.ravel(), (_own(section, decided) / total).ravel(), classes)
        voxels = np.bincount(labels.ravel(), minlength=classes)
        return np.where(voxels > 0, shared / np.maximum(voxels + likely - shared, 1), np.nan)


def _own(section: NDArray[np.uint16], labels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.take_along_axis(section, labels[..., None].astype(np.intp), axis=-1)[..., 0]
