"""Checks of hand-made labels before a network learns from them."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.schema import Taxonomy

LARGEST_SHARE = 0.95
"""A single cell's labels lie in one piece, but for specks."""


def count_labels(labels: NDArray[np.unsignedinteger], taxonomy: Taxonomy, subject: object) -> dict[str, int]:
    """Voxels of every class that occurs, background included.

    Parameters
    ----------
    labels : ndarray of unsigned integers, shape (z, y, x)
    taxonomy : Taxonomy
    subject : object
        What an error names: the file.

    Raises
    ------
    InputError
        Where an id is not in the taxonomy, or nothing but background is labelled.
    """
    ids, counts = np.unique(labels, return_counts=True)
    unknown = [int(i) for i in ids if i >= len(taxonomy)]
    if unknown:
        listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        known = ", ".join(f"{c.id} {c.name}" for c in taxonomy.classes)
        reason = f"holds the class {'id' if len(unknown) == 1 else 'ids'} {listed}, unknown to the data set"
        raise InputError(subject, reason, f"use {known}, or a data set with another taxonomy")
    if not ids.any():
        raise InputError(subject, "labels nothing but background", "label at least one class")
    return {taxonomy.names[i]: int(count) for i, count in zip(ids, counts, strict=True)}


def check_learnable(cells: Sequence[LabelledCell], taxonomy: Taxonomy, subject: object) -> None:
    """Refuse cells from which a network cannot learn its classes, before it is trained from nothing.

    Parameters
    ----------
    cells : sequence of LabelledCell
        Those to train on and those kept for validation.
    taxonomy : Taxonomy
    subject : object
        What an error names: the data set.

    Raises
    ------
    InputError
        Where there is one cell only, or none shows one of the foreground classes. A whole field may stand alone.
    """
    if len(cells) == 1 and not cells[0].field:
        mend = "add cells, or go on from a model that knows others with --initial"
        raise InputError(subject, "holds one cell only, which does not tell what cells have in common", mend)
    shown = np.sum([np.bincount(cell.labels.ravel(), minlength=len(taxonomy)) for cell in cells], axis=0)
    absent = [c.name for c in taxonomy.foreground if not shown[c.id]]
    if absent:
        mend = "label it in some sample, or leave it out of the taxonomy"
        raise InputError(subject, f"shows no {', no '.join(absent)}, of which nothing can be learnt", mend)


def is_one_cell(labels: NDArray[np.unsignedinteger]) -> bool:
    """Whether labels look like one cell cut out with its surroundings, rather than like a field.

    What is labelled then lies in one piece (holes and specks aside) and leaves most of the crop's border free.

    Parameters
    ----------
    labels : ndarray of unsigned integers, shape (z, y, x)
        0 is what lies outside.
    """
    inside = labels > 0
    faces = [inside.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
    touched = sum(int(face.any()) for face in faces)
    if touched > 2:
        return False
    pieces = np.bincount(cc3d.connected_components(inside, connectivity=26).ravel())[1:]
    return len(pieces) > 0 and pieces.max() >= LARGEST_SHARE * pieces.sum()
