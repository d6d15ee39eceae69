"""The cells most in need of a look, over all that was published."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from cmseg_core.evaluation.tables import format_table
from cmseg_core.report.context import middle_sections
from cmseg_core.report.figures import draw_organelles, draw_raw, encode_webp
from cmseg_core.report.tables import number
from cmseg_core.schema import Workspace
from cmseg_core.storage.store import Store
from flows.console import DONE, Console
from flows.environment import prepare
from flows.published import Published

PICTURE_PIXELS = 200
"""Longer side of a picture of a cell."""


class CellToReview(TypedDict):
    """A cell of a published acquisition; `review_score` is 0 for one that needs no look, up to 1."""

    acquisition: str
    cell_id: int
    review_score: float
    stage: int | None
    flags: list[str]
    place: str


def cells_to_review(store: Store, names: Sequence[str], top: int) -> list[CellToReview]:
    """The cells of published acquisitions with the highest review score, the highest first.

    Parameters
    ----------
    store : Store
    names : sequence of str
        Of the acquisitions.
    top : int
        How many cells at most.
    """
    found = [_cell(name, row) for name in names for row in Published(store, name).rows]
    return sorted(found, key=lambda cell: (-cell["review_score"], cell["acquisition"], cell["cell_id"]))[:top]


def illustrated(store: Store, cells: Sequence[CellToReview]) -> str:
    """Cells as Markdown, each with the middle of its crop, before and after."""
    shown, published = [], {name: Published(store, name) for name in {cell["acquisition"] for cell in cells}}
    for cell in cells:
        flags = ", ".join(cell["flags"]) or "no flags"
        pictures = " ".join(
            f"![cell {cell['cell_id']}]({url})" for url in _pictures(published[cell["acquisition"]], cell)
        )
        title = f"**{cell['acquisition']}, cell {cell['cell_id']}**: review score {cell['review_score']:.2f}, {flags}"
        shown.append(f"{title}\n\n{pictures or 'its organelles could not be segmented'}")
    return "\n\n".join(shown)


def fetch_cells(store: Store, cells: Sequence[CellToReview], folder: Path) -> tuple[list[str], list[str]]:
    """Bring the files of cells to ``folder/ACQUISITION/CELL``; a folder that exists may hold corrections, and is left.

    Returns
    -------
    fetched, left : list of str
        Folders.
    """
    fetched, left = [], []
    for cell in cells:
        target = folder / cell["acquisition"] / str(cell["cell_id"])
        if target.exists():
            left.append(str(target))
            continue
        store.download_tree(cell["place"], target, last=())
        fetched.append(str(target))
    return fetched, left


def show_review(console: Console, name: str | None, top: int, to: Path | None) -> int:
    """Print the cells most in need of a look as ``cmseg review`` is asked to, and fetch their files."""
    workspace = Workspace()
    prepare(workspace)
    from flows.places import store_address
    from flows.status import known
    from tasks.landing import state_of

    store = store_address(workspace).open()
    published = [one for one in known(store, name) if state_of(store, one, claimed=False)[0] == "published"]
    cells = cells_to_review(store, published, top)
    document: dict[str, Any] = {"cells": cells}
    rows = [
        (c["acquisition"], c["cell_id"], f"{c['review_score']:.2f}", c["stage"], ", ".join(c["flags"])) for c in cells
    ]
    text = (
        format_table(("acquisition", "cell", "score", "stage", "flags"), rows) if rows else "no cell was published yet"
    )
    if to is not None:
        document["fetched"], document["left"] = fetch_cells(store, cells, to)
        for folder in document["left"]:
            console.say(f"{folder} is there already and was left as it is")
        text += f"\n\n{len(document['fetched'])} cells in {to}. Correct organelles.tif, then `cmseg dataset add`."
    console.result(document, text)
    return DONE


def _cell(name: str, row: dict[str, Any]) -> CellToReview:
    stage = number(row["stage"])
    return {
        "acquisition": name,
        "cell_id": int(row["cell_id"]),
        "review_score": number(row["review_score"]) or 0.0,
        "stage": None if stage is None else int(stage),
        "flags": [flag for flag in row["flags"].split(";") if flag],
        "place": f"acquisitions/{name}/cells/{row['cell_id']}",
    }


def _pictures(published: Published, cell: CellToReview) -> list[str]:
    """The middle section of a crop across its first axis, and its organelles, as addresses that hold the picture; none
    where the organelles could not be segmented."""
    if not published.store.exists(f"{cell['place']}/organelles.tif"):
        return []
    image, labels = published.crop(cell["cell_id"])
    view = middle_sections(published.manifest.acquisition.voxel_size, image, organelles=labels)[0]
    drawn = draw_raw(view, PICTURE_PIXELS), draw_organelles(view, published.taxonomy, PICTURE_PIXELS)
    return [f"data:image/webp;base64,{base64.b64encode(encode_webp(one)).decode()}" for one in drawn]
