"""One picture of a labelled data set: every class where it is largest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from cmseg_core.report.context import SectionView
from cmseg_core.report.figures import draw_organelles, draw_raw
from cmseg_core.schema import Taxonomy, VoxelSize

_SIDE = 220
_TITLE = 26
_INK = (235, 235, 235)


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """Grey values and class ids of one shape (z, y, x), both uint8."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    voxel_size: VoxelSize


def draw_classes(volumes: Iterable[LabelledVolume], taxonomy: Taxonomy, samples: int = 3) -> np.ndarray:
    """Draw each class in the samples that show most of it: a section bare, and the same with its labels.

    Parameters
    ----------
    volumes : iterable of LabelledVolume
        Seen once, one at a time.
    taxonomy : Taxonomy
    samples : int
        Pairs of pictures a class.

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 3)
        One row of pictures for every foreground class; a class that never occurs has an empty one.
    """
    best: dict[int, list[tuple[int, SectionView]]] = {c.id: [] for c in taxonomy.foreground}
    for volume in volumes:
        for c in taxonomy.foreground:
            areas = np.count_nonzero(volume.labels == c.id, axis=(1, 2))
            z = int(areas.argmax())
            if areas[z]:
                best[c.id].append((int(areas[z]), _view(volume, z)))
                best[c.id] = sorted(best[c.id], key=lambda entry: -entry[0])[:samples]
    rows = [_row(f"{c.id} {c.name}", [view for _, view in best[c.id]], taxonomy, samples) for c in taxonomy.foreground]
    return np.concatenate(rows)


def _view(volume: LabelledVolume, z: int) -> SectionView:
    size = volume.voxel_size
    return SectionView(
        direction="z",
        position=z,
        raw=np.ascontiguousarray(volume.image[z]),
        pixel_nm=(size.y, size.x),
        organelles=np.ascontiguousarray(volume.labels[z]),
    )


def _row(title: str, views: list[SectionView], taxonomy: Taxonomy, samples: int) -> np.ndarray:
    row = np.zeros((_SIDE + _TITLE, 2 * samples * _SIDE, 3), dtype=np.uint8)
    for place, view in enumerate(views):
        for side, picture in enumerate((draw_raw(view, _SIDE), draw_organelles(view, taxonomy, _SIDE))):
            left = (2 * place + side) * _SIDE
            row[_TITLE : _TITLE + picture.shape[0], left : left + picture.shape[1]] = picture
    text = title if views else f"{title}: in no sample"
    cv2.putText(row, text, (8, _TITLE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.55, _INK, 1, cv2.LINE_AA)
    return row
