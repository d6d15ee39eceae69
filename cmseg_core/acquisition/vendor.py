"""Voxel sizes that files state about themselves: ImageJ, OME-XML, FEI / Thermo Fisher, Zeiss, acquisition.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize

SIDECAR = "acquisition.json"
AGREEMENT = 0.01
"""Relative difference up to which two statements of the same length agree."""
ZEISS_SCREEN_PIXELS = 1024
MICRO = "\u00b5m"
NANOMETRES = {
    "fm": 1e-6, "pm": 1e-3, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "nanometers": 1.0, "angstrom": 0.1,
    "\u00c5": 0.1, "\u212b": 0.1, MICRO: 1e3, "\u03bcm": 1e3, "\\u00b5m": 1e3, "um": 1e3, "micron": 1e3,
    "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9, "inch": 2.54e7,
}  # fmt: skip
"""Length of a unit in nanometres, by the spellings found in files."""


@dataclass(frozen=True)
class Statement:
    """Edge lengths of a voxel in nanometres as one origin states them; None where it is silent."""

    origin: str
    z: float | None = None
    y: float | None = None
    x: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The statement as plain values."""
        return {"origin": self.origin, "z": self.z, "y": self.y, "x": self.x}


def statements_of_tiff(tif: tifffile.TiffFile) -> tuple[Statement, ...]:
    """Every voxel size that an open TIFF states, the most trusted first.

    Resolution tags alone are not read: without ImageJ's unit they hold print or screen resolutions.
    """
    found = (_of_imagej(tif), _of_ome(tif), _of_fei(tif), _of_zeiss(tif))
    return tuple(s for s in found if s is not None and (s.z or s.y or s.x))


def statement_of_sidecar(stack: Path) -> Statement | None:
    """The voxel size in ``acquisition.json`` beside a file or in a folder; None where it speaks of another stack.

    Raises
    ------
    InputError
        Where the file is there but cannot be understood.
    """
    sidecar = (stack if stack.is_dir() else stack.parent) / SIDECAR
    if not sidecar.is_file():
        return None
    mend = 'write {"voxel_size": {"z": 10, "y": 5, "x": 5}} in nm, or give --voxel-size Z Y X in nm'
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        source = content.get("source")
        if stack.is_file() and isinstance(source, str) and Path(source).name != stack.name:
            return None
        if "voxel_size" not in content:
            return None
        size = VoxelSize.model_validate(content["voxel_size"])
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(sidecar, "does not hold a voxel size", mend) from error
    return Statement(SIDECAR, *size.zyx)


def resolve(path: Path, given: VoxelSize | None, stated: Iterable[Statement]) -> tuple[VoxelSize, str]:
    """Settle the voxel size: what the user gives, else the first complete statement.

    Parameters
    ----------
    path : Path
        The stack, for messages.
    given : VoxelSize, optional
        The user's word, which outranks every file.
    stated : iterable of Statement
        The most trusted first.

    Returns
    -------
    voxel_size : VoxelSize
    origin : str

    Raises
    ------
    InputError
        Where nothing states all three lengths, or two statements contradict each other.
    """
    if given is not None:
        return given, "given"
    stated = tuple(stated)
    _refuse_contradiction(path, stated)
    for statement in stated:
        if statement.z and statement.y and statement.x:
            return VoxelSize(z=statement.z, y=statement.y, x=statement.x), statement.origin
    for s in stated:
        if s.y and s.x:
            raise InputError(
                path,
                f"states y {s.y:.6g} nm and x {s.x:.6g} nm ({s.origin}) but not the distance between sections",
                f"give --voxel-size Z {s.y:.6g} {s.x:.6g} in nm, with Z the distance between sections",
            )
    raise InputError(path, "states no voxel size", "give --voxel-size Z Y X in nm")


def _refuse_contradiction(path: Path, stated: tuple[Statement, ...]) -> None:
    for axis in "zyx":
        said = [(value, s.origin) for s in stated if (value := getattr(s, axis))]
        for value, origin in said[1:]:
            first, first_origin = said[0]
            if abs(value - first) > AGREEMENT * first:
                raise InputError(
                    path,
                    f"contradictory voxel sizes: {axis} {first:.6g} nm by {first_origin}, {value:.6g} nm by {origin}",
                    "give --voxel-size Z Y X in nm",
                )


def _positive(value: object, scale: float = 1.0) -> float | None:
    """The value in nanometres where it is a usable length."""
    try:
        length = float(value) * scale  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    # Six digits: lengths are stored as rounded pixels per unit, and 1 / 0.2 um must read as 5 nm.
    return float(f"{length:.6g}") if math.isfinite(length) and length > 0 else None


def _of_imagej(tif: tifffile.TiffFile) -> Statement | None:
    facts = tif.imagej_metadata
    if not facts:
        return None
    scale = NANOMETRES.get(str(facts.get("unit", "")).strip()) or NANOMETRES.get(str(facts.get("unit", "")).lower())
    if scale is None:
        return None
    tags = tif.pages.first.tags
    return Statement(
        "ImageJ metadata",
        _positive(facts.get("spacing"), scale),
        _edge_from_resolution(tags.valueof("YResolution"), scale),
        _edge_from_resolution(tags.valueof("XResolution"), scale),
    )


def _edge_from_resolution(resolution: object, scale: float) -> float | None:
    """Pixels per unit, as a rational number, turned into the edge of a pixel in nanometres."""
    if not isinstance(resolution, tuple) or len(resolution) != 2 or not resolution[0]:
        return None
    return _positive(resolution[1] / resolution[0], scale)


def _of_ome(tif: tifffile.TiffFile) -> Statement | None:
    if not tif.is_ome or not tif.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError:
        return None
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    edges = [
        _positive(
            pixels.get(f"PhysicalSize{axis}"), NANOMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", MICRO), math.nan)
        )
        for axis in "ZYX"
    ]
    return Statement("OME-XML", *edges)


def _of_fei(tif: tifffile.TiffFile) -> Statement | None:
    facts = tif.fei_metadata
    scan = facts.get("Scan") if isinstance(facts, dict) else None
    if not isinstance(scan, dict):
        return None
    return Statement("FEI tag", y=_positive(scan.get("PixelHeight"), 1e9), x=_positive(scan.get("PixelWidth"), 1e9))


def _of_zeiss(tif: tifffile.TiffFile) -> Statement | None:
    facts = tif.sem_metadata
    if not isinstance(facts, dict):
        return None
    edge = _zeiss_length(facts.get("ap_image_pixel_size"))
    if edge is None:
        # The plain pixel size is that of the 1024 pixel wide screen, whatever the width of the stored image.
        screen = _zeiss_length(facts.get("ap_pixel_size"))
        edge = _positive(screen, ZEISS_SCREEN_PIXELS / max(tif.pages.first.shape)) if screen else None
    return Statement("Zeiss tag", y=edge, x=edge)


def _zeiss_length(entry: object) -> float | None:
    """An entry (label, value, unit) of the Zeiss tag in nanometres."""
    if not isinstance(entry, tuple) or len(entry) != 3:
        return None
    return _positive(entry[1], NANOMETRES.get(entry[2], math.nan))
