"""A volume as blocks that are worked on one at a time, each with a halo of its surroundings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cmseg_core.preprocess.resample import Grid

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Block:
    """A box of a volume.

    Attributes
    ----------
    start, stop : tuple of int
        Half-open ranges along z, y, x.
    shape : tuple of int
        Of the whole volume.
    """

    start: Grid
    stop: Grid
    shape: Grid

    @property
    def name(self) -> str:
        """Its two corners."""
        return "_".join("-".join(map(str, corner)) for corner in (self.start, self.stop))

    @property
    def box(self) -> Slices:
        """Where it lies in the volume."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grown(self, before: Grid, after: Grid | None = None) -> Block:
        """With so many voxels more on every side, cut at the border of the volume."""
        start = tuple(max(0, a - n) for a, n in zip(self.start, before, strict=True))
        stop = tuple(min(n, b + m) for n, b, m in zip(self.shape, self.stop, after or before, strict=True))
        return Block((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]), self.shape)

    def within(self, other: Block) -> Slices:
        """Where it lies in a block that holds it."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, other.start, strict=True))
        return z, y, x


def whole(shape: Grid) -> Block:
    """The volume as one block."""
    return Block((0, 0, 0), shape, shape)


def blocks(shape: Grid, edge: int) -> list[Block]:
    """Blocks of `edge` voxels a side that cover a volume, in the order z, y, x; those at the far ends are smaller."""
    starts = itertools.product(*(range(0, n, edge) for n in shape))
    return [Block((z, y, x), (z, y, x), shape).grown((0, 0, 0), (edge, edge, edge)) for z, y, x in starts]
