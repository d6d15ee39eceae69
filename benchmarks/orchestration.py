"""What a night spends on being orchestrated: its wall time beside the time spent inside its steps.

    cmseg up && python -m benchmarks.orchestration [--acquisitions 10] [--cells 14]

Simulated acquisitions, as `cmseg demo` makes them, each with a seed of its own, are submitted to the services of the
workspace, and one night takes them all. Every step runs one after the other (one worker, one thread for steps), so that
what is left of the wall time is orchestration: Prefect's engine and server, claims, the landing zone, and telling of
the night. What computes or moves data and is no step is timed and named, too: fetching submissions and models, the
pictures of the worst cells, and drift. The first acquisition pays for what is imported and compiled.
"""

from __future__ import annotations

import argparse
import pkgutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any

import tasks
from cmseg_core.phantom import draw_field
from cmseg_core.phantom.write import write_acquisition
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from flows.environment import prepare
from flows.joined import join

WORK = (
    ("tasks.models", "_load", "loading the network"),
    ("flows.nightly", "_pinned", "models of the night"),
    ("flows.nightly", "fetch_submission", "fetching submissions"),
    ("flows.nightly", "show_worst", "pictures of the worst cells"),
    ("flows.nightly", "tell_drift", "drift"),
)
"""Work that is no step: module, function, and what it is."""


class Watch:
    """Seconds inside the steps, and how many there were."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._here = local()

    def over(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, timed."""

        @wraps(step)
        def timed(*args: Any, **options: Any) -> Any:
            if getattr(self._here, "inside", False):  # counted by the step that asks for it
                return step(*args, **options)
            self._here.inside = True
            began = time.perf_counter()
            try:
                return step(*args, **options)
            finally:
                self._here.inside = False
                self.seconds[name] += time.perf_counter() - began
                self.calls[name] += 1

        return timed


def watched() -> Watch:
    """Time every Prefect task of the package, and the work that is no task."""
    from prefect.tasks import Task

    watch = Watch()
    for place, name, what in WORK:
        module = import_module(place)
        setattr(module, name, watch.over(what, getattr(module, name)))
    for module in pkgutil.iter_modules(tasks.__path__, "tasks."):
        for one in vars(import_module(module.name)).values():
            if isinstance(one, Task) and one.fn.__module__ == module.name:
                one.fn = watch.over(one.name, one.fn)
    return watch


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", type=int, default=10)
    parser.add_argument("--cells", type=int, default=14)
    parser.add_argument("--seed", type=int, default=9100)
    given = parser.parse_args()
    join(["nightly"])
    workspace = Workspace()
    prepare(workspace)
    from flows.nightly import nightly
    from flows.places import store_address
    from flows.submit import submit

    store, names = store_address(workspace).open(), []
    with TemporaryDirectory() as folder:
        for number in range(given.acquisitions):
            size = VoxelSize(z=30, y=20, x=20)
            field = draw_field(given.seed + number, cells=given.cells, voxel_size=size)
            write_acquisition(field, Path(folder, str(number)))
            stack = str(Path(folder, str(number), "stack.tif"))
            names.append(submit(stack, f"orchestration-{given.seed + number}", store).name)
    watch = watched()
    began = time.perf_counter()
    results = nightly(PipelineConfig(), workspace, names)
    wall = time.perf_counter() - began
    inside = sum(watch.seconds.values())
    print(f"{sum(result.state == 'published' for result in results)} of {len(results)} published, "
          f"{sum(result.cells for result in results)} cells, {sum(watch.calls.values())} pieces of work")  # fmt: skip
    print(f"wall {wall:.1f} s, inside {inside:.1f} s, orchestration {wall - inside:.1f} s: "
          f"{(wall - inside) / wall:.1%} of the night")  # fmt: skip
    for name, seconds in sorted(watch.seconds.items(), key=lambda pair: -pair[1]):
        print(f"  {name}: {watch.calls[name]} times, {seconds:.1f} s")


if __name__ == "__main__":
    main()
