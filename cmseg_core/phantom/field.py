"""A simulated field of cells, rendered slab by slab."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit, prange

from cmseg_core.phantom.appearance import Look, draw_look
from cmseg_core.phantom.cells import SIZE, CellAnatomy, draw_cell
from cmseg_core.phantom.noise import hash3, normal, value_noise
from cmseg_core.phantom.packing import pack, roomy_extent
from cmseg_core.schema import STAGES, Stage, VoxelSize

_FAR = np.float32(1e6)
_STAGE_SHARES = (25 / 68, 13 / 68, 12 / 68, 12 / 68, 6 / 68)  # the paper's data set


@dataclass(frozen=True)
class Field:
    """Cells, debris and look of one simulated acquisition.

    Attributes
    ----------
    shape : tuple of int
        Sections, rows, columns.
    voxel_size : VoxelSize
        In nanometres.
    cells : tuple of CellAnatomy
        Cell ``i`` has id ``i + 1`` in the truth.
    debris : ndarray of float64, shape (n, 6)
        Centre (ZYX) and radii (ZYX) in nm of bodies in the resin that are no cells.
    look : Look
        Appearance.
    seed : int
        Seed of all noise.
    """

    shape: tuple[int, int, int]
    voxel_size: VoxelSize
    cells: tuple[CellAnatomy, ...]
    debris: np.ndarray
    look: Look
    seed: int

    @property
    def stages(self) -> dict[int, Stage]:
        """Stage of each cell id."""
        return {index + 1: cell.stage for index, cell in enumerate(self.cells)}

    @property
    def missing(self) -> tuple[int, ...]:
        """Sections that are lost: black in the stack."""
        if not self.look.missing_fraction:
            return ()
        share = np.array([float(hash3(self.seed + 17, z, 0, 0)) / 2**64 for z in range(self.shape[0])])
        return tuple(int(z) for z in np.flatnonzero(share < self.look.missing_fraction))

    def labels(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth of the sections from `start` up to `stop`, and the image before optics and noise.

        Returns
        -------
        grey : ndarray of float32, shape (stop - start, y, x)
            0 to 1.
        cells : ndarray of uint16
            Cell ids, 0 between cells.
        organelles : ndarray of uint8
            Ids of the default taxonomy.
        """
        z, y, x = self._coordinates(start, stop)
        parameters = np.stack([c.parameters for c in self.cells]) if self.cells else np.zeros((0, SIZE))
        grid = (len(z), self.shape[1], self.shape[2])
        best = np.full(grid, _FAR, np.float32)
        second = np.full(grid, _FAR, np.float32)
        owner = np.zeros(grid, np.uint16)
        _claim(z, y, x, parameters, best, second, owner)
        grey = np.empty(grid, np.float32)
        organelles = np.zeros(grid, np.uint8)
        look = self.look.vector()
        _paint(
            z, y, x, parameters, self.debris, self.look.debris, look, self.seed, best, second, owner, grey, organelles
        )
        return grey, owner, organelles

    def render(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image and truth of the sections from `start` up to `stop`.

        Any division into slabs gives the same voxels.

        Returns
        -------
        image, cells, organelles : ndarray of uint8, uint16, uint8, shape (stop - start, y, x)
        """
        grey, cells, organelles = self.labels(start, stop)
        return self.expose(grey, start), cells, organelles

    def expose(self, grey: np.ndarray, start: int) -> np.ndarray:
        """Optics, noise and defects: the 8-bit image of sections that begin at `start`."""
        if self.look.inverted:
            np.subtract(1.0, grey, out=grey)
        for section in grey:
            cv2.GaussianBlur(section, (0, 0), self.look.blur_px, dst=section, borderType=cv2.BORDER_REPLICATE)
        image = np.empty(grey.shape, np.uint8)
        look = self.look
        _expose(grey, start, self.seed, look.noise, look.curtaining, look.charging, look.drift, image)
        for z in self.missing:
            if start <= z < start + len(image):
                image[z - start] = 0
        return image

    def _coordinates(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sections = np.arange(start, stop)
        z = (sections + 0.5) * self.voxel_size.z
        shift = np.array([[normal(self.seed + 5, int(s), axis, 0) for axis in (0, 1)] for s in sections])
        shift = shift.reshape(-1, 2) * self.look.jitter_nm
        y = (np.arange(self.shape[1])[None] + 0.5) * self.voxel_size.y + shift[:, :1]
        x = (np.arange(self.shape[2])[None] + 0.5) * self.voxel_size.x + shift[:, 1:]
        return z, np.ascontiguousarray(y), np.ascontiguousarray(x)


def draw_field(
    seed: int,
    *,
    cells: int = 14,
    shape: tuple[int, int, int] | None = None,
    voxel_size: VoxelSize,
    hard: bool = False,
    defects: Collection[str] = (),
    stages: Sequence[Stage] | None = None,
    diameter_nm: tuple[float, float] = (1500.0, 2000.0),
    fill: float | None = None,
) -> Field:
    """Draw a field of touching cells.

    Parameters
    ----------
    seed : int
        The same seed and arguments give the same field.
    cells : int
        Number of cells.
    shape : tuple of int, optional
        Sections, rows, columns; by default a cube that the cells crowd.
    voxel_size : VoxelSize
        In nanometres.
    hard : bool
        Resin as grey as the cytoplasm, cells of different grey and pressed into each other, uneven light, debris.
    defects : collection of str
        Acquisition defects to switch on, see :data:`cmseg_core.phantom.appearance.DEFECTS`.
    stages : sequence of int, optional
        Stage of each cell; by default every stage once, then drawn in the paper's proportion of 25/13/12/12/6.
    diameter_nm : tuple of float
        Range of the diameters of undivided cells.
    fill : float, optional
        Share of the volume that the cells take where no shape is given; by default .52, and .60 in hard fields.

    Returns
    -------
    Field
    """
    rng = np.random.default_rng(seed)
    if stages is None:
        drawn = rng.choice(len(STAGES), size=max(cells - len(STAGES), 0), p=_STAGE_SHARES)
        stages = [*STAGES, *(STAGES[index] for index in drawn)][:cells]
    anatomy = [draw_cell(rng, stage, diameter_nm) for stage in stages]
    if shape is None:
        edge = roomy_extent(anatomy, fill=fill or (0.60 if hard else 0.52))
        depth, rows, columns = (max(8, math.ceil(edge / v)) for v in voxel_size.zyx)
        shape = (depth, rows, columns)
    extent = (shape[0] * voxel_size.z, shape[1] * voxel_size.y, shape[2] * voxel_size.x)
    anatomy = pack(anatomy, extent, rng, press=0.10 if hard else 0.04)
    look = draw_look(rng, hard=hard, defects=defects)
    count = rng.poisson(look.debris_per_um3 * math.prod(extent) * 1e-9)
    debris = np.empty((count, 6))
    debris[:, :3] = rng.uniform(0, 1, (count, 3)) * extent
    debris[:, 3:] = rng.uniform(40, 180, (count, 1)) * rng.uniform(0.6, 1.4, (count, 3))
    return Field(shape, voxel_size, tuple(anatomy), debris, look, int(rng.integers(2**31)))


# ------------------------------------------------------------------------------------------------ geometry


@njit(inline="always")
def _ellipsoid(u: float, v: float, w: float, ru: float, rv: float, rw: float) -> float:
    # First-order signed distance to an ellipsoid (Quilez): exact on the surface, monotonic elsewhere.
    a, b, c = u / ru, v / rv, w / rw
    k0 = math.sqrt(a * a + b * b + c * c)
    a, b, c = a / ru, b / rv, c / rw
    k1 = math.sqrt(a * a + b * b + c * c)
    if k1 < 1e-9:
        return -min(ru, rv, rw)
    return k0 * (k0 - 1.0) / k1


@njit(inline="always")
def _smooth_min(a: float, b: float, k: float) -> float:
    if k <= 0.0:
        return min(a, b)
    h = max(k - abs(a - b), 0.0) / k
    return min(a, b) - h * h * k * 0.25


@njit(inline="always")
def _local(p, z, y, x):
    # Into the cell's frame, with its slow warp.
    dz, dy, dx = z - p[0], y - p[1], x - p[2]
    u = p[3] * dz + p[4] * dy + p[5] * dx
    v = p[6] * dz + p[7] * dy + p[8] * dx
    w = p[9] * dz + p[10] * dy + p[11] * dx
    a = p[18]
    return (
        u + a * math.sin(p[19] * v + p[22]),
        v + a * math.sin(p[20] * w + p[23]),
        w + a * math.sin(p[21] * u + p[24]),
    )


@njit(inline="always")
def _body(p, u, v, w):
    if p[15] <= 0.0:
        return _ellipsoid(u, v, w, p[12], p[13], p[14])
    left = _ellipsoid(u + p[15], v, w, p[12], p[13], p[14])
    right = _ellipsoid(u - p[15], v, w, p[12], p[13], p[14])
    return _smooth_min(left, right, p[16])


@njit(inline="always")
def _pair(u, v, w, ru, rv, rw, half, depth, width):
    d = _ellipsoid(abs(u) - half, v, w, ru, rv, rw)
    if depth > 0.0:
        d += depth * math.exp(-(u / width) * (u / width))
    return d


@njit(inline="always")
def _organelles(p, u, v, w, body):
    """Signed distances of nucleus, peroxisome, mitochondrion and plastid; gaps keep them apart."""
    gap = 22.0
    nucleus = _pair(u, v - p[51], w - p[52], p[53], p[54], p[55], p[56], p[57], p[58])
    peroxisome = _pair(u, v - p[43], w - p[44], p[45], p[46], p[47], p[48], p[49], p[50])
    peroxisome = max(peroxisome, gap - nucleus)
    bend = p[42] * max(abs(u) - p[39], 0.0)
    mitochondrion = _pair(u, v - p[34], w - p[35] - bend, p[36], p[37], p[38], p[39], p[40], p[41])
    mitochondrion = max(mitochondrion, gap - nucleus, gap - peroxisome)
    hollow = _ellipsoid(abs(u) - p[30], v, w - p[26], p[27], p[28], p[29])
    plastid = max(body + p[25], -hollow, w - p[33])
    if p[31] > 0.0:
        plastid += p[31] * math.exp(-(u / p[32]) * (u / p[32]))
    plastid = max(plastid, gap - nucleus, gap - peroxisome, gap - mitochondrion)
    inside = body + 28.0
    return max(nucleus, inside), max(peroxisome, inside), max(mitochondrion, inside), max(plastid, inside)


@njit(parallel=True, cache=True, fastmath=True)
def _claim(z, y, x, cells, best, second, owner):
    """Give every voxel to the cell whose surface encloses it most; keep the runner-up's distance for the interface."""
    for i in prange(z.size):
        for c in range(cells.shape[0]):
            p = cells[c]
            reach = p[17] + 60.0
            dz = z[i] - p[0]
            if abs(dz) > reach:
                continue
            for j in range(y.shape[1]):
                dy = y[i, j] - p[1]
                span = reach * reach - dz * dz - dy * dy
                if span <= 0.0:
                    continue
                half = math.sqrt(span)
                step = x[i, 1] - x[i, 0] if x.shape[1] > 1 else 1.0
                first = max(0, int(math.ceil((p[2] - half - x[i, 0]) / step)))
                last = min(x.shape[1] - 1, int(math.floor((p[2] + half - x[i, 0]) / step)))
                for k in range(first, last + 1):
                    u, v, w = _local(p, z[i], y[i, j], x[i, k])
                    d = np.float32(_body(p, u, v, w))
                    if d < best[i, j, k]:
                        second[i, j, k] = best[i, j, k]
                        best[i, j, k] = d
                        owner[i, j, k] = c + 1
                    elif d < second[i, j, k]:
                        second[i, j, k] = d


# ----------------------------------------------------------------------------------------------- painting


@njit(inline="always")
def _line(distance, width):
    t = distance / width
    return math.exp(-t * t)


@njit(inline="always")
def _inside(p, look, seed, z, y, x, depth):
    """Class and grey level of a voxel inside a cell, `depth` nm below its surface."""
    u, v, w = _local(p, z, y, x)
    body = _body(p, u, v, w)
    nucleus, peroxisome, mitochondrion, plastid = _organelles(p, u, v, w, max(body, -depth))
    grain = value_noise(seed + 2, z / look[12], y / look[12], x / look[12])
    label = 1
    grey = look[1] + look[11] * grain
    edge = min(abs(nucleus), abs(peroxisome), abs(mitochondrion), abs(plastid))
    if nucleus < 0.0:
        label = 5
        coarse = value_noise(seed + 3, z / 130.0, y / 130.0, x / 130.0)
        grey = look[5] + look[11] * (0.6 * grain + 0.9 * coarse)
        core = math.sqrt((abs(u) - p[56]) ** 2 + (v - p[51]) ** 2 + (w - p[52]) ** 2) - p[59]
        if core < 0.0:
            grey -= 0.06
    elif peroxisome < 0.0:
        label = 4
        grey = look[4] + 0.4 * look[11] * grain
    elif mitochondrion < 0.0:
        label = 3
        wave = math.sin(6.2832 * (u + 0.3 * v) / look[14])
        grey = look[3] + 0.5 * look[11] * grain + 0.5 * look[13] * wave
    elif plastid < 0.0:
        label = 2
        wave = math.sin(6.2832 * body / look[14])
        grey = look[2] + 0.5 * look[11] * grain + look[13] * wave
    else:
        for g in range(6):
            r = p[64 + 4 * g]
            if r > 0.0:
                d = math.sqrt((u - p[61 + 4 * g]) ** 2 + (v - p[62 + 4 * g]) ** 2 + (w - p[63 + 4 * g]) ** 2)
                if d < r:
                    grey = look[6] + 0.3 * look[11] * grain
    grey += look[7] * p[60]
    grey -= look[9] * _line(edge, 0.8 * look[10])
    grey -= look[8] * _line(depth, look[10])
    return label, grey


@njit(parallel=True, cache=True, fastmath=True)
def _paint(z, y, x, cells, debris, debris_grey, look, seed, best, second, owner, grey, organelles):
    for i in prange(z.size):
        for j in range(y.shape[1]):
            for k in range(x.shape[1]):
                zz, yy, xx = z[i], y[i, j], x[i, k]
                if best[i, j, k] < 0.0:
                    depth = min(-best[i, j, k], 0.5 * (second[i, j, k] - best[i, j, k]))
                    label, value = _inside(cells[owner[i, j, k] - 1], look, seed, zz, yy, xx, depth)
                    organelles[i, j, k] = label
                else:
                    owner[i, j, k] = 0
                    grain = value_noise(seed + 4, zz / 90.0, yy / 90.0, xx / 90.0)
                    value = look[0] + look[15] * grain - look[8] * _line(best[i, j, k], look[10])
                    for d in range(debris.shape[0]):
                        q = debris[d]
                        if abs(zz - q[0]) < q[3] and abs(yy - q[1]) < q[4] and abs(xx - q[2]) < q[5]:
                            s = _ellipsoid(zz - q[0], yy - q[1], xx - q[2], q[3], q[4], q[5])
                            if s < 0.0:
                                value = debris_grey + look[11] * grain - 0.5 * look[8] * _line(s, look[10])
                light = value_noise(seed + 6, zz / look[17], yy / look[17], xx / look[17])
                grey[i, j, k] = value + look[16] * light


@njit(parallel=True, cache=True, fastmath=True)
def _expose(grey, start, seed, noise, curtaining, charging, drift, image):
    for i in prange(grey.shape[0]):
        z = start + i
        offset = drift * value_noise(seed + 7, z / 24.0, 0.5, 0.5)
        for j in range(grey.shape[1]):
            streak = 0.0
            if charging > 0.0:
                streak = 0.3 * charging * max(value_noise(seed + 9, float(z), j / 3.0, 0.5) - 0.4, 0.0)
            for k in range(grey.shape[2]):
                g = grey[i, j, k] + offset + streak
                if curtaining > 0.0:
                    g += curtaining * value_noise(seed + 8, z / 14.0, j / 180.0, k / 2.5)
                if charging > 0.0:
                    g += charging * max(value_noise(seed + 10, z / 9.0, j / 60.0, k / 90.0) - 0.35, 0.0)
                g += noise * math.sqrt(max(0.4 + 1.2 * g, 0.05)) * normal(seed + 1, z, j, k)
                image[i, j, k] = np.uint8(min(max(g * 255.0 + 0.5, 0.0), 255.0))
