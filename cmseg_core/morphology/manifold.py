"""Repair of surfaces whose sheets touch."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_PASSES = 5


def make_manifold(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Give each edge of a closed surface two faces again, where simplification glued sheets of a thin wall together.

    Parameters
    ----------
    mesh : trimesh.Trimesh

    Returns
    -------
    trimesh.Trimesh
        Watertight where the given mesh is closed; points are added, none moves.
    """
    if mesh.is_watertight:
        return mesh
    mesh = _part_touching_sheets(mesh)
    for _ in range(_PASSES):
        if mesh.is_watertight:
            break
        mesh = _divide_shared_edges(mesh)
    return mesh


def _divide_shared_edges(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Divide in the middle each edge with more than two faces, with a midpoint for each two faces that run opposite."""
    edges, sharing = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
    vertices, faces = list(mesh.vertices), [tuple(face) for face in mesh.faces.tolist()]
    changed: set[int] = set()
    for a, b in edges[sharing > 2].tolist():
        along = np.flatnonzero(np.isin(mesh.faces, (a, b)).sum(axis=1) == 2).tolist()
        if not changed.isdisjoint(along):
            continue  # left for the next pass, as its faces are no longer those of the mesh
        changed.update(along)
        forward = [i for i in along if (a, b) in zip(faces[i], faces[i][1:] + faces[i][:1], strict=True)]
        backward = [i for i in along if i not in forward]
        for one, other in zip(forward, backward, strict=False):
            middle = len(vertices)
            vertices.append((vertices[a] + vertices[b]) / 2)
            c = next(v for v in faces[one] if v not in (a, b))
            d = next(v for v in faces[other] if v not in (a, b))
            faces[one], faces[other] = (a, middle, c), (b, middle, d)
            faces += [(middle, b, c), (middle, a, d)]
    return trimesh.Trimesh(np.array(vertices), np.array(faces), process=False)


def _part_touching_sheets(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Part two sheets of a thin wall that simplification glued along an edge, so that each edge has two faces again.

    Pairs of faces that fold back onto each other go. Every face is then joined, over each of its edges, to one face
    that runs along the edge the other way; faces so joined round a vertex form a fan, and each fan gets the vertex for
    itself. No point moves.

    Parameters
    ----------
    mesh : trimesh.Trimesh
        Closed: each edge has as many faces one way as the other.

    Returns
    -------
    trimesh.Trimesh
        Watertight, but for an edge on which a sheet touches itself; the given mesh where it is not closed.
    """
    _, which, copies = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    faces = np.asarray(mesh.faces)[copies[which.ravel()] == 1]
    corner = np.arange(faces.size).reshape(-1, 3)
    starts = np.stack([faces, corner], axis=-1).reshape(-1, 2)
    ends = np.roll(np.stack([faces, corner], axis=-1), -1, axis=1).reshape(-1, 2)
    onward = starts[:, 0] < ends[:, 0]
    low, high = np.where(onward[:, None], starts, ends), np.where(onward[:, None], ends, starts)
    _, edge = np.unique(np.stack([low[:, 0], high[:, 0]], axis=1), axis=0, return_inverse=True)
    edge = edge.ravel()
    one, other = np.flatnonzero(onward), np.flatnonzero(~onward)
    if not np.array_equal(np.sort(edge[one]), np.sort(edge[other])):
        return mesh
    one = one[np.argsort(edge[one], kind="stable")]
    other = other[np.argsort(edge[other], kind="stable")]
    links = np.concatenate([np.stack([side[one, 1], side[other, 1]], axis=1) for side in (low, high)])
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(faces.size, faces.size))
    count, fan = connected_components(graph, directed=False)
    vertex = np.zeros(count, np.int64)
    vertex[fan] = faces.ravel()
    return trimesh.Trimesh(mesh.vertices[vertex], fan.reshape(-1, 3), process=False)
