"""Surfaces of cells and organelles as binary glTF (GLB).

Coordinates are micrometres in the order X, Y, Z (glTF itself speaks of metres), in the frame of the field: voxel ``i``
is centred at ``(i + 0.5) * voxel_size``. Faces wind outwards. The same input gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import fast_simplification
import numpy as np
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from cmseg_core.morphology.manifold import make_manifold
from cmseg_core.schema import MeshConfig, Taxonomy, VoxelSize

OUTLINE_CLASS = "cytoplasm"
"""The class that fills the cell round its organelles: drawn as the outline of the whole cell, see-through."""
_OUTLINE_ALPHA = 0.15
_TAUBIN_SHRINK, _TAUBIN_GROW = 0.5, 0.53
"""Alternate steps of Taubin's filter; the slight surplus of the second keeps the volume."""
_CROWD_FACES = 1500
_ROOM_FOR_REPAIR = 0.99
"""Share of the allowed faces that simplification may use: mending an edge adds four."""


def cell_scene(
    labels: np.ndarray,
    taxonomy: Taxonomy,
    voxel_size: VoxelSize,
    origin_zyx: tuple[int, int, int],
    config: MeshConfig,
) -> bytes:
    """The surfaces of one cell.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids in the crop of the cell.
    taxonomy : Taxonomy
        Each class with voxels becomes one node with the class's name and colour. The node ``cytoplasm`` is the outline
        of the whole cell, at an opacity of 0.15.
    voxel_size : VoxelSize
    origin_zyx : tuple of int
        Voxel of the field at which the crop begins.
    config : MeshConfig

    Returns
    -------
    bytes
        A GLB file; without nodes where the crop holds no class.
    """
    scene = trimesh.Scene()
    for kind in taxonomy.foreground:
        outline = kind.name == OUTLINE_CLASS
        mask = labels > 0 if outline else labels == kind.id
        mesh = surface(mask, voxel_size, origin_zyx, config)
        if mesh is not None:
            _add(scene, mesh, kind.name, np.array(kind.rgb), _OUTLINE_ALPHA if outline else 1.0)
    return _to_glb(scene)


def crowd_scene(labels_small: np.ndarray, voxel_size: VoxelSize, colours: np.ndarray) -> bytes:
    """The surfaces of all cells of a field.

    Parameters
    ----------
    labels_small : ndarray of unsigned integers, shape (z, y, x)
        Cell ids on a reduced grid; 0 outside.
    voxel_size : VoxelSize
        Of the reduced grid.
    colours : ndarray of uint8, shape (n, 3)
        From :func:`~cmseg_core.morphology.colours.cell_colours`; cell ``i`` has row ``(i - 1) % n``.

    Returns
    -------
    bytes
        A GLB file with one node ``cell_<id>`` a cell; without nodes for an empty field.
    """
    scene = trimesh.Scene()
    config = MeshConfig(max_faces=_CROWD_FACES)
    for cell_id, box in enumerate(ndimage.find_objects(labels_small.astype(np.int32)), start=1):
        if box is None:
            continue
        origin = tuple(span.start for span in box)
        mesh = surface(labels_small[box] == cell_id, voxel_size, origin, config)
        if mesh is not None:
            _add(scene, mesh, f"cell_{cell_id}", colours[(cell_id - 1) % len(colours)], 1.0)
    return _to_glb(scene)


def surface(
    mask: np.ndarray, voxel_size: VoxelSize, origin_zyx: tuple[int, int, int], config: MeshConfig
) -> trimesh.Trimesh | None:
    """The closed surface of a mask: marching cubes, Taubin smoothing, simplification.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    voxel_size : VoxelSize
    origin_zyx : tuple of int
        Voxel of the field at which the mask begins.
    config : MeshConfig

    Returns
    -------
    trimesh.Trimesh or None
        In micrometres, XYZ; closed where the crop cuts the mask. None for an empty mask.
    """
    boxes = ndimage.find_objects(mask.view(np.uint8) if mask.dtype == bool else mask.astype(np.uint8))
    if not boxes:
        return None
    padded = np.pad(mask[boxes[0]], 1).astype(np.uint8)
    vertices, faces, _, _ = marching_cubes(padded, 0.5)
    # Padding moved the box by one voxel; centres lie half a voxel beyond the index.
    start = np.array(origin_zyx) + [span.start for span in boxes[0]] - 0.5
    vertices = ((vertices + start) * (np.array(voxel_size.zyx) * 1e-3))[:, ::-1]
    mesh = trimesh.Trimesh(np.ascontiguousarray(vertices), faces, process=False)
    if config.smoothing_iterations:
        trimesh.smoothing.filter_taubin(
            mesh, lamb=_TAUBIN_SHRINK, nu=_TAUBIN_GROW, iterations=config.smoothing_iterations
        )
    return _simplify(mesh, config.max_faces)


def _simplify(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    if len(mesh.faces) <= max_faces:
        return mesh
    reduced = fast_simplification.simplify(
        np.asarray(mesh.vertices, np.float64),
        np.asarray(mesh.faces, np.int32),
        target_count=int(max_faces * _ROOM_FOR_REPAIR),
    )
    return make_manifold(trimesh.Trimesh(*reduced, process=False))


def _add(scene: trimesh.Scene, mesh: trimesh.Trimesh, name: str, rgb: np.ndarray, alpha: float) -> None:
    mesh.visual = TextureVisuals(
        material=PBRMaterial(
            name=name,
            baseColorFactor=[*_linear(rgb), alpha],
            metallicFactor=0.0,
            roughnessFactor=0.7,
            alphaMode="BLEND" if alpha < 1 else "OPAQUE",
        )
    )
    scene.add_geometry(mesh, node_name=name, geom_name=name)


def _linear(rgb: np.ndarray) -> list[float]:
    """Colours in glTF are linear; those of a taxonomy are sRGB."""
    value = np.asarray(rgb, float) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).tolist()


def _to_glb(scene: trimesh.Scene) -> bytes:
    if scene.geometry:
        exported: Any = scene.export(file_type="glb", include_normals=True)
        return exported
    document = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{}]}).encode()
    document += b" " * (-len(document) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(document), len(document), 0x4E4F534A) + document
