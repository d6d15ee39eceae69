"""Runs nights in processes of their own, each forked from one that has imported everything already.

Reads one JSON object of variables a line, answers with the number of the process, waits for an empty line, lets the
night begin, and answers with its exit status: 0 where all was published, 3 where something was quarantined.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from cmseg_core.schema import PipelineConfig, Workspace
from flows.environment import prepare

_PAUSES = (5.0, 60.0)
"""Seconds in place of minutes before a night takes up again what a failing service made wait."""
_LATE = (
    "cmseg_core.morphology.meshes",
    "cmseg_core.organelles.inference",
    "cmseg_core.organelles.model",
    "cmseg_core.report.report",
    "flows.nightly",
    "mlflow.artifacts",
)


def night(variables: dict[str, str]) -> int:
    """One night, in this process."""
    os.environ.update(variables)
    from flows.nightly import nightly

    results = nightly(config=PipelineConfig(), workspace=Workspace())
    print(json.dumps([result.model_dump(mode="json") for result in results]))
    return 0 if all(result.state == "published" for result in results) else 3


def forked(variables: dict[str, str], log: Path, go: int) -> Any:
    """In the child: wait for the sign, then run the night; never returns."""
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.read(go, 1)
        status = night(variables)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Serve the process that started this one."""
    prepare(Workspace())
    # What a night imports late, so that no night pays for it.
    for module in _LATE:
        importlib.import_module(module)
    from flows import nightly

    nightly.PAUSES = _PAUSES
    log = Path(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            forked(json.loads(line), log, reader)
        os.close(reader)
        print(child, flush=True)
        sys.stdin.readline()
        os.write(writer, b"\n")
        os.close(writer)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
