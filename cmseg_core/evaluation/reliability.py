"""Whether a stated confidence is the share of right answers."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
BINS = 15


class Reliability:
    """Counts of right and wrong voxels by their confidence, 0..255; add volumes in any number of parts."""

    def __init__(self) -> None:
        self.right = np.zeros(LEVELS, dtype=np.int64)
        self.all = np.zeros(LEVELS, dtype=np.int64)

    def add(self, confidence: NDArray[np.uint8], correct: NDArray[np.bool_]) -> Self:
        """Count voxels: their confidence and whether their class is right, equal shapes."""
        self.all += np.bincount(confidence.ravel(), minlength=LEVELS)
        self.right += np.bincount(confidence[correct].ravel(), minlength=LEVELS)
        return self

    def merge(self, other: Reliability) -> Self:
        """Add the counts of other voxels."""
        self.right += other.right
        self.all += other.all
        return self

    def curve(self) -> list[tuple[float, float, int]]:
        """Mean confidence, share of right voxels, and number of voxels of each bin of equal width that has some."""
        bins = np.minimum(np.arange(LEVELS) * BINS // LEVELS, BINS - 1)
        voxels = np.bincount(bins, self.all, BINS)
        stated = np.bincount(bins, self.all * np.arange(LEVELS) / (LEVELS - 1), BINS)
        right = np.bincount(bins, self.right, BINS)
        return [(float(s / n), float(r / n), int(n)) for n, s, r in zip(voxels, stated, right, strict=True) if n]

    def error(self) -> float | None:
        """Expected calibration error (15 bins of equal width); None without a voxel.

        References
        ----------
        .. [1] Guo et al., "On calibration of modern neural networks", 2017.
        """
        total = int(self.all.sum())
        if not total:
            return None
        return sum(n * abs(stated - right) for stated, right, n in self.curve()) / total
