"""Every call of a tiny night is harmed in its turn: does the night end in the same published bytes?

    python -m benchmarks.faults FOLDER [--harms refused "killed after"] [--every 1] [--skip 0]

The night has one acquisition of two cells. Its calls to the object store, to Prefect and to MLflow pass through a proxy
(``tests/faults/proxy.py``) that numbers them. For each number and each harm a night of its own is run, and once more
where it did not end well; then all that it published is compared with an undisturbed night, byte for byte. A kill
matters where something changes: calls that only read are left out of it, since a kill there leaves the same state as
one at the change before. FOLDER/faults.jsonl has a line for each night, and is taken up where it ends. Four processes
with ``--every 4`` and ``--skip`` 0 to 3, each in a folder of its own, share the calls among them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.nights import Nights, changes, nights, published, tiny_acquisition, tiny_unet
from tests.faults.proxy import Harm, at, unharmed

KILLS = (Harm.KILLED_BEFORE, Harm.KILLED_AFTER)


def sweep(here: Nights, harms: list[Harm], every: int, skip: int, log: Path) -> None:
    """Harm every `every`-th call after the first `skip`; a line for each night goes to `log`."""
    store = here.submit("undisturbed-a")
    assert here.run("undisturbed-a", unharmed) == 0
    whole, calls = published(store), list(here.proxy.calls)
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["harm"], row["number"]) for row in known}
    print(f"{len(calls)} calls, {sum(map(changes, calls))} of them change something, {len(whole)} objects published")
    for call in calls[skip::every]:
        for harm in harms:
            if (harm.value, call.number) in done or (harm in KILLS and not changes(call)):
                continue
            began = time.monotonic()
            ending = here.endure(f"{harm.replace(' ', '-')}-{call.number}-{int(time.time())}", at(call.number, harm))
            row: dict[str, Any] = {
                "harm": harm.value,
                "number": call.number,
                "call": [f"{one.service} {one.method} {one.target}" for one in ending.harmed],
                "statuses": ending.statuses,
                "same": ending.published == whole,
                "repeated": ending.repeated,
                "left": ending.left,
                "seconds": round(time.monotonic() - began, 1),
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if not row["same"] or ending.statuses[-1] or ending.repeated or ending.left:
                print(json.dumps(row), flush=True)


def table(log: Path) -> str:
    """The lines of a log, counted by harm."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    lines = ["| harm | nights | ended well at once | after one restart | same bytes | finished work repeated |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for harm in dict.fromkeys(row["harm"] for row in rows):
        mine = [row for row in rows if row["harm"] == harm]
        ends = Counter(tuple(row["statuses"])[-1:] + (len(row["statuses"]),) for row in mine)
        same, repeated = sum(row["same"] for row in mine), sum(bool(row["repeated"]) for row in mine)
        lines.append(f"| {harm} | {len(mine)} | {ends[0, 1]} | {ends[0, 2]} | {same} | {repeated} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--harms", nargs="+", type=Harm, default=[Harm.REFUSED, *KILLS])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    log = given.folder / "faults.jsonl"
    site = given.folder / f"site-{int(time.time())}"
    acquisition, unet = tiny_acquisition(given.folder / "tiny"), tiny_unet(given.folder / "tiny.keras")
    with nights(site, acquisition, unet) as here:
        sweep(here, given.harms, given.every, given.skip, log)
    print(table(log))


if __name__ == "__main__":
    main()
