"""What is asked of the pipeline for one acquisition, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cmseg_core.schema import AcquisitionName, BlockEdge, Frozen, PipelineConfig, Stage, VoxelSize
from cmseg_core.storage.store import Store

STAGE_RULE = "rule"
"""In place of a reference to a classifier of the stage: the rule tells it."""


class StoreAddress(Frozen):
    """Where the artifact store is; credentials come from the environment of whoever opens it.

    `again` counts how often what steps had left there was found altered: they then leave it in other places.
    """

    uri: str
    endpoint: str | None = None
    region: str = "us-east-1"
    again: int = 0

    def open(self) -> Store:
        """The store."""
        return Store.open(self.uri, endpoint=self.endpoint, region=self.region)


class AcquisitionRequest(Frozen):
    """One acquisition to process.

    Attributes
    ----------
    name : str
        Letters, digits, ``.``, ``_`` and ``-``; never a path.
    source : str
        Path of the stack, or ``s3://bucket/key``.
    origin : str, optional
        How the manifest and the report name the source; `source` itself by default. A stack that was fetched to a
        passing folder keeps its name in the store.
    sha256 : str, optional
        Hash that the stack's content must have.
    voxel_size : VoxelSize, optional
        None takes what the stack states.
    truth_cells, truth_organelles : str, optional
        Label stacks to score against.
    stages : dict
        Cell id of the truth to its stage; where empty, ``stages`` of an ``acquisition.json`` beside the stack.
    config : PipelineConfig
    store : str
        URI of the store that keeps the outputs of the stages.
    s3_endpoint, s3_region : str
        Of the store.
    out : Path, optional
        Folder of the result; None publishes below ``acquisitions/<name>/`` of the store.
    unet, sam, stage_model : str
        Model references; the last may be ``rule``.
    tracking_uri : str
        Of the model registry.
    workspace : Path
        Folder of local state: fetched models and passing files.
    max_memory_gb : float
        Acquisitions that would need more are refused.
    block_edge : int
        Of the blocks in which cells are told apart, in voxels of the working grid; 0 takes what the memory allows.
    shadow : str, optional
        Reference of a model of organelles that labels `shadow_cells` cells again, for comparison.
    network_limit : str, optional
        Global concurrency limit of Prefect of which every step that asks a network takes a slot.
    again : int
        See `StoreAddress`.
    """

    name: AcquisitionName
    source: str
    origin: str | None = None
    sha256: str | None = None
    voxel_size: VoxelSize | None = None
    truth_cells: str | None = None
    truth_organelles: str | None = None
    stages: dict[int, Stage] = Field(default_factory=dict)
    config: PipelineConfig = Field(default_factory=PipelineConfig)
    store: str
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    out: Path | None = None
    unet: str = "packaged"
    sam: str = "packaged"
    stage_model: str = "packaged"
    tracking_uri: str
    workspace: Path
    max_memory_gb: Annotated[float, Field(gt=0)] = 8.0
    block_edge: BlockEdge = 0
    shadow: str | None = None
    shadow_cells: Annotated[int, Field(ge=1)] = 4
    network_limit: str | None = None
    again: int = 0

    @property
    def address(self) -> StoreAddress:
        """Where the store is."""
        return StoreAddress(uri=self.store, endpoint=self.s3_endpoint, region=self.s3_region, again=self.again)


class Shadow(Frozen):
    """How far a model in shadow agrees with what was published.

    Attributes
    ----------
    reference, version : str
        The model.
    cells : int
        That it labelled.
    iou : dict
        Class to the IoU of what both say, all cells together; None where neither found it.
    """

    reference: str
    version: str
    cells: int
    iou: dict[str, float | None]

    def __str__(self) -> str:
        said = ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in self.iou.items())
        return f"{self.reference} (version {self.version}) in shadow agrees on {self.cells} cells: {said}"


class AcquisitionResult(Frozen):
    """What became of one acquisition.

    Attributes
    ----------
    name : str
    state : {"published", "quarantined", "waiting"}
        It waits where a disk or a service failed until the end: the next night takes it up.
    reason : str, optional
        Why it was quarantined, or waits.
    location : str
        Folder or URI of the result, of the reason, or of the submission.
    cells : int
        Cells that were found.
    quarantined_cells : dict of str to str
        Cell id to the reason why it has no organelles.
    evaluation : dict, optional
        Content of ``evaluation.json``.
    recomputed : bool
        False where the same result was there already.
    shadow : Shadow, optional
        Where a model was in shadow.
    """

    name: str
    state: Literal["published", "quarantined", "waiting"]
    reason: str | None = None
    location: str
    cells: int = 0
    quarantined_cells: dict[str, str] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    recomputed: bool = True
    shadow: Shadow | None = None
