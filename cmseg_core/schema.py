"""The vocabulary of the pipeline: classes, voxel sizes, acquisitions, settings and manifests.

Coordinates are ZYX and physical sizes are nanometres throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cmseg_core.errors import InputError

Nanometres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ModelT = TypeVar("ModelT", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0, le=1)]
Stage = Literal[1, 2, 3, 4, 5]
"""Cell-cycle stage: 1 G1-S, 2 G2 to early M, 3 early to late M, 4 late M, 5 end of M."""

STAGES: tuple[Stage, ...] = (1, 2, 3, 4, 5)


class Frozen(BaseModel):
    """A value: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---------------------------------------------------------------------------------------------- classes


class OrganelleClass(Frozen):
    """One label class of a taxonomy."""

    id: Annotated[int, Field(ge=0, le=254)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _.-]*$")]
    colour: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#808080"

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as three 8-bit numbers."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


class Taxonomy(Frozen):
    """The label classes of a data set. Id 0 is what lies outside the cell.

    Ids run from 0 without gaps, so that an id is also the channel of a network's output.
    """

    classes: tuple[OrganelleClass, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [c.id for c in self.classes]
        names = [c.name for c in self.classes]
        if len(ids) < 2:
            raise ValueError("a taxonomy needs background (id 0) and at least one class")
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids must be 0, 1, 2, ... in order, not {ids}")
        if len(set(names)) != len(names):
            raise ValueError(f"class names must differ: {names}")
        return self

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return tuple(c.name for c in self.classes)

    @property
    def foreground(self) -> tuple[OrganelleClass, ...]:
        """Every class but id 0."""
        return self.classes[1:]

    def id_of(self, name: str) -> int:
        """Id of the class called `name`; KeyError where there is none."""
        for c in self.classes:
            if c.name == name:
                return c.id
        raise KeyError(name)

    def palette(self) -> np.ndarray:
        """Colours as a uint8 array of shape (classes, 3)."""
        return np.array([c.rgb for c in self.classes], dtype=np.uint8)

    @classmethod
    def from_file(cls, path: str | Path) -> Taxonomy:
        """Read a taxonomy from JSON or YAML.

        Raises
        ------
        InputError
            Where the file cannot be read or does not hold a taxonomy.
        """
        mend = 'give {"classes": [{"id": 0, "name": "background", "colour": "#000000"}, ...]}'
        return _model_from_file(cls, path, mend)


C_MEROLAE = Taxonomy(
    classes=(
        OrganelleClass(id=0, name="background", colour="#000000"),
        OrganelleClass(id=1, name="cytoplasm", colour="#ffffff"),
        OrganelleClass(id=2, name="plastid", colour="#2ca02c"),
        OrganelleClass(id=3, name="mitochondrion", colour="#ffd92f"),
        OrganelleClass(id=4, name="peroxisome", colour="#ff7f0e"),
        OrganelleClass(id=5, name="nucleus", colour="#8c8c8c"),
    )
)
"""The six classes and colours of Kousaka et al. 2025 for *Cyanidioschyzon merolae*: the default, not the only one."""


# ------------------------------------------------------------------------------------------ acquisitions


class VoxelSize(Frozen):
    """Edge lengths of a voxel in nanometres."""

    z: Nanometres
    y: Nanometres
    x: Nanometres

    @classmethod
    def from_zyx(cls, zyx: Iterable[float]) -> VoxelSize:
        """Build from three numbers in the order z, y, x."""
        z, y, x = zyx
        return cls(z=z, y=y, x=x)

    @property
    def zyx(self) -> tuple[float, float, float]:
        """The three edge lengths in the order z, y, x."""
        return self.z, self.y, self.x

    @property
    def volume_um3(self) -> float:
        """Volume of one voxel in cubic micrometres."""
        return self.z * self.y * self.x * 1e-9


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]{0,5})?"
AcquisitionName = Annotated[str, Field(pattern=f"^{_NAME}$")]


def is_name(text: str) -> bool:
    """Whether an acquisition may be called so."""
    return re.fullmatch(_NAME, text) is not None


class Acquisition(Frozen):
    """One stack as it was submitted; written as ``acquisition.json`` after its data.

    Attributes
    ----------
    name : str
        Name of the acquisition: letters, digits, ``.``, ``_`` and ``-``, and ``@2`` and so on where others
        were submitted under the same name before; never a path.
    source : str
        Key of the stack relative to the acquisition's prefix, or the local path it was read from.
    sha256 : str
        Hash of the stack's content.
    bytes : int
        Size of the stack's content.
    voxel_size : VoxelSize
        Stated by the user or read from the metadata, never guessed.
    truth_cells, truth_organelles : str, optional
        Label stacks of the same shape that score the result.
    """

    name: AcquisitionName
    source: str
    sha256: str
    bytes: int
    voxel_size: VoxelSize
    truth_cells: str | None = None
    truth_organelles: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


