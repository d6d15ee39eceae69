"""One acquisition, from its stack to its report."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, unmapped
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from cmseg_core.errors import InputError
from cmseg_core.instances.regions import CellRegion, crop_box
from cmseg_core.schema import Manifest, Taxonomy
from cmseg_core.storage import manifest
from cmseg_core.storage.stages import StageRef, is_damage
from cmseg_core.tracking.registry import ResolvedModel
from flows.progress import Progress, resource_of, tag_run
from flows.separation import find_and_separate
from flows.shadow import shadowed
from tasks.assemble import assemble
from tasks.check import Checked, check
from tasks.deliver import Made, deliver
from tasks.evaluate import evaluate
from tasks.ingest import ingest
from tasks.instances import regions_of
from tasks.measure import measure
from tasks.models import agreed_taxonomy, suited_classifier
from tasks.organelles import organelles
from tasks.preprocess import preprocess
from tasks.request import AcquisitionRequest, AcquisitionResult
from tasks.source import fetch, open_stack
from tasks.stage import may_pass, opened

log = logging.getLogger("cmseg.flows")

WORKERS = 1
"""Cells labelled at a time. TensorFlow spreads one cell over all cores; two at once would share the same cores and hold
twice the memory."""
FINDING, SEPARATING, LABELLING, MEASURING, WRITING = 0.05, 0.35, 0.40, 0.85, 0.95
"""Share of the time of an acquisition that is usually over when these begin (`benchmarks/orchestration.py`)."""


@flow(  # type: ignore[call-overload]  # of an invariant type
    name="process-acquisition",
    flow_run_name="process-{request.name}",
    task_runner=ThreadPoolTaskRunner(max_workers=WORKERS),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def process_acquisition(request: AcquisitionRequest) -> AcquisitionResult:
    """Segment one acquisition and publish the result.

    Stages whose outputs stand in the store already are not computed again; a result that is published already, with
    the same inputs, settings, models and code, is verified and left alone.

    Raises
    ------
    InputError
        For bad input, before anything is written to the result's place.
    """
    tag_run("cmseg", request.name)
    with _at_hand(request) as (request, scratch):
        # What is cheap to refuse is refused before the stack is hashed.
        open_stack(request.source, request.voxel_size)
        fresh = request.out is not None and manifest.existing_run(request.out) is None
        if request.out is not None and fresh and request.out.parent.is_dir():
            manifest.check_output(request.out)
        checked = check(request)
        former = _published(request, checked)
        if former is not None:
            return former
        taxonomy = agreed_taxonomy(request.config, checked.models["unet"])
        stage_model = suited_classifier(checked.models.get("stage"), taxonomy)
        if request.out is not None:
            manifest.check_output(request.out)  # makes the folders above it, which a refused request must not
        progress = Progress(request.name)
        try:
            return _carry_out(request, checked, taxonomy, stage_model, progress, scratch)
        except Exception as error:
            if not is_damage(error):
                raise
            reason = f"what a step had left in the store was altered since ({error})"
        log.error("%s: %s; all steps are done again", request.name, reason)
        emit_event("cmseg.acquisition.damaged", resource=resource_of(request.name), payload={"reason": reason})
        request = request.model_copy(update={"again": 1})
        return _carry_out(request, checked, taxonomy, stage_model, progress, scratch)


def _carry_out(
    request: AcquisitionRequest,
    checked: Checked,
    taxonomy: Taxonomy,
    stage_model: ResolvedModel | None,
    progress: Progress,
    scratch: Path,
) -> AcquisitionResult:
    """Run all stages, and publish the result."""
    made = _compute(request, checked, taxonomy, stage_model, progress)
    log.info("%s: writing the result", request.name)
    progress.reach(WRITING, "writing the result")
    location = deliver(
        checked=checked,
        made=made,
        config=request.config,
        taxonomy=taxonomy,
        store=request.address,
        destination=request.name,
        scratch=scratch,
        out=request.out,
    )
    evaluation = made.evaluate and opened(made.evaluate, request.address).read_json("evaluation.json")
    regions = regions_of(made.instances, request.address)
    progress.reach(1, f"published, {len(regions)} cells")
    return AcquisitionResult(
        name=request.name,
        state="published",
        location=location,
        cells=len(regions),
        quarantined_cells=made.quarantined_cells,
        evaluation=evaluation,
        shadow=shadowed(request, checked, regions, made.organelles, made.preprocess, made.instances, taxonomy),
    )


def _compute(
    request: AcquisitionRequest,
    checked: Checked,
    taxonomy: Taxonomy,
    stage_model: ResolvedModel | None,
    progress: Progress,
) -> Made:
    """Run every stage up to the scores."""
    config, store = request.config, request.address
    voxel_size = checked.acquisition.voxel_size
    log.info("%s: reading %d sections", request.name, checked.shape[0])
    ingested = ingest(
        source=request.source,
        sha256=checked.acquisition.sha256,
        voxel_size=voxel_size,
        quality=config.quality,
        store=store,
    )
    preprocessed = preprocess(ingested=ingested, config=config.preprocess, store=store)
    log.info("%s: finding cells", request.name)
    evidence, separated = find_and_separate(
        preprocessed=preprocessed,
        shape=checked.shape,
        voxel_size=voxel_size,
        config=config.foreground,
        instances=config.instances,
        sam=checked.models.get("sam"),
        edge=checked.block_edge,
        store=store,
        limit=request.network_limit,
        tell=progress.between(FINDING, SEPARATING, "runs of sections looked at"),
    )
    regions = regions_of(separated, store)
    log.info("%s: labelling %d cells", request.name, len(regions))
    labelled, failed = _gather(
        regions,
        progress.between(LABELLING, MEASURING, "cells labelled"),
        organelles.map(
            region=list(regions),
            preprocessed=unmapped(preprocessed),
            separated=unmapped(separated),
            voxel_size=unmapped(voxel_size),
            unet=unmapped(checked.models["unet"]),
            config=unmapped(config.organelles),
            preprocess=unmapped(config.preprocess),
            store=unmapped(store),
            limit=unmapped(request.network_limit),
        ),
    )
    if failed and not labelled:
        # Not one bad cell, then: something is wrong with all of this, and must not be published as a result.
        raise RuntimeError(f"none of {len(failed)} cells could be labelled: {next(iter(failed.values()))}")
    kept = [region for region in regions if region.cell_id in labelled]
    boxes = [crop_box(region, checked.shape, voxel_size, config.organelles.margin_nm) for region in kept]
    measured, unmeasured = _gather(
        kept,
        progress.between(MEASURING, WRITING, "cells measured"),
        measure.map(
            region=kept,
            labelled=[labelled[region.cell_id] for region in kept],
            origin=[tuple(span.start for span in box) for box in boxes],
            voxel_size=unmapped(voxel_size),
            taxonomy=unmapped(taxonomy),
            mesh=unmapped(config.mesh),
            stage_model=unmapped(stage_model),
            store=unmapped(store),
        ),
    )
    for cell_id in set(labelled) - set(measured):
        labelled.pop(cell_id)
    assembled = assemble(
        separated=separated,
        labelled=labelled,
        voxel_size=voxel_size,
        margin_nm=config.organelles.margin_nm,
        store=store,
    )
    made = Made(
        ingest=ingested,
        preprocess=preprocessed,
        foreground=evidence,
        instances=separated,
        organelles=labelled,
        measure=measured,
        assemble=assembled,
        evaluate=_evaluated(request, checked, preprocessed, separated, assembled, taxonomy),
        quarantined_cells=dict(sorted((failed | unmeasured).items(), key=lambda item: int(item[0]))),
    )
    return made


def _evaluated(
    request: AcquisitionRequest,
    checked: Checked,
    preprocessed: StageRef,
    separated: StageRef,
    assembled: StageRef,
    taxonomy: Taxonomy,
) -> StageRef | None:
    if not checked.truth_sha256:
        return None
    return evaluate(
        separated=separated,
        baseline=_baseline(request, checked, preprocessed),
        assembled=assembled,
        truth_cells=request.truth_cells,
        truth_organelles=request.truth_organelles,
        truth_sha256=checked.truth_sha256,
        stages=checked.stages,
        taxonomy=taxonomy,
        store=request.address,
    )


def _baseline(request: AcquisitionRequest, checked: Checked, preprocessed: StageRef) -> StageRef | None:
    """The cells that the classical method finds, where there is truth to tell which method suits these images."""
    config = request.config
    if config.foreground.method == "threshold" or not request.truth_cells:
        return None
    _, separated = find_and_separate(
        preprocessed=preprocessed,
        shape=checked.shape,
        voxel_size=checked.acquisition.voxel_size,
        config=config.foreground.model_copy(update={"method": "threshold"}),
        instances=config.instances,
        sam=None,
        edge=checked.block_edge,
        store=request.address,
    )
    return separated


def _gather(
    regions: Sequence[CellRegion], tell: Callable[[int, int], None], futures: list[PrefectFuture[StageRef]]
) -> tuple[dict[int, StageRef], dict[str, str]]:
    """What became of each cell: its output, or the reason why there is none.

    A cell is quarantined for what is wrong with it. Where a disk or a service failed, or has altered what an earlier
    step had left, nothing is wrong with the cell, and a result without it must not be published: that is raised.
    """
    done: dict[int, StageRef] = {}
    failed: dict[str, str] = {}
    for region, future in zip(regions, futures, strict=True):
        result = future.result(raise_on_failure=False)
        if isinstance(result, StageRef):
            done[region.cell_id] = result
            log.info("%s: cell %d, %d of %d", result.stage, region.cell_id, len(done) + len(failed), len(regions))
        elif isinstance(result, BaseException) and (may_pass(result) or is_damage(result)):
            raise result
        else:
            failed[str(region.cell_id)] = _reason(result)
            log.warning("cell %d is quarantined: %s", region.cell_id, failed[str(region.cell_id)])
        tell(len(done) + len(failed), len(regions))
    return done, failed


def _reason(error: object) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, InputError) and text:
        return text[0]
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@contextmanager
def _at_hand(request: AcquisitionRequest) -> Iterator[tuple[AcquisitionRequest, Path]]:
    """The request with its source as a local path, and a folder for passing files that is removed in the end."""
    parent = request.workspace / "scratch"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=parent, prefix=f"{request.name}-"))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise InputError(parent, reason, "set CMSEG_WORKSPACE to a folder that can be written") from error
    try:
        if request.source.startswith("s3://"):
            path = fetch(request.source, scratch, endpoint=request.s3_endpoint, region=request.s3_region)
            request = request.model_copy(update={"source": str(path), "origin": request.origin or request.source})
        yield request, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _published(request: AcquisitionRequest, checked: Checked) -> AcquisitionResult | None:
    """The result that stands already; None where there is none.

    Raises
    ------
    InputError
        Where another result stands in its place, or the one that stands was changed.
    """
    former = manifest.existing_run(request.out) if request.out is not None else _manifest_in_store(request)
    if former is None:
        return None
    place = str(request.out) if request.out is not None else f"acquisitions/{request.name}"
    if former.keys.get("run") != checked.run_key:
        raise InputError(place, "holds the result of another run", "choose another place or name")
    if request.out is not None and (problems := manifest.verify(request.out)):
        reason = f"differs from its manifest ({problems[0]}{', ...' if len(problems) > 1 else ''})"
        raise InputError(place, reason, "remove it, and run again")
    evaluated = former.keys.get("evaluate")
    evaluation = _read_evaluation(request) if evaluated else None
    return AcquisitionResult(
        name=request.name,
        state="published",
        location=place if request.out is not None else request.address.open().uri_of(place),
        cells=len({path.split("/")[1] for o in former.outputs if (path := o.path).startswith("cells/")}),
        quarantined_cells=former.quarantined_cells,
        evaluation=evaluation,
        recomputed=False,
    )


def _manifest_in_store(request: AcquisitionRequest) -> Manifest | None:
    try:
        return Manifest.model_validate_json(request.address.open().get(f"acquisitions/{request.name}/manifest.json"))
    except KeyError:
        return None


def _read_evaluation(request: AcquisitionRequest) -> dict[str, Any]:
    if request.out is not None:
        return json.loads((request.out / "evaluation.json").read_bytes())
    return json.loads(request.address.open().get(f"acquisitions/{request.name}/evaluation.json"))
