"""What works here and what does not."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as version_of
from typing import Literal

from cmseg_core.errors import InputError
from cmseg_core.machine import has_gpu, machine_limit_gb
from cmseg_core.schema import Frozen, Workspace
from cmseg_core.tracking.registry import PACKAGED, resolve_model
from flows.console import BAD_INPUT, DONE, Console, one_line
from flows.places import tracking_uri
from tasks.request import STAGE_RULE

GIGABYTE = 1e9
LEAST_DISK_GB = 5.0


class Finding(Frozen):
    """One thing that was looked at: ``bad`` keeps cmseg from working as it is set up, ``note`` does not."""

    subject: str
    state: Literal["ok", "note", "bad"]
    detail: str


def examine(console: Console) -> int:
    """Print every finding; the exit status is 2 where something must be mended."""
    workspace = Workspace()
    checks: tuple[Callable[[Workspace], Iterator[Finding]], ...] = (_python, _machine, _disk, _models, _gpu, _store)
    findings = [finding for check in checks for finding in _checked(check, workspace)]
    rows = [(f.subject, f.state, f.detail) for f in findings]
    width = max(len(row[0]) for row in rows)
    text = "\n".join(f"{subject.ljust(width)}  {state.ljust(4)}  {detail}" for subject, state, detail in rows)
    works = all(finding.state != "bad" for finding in findings)
    console.result({"works": works, "findings": [f.model_dump() for f in findings]}, text)
    return DONE if works else BAD_INPUT


def _checked(check: Callable[[Workspace], Iterator[Finding]], workspace: Workspace) -> list[Finding]:
    """The findings of a check; one that fails is itself a finding."""
    try:
        return list(check(workspace))
    except Exception as error:  # a check may meet anything in a broken installation, and must not stop the others
        return [Finding(subject=check.__name__.strip("_"), state="bad", detail=one_line(str(error)))]


def _python(workspace: Workspace) -> Iterator[Finding]:
    yield Finding(subject="python", state="ok", detail=f"{platform.python_version()}, {sys.executable}")
    wrong = []
    for text in requires("cmseg") or ():
        name = re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]
        # What a marker leaves out of this platform or belongs to an extra is not needed; TensorFlow has two names.
        if ";" not in text and not _installed(name):
            wrong.append(f"{name} is absent")
    if not (_installed("tensorflow") or _installed("tensorflow-cpu")):
        wrong.append("tensorflow is absent")
    detail = "; ".join(wrong) or f"cmseg {version_of('cmseg')}, every requirement is installed"
    yield Finding(subject="packages", state="bad" if wrong else "ok", detail=detail)


def _installed(name: str) -> bool:
    try:
        version_of(name)
    except PackageNotFoundError:
        return False
    return True


def _machine(workspace: Workspace) -> Iterator[Finding]:
    import psutil  # here, so that its absence is a finding like any other

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = workspace.threads or cores
    detail = f"{threads} of {cores} cores"
    state = "note" if threads > cores else "ok"
    yield Finding(subject="threads", state=state, detail=detail)
    free = min(psutil.virtual_memory().available / GIGABYTE, machine_limit_gb())
    enough = free >= workspace.max_memory_gb
    detail = f"{free:.1f} GB free, runs may use {workspace.max_memory_gb:g} GB"
    detail += "" if enough else "; lower CMSEG_MAX_MEMORY_GB"
    yield Finding(subject="memory", state="ok" if enough else "note", detail=detail)


def _disk(workspace: Workspace) -> Iterator[Finding]:
    folder = workspace.workspace
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK) or not nearest.is_dir():
        yield Finding(subject="workspace", state="bad", detail=f"{folder} cannot be written; set CMSEG_WORKSPACE")
        return
    free = shutil.disk_usage(nearest).free / GIGABYTE
    state = "ok" if free >= LEAST_DISK_GB else "note"
    yield Finding(subject="workspace", state=state, detail=f"{folder}, {free:.1f} GB free")


def _models(workspace: Workspace) -> Iterator[Finding]:
    references = {"unet": workspace.unet, "sam": workspace.sam, "stage": workspace.stage_model}
    for role in PACKAGED:
        if role == "stage" and workspace.stage_model == STAGE_RULE:
            continue
        try:
            cache = workspace.workspace / "models"
            found = resolve_model(references[role], role, tracking_uri(workspace), cache)
        except (InputError, ConnectionError) as error:
            yield Finding(subject=f"model {role}", state="bad", detail=one_line(str(error)))
        else:
            megabytes = found.path.stat().st_size / 1e6
            detail = f"{found.reference}, {found.path.name}, {megabytes:.1f} MB"
            yield Finding(subject=f"model {role}", state="ok", detail=detail)


def _gpu(workspace: Workspace) -> Iterator[Finding]:
    if not has_gpu():
        yield Finding(subject="gpu", state="note", detail="no NVIDIA GPU to be used: everything runs on the CPU")
        return
    import torch

    seen = torch.cuda.is_available()
    detail = torch.cuda.get_device_name(0) if seen else "a driver, but PyTorch is a build without CUDA; see README.md"
    yield Finding(subject="gpu", state="ok" if seen else "note", detail=detail)


def _store(workspace: Workspace) -> Iterator[Finding]:
    uri = workspace.store or str(workspace.workspace / "store")
    if not uri.startswith("s3://"):
        yield Finding(subject="store", state="ok", detail=f"the folder {uri}")
        return
    from cmseg_core.storage.store import Store

    try:
        store = Store.open(uri, endpoint=workspace.s3_endpoint, region=workspace.s3_region)
        store.folders("incoming")
    except (InputError, OSError) as error:
        yield Finding(subject="store", state="bad", detail=one_line(str(error)))
    else:
        yield Finding(subject="store", state="ok", detail=f"{uri} at {store.endpoint or 'AWS'} answers")
