"""Resampling between grids: to any shape, and to a cube of cubic voxels and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numba
import numpy as np

from cmseg_core.schema import VoxelSize

Interpolation = Literal["nearest", "linear"]
Grid = tuple[int, int, int]
OUTSIDE = -1
"""Index of a place that lies outside the volume."""


def resize(volume: np.ndarray, shape: Grid, interpolation: Interpolation) -> np.ndarray:
    """Resample a volume to another number of voxels over the same extent.

    Parameters
    ----------
    volume : ndarray of shape (z, y, x)
        Any integer or floating-point type.
    shape : tuple of int
        Voxels of the result.
    interpolation : {"nearest", "linear"}
        Labels are resampled by nearest neighbour only.

    Returns
    -------
    ndarray of shape `shape`, of the same type
        Voxel i covers the extent from i to i + 1, so that its sample lies at i + 1/2, as in
        ``scipy.ndimage.zoom(..., grid_mode=True, mode="nearest")``. Of two equally near voxels the later is taken.
    """
    places = tuple((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(volume.shape, shape, strict=True))
    if interpolation == "nearest":
        # In whole numbers, where a tie cannot depend on rounding.
        steps = (((2 * np.arange(m) + 1) * n) // (2 * m) for n, m in zip(volume.shape, shape, strict=True))
        return _take(volume, tuple(steps), 0)
    return _blend(volume, places, tuple(np.ones(m, bool) for m in shape), 0)


def working_shape(shape: Grid, voxel_size: VoxelSize, pixel_nm: float) -> Grid:
    """Voxels of `pixel_nm` that cover a grid, rounded, at least one an axis."""
    z, y, x = (max(1, round(n * edge / pixel_nm)) for n, edge in zip(shape, voxel_size.zyx, strict=True))
    return z, y, x


@dataclass(frozen=True)
class CubeGrid:
    """The relation between a crop on its native grid and a cube of cubic voxels that holds it.

    The crop's longest edge fills the cube; the crop lies in the middle, to within half a voxel of the cube, so that its
    first corner is a corner of a cube voxel. Voxels of both grids are boxes; samples lie at their centres.

    Parameters
    ----------
    crop_shape : tuple of int
        Voxels of the crop: z, y, x.
    voxel_size : VoxelSize
        Of the crop, in nanometres.
    side : int
        Voxels along each edge of the cube.
    """

    crop_shape: Grid
    voxel_size: VoxelSize
    side: int

    def __post_init__(self) -> None:
        if min(self.crop_shape) < 1 or self.side < 1:
            raise ValueError(f"a crop of {self.crop_shape} voxels has no place in a cube of {self.side}")

    @cached_property
    def extent_nm(self) -> tuple[float, float, float]:
        """Edge lengths of the crop in nanometres."""
        z, y, x = (n * edge for n, edge in zip(self.crop_shape, self.voxel_size.zyx, strict=True))
        return z, y, x

    @cached_property
    def pixel_nm(self) -> float:
        """Edge of a cube voxel in nanometres."""
        return max(self.extent_nm) / self.side

    @cached_property
    def offset(self) -> Grid:
        """Cube voxels before the crop begins, along each axis."""
        z, y, x = (int((self.side - extent / self.pixel_nm) / 2 + 1e-6) for extent in self.extent_nm)
        return z, y, x

    def to_cube(self, volume: np.ndarray, interpolation: Interpolation, fill: float) -> np.ndarray:
        """Resample a crop into the cube.

        Parameters
        ----------
        volume : ndarray of shape `crop_shape`
        interpolation : {"nearest", "linear"}
            Labels by nearest neighbour only.
        fill : float
            Value of cube voxels whose centre lies outside the crop.

        Returns
        -------
        ndarray of shape (side, side, side), of the same type
        """
        self._expect(volume, self.crop_shape)
        native = [
            (np.arange(self.side) - start + 0.5) * (self.pixel_nm / edge)
            for start, edge in zip(self.offset, self.voxel_size.zyx, strict=True)
        ]
        inside = [(u >= 0) & (u < n) for u, n in zip(native, self.crop_shape, strict=True)]
        if interpolation == "nearest":
            indices = tuple(
                np.where(i, np.floor(u), OUTSIDE).astype(np.int64) for u, i in zip(native, inside, strict=True)
            )
            return _take(volume, indices, fill)
        return _blend(volume, tuple(u - 0.5 for u in native), tuple(inside), fill)

    def to_native(self, cube: np.ndarray, interpolation: Interpolation) -> np.ndarray:
        """Resample a cube back onto the crop's own grid.

        Labels brought there and back by nearest neighbour are the same labels wherever a cube voxel is no larger than a
        native voxel.

        Parameters
        ----------
        cube : ndarray of shape (side, side, side)
        interpolation : {"nearest", "linear"}

        Returns
        -------
        ndarray of shape `crop_shape`, of the same type
        """
        self._expect(cube, (self.side,) * 3)
        places = [
            (np.arange(n) + 0.5) * (edge / self.pixel_nm) + start
            for n, edge, start in zip(self.crop_shape, self.voxel_size.zyx, self.offset, strict=True)
        ]
        if interpolation == "nearest":
            return _take(cube, tuple(np.clip(np.floor(u), 0, self.side - 1).astype(np.int64) for u in places), 0)
        return _blend(cube, tuple(u - 0.5 for u in places), tuple(np.ones(n, bool) for n in self.crop_shape), 0)

    def corners(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The voxels of the cube between which voxels of the crop lie, as :meth:`to_native` interpolates them.

        Parameters
        ----------
        places : ndarray of integers, shape (n, 3)
            Voxels of the crop: z, y, x.

        Returns
        -------
        corners : ndarray of int64, shape (n, 8, 3)
            Voxels of the cube.
        shares : ndarray of float32, shape (n, 8)
            What each of them counts for; of sum 1.
        """
        scale = np.array(self.voxel_size.zyx) / self.pixel_nm
        exact = np.clip((places + 0.5) * scale + np.array(self.offset) - 0.5, 0, self.side - 1)
        lower = np.floor(exact).astype(np.int64)
        upper, share = np.minimum(lower + 1, self.side - 1), exact - lower
        which = np.array(np.meshgrid(*[[False, True]] * 3, indexing="ij")).reshape(3, 8).T
        corners = np.where(which, upper[:, None], lower[:, None])
        shares = np.where(which, share[:, None], 1 - share[:, None]).prod(axis=-1)
        return corners, shares.astype(np.float32)

    def _expect(self, volume: np.ndarray, shape: tuple[int, ...]) -> None:
        if volume.shape != tuple(shape):
            raise ValueError(f"the volume has shape {volume.shape}, the grid {tuple(shape)}")