# --------------------------------------------------------------------------------------------- settings


class QualityConfig(Frozen):
    """Limits of the acquisition quality checks; a failed check is reported, the last two also stop the run."""

    max_blank_fraction: Fraction = 0.05
    """Sections that are constant or nearly so."""
    max_saturated_fraction: Fraction = 0.10
    """Voxels at either end of the grey range, in the whole stack."""
    max_duplicate_fraction: Fraction = 0.02
    """Sections that repeat the one before."""
    max_missing_fraction: Fraction = 0.02
    """Sections that the numbering of a folder skips, and sudden changes between neighbouring sections."""
    max_curtaining: Annotated[float, Field(gt=0)] = 3.0
    """Energy of stripes along an axis of the section over that of all directions; 1 where there are none."""
    max_jitter_px: Annotated[float, Field(gt=0)] = 3.0
    """95th percentile of the shift between neighbouring sections (phase correlation)."""
    max_drift_grey: Annotated[float, Field(gt=0)] = 40.0
    """Range over which like structure may brighten or darken along the stack, in 8-bit grey levels."""
    min_snr: Annotated[float, Field(ge=0)] = 0.5
    """Structure over noise: standard deviation of the smoothed section over that of what smoothing removes."""
    min_sections: Annotated[int, Field(ge=1)] = 8


class PreprocessConfig(Frozen):
    """Denoising and resampling."""

    window_percentiles: tuple[Fraction, Fraction] = (0.001, 0.999)
    """Quantiles of the acquisition that become 0 and 255 where its samples are not 8 bit; 8-bit input is kept."""
    stretch_8bit: bool = False
    """Apply the window to 8-bit input too."""
    median_size: Literal[0, 3] = 3
    """Edge of the cubic median filter in voxels; 0 switches it off."""
    bilateral_spatial_sigma: Annotated[float, Field(ge=0)] = 0.0
    """In voxels of the section; 0 switches the filter off. The paper filters; a network that is trained without sees
    faint outlines better."""
    bilateral_range_sigma: Annotated[float, Field(gt=0)] = 30.0
    """In 8-bit grey levels."""
    interpolation: Literal["nearest", "linear"] = "linear"
    """How images are resampled, and class probabilities on their way back to the native grid. Labels themselves are
    always resampled by nearest neighbour. The paper uses nearest for everything."""


class ForegroundConfig(Frozen):
    """Cells against background."""

    method: Literal["sam", "threshold"] = "sam"
    cell_diameter_nm: Nanometres = 1750.0
    """Expected diameter of a cell; ties the working scale, mask rules and markers to physical size."""
    cell_diameter_px: Annotated[int, Field(ge=16, le=256)] = 48
    """Diameter that such a cell gets on the isotropic working grid on which cells are found."""
    points_per_side: Annotated[int, Field(ge=2, le=64)] = 12
    """Points of the grid along each side of a tile."""
    prompts: Literal["automatic", "none", "grid", "propagated"] = "automatic"
    """What the model is asked in a section. `none`: nothing, the cells are read by the head that models trained by
    cmseg have. `grid`: the points of the grid. `propagated`: where the cells of the section before were, with the
    whole grid in key sections and wherever a cell is not found again; that is faster than the grid, but has been seen
    to cut a cell in division in two. `automatic`: `none` where the model has a head, else `grid`."""
    pred_iou_thresh: Fraction = 0.50
    """Least quality the model itself predicts of a mask (0.88 in the official generator for the official weights)."""
    stability_score_thresh: Fraction = 0.50
    """Least IoU of the mask at a raised and at a lowered threshold (0.95 in the official generator)."""
    box_nms_thresh: Fraction = 0.7
    """Overlap of boxes beyond which the lesser of two masks is dropped."""
    min_diameter_fraction: Fraction = 0.15
    """A mask with a smaller equivalent diameter, relative to the expected cell, is debris or an organelle."""
    max_diameter_fraction: Annotated[float, Field(gt=1)] = 2.2
    """A mask with a larger one is background or a clump of cells."""
    z_smoothing_nm: Annotated[float, Field(ge=0)] = 60.0
    """Standard deviation of the smoothing that makes neighbouring sections agree."""
    directions: Literal[1, 3] = 3
    """Sections of one direction, or of all three, which outvote each other's mistakes and take three times as long."""


