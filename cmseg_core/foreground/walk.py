"""Cells from section to section.

With the setting ``prompts: grid`` every section is a key section. With ``propagated`` the masks of one section are the
prompts for the next. Key sections are asked everywhere, at the points of a grid. They lie so close that nothing as
large as the smallest cell fits between two of them. From each the masks are carried on, section by section: every cell
is asked for where it was, and where what comes back disagrees with that, at all points of the grid there. Cells that
begin between two key sections are then carried back from the second one to where they begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import edt
import numpy as np
from numpy.typing import NDArray

from cmseg_core.foreground.generator import MaskGenerator, Prompts, Section, point_grid
from cmseg_core.foreground.masks import Masks
from cmseg_core.foreground.rules import cell_masks
from cmseg_core.foreground.runs import key_stride
from cmseg_core.foreground.sam import as_colours

AGREE = 0.6
"""IoU of a cell with itself in the next section below which it is asked for anew."""
SAME = 0.3
"""IoU below which two masks of neighbouring sections are of different cells."""


class Walk:
    """Finds the cells in the sections along the first axis of a volume.

    Parameters
    ----------
    generator : MaskGenerator
    volume : ndarray of uint8, shape (n, rows, columns)
        On the working grid.
    """

    def __init__(self, generator: MaskGenerator, volume: NDArray[np.uint8]) -> None:
        self.generator, self.volume, self.config = generator, volume, generator.config
        self.grid = point_grid((volume.shape[1], volume.shape[2]), generator.edge / self.config.points_per_side)
        self.stride = key_stride(self.config)
        self.boxes = generator.sam.knows_boxes

    def masks(self, start: int = 0, stop: int | None = None) -> Iterator[Masks]:
        """The cells of the sections from `start`, which is asked everywhere, up to, not including, `stop`, in order.

        Where cells are propagated, the section `stop` is looked at too if there is one, for it is the next key section.
        """
        stop = len(self.volume) if stop is None else stop
        last = stop - 1 if self.stride == 1 else min(stop, len(self.volume) - 1)
        return islice(self._walked(start, last), stop - start)

    def _walked(self, start: int, last: int) -> Iterator[Masks]:
        keys = [*range(start, last, self.stride), last]
        first = self._everywhere(*self._look([start]))
        yield first
        for start, stop in zip(keys, keys[1:], strict=False):
            sections = self._look(range(start + 1, stop + 1))
            found = [first]
            for section in sections[:-1]:
                found.append(self._carried(section, found[-1]))
            found.append(self._everywhere(sections[-1]))
            for number in range(len(found) - 2, 0, -1):
                begun = _without_counterpart(found[number + 1], found[number])
                if len(begun):
                    found[number] = self._joined(found[number], self._again(sections[number - 1], begun))
            yield from found[1:]
            first = found[-1]

    def _look(self, numbers: Sequence[int]) -> list[Section]:
        context = self.generator.sam.context
        return self.generator.look([as_colours(self.volume, number, context) for number in numbers])

    def _everywhere(self, section: Section) -> Masks:
        """Cells of a key section."""
        return cell_masks(self.generator.ask(section, Prompts.at(self.grid)), self.config)

    def _carried(self, section: Section, before: Masks) -> Masks:
        """Cells of a section from those of the one before."""
        if not len(before):
            return before
        found = self.generator.ask(section, _prompts(before, self.boxes))
        lost = before.take(np.flatnonzero(before.overlap(found).max(axis=1, initial=0.0) < AGREE))
        if len(lost):
            there = self.grid[_inside(self.grid, lost.covered())]
            return self._joined(found, self.generator.ask(section, Prompts.at(there)))
        return cell_masks(found, self.config)

    def _again(self, section: Section, after: Masks) -> Masks:
        """Those cells of the section after that are seen in this one too."""
        found = self.generator.ask(section, _prompts(after, self.boxes))
        return found.take(np.flatnonzero(found.overlap(after).max(axis=1, initial=0.0) >= SAME))

    def _joined(self, masks: Masks, more: Masks) -> Masks:
        return cell_masks(masks.and_those(more).distinct(self.config.box_nms_thresh), self.config)


def _prompts(masks: Masks, boxes: bool) -> Prompts:
    """The innermost point of every mask, and its box where the model knows boxes."""
    points = []
    for (top, left, _, _), crop in zip(masks.boxes, masks.crops, strict=True):
        depth = edt.edt(crop > 0, black_border=True, parallel=1)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        points.append((left + column + 0.5, top + row + 0.5))
    corners = masks.boxes[:, [1, 0, 1, 0]] + np.pad(masks.boxes[:, [3, 2]], ((0, 0), (2, 0)))
    return Prompts(np.array(points).reshape(-1, 2), corners.astype(np.float64) if boxes else np.zeros((0, 4)))


def _without_counterpart(masks: Masks, others: Masks) -> Masks:
    return masks.take(np.flatnonzero(masks.overlap(others).max(axis=1, initial=0.0) < SAME))


def _inside(points: NDArray[np.float64], area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points (x, y) lie in an area."""
    x, y = points.astype(np.int64).T
    return area[y, x]
