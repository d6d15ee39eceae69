"""A toy cell: balls of distinct greys in a ball."""

from __future__ import annotations

import numpy as np

from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.schema import OrganelleClass, Taxonomy, VoxelSize

TAXONOMY = Taxonomy(
    classes=tuple(OrganelleClass(id=i, name=n) for i, n in enumerate(("outside", "cell", "big", "small")))
)
GREYS = (190, 140, 60, 230)
VOXEL = VoxelSize(z=20, y=20, x=20)


def toy_cell(seed: int, edge: int = 32, noise: float = 8.0) -> LabelledCell:
    """A cell of three classes in a cube; the places of its organelles depend on `seed`."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(edge) - (edge - 1) / 2] * 3, indexing="ij"))

    def ball(centre: np.ndarray, radius: float) -> np.ndarray:
        return ((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < (radius * edge) ** 2

    labels = ball(np.zeros(3), 0.42).astype(np.uint8)
    for label, radius, way in ((2, 0.2, 1), (3, 0.12, -1)):
        labels[ball(way * np.array([0.18, 0.05, 0.08])[rng.permutation(3)] * edge, radius) & (labels > 0)] = label
    image = np.array(GREYS)[labels] + rng.normal(0, noise, labels.shape)
    return LabelledCell(np.clip(image, 0, 255).astype(np.uint8), labels, VOXEL, name=f"toy{seed}")