def _take(volume: np.ndarray, indices: tuple[np.ndarray, ...], fill: float) -> np.ndarray:
    out = np.empty(tuple(len(i) for i in indices), volume.dtype)
    _take_kernel(np.ascontiguousarray(volume), out, indices, volume.dtype.type(fill))
    return out


def _blend(
    volume: np.ndarray,
    places: tuple[np.ndarray, ...],
    inside: tuple[np.ndarray, ...],
    fill: float,
) -> np.ndarray:
    """Linear interpolation at separable places, in units of the volume's samples; borders continue."""
    lower, upper, share = [], [], []
    for place, size, within in zip(places, volume.shape, inside, strict=True):
        place = np.clip(place, 0, size - 1)
        low = np.floor(place).astype(np.int64)
        lower.append(np.where(within, low, OUTSIDE))
        upper.append(np.minimum(low + 1, size - 1))
        share.append((place - low).astype(np.float32))
    out = np.empty(tuple(len(p) for p in places), volume.dtype)
    rounding = np.float32(0.5 if volume.dtype.kind in "ui" else 0.0)
    _blend_kernel(
        np.ascontiguousarray(volume), out, tuple(lower), tuple(upper), tuple(share), volume.dtype.type(fill), rounding
    )
    return out


@numba.njit(parallel=True, cache=True, nogil=True)
def _take_kernel(volume, out, indices, fill):
    iz, iy, ix = indices
    for z in numba.prange(iz.size):
        for y in range(iy.size):
            if iz[z] < 0 or iy[y] < 0:
                out[z, y] = fill
            elif y > 0 and iy[y] == iy[y - 1]:
                out[z, y] = out[z, y - 1]
            else:
                row = volume[iz[z], iy[y]]
                for x in range(ix.size):
                    out[z, y, x] = row[ix[x]] if ix[x] >= 0 else fill


@numba.njit(parallel=True, cache=True, nogil=True)
def _blend_kernel(volume, out, lower, upper, share, fill, rounding):
    (lz, ly, lx), (uz, uy, ux), (wz, wy, wx) = lower, upper, share
    one = np.float32(1.0)
    for z in numba.prange(lz.size):
        blended = np.empty(volume.shape[2], np.float32)
        for y in range(ly.size):
            if lz[z] < 0 or ly[y] < 0:
                out[z, y] = fill
                continue
            a, b = volume[lz[z], ly[y]], volume[lz[z], uy[y]]
            c, d = volume[uz[z], ly[y]], volume[uz[z], uy[y]]
            v, w = wz[z], wy[y]
            for x in range(blended.size):
                first = np.float32(a[x]) * (one - w) + np.float32(b[x]) * w
                second = np.float32(c[x]) * (one - w) + np.float32(d[x]) * w
                blended[x] = first * (one - v) + second * v
            for x in range(lx.size):
                if lx[x] < 0:
                    out[z, y, x] = fill
                else:
                    value = blended[lx[x]] * (one - wx[x]) + blended[ux[x]] * wx[x]
                    out[z, y, x] = np.floor(value + rounding) if rounding > 0 else value
