"""A small crowd of ellipsoidal cells, as the flow hands it to the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trimesh

from cmseg_core.report import ReportContext, middle_sections
from cmseg_core.schema import C_MEROLAE, Taxonomy, VoxelSize

SHAPE = (48, 150, 190)
VOXEL = VoxelSize(z=40, y=20, x=20)
CENTRES_UM = ((0.9, 0.8, 0.8), (1.0, 2.1, 1.0), (0.9, 1.4, 2.1), (1.0, 0.7, 3.2), (0.8, 2.2, 3.1))
PARTS = (
    ("cytoplasm", (0.0, 0.0, 0.0), (0.75, 0.62, 0.68)),
    ("plastid", (0.1, 0.16, -0.12), (0.5, 0.36, 0.4)),
    ("mitochondrion", (-0.1, -0.28, 0.3), (0.34, 0.13, 0.2)),
    ("peroxisome", (0.2, -0.3, -0.3), (0.11, 0.1, 0.1)),
    ("nucleus", (-0.25, -0.2, 0.0), (0.24, 0.22, 0.24)),
)
"""Class, offset from the cell's centre and half axes, all ZYX in micrometres."""


def distance(centre: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
    """Squared ellipsoidal distance of every voxel."""
    grids = np.meshgrid(*(np.arange(n) * s / 1000 for n, s in zip(SHAPE, VOXEL.zyx, strict=True)), indexing="ij")
    return sum(((g - c) / a) ** 2 for g, c, a in zip(grids, centre, axes, strict=True))


def shifted(centre: tuple[float, ...], offset: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(c + o for c, o in zip(centre, offset, strict=True))


def draw_volumes(taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, cells and organelles of the crowd."""
    random = np.random.default_rng(3)
    cells = np.zeros(SHAPE, np.uint32)
    organelles = np.zeros(SHAPE, np.uint8)
    for cell_id, centre in enumerate(CENTRES_UM, 1):
        for name, offset, axes in PARTS:
            inside = distance(shifted(centre, offset), axes) < 1
            organelles[inside] = taxonomy.id_of(name)
            if name == "cytoplasm":
                cells[inside] = cell_id
    grey = np.array((205, 165, 95, 80, 60, 135))[organelles] + random.normal(0, 14, SHAPE)
    return grey.clip(0, 255).astype(np.uint8), cells, organelles


def ellipsoid(centre: tuple[float, ...], axes: tuple[float, ...], rgba: tuple[int, ...]) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.apply_scale(axes[::-1])
    mesh.apply_translation(centre[::-1])
    material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=rgba, alphaMode="BLEND" if rgba[3] < 255 else "OPAQUE"
    )
    mesh.visual = trimesh.visual.TextureVisuals(material=material)
    return mesh


def cell_glb(centre: tuple[float, ...], taxonomy: Taxonomy) -> bytes:
    """One node a class, in micrometres, XYZ."""
    scene = trimesh.Scene()
    for name, offset, axes in PARTS:
        rgba = (*taxonomy.classes[taxonomy.id_of(name)].rgb, 80 if name == "cytoplasm" else 255)
        scene.add_geometry(ellipsoid(shifted(centre, offset), axes, rgba), node_name=name, geom_name=name)
    return scene.export(file_type="glb")


def crowd_glb() -> bytes:
    """One node ``cell_<id>`` a cell."""
    scene = trimesh.Scene()
    for cell_id, centre in enumerate(CENTRES_UM, 1):
        name = f"cell_{cell_id}"
        scene.add_geometry(ellipsoid(centre, PARTS[0][2], (200, 90, 60, 255)), node_name=name, geom_name=name)
    return scene.export(file_type="glb")


def table_row(cell_id: int, taxonomy: Taxonomy) -> dict[str, Any]:
    """A row of cells.csv."""
    row: dict[str, Any] = {
        "cell_id": cell_id,
        "touches_border": cell_id == 4,
        "volume_um3": 1.324 + cell_id / 37,
        "surface_um2": 5.9 + cell_id / 11,
        "stage": 1 + cell_id % 5,
        "stage_confidence": 0.9 - cell_id / 20,
        "review_score": round(0.61 / cell_id, 3),
        "flags": {1: "extra:nucleus;low_confidence:peroxisome", 4: "touches_border"}.get(cell_id, ""),
    }
    for c in taxonomy.foreground:
        row |= {f"{c.name}_count": 1, f"{c.name}_volume_um3": 0.4 / c.id, f"{c.name}_surface_um2": 2.2 / c.id}
        row[f"{c.name}_confidence"] = 0.95 - c.id / 40
    row["peroxisome_confidence"] = float("nan")
    return row


@pytest.fixture(scope="session")
def build_context() -> Callable[..., ReportContext]:
    """Make the context of the crowd, with any field replaced."""
    taxonomy = C_MEROLAE
    image, cells, organelles = draw_volumes(taxonomy)
    claimed = cells.copy()
    claimed[cells == 5] = 0
    crop = tuple(
        slice(int((c - 0.8) * 1000 // s), int((c + 0.8) * 1000 // s))
        for c, s in zip(CENTRES_UM[1], VOXEL.zyx, strict=True)
    )
    preview = middle_sections(VOXEL, image[crop], organelles=organelles[crop])
    values: dict[str, Any] = {
        "name": "merolae-2025-11-03",
        "shape": SHAPE,
        "voxel_size": VOXEL,
        "dtype": "uint8",
        "source": "incoming/merolae-2025-11-03/stack.tif",
        "sha256": "9f2c" * 16,
        "taxonomy": taxonomy,
        "quality": [
            {"name": "blank_sections", "figure": 0.0, "limit": 0.05, "passed": True, "detail": "0 of 48 sections"},
            {"name": "jitter_px", "figure": 4.21, "limit": 3.0, "passed": False, "detail": "largest at section 17"},
        ],
        "sections": middle_sections(VOXEL, image, foreground=cells > 0, cells=claimed, organelles=organelles),
        "cells": [table_row(i, taxonomy) for i in range(1, 6)],
        "previews": dict.fromkeys(range(1, 6), preview),
        "models": {i: cell_glb(c, taxonomy) for i, c in enumerate(CENTRES_UM, 1)},
        "crowd": crowd_glb(),
        "evaluation": {
            "cells": {
                "ap50": 0.933,
                "ap75": 0.8,
                "pq": 0.871,
                "voi_split": 0.021,
                "voi_merge": 0.034,
                "arand": 0.012,
                "count_error": 0,
            },
            "organelles": {
                "iou": {
                    "cytoplasm": 0.824,
                    "plastid": 0.943,
                    "mitochondrion": 0.766,
                    "peroxisome": None,
                    "nucleus": 0.741,
                },
                "dice": {
                    "cytoplasm": 0.904,
                    "plastid": 0.971,
                    "mitochondrion": 0.867,
                    "peroxisome": None,
                    "nucleus": 0.851,
                },
            },
        },
        "provenance": {
            "versions": {"cmseg": "0.1.0", "keras": "3.15.0", "numpy": "2.4.6"},
            "models": {"unet": {"reference": "models:/cmseg-unet@champion", "version": "7", "sha256": "ab" * 32}},
            "keys": {"foreground": "1f" * 32, "instances": "2e" * 32},
            "config": {"preset": "default", "instances": {"h_nm": 60.0}},
        },
        "quarantined_cells": {"6": "the crop is empty after resampling"},
        "warnings": ["Jitter between sections is above its limit: surfaces may look ragged along z."],
    }
    return lambda **changes: ReportContext(**{**values, **changes})
