"""Surfaces: closed, facing outwards, in the right place, of the right size, and the same every time."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import trimesh

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.morphology.manifold import make_manifold
from cmseg_core.morphology.meshes import cell_scene, crowd_scene, surface
from cmseg_core.schema import C_MEROLAE, MeshConfig, VoxelSize

VOXEL = VoxelSize(z=40, y=20, x=20)
CONFIG = MeshConfig()


def ball(shape, centre_nm, radii_nm):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (
        sum((((a + 0.5) * e - c) / r) ** 2 for a, e, c, r in zip(axes, VOXEL.zyx, centre_nm, radii_nm, strict=True))
        <= 1
    )


@pytest.fixture(scope="module")
def labels():
    shape = (40, 80, 80)
    cell = ball(shape, (800, 800, 800), (700, 750, 780)).astype(np.uint8)
    cell[ball(shape, (800, 800, 450), (300, 250, 200))] = 2
    cell[ball(shape, (700, 800, 1150), (200, 200, 200))] = 5
    return cell


def gltf(data):
    magic, version, length, json_length = struct.unpack("<4sIII", data[:16])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    return json.loads(data[20 : 20 + json_length])


def nodes(data):
    scene = trimesh.load(io.BytesIO(data), file_type="glb")
    return {name: scene.geometry[scene.graph[name][1]] for name in scene.graph.nodes_geometry}


def test_nodes_have_the_names_places_and_sizes_of_the_classes(labels):
    meshes = nodes(cell_scene(labels, C_MEROLAE, VOXEL, (100, 200, 300), CONFIG))
    assert set(meshes) == {"cytoplasm", "plastid", "nucleus"}
    for name, mask in (("cytoplasm", labels > 0), ("plastid", labels == 2), ("nucleus", labels == 5)):
        mesh = meshes[name]
        mesh.merge_vertices(merge_norm=True)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(mask.sum() * VOXEL.volume_um3, rel=0.03)
        assert len(mesh.faces) <= CONFIG.max_faces
        # Positions are X, Y, Z in micrometres, with the crop's offset.
        zyx = (np.argwhere(mask).mean(axis=0) + 0.5 + (100, 200, 300)) * VOXEL.zyx * 1e-3
        np.testing.assert_allclose(mesh.center_mass, zyx[::-1], atol=0.02)


def test_faces_look_outwards(labels):
    mesh = surface(labels == 2, VOXEL, (0, 0, 0), CONFIG)
    assert mesh.volume > 0
    outward = np.einsum("ij,ij->i", mesh.face_normals, mesh.triangles_center - mesh.center_mass)
    assert (outward > 0).mean() > 0.99


def test_colours_come_from_the_taxonomy_and_the_outline_is_see_through(labels):
    document = gltf(cell_scene(labels, C_MEROLAE, VOXEL, (0, 0, 0), CONFIG))
    materials = {m["name"]: m for m in document["materials"]}
    assert materials["cytoplasm"]["alphaMode"] == "BLEND"
    assert materials["cytoplasm"]["pbrMetallicRoughness"]["baseColorFactor"][3] == pytest.approx(0.15, abs=0.01)
    assert materials["plastid"]["alphaMode"] == "OPAQUE"
    linear = np.array(materials["plastid"]["pbrMetallicRoughness"]["baseColorFactor"][:3])
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(shown, C_MEROLAE.classes[2].rgb, atol=8)


def test_same_input_same_bytes(labels):
    scenes = [cell_scene(labels, C_MEROLAE, VOXEL, (0, 0, 0), CONFIG) for _ in range(2)]
    assert scenes[0] == scenes[1]


def test_cut_cell_is_closed():
    mask = np.zeros((20, 20, 20), bool)
    mask[:, 5:15, 5:15] = True
    mesh = surface(mask, VOXEL, (0, 0, 0), CONFIG)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(mask.sum() * VOXEL.volume_um3, rel=0.03)
    np.testing.assert_allclose(mesh.bounds[:, 2], [0, 0.8], atol=0.03)


def test_simplification_keeps_thin_walls_closed():
    shape = (60, 100, 100)
    centre = (1200, 1000, 1000)
    cup = ball(shape, centre, (900, 900, 900)) & ~ball(shape, centre, (850, 860, 860))
    cup[:, :, 60:] = False
    mesh = surface(cup, VOXEL, (0, 0, 0), MeshConfig(max_faces=4000))
    assert len(mesh.faces) <= 4000
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(cup.sum() * VOXEL.volume_um3, rel=0.06)


def test_touching_sheets_are_parted():
    # Two tetrahedra glued along the edge 0-1, as simplification leaves them.
    points = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0.5], [0.5, 0.5, 0.5], [-1, 0, 0.5], [-0.5, -0.5, 0.5]], float)
    first = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    second = np.array([0, 1, 4, 5])[first]
    glued = trimesh.Trimesh(points, np.concatenate([first, second]), process=False)
    assert not glued.is_watertight
    parted = make_manifold(glued)
    assert parted.is_watertight
    assert len(parted.faces) == 8
    assert parted.volume == pytest.approx(glued.volume)


def test_edge_on_which_one_sheet_touches_itself_is_divided():
    # A ring of voxels, two of which meet along one edge only: the surface passes both ends of that edge in one fan.
    mask = np.zeros((3, 4, 4), bool)
    mask[1, 1, 1] = mask[1, 2, 2] = True
    mask[2, 1:3, 1:3] = mask[0, 1:3, 1:3] = True
    corners = {}
    faces = []
    for voxel in np.argwhere(mask):
        for axis, side in np.ndindex(3, 2):
            beyond = voxel.copy()
            beyond[axis] += 2 * side - 1
            if 0 <= beyond[axis] < mask.shape[axis] and mask[tuple(beyond)]:
                continue
            quad = np.tile(voxel, (4, 1))
            quad[:, axis] += side
            quad[[1, 2], (axis + 1) % 3] += 1
            quad[[2, 3], (axis + 2) % 3] += 1
            ids = [corners.setdefault(tuple(q), len(corners)) for q in quad.tolist()]
            a, b, c, d = ids if side else ids[::-1]
            faces += [(a, b, c), (a, c, d)]
    mesh = trimesh.Trimesh(np.array(list(corners), float), faces, process=False)
    assert not mesh.is_watertight
    mended = make_manifold(mesh)
    assert mended.is_watertight
    assert mended.volume == pytest.approx(mask.sum())


def test_crowd_has_a_node_a_cell_in_its_colour():
    cells = np.zeros((20, 40, 40), np.uint32)
    cells[2:18, 2:18, 2:18] = 1
    cells[2:18, 2:18, 18:36] = 3
    data = crowd_scene(cells, VOXEL, cell_colours(3))
    meshes = nodes(data)
    assert set(meshes) == {"cell_1", "cell_3"}
    colours = {m["name"]: m["pbrMetallicRoughness"]["baseColorFactor"] for m in gltf(data)["materials"]}
    assert np.abs(np.subtract(colours["cell_1"], colours["cell_3"])).max() > 0.2
    assert meshes["cell_3"].center_mass[0] > meshes["cell_1"].center_mass[0]


def test_empty_scene_is_a_valid_file():
    data = cell_scene(np.zeros((5, 5, 5), np.uint8), C_MEROLAE, VOXEL, (0, 0, 0), CONFIG)
    assert gltf(data)["asset"]["version"] == "2.0"
    assert nodes(data) == {}
    assert nodes(crowd_scene(np.zeros((5, 5, 5), np.uint32), VOXEL, cell_colours(0))) == {}