class InstancesConfig(Frozen):
    """Touching cells told apart."""

    h_nm: Nanometres = 60.0
    """Depth of a basin of the distance map below which two markers are one."""
    min_volume_um3: Annotated[float, Field(ge=0)] = 0.10
    """Smaller pieces are dropped as debris."""
    merge_neck_ratio: Fraction = 0.60
    """Two basins are one cell where the widest passage between them, relative to the lesser of their half widths, is
    above this: a dividing pair stays one cell, touching cells part. Equal balls reach 0.60 when their centres are 1.6
    radii apart. Lower it if dividing cells are cut, raise it if cells pressed together are merged; 1 leaves the
    decision to `h_nm`."""
    interior_neck_ratio: Fraction = 0.50
    """The same where the depth of every voxel inside its own cell is known (SAM): between two cells the passage is
    shallower there than in the distance map, so that less is needed to call two basins one cell."""
    daughter_neck_ratio: Fraction = 0.50
    """Two parts of like size, each much smaller than the usual cell of the field, are the daughters of one division
    that is not yet over where the passage between them, relative to the lesser of their half widths, is above this; 1
    leaves them apart."""
    interior_daughter_neck_ratio: Fraction = 0.15
    """The same where the depth of every voxel inside its own cell is known (SAM)."""
    marker_distance_fraction: Fraction = 0.20
    """Markers nearer than this fraction of the expected cell diameter are one."""


class OrganellesConfig(Frozen):
    """Organelles of one cell."""

    directions: Literal[1, 3] = 3
    fusion: Literal["model", "mean", "maximum"] = "model"
    """Per voxel and class over the directions. `model`: weighted as the model's file says, which is how its training
    found it best on cells kept for validation; the mean where it says nothing. The paper's rule is the maximum."""
    filter: Literal["none", "median", "majority"] = "none"
    """3 x 3 x 3 filter of the class ids after fusion. The paper's is the median; it costs small organelles more than it
    gains."""
    margin_nm: Annotated[float, Field(ge=0)] = 150.0
    """Width of the surroundings kept round a cell's box."""
    flips: Literal[1, 4, 8] | None = None
    """Ways in which each section is seen, of which the mean is taken: 4 adds its mirror images, 8 also their quarter
    turns. Takes as many times as long. Not set: 4 for a volume so thin that it is cut across one axis alone, else 1,
    since three directions are three ways already."""
    batch_size: Annotated[int, Field(ge=1)] = 16


class MeshConfig(Frozen):
    """Surfaces."""

    smoothing_iterations: Annotated[int, Field(ge=0)] = 10
    max_faces: Annotated[int, Field(ge=100)] = 6000
    """Per class and cell, after simplification."""


class PipelineConfig(BaseSettings):
    """Everything that can be set about processing one acquisition.

    Sources, the later stronger: the defaults here, ``CMSEG_<SECTION>__<FIELD>`` environment variables, the file given
    with ``--config`` (YAML or JSON).
    """

    model_config = SettingsConfigDict(env_prefix="CMSEG_", env_nested_delimiter="__", extra="ignore", frozen=True)

    preset: Literal["default", "paper"] = "default"
    """``paper``: what Kousaka et al. 2025 state, where they state it."""
    taxonomy: Taxonomy = C_MEROLAE
    """Classes, names and colours; must be those of the organelle model."""
    quality: QualityConfig = QualityConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    foreground: ForegroundConfig = ForegroundConfig()
    instances: InstancesConfig = InstancesConfig()
    organelles: OrganellesConfig = OrganellesConfig()
    mesh: MeshConfig = MeshConfig()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, fields: Any) -> Any:
        # Whichever source named the preset, single settings beside it stay stronger.
        if not isinstance(fields, dict) or fields.get("preset") != "paper":
            return fields
        stated = {name: {**values, **_plain(fields.get(name))} for name, values in PAPER.items()}
        return {**fields, **stated}

    @classmethod
    def from_file(cls, path: str | Path | None) -> PipelineConfig:
        """Read settings from YAML or JSON; None gives the defaults and the environment.

        Raises
        ------
        InputError
            Where the file cannot be read, a name is unknown or a value is out of range.
        """
        fields: dict[str, Any] = {}
        if path is not None:
            mend = "give a mapping of settings, for example {foreground: {method: threshold}}"
            fields = _mapping_from_file(path, mend)
            unknown = sorted(set(fields) - set(cls.model_fields))
            if unknown:
                raise InputError(path, f"unknown setting {', '.join(unknown)}", f"use {', '.join(cls.model_fields)}")
        try:
            return cls(**fields)
        except ValidationError as error:
            mend = "see docs/settings.md for names and ranges"
            raise InputError(path or "the environment", first_problem(error), mend) from error


