"""Whether what a night published is as what came before, and as what its model learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from cmseg_core.evaluation.drift import (
    Drift,
    Figures,
    Usual,
    acquisition_figures,
    cell_figures,
    typical,
    unusual,
    usual,
)
from cmseg_core.organelles.metadata import read_metadata
from cmseg_core.schema import Frozen
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import ResolvedModel
from flows.published import Published

EARLIER = 20
"""Acquisitions before with which one is compared."""
CELLS = 12
"""Cells of an acquisition whose grey levels are looked at."""


class _Known(Frozen):
    """Figures of an acquisition, and the network that labelled it."""

    unet: str
    acquisition: Figures
    cells: Figures


def drift_of(store: Store, names: Sequence[str], unet: ResolvedModel) -> Iterator[tuple[str, Drift]]:
    """What is unusual about published acquisitions.

    Each is compared with those that the same network labelled before it, and its cells with those that the network
    learnt from, if the network of the night has labelled it.
    """
    known = lru_cache(maxsize=None)(partial(_known, store))  # the acquisitions of a night share those before them
    times = _times(store)
    looks = _looks_of(unet.path)
    for name in names:
        now = known(name)
        earlier = (known(other) for other in times if times[other] < times[name])
        before = islice((one for one in earlier if one.unet == now.unet), EARLIER)
        former = usual({**one.acquisition, **one.cells} for one in before)
        found = unusual({**now.acquisition, **now.cells}, former, "acquisitions before")
        if unet.sha256 == now.unet:
            found += unusual(now.cells, looks, "cells of the training")
        yield from ((name, one) for one in found)


def _looks_of(unet: Path) -> dict[str, Usual]:
    """Figures of the cells that a network learnt from; empty for one that was trained before they were kept."""
    looks = (read_metadata(unet).get("metadata") or {}).get("looks") or {}
    return {name: Usual.model_validate(one) for name, one in looks.items()}


def _times(store: Store) -> dict[str, datetime]:
    """When each published acquisition was published, the latest first."""
    times: dict[str, datetime] = {}
    for name in store.folders("acquisitions"):
        with suppress(KeyError):  # it is being published
            times[name] = store.modified(f"acquisitions/{name}/manifest.json")
    return dict(sorted(times.items(), key=lambda item: item[1], reverse=True))


def _known(store: Store, name: str) -> _Known:
    """Figures of an acquisition, kept in ``work/`` because they take reading."""
    published = Published(store, name)
    key = f"work/figures/{published.manifest.keys['run']}.json"
    try:
        return _Known.model_validate_json(store.get(key))
    except (KeyError, ValueError):
        known = _computed(published)
        store.put(key, canonical_json(known))
        return known


def _computed(published: Published) -> _Known:
    taxonomy = published.taxonomy
    crops = (published.crop(cell) for cell in islice(published.segmented(), CELLS))
    return _Known(
        unet=published.manifest.models["unet"]["sha256"],
        acquisition=acquisition_figures(published.numbers(), published.quality(), published.field_um3(), taxonomy),
        cells=typical(cell_figures(image, labels, taxonomy) for image, labels in crops),
    )
