"""Scores of a model on labelled cells: per class, per stage, per direction, pooled and per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmseg_core.evaluation.bootstrap import interval, pooled_iou, resampled_iou
from cmseg_core.evaluation.overlap import ClassCounts, mean_and_sd
from cmseg_core.evaluation.reliability import Reliability
from cmseg_core.evaluation.risk import aurc, worst_found
from cmseg_core.evaluation.surfaces import SurfaceDistance, surface_distance
from cmseg_core.morphology.shape import count_objects
from cmseg_core.schema import STAGES, Stage, Taxonomy, VoxelSize

DIRECTIONS = ("z", "y", "x")


@dataclass(frozen=True, eq=False)
class CellRecord:
    """What remains of one scored cell.

    Attributes
    ----------
    name : str
    stage : int, optional
    table : ndarray of int64, shape (classes, classes)
        Voxels by true class (rows) and found class (columns), from all directions.
    single : tuple of ndarray
        The same from the sections across z, y and x alone; all 0 for an axis across which none were cut.
    surfaces : dict
        Class name to surface distance; None where truth or result lack the class.
    volumes_um3, counts : dict
        Class name to the true and the found figure.
    calibrated, uncalibrated : Reliability
        Of the voxels that truth or result call foreground.
    review_score : float
        How much the cell needs a look, judged without the truth.
    """

    name: str
    stage: Stage | None
    table: NDArray[np.int64]
    single: tuple[NDArray[np.int64], ...]
    surfaces: dict[str, SurfaceDistance | None]
    volumes_um3: dict[str, tuple[float, float]]
    counts: dict[str, tuple[int, int]]
    calibrated: Reliability
    uncalibrated: Reliability
    review_score: float

    @property
    def mean_iou(self) -> float:
        """Over the foreground classes that truth or result hold; 0 where there is none."""
        known = pooled_iou(self.table)[1:]
        return float(np.nanmean(known)) if not np.isnan(known).all() else 0.0


class Answer(Protocol):
    """Labels and confidence (0..255) of one way to label a cell: uint8 (z, y, x) both."""

    @property
    def labels(self) -> NDArray[np.uint8]: ...

    @property
    def confidence(self) -> NDArray[np.uint8]: ...


def score_cell(
    truth: NDArray[np.uint8],
    fused: Answer,
    single: Sequence[Answer | None],
    uncalibrated: Answer,
    taxonomy: Taxonomy,
    voxel_size: VoxelSize,
    *,
    name: str,
    stage: Stage | None,
    review_score: float,
) -> CellRecord:
    """Score what a model made of one labelled cell.

    Parameters
    ----------
    truth : ndarray of uint8, shape (z, y, x)
    fused, uncalibrated : Answer
        From all directions, with and without the model's temperature.
    single : sequence of Answer or None
        From each direction alone; None for one that was not taken.
    taxonomy : Taxonomy
    voxel_size : VoxelSize
    name : str
    stage : int, optional
    review_score : float
    """
    alone = [ClassCounts(taxonomy) if one is None else ClassCounts(taxonomy).add(truth, one.labels) for one in single]
    masks = {c.name: (truth == c.id, fused.labels == c.id) for c in taxonomy.foreground}
    volume = voxel_size.volume_um3
    return CellRecord(
        name=name,
        stage=stage,
        table=ClassCounts(taxonomy).add(truth, fused.labels).table,
        single=tuple(counts.table for counts in alone),
        surfaces={n: surface_distance(*pair, voxel_size) for n, pair in masks.items()},
        volumes_um3={n: (t.sum() * volume, f.sum() * volume) for n, (t, f) in masks.items()},
        counts={n: (count_objects(t, voxel_size), count_objects(f, voxel_size)) for n, (t, f) in masks.items()},
        calibrated=_reliability(truth, fused),
        uncalibrated=_reliability(truth, uncalibrated),
        review_score=review_score,
    )


def summarise(records: Sequence[CellRecord], taxonomy: Taxonomy) -> dict[str, Any]:
    """All scores of a model as JSON values; None where something is undefined.

    Parameters
    ----------
    records : sequence of CellRecord
    taxonomy : Taxonomy

    Returns
    -------
    dict
        ``iou`` and ``dice`` by class, pooled over all cells, and ``mean_iou`` of the foreground; ``intervals`` of the
        IoU (95 %, bootstrap over cells); ``per_stage``, with ``stage_intervals`` and ``per_stage_one`` of one
        direction; ``directions`` with ``one`` (across z, as the paper's single direction), ``three`` and each of
        ``z``, ``y``, ``x``; ``fusion`` with the ``best`` single direction of each foreground class, the ``gain`` of
        all three over it, and the classes ``lost`` to it; ``per_cell`` with mean and standard deviation of the IoU,
        HD95 and mean surface distance in nm, the found over the true volume and the share of right counts;
        ``calibration``; ``review``, which says how well the review score finds what went wrong; ``cells`` with the
        IoU and the review score of each.
    """
    names = taxonomy.names
    iou = _pooled([record.table for record in records], names)
    counts = ClassCounts(taxonomy)
    for record in records:
        counts.table += record.table
    by_stage = {str(stage): [r for r in records if r.stage == stage] for stage in STAGES}
    by_stage = {stage: group for stage, group in by_stage.items() if group}
    single = [_pooled([r.single[axis] for r in records], names) for axis in range(3)]
    return {
        "iou": iou,
        "dice": counts.dice(),
        "mean_iou": _mean([iou[c.name] for c in taxonomy.foreground]),
        "intervals": _intervals(records, names),
        "per_stage": {stage: _pooled([r.table for r in group], names) for stage, group in by_stage.items()},
        "per_stage_one": {stage: _pooled([r.single[0] for r in group], names) for stage, group in by_stage.items()},
        "stage_intervals": {stage: _intervals(group, names) for stage, group in by_stage.items()},
        "directions": {"one": single[0], "three": iou, **dict(zip(DIRECTIONS, single, strict=True))},
        "fusion": _fusion(iou, dict(zip(DIRECTIONS, single, strict=True)), taxonomy),
        "per_cell": _per_cell(records, taxonomy),
        "calibration": _calibration(records),
        "review": _review(records),
        "cells": [
            {
                "name": r.name,
                "stage": r.stage,
                "iou": _named(pooled_iou(r.table), names),
                "review_score": r.review_score,
            }
            for r in records
        ],
    }


def _fusion(
    fused: dict[str, float | None], single: dict[str, dict[str, float | None]], taxonomy: Taxonomy
) -> dict[str, Any]:
    """What fusing gains over the best single direction of each class; None where fewer than two have a score."""
    best: dict[str, str | None] = {}
    gain: dict[str, float | None] = {}
    for name in (c.name for c in taxonomy.foreground):
        alone = {way: iou for way in single if (iou := single[way][name]) is not None}
        whole = fused[name]
        best[name] = max(alone, key=alone.__getitem__) if len(alone) > 1 else None
        gain[name] = None if whole is None or (way := best[name]) is None else whole - alone[way]
    return {
        "best": best,
        "gain": gain,
        "lost": [name for name, value in gain.items() if value is not None and value < 0],
    }


def _per_cell(records: Sequence[CellRecord], taxonomy: Taxonomy) -> dict[str, dict[str, Any]]:
    ious = mean_and_sd([_named(pooled_iou(r.table), taxonomy.names) for r in records], taxonomy)
    out: dict[str, dict[str, Any]] = {}
    for c in taxonomy.foreground:
        surfaces = [s for r in records if (s := r.surfaces[c.name]) is not None]
        volumes = [(t, f) for r in records if (t := r.volumes_um3[c.name][0]) > 0 for f in [r.volumes_um3[c.name][1]]]
        counted = [r.counts[c.name] for r in records]
        known = ious[c.name]
        out[c.name] = {
            "iou_mean": None if known is None else known[0],
            "iou_sd": None if known is None else known[1],
            "hd95_nm": _mean([s.hd95_nm for s in surfaces]),
            "assd_nm": _mean([s.assd_nm for s in surfaces]),
            "volume_ratio": _mean([f / t for t, f in volumes]),
            "right_counts": _mean([float(t == f) for t, f in counted]),
        }
    return out


def _calibration(records: Sequence[CellRecord]) -> dict[str, Any]:
    before, after = Reliability(), Reliability()
    for record in records:
        before.merge(record.uncalibrated)
        after.merge(record.calibrated)
    curve = [{"confidence": stated, "right": right, "voxels": n} for stated, right, n in after.curve()]
    return {"error_before": before.error(), "error_after": after.error(), "curve": curve}


def _review(records: Sequence[CellRecord]) -> dict[str, float]:
    risk = np.array([1 - record.mean_iou for record in records])
    score = np.array([record.review_score for record in records])
    return {
        "aurc": aurc(risk, score),
        "aurc_random": float(risk.mean()),
        "worst_fifth_found": worst_found(risk, score),
    }


def _reliability(truth: NDArray[np.uint8], answer: Answer) -> Reliability:
    foreground = (truth > 0) | (answer.labels > 0)
    return Reliability().add(answer.confidence[foreground], (answer.labels == truth)[foreground])


def _intervals(records: Sequence[CellRecord], names: Sequence[str]) -> dict[str, list[float] | None]:
    drawn = resampled_iou(np.stack([record.table for record in records]))
    found = {name: interval(drawn[:, i]) for i, name in enumerate(names)}
    return {name: None if ends is None else list(ends) for name, ends in found.items()}


def _pooled(tables: Sequence[NDArray[np.int64]], names: Sequence[str]) -> dict[str, float | None]:
    return _named(pooled_iou(np.sum(tables, axis=0)), names)


def _named(values: NDArray[np.float64], names: Sequence[str]) -> dict[str, float | None]:
    return {name: None if np.isnan(v) else float(v) for name, v in zip(names, values, strict=True)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
