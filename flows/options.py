"""Options that several commands share, each stated once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize, first_problem

Triple = tuple[float, float, float]
VoxelSizeOption = Annotated[Triple, Parameter(help="Nanometres, z y x.")]
StatedVoxelSize = Annotated[
    Triple | None, Parameter(help="Nanometres, z y x; needed where the source does not state it.")
]
Source = Annotated[
    str,
    Parameter(help="TIFF stack, folder of one-slice images, or a folder that `cmseg phantom` wrote."),
]
TruthCells = Annotated[Path | None, Parameter(help="Label stack of the cells: the result is then scored.")]
TruthOrganelles = Annotated[Path | None, Parameter(help="Label stack of the organelles.")]
Settings = Annotated[Path | None, Parameter(help="Settings (YAML or JSON), see docs/settings.md.")]
Cells = Annotated[int, Parameter(help="Number of cells.")]
Top = Annotated[int, Parameter(help="How many cells.", validator=validators.Number(gte=1))]
Seed = Annotated[int, Parameter(help="The same seed gives the same acquisition.")]
Hard = Annotated[bool, Parameter(help="Cells pressed into each other in resin as grey as they are.")]
Json = Annotated[bool, Parameter(help="Print one JSON document on standard output, all else on standard error.")]


def stated(zyx: Triple | None) -> VoxelSize | None:
    """A voxel size that may be left out."""
    return None if zyx is None else to_voxel_size(zyx)


def to_voxel_size(zyx: Triple) -> VoxelSize:
    """A voxel size of three numbers from the command line.

    Raises
    ------
    InputError
        Where one of them is not above zero.
    """
    try:
        return VoxelSize.from_zyx(zyx)
    except ValidationError as error:
        numbers = " ".join(f"{number:g}" for number in zyx)
        raise InputError("--voxel-size", f"{numbers}: {first_problem(error)}", "give nanometres, z y x") from error
