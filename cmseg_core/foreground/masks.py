"""Masks of a section, each as the box round it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Masks:
    """Candidates of one section.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the section.
    boxes : ndarray of int64, shape (n, 4)
        First row, first column, rows, columns.
    crops : tuple of ndarray of float32, shape (rows, columns)
        Logits in the boxes, above 0 inside a mask; outside its box a mask has no pixel.
    quality : ndarray of float32, shape (n,)
        IoU that the model predicts of each mask.
    """

    shape: tuple[int, int]
    boxes: NDArray[np.int64]
    crops: tuple[NDArray[np.float32], ...]
    quality: NDArray[np.float32]

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Self:
        """No mask at all."""
        return cls(shape, np.zeros((0, 4), np.int64), (), np.zeros(0, np.float32))

    @classmethod
    def of(cls, logits: NDArray[np.float32], quality: NDArray[np.float32]) -> Self:
        """From logits (n, rows, columns); masks without a pixel are left out."""
        shape = (logits.shape[1], logits.shape[2])
        boxes = boxes_of(logits > 0)
        seen = np.flatnonzero(boxes[:, 2] > 0)
        crops = tuple(logits[i][_window(boxes[i])].copy() for i in seen)
        return cls(shape, boxes[seen], crops, quality[seen].astype(np.float32))

    def __len__(self) -> int:
        return len(self.quality)

    def take(self, chosen: Sequence[int] | NDArray[np.integer]) -> Masks:
        """Some of the masks."""
        numbers = np.asarray(chosen, dtype=np.int64)
        return Masks(self.shape, self.boxes[numbers], tuple(self.crops[i] for i in numbers), self.quality[numbers])

    def moved(self, top: int, left: int, shape: tuple[int, int]) -> Masks:
        """The masks of a tile as those of the section it was cut from."""
        return Masks(shape, self.boxes + np.array([top, left, 0, 0]), self.crops, self.quality)

    def and_those(self, others: Masks) -> Masks:
        """These masks and then the others, of the same section."""
        boxes = np.concatenate([self.boxes, others.boxes])
        return Masks(self.shape, boxes, self.crops + others.crops, np.concatenate([self.quality, others.quality]))

    def areas(self) -> NDArray[np.int64]:
        """Pixels of each mask."""
        return np.array([np.count_nonzero(crop > 0) for crop in self.crops], np.int64)

    def shared(self, others: Masks) -> NDArray[np.int64]:
        """Pixels that each of these masks shares with each of the others."""
        table = np.zeros((len(self), len(others)), np.int64)
        if not len(self) or not len(others):
            return table
        mine, theirs = self.boxes[:, None], others.boxes[None]
        first = np.maximum(mine[..., :2], theirs[..., :2])
        last = np.minimum(mine[..., :2] + mine[..., 2:], theirs[..., :2] + theirs[..., 2:])
        for i, j in zip(*np.nonzero((first < last).all(axis=-1)), strict=True):
            parts = []
            for masks, number in ((self, i), (others, j)):
                top, left = first[i, j] - masks.boxes[number, :2]
                bottom, right = last[i, j] - masks.boxes[number, :2]
                parts.append(masks.crops[number][top:bottom, left:right] > 0)
            table[i, j] = np.count_nonzero(parts[0] & parts[1])
        return table

    def overlap(self, others: Masks) -> NDArray[np.float64]:
        """IoU of each of these masks with each of the others."""
        shared = self.shared(others)
        return shared / np.maximum(self.areas()[:, None] + others.areas()[None] - shared, 1)

    def distinct(self, threshold: float) -> Masks:
        """The best of every group of masks whose boxes overlap (IoU) by more than a threshold; the best first."""
        return self.take(distinct_boxes(self.boxes, self.quality, threshold))

    def covered(self) -> NDArray[np.bool_]:
        """Pixels that lie in any mask: bool (rows, columns)."""
        out = np.zeros(self.shape, np.bool_)
        for box, crop in zip(self.boxes, self.crops, strict=True):
            out[_window(box)] |= crop > 0
        return out

    def flat(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The highest logit at every pixel (-inf outside all boxes), and the number of the mask that claims it, from 1;
        0 where none does."""
        best, owner = np.full(self.shape, -np.inf, np.float32), np.zeros(self.shape, np.int32)
        for number, (box, crop) in enumerate(zip(self.boxes, self.crops, strict=True), 1):
            window = _window(box)
            higher = crop > best[window]
            best[window][higher] = crop[higher]
            owner[window][higher & (crop > 0)] = number
        return best, owner


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Boxes (first row, first column, rows, columns) of masks (n, rows, columns); all 0 where there is no pixel."""
    boxes = np.zeros((len(masks), 4), np.int64)
    for axis in range(2):
        lines = np.any(masks, axis=2 - axis)
        first, after = np.argmax(lines, axis=1), lines.shape[-1] - np.argmax(lines[..., ::-1], axis=1)
        boxes[:, axis], boxes[:, axis + 2] = first, np.where(np.any(lines, axis=1), after - first, 0)
    return boxes


def distinct_boxes(boxes: NDArray[np.int64], quality: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Numbers of the boxes that survive non-maximum suppression, best first."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), quality.tolist(), 0.0, threshold)
    return np.asarray(kept, dtype=np.int64).ravel()


def _window(box: NDArray[np.int64]) -> tuple[slice, slice]:
    top, left, height, width = box
    return slice(top, top + height), slice(left, left + width)
