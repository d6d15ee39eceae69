"""The packaged model asks for a look at the cells whose images were spoilt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from cmseg_core.morphology.review import review_score
from cmseg_core.organelles.cutting import cut_cells
from cmseg_core.organelles.inference import label_cell
from cmseg_core.organelles.model import load_model
from cmseg_core.phantom import draw_field
from cmseg_core.preprocess.median import median_3x3x3
from cmseg_core.schema import OrganellesConfig, PreprocessConfig, VoxelSize
from cmseg_core.tracking.registry import packaged_model

VOXEL = VoxelSize(z=40, y=30, x=30)


def noisy(image: np.ndarray) -> np.ndarray:
    return np.clip(image + np.random.default_rng(0).normal(0, 80, image.shape), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, 4)


def faded(image: np.ndarray) -> np.ndarray:
    """Contrast as good as gone."""
    return (110 + 0.1 * (image.astype(float) - 110)).astype(np.uint8)


def test_spoilt_cells_come_first() -> None:
    model = load_model(packaged_model("unet"))
    field = draw_field(7201, cells=4, voxel_size=VOXEL)
    image, ids, organelles = field.render(0, field.shape[0])
    whole = cut_cells(median_3x3x3(image), ids, organelles, VOXEL)[:3]
    spoilt = [replace(c, image=spoil(c.image)) for c, spoil in zip(whole, (noisy, blurred, faded), strict=True)]
    wrong, score = [], []
    for cell in (*whole, *spoilt):
        found = label_cell(cell, model, OrganellesConfig(directions=1), PreprocessConfig())
        wrong.append(float((found.labels != cell.labels)[(found.labels > 0) | (cell.labels > 0)].mean()))
        score.append(review_score(found.expected_iou, model.taxonomy))
    assert max(wrong[:3]) < min(wrong[3:]), "the images were not spoilt"
    assert max(score[:3]) < min(score[3:])