PAPER: dict[str, dict[str, Any]] = {
    "preprocess": {
        "interpolation": "nearest",
        "median_size": 3,
        "bilateral_spatial_sigma": 1.5,
        "bilateral_range_sigma": 30.0,
    },
    "foreground": {
        "method": "sam",
        "points_per_side": 32,
        "prompts": "grid",
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "box_nms_thresh": 0.7,
        "directions": 1,
    },
    "organelles": {"directions": 3, "fusion": "maximum", "filter": "median"},
}
"""What the preset ``paper`` fixes; docs/method.md says which of these the paper states and which it leaves open."""


BlockEdge = Annotated[int, Field(ge=0, multiple_of=64)]


class Workspace(BaseSettings):
    """Where state lives and which services are used; every field is a ``CMSEG_*`` variable."""

    model_config = SettingsConfigDict(env_prefix="CMSEG_", extra="ignore", frozen=True, hide_input_in_errors=True)

    workspace: Path = Path("~/.cmseg")
    """Folder of local state (``CMSEG_WORKSPACE``)."""
    store: str | None = None
    """URI of the object store, ``s3://bucket`` or a folder; by default ``<workspace>/store``."""
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    mlflow_tracking_uri: str | None = None
    """By default an SQLite file in the workspace."""
    unet: str = "champion"
    sam: str = "champion"
    stage_model: str = "champion"
    """Model references: ``champion`` (``packaged`` where there is none), ``packaged``, a file, ``models:/name/version``
    or ``models:/name@alias``; for the cell-cycle stage also ``rule``, which does without a classifier."""
    shadow: str | None = None
    """A model of organelles, such as ``challenger``, that labels some cells of each acquisition again. The nights tell
    how far it agrees with what is published; nothing of it is."""
    shadow_cells: Annotated[int, Field(ge=1)] = 4
    """Cells of each acquisition that it labels."""
    network_limit: str | None = None
    """Global concurrency limit of Prefect of which every step that asks a network takes a slot, over all workers of a
    night; it must exist. By default nothing limits them."""
    max_memory_gb: Annotated[float, Field(gt=0)] = 8.0
    block_edge: BlockEdge = 0
    """Voxels along each side of the blocks in which cells are told apart, a multiple of 64; 0 takes the largest of 256,
    128 and 64 for which the memory is enough. The result does not depend on it."""
    dask: str | None = None
    """Address of the scheduler of a Dask cluster (``tcp://host:8786``) whose workers take sections, blocks and cells;
    by default this process does. Needs the extra ``dask``."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of each numeric library; 0 takes the number of cores this process may use."""

    @field_validator("workspace")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("store", "s3_endpoint", "mlflow_tracking_uri", "dask")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        """Addresses stand in logs, in the parameters of runs and in errors."""
        if value is not None and "@" in urlsplit(value).netloc:
            raise ValueError(
                "holds a user or a password; leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGUSER and PGPASSWORD"
            )
        return value


# --------------------------------------------------------------------------------------------- manifest


class OutputFile(Frozen):
    """One published file."""

    path: str
    sha256: str
    bytes: int


class Manifest(Frozen):
    """How a result was made; ``manifest.json``, written last."""

    acquisition: Acquisition
    config: dict[str, Any]
    keys: dict[str, str]
    """Stage name to the key under which its output stands."""
    versions: dict[str, str]
    """Package name to version."""
    models: dict[str, dict[str, str]]
    """Role (``unet``, ``sam``, ``stage``) to reference, version and sha256."""
    outputs: tuple[OutputFile, ...]
    quarantined_cells: dict[str, str] = Field(default_factory=dict)
    """Cell id to the reason why it has no organelles."""


# ---------------------------------------------------------------------------------------------- helpers


def first_problem(error: ValidationError) -> str:
    """The first finding of a pydantic error as one line."""
    finding = error.errors()[0]
    where = ".".join(str(part) for part in finding["loc"])
    return f"{where}: {finding['msg']}" if where else finding["msg"]


def _plain(section: Any) -> dict[str, Any]:
    """A section of settings as given: only the fields that were set."""
    if isinstance(section, BaseModel):
        return section.model_dump(exclude_unset=True)
    return section or {}


def _mapping_from_file(path: str | Path, mend: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, f"cannot be read ({error})".replace("\n", " "), mend) from error
    if not isinstance(content, dict):
        raise InputError(path, "does not hold a mapping", mend)
    return content


def _model_from_file(model: type[ModelT], path: str | Path, mend: str) -> ModelT:
    try:
        return model.model_validate(_mapping_from_file(path, mend))
    except ValidationError as error:
        raise InputError(path, first_problem(error), mend) from error
