"""One row of ``cells.csv``: what a cell and its organelles measure, and how much the row needs a look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from cmseg_core.instances.regions import CellRegion
from cmseg_core.morphology.review import has_single_copies, review_score
from cmseg_core.morphology.shape import count_objects, crofton_surface_um2, waist_ratio
from cmseg_core.morphology.stage import SINGLE_COPY, cell_cycle_stage
from cmseg_core.morphology.stage_classifier import StageClassifier
from cmseg_core.schema import OrganelleClass, Taxonomy, VoxelSize

_LOW_CONFIDENCE = 0.75
_VOLUME_MISMATCH = 0.30

_AXES = ("z", "y", "x")
_LOBES = ("larger_lobe_um3", "lesser_lobe_um3")
_CLASS_FIELDS = ("count", "volume_um3", "surface_um2", "confidence")


def column_names(taxonomy: Taxonomy) -> list[str]:
    """Columns of ``cells.csv``, in order: the same for every cell of a taxonomy."""
    names = ["cell_id", *(f"centroid_{axis}_nm" for axis in _AXES)]
    names += [f"bbox_{axis}{end}" for axis in _AXES for end in (0, 1)]
    names += ["touches_border", "volume_um3", "surface_um2", "neck_ratio", "lobe_count", *_LOBES]
    names += ["stage", "stage_confidence"]
    names += [f"{c.name}_{field}" for c in taxonomy.foreground for field in _CLASS_FIELDS]
    return [*names, "disagreement", "review_score", "flags"]


def measure_cell(
    labels: np.ndarray,
    confidence: np.ndarray,
    taxonomy: Taxonomy,
    voxel_size: VoxelSize,
    region: CellRegion,
    crop_origin: tuple[int, int, int],
    *,
    disagreement: float,
    expected_iou: Mapping[str, float | None],
    classifier: StageClassifier | None = None,
) -> dict[str, Any]:
    """Measure one segmented cell.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids in the crop of the cell.
    confidence : ndarray of uint8, shape (z, y, x)
        Probability of the chosen class, 255 for 1.
    taxonomy : Taxonomy
    voxel_size : VoxelSize
    region : CellRegion
        The cell as it was separated: its id, box and contact with the border are taken from here.
    crop_origin : tuple of int
        ZYX voxel of the field at which the crop begins.
    disagreement : float
        Fraction of the cell's voxels on which the directions of inference disagree.
    expected_iou : mapping
        Name of each foreground class to the IoU that its probabilities foretell; None where it was not found.
    classifier : StageClassifier, optional
        Tells the stage; without it, or where the taxonomy is beyond it, the rule does
        (:func:`~cmseg_core.morphology.stage.cell_cycle_stage`).

    Returns
    -------
    dict
        A value for each of :func:`column_names`. The cell's volume, surface (Crofton) and centroid are those of all
        voxels that are not background; a voxel ``i`` is centred at ``(i + 0.5) * voxel_size``. Counts leave specks
        out (:func:`~cmseg_core.morphology.shape.count_objects`), volumes do not. Confidence is the mean over the
        voxels of a class, 0 to 1, None without voxels. For ``review_score`` see
        :func:`~cmseg_core.morphology.review.review_score`.

    Notes
    -----
    ``flags`` joins with semicolons: ``touches_border``, ``missing:<class>``, ``extra:<class>``,
    ``low_confidence:<class>`` (below 0.75), ``volume_mismatch`` (the classes fill a volume that differs from the
    separated cell's by more than 30 %) and ``constricted`` (neck ratio below 0.5: perhaps two cells). Missing and extra
    are judged only where the taxonomy has the four single-copy organelles of *C. merolae*.
    """
    row: dict[str, Any] = dict.fromkeys(column_names(taxonomy))
    row.update(_place(region))
    cell = labels > 0
    if cell.any():
        centre = [float(np.mean(i)) for i in np.nonzero(cell)]
        for axis, c, start, edge in zip(_AXES, centre, crop_origin, voxel_size.zyx, strict=True):
            row[f"centroid_{axis}_nm"] = (c + start + 0.5) * edge
    row["volume_um3"] = float(np.count_nonzero(cell)) * voxel_size.volume_um3
    row["surface_um2"] = crofton_surface_um2(cell, voxel_size)
    boxes = ndimage.find_objects(labels, max_label=len(taxonomy) - 1)
    for kind, box in zip(taxonomy.foreground, boxes, strict=True):
        row.update(_measure_class(labels, confidence, kind, box, voxel_size))
    if classifier is not None and classifier.judges(taxonomy):
        row["stage"], row["stage_confidence"] = classifier.stage_of(labels, taxonomy, voxel_size)
    else:
        waist = _plastid_waist(labels, taxonomy, boxes, voxel_size)
        row["stage"], row["stage_confidence"] = cell_cycle_stage(row, plastid_waist=waist, cell_neck=region.neck_ratio)
    row["disagreement"] = disagreement
    row["review_score"] = review_score(expected_iou, taxonomy)
    row["flags"] = ";".join(_flags(row, taxonomy, region))
    return row


def unmeasured_cell(region: CellRegion, taxonomy: Taxonomy, flag: str) -> dict[str, Any]:
    """The row of a cell whose organelles could not be segmented: its place and volume, the highest review score."""
    row: dict[str, Any] = dict.fromkeys(column_names(taxonomy))
    row.update(_place(region))
    flags = ["touches_border", flag] if region.touches_border else [flag]
    return row | {
        "volume_um3": region.volume_um3,
        "stage_confidence": 0.0,
        "review_score": 1.0,
        "flags": ";".join(flags),
    }


def _place(region: CellRegion) -> dict[str, Any]:
    row: dict[str, Any] = {"cell_id": region.cell_id, "touches_border": region.touches_border}
    row |= {"neck_ratio": region.neck_ratio, "lobe_count": len(region.lobes_um3)}
    row |= dict(zip(_LOBES, region.lobes_um3, strict=False))
    for axis, centre, (start, stop) in zip(_AXES, region.centroid_nm, region.box, strict=True):
        row |= {f"centroid_{axis}_nm": centre, f"bbox_{axis}0": start, f"bbox_{axis}1": stop}
    return row


def _measure_class(
    labels: np.ndarray, confidence: np.ndarray, kind: OrganelleClass, box: tuple | None, voxel_size: VoxelSize
) -> dict[str, Any]:
    if box is None:
        values: tuple[Any, ...] = (0, 0.0, 0.0, None)
    else:
        mask = labels[box] == kind.id
        values = (
            count_objects(mask, voxel_size),
            float(np.count_nonzero(mask)) * voxel_size.volume_um3,
            crofton_surface_um2(mask, voxel_size),
            float(confidence[box][mask].mean()) / 255,
        )
    return {f"{kind.name}_{field}": value for field, value in zip(_CLASS_FIELDS, values, strict=True)}


def _plastid_waist(labels: np.ndarray, taxonomy: Taxonomy, boxes: list, voxel_size: VoxelSize) -> float | None:
    if "plastid" not in taxonomy.names or boxes[taxonomy.id_of("plastid") - 1] is None:
        return None
    number = taxonomy.id_of("plastid")
    return waist_ratio(labels[boxes[number - 1]] == number, voxel_size)


def _wrong_counts(row: dict[str, Any], taxonomy: Taxonomy) -> list[str]:
    if not has_single_copies(taxonomy):
        return []
    counts = {name: row[f"{name}_count"] for name in SINGLE_COPY}
    return [f"{'missing' if n == 0 else 'extra'}:{name}" for name, n in counts.items() if n not in (1, 2)]


def _flags(row: dict[str, Any], taxonomy: Taxonomy, region: CellRegion) -> list[str]:
    flags = ["touches_border"] if region.touches_border else []
    flags += _wrong_counts(row, taxonomy)
    for kind in taxonomy.foreground:
        sure = row[f"{kind.name}_confidence"]
        if sure is not None and sure < _LOW_CONFIDENCE:
            flags.append(f"low_confidence:{kind.name}")
    if abs(row["volume_um3"] - region.volume_um3) > _VOLUME_MISMATCH * region.volume_um3:
        flags.append("volume_mismatch")
    if region.neck_ratio < 0.5:
        flags.append("constricted")
    return flags
