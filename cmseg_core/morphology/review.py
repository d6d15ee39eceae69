"""How much a segmented cell needs a look."""

from __future__ import annotations

from collections.abc import Mapping

from cmseg_core.morphology.stage import SINGLE_COPY
from cmseg_core.schema import Taxonomy


def has_single_copies(taxonomy: Taxonomy) -> bool:
    """Whether the taxonomy has all organelles of which every *C. merolae* cell holds one or two."""
    return set(SINGLE_COPY) <= set(taxonomy.names)


def review_score(expected_iou: Mapping[str, float | None], taxonomy: Taxonomy) -> float:
    """One minus the mean IoU that the probabilities foretell of the classes of a cell.

    Parameters
    ----------
    expected_iou : mapping
        Name of each foreground class to its expected IoU, None where it was not found
        (:meth:`~cmseg_core.organelles.fusion.FusedProbabilities.expected_iou`).
    taxonomy : Taxonomy

    Returns
    -------
    float
        0 for a cell that needs no look, up to 1. A class that was not found is left out, since a cell may lack it;
        but one that no *C. merolae* cell lacks counts as missed. 1 where nothing was found.
    """
    found = {name: value for name, value in expected_iou.items() if value is not None}
    if not found:
        return 1.0
    missed = [name for name in SINGLE_COPY if name not in found] if has_single_copies(taxonomy) else []
    return 1 - sum(found.values()) / (len(found) + len(missed))
