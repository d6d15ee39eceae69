"""Whether an acquisition looks, and is segmented, as those before it, and as the cells that a model learnt from.

A figure is unusual where it lies far from the median of the earlier ones, measured by their spread (the median absolute
deviation, scaled to the standard deviation of a normal distribution; Leys et al., "Detecting outliers", Journal of
Experimental Social Psychology 49, 2013).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmseg_core.schema import Frozen, Taxonomy

FEWEST = 5
"""Earlier acquisitions, or cells of a training, below which nothing is called unusual."""
LIMIT = 4.0
"""Spreads from the median beyond which a figure is unusual."""
LEAST_SPREAD = 0.08
"""A spread is taken as no less than this share of the median, or this for what lies between 0 and 1."""
_NORMAL = 1.4826
Figures = dict[str, float]


class Usual(Frozen):
    """Median and spread of a figure over so many acquisitions or cells."""

    median: float
    spread: float
    count: int


class Drift(Frozen):
    """A figure that is unusual, what it is usually, and of what."""

    figure: str
    value: float
    usual: Usual
    of: str

    def __str__(self) -> str:
        return f"{self.figure} is {self.value:.3g}, and {self.usual.median:.3g} in {self.usual.count} {self.of}"


def acquisition_figures(
    rows: Sequence[Mapping[str, float | None]], quality: Mapping[str, Any], field_um3: float, taxonomy: Taxonomy
) -> Figures:
    """What can drift of a finished acquisition.

    Parameters
    ----------
    rows : sequence of mapping
        Numbers of ``cells.csv``; None for what is not known.
    quality : mapping
        ``qc.json``.
    field_um3 : float
        Volume of the field.
    taxonomy : Taxonomy

    Returns
    -------
    dict of str to float
        Name, as people read it, to value; a figure that has none is left out.
    """
    columns = {"review score": "review_score", "volume of a cell": "volume_um3", "disagreement": "disagreement"}
    for kind in taxonomy.foreground:
        columns[f"{kind.name} a cell"] = f"{kind.name}_count"
        columns[f"confidence of {kind.name}"] = f"{kind.name}_confidence"
    figures = {"cells in 1000 µm³": 1000 * len(rows) / field_um3}
    figures |= {name: _mean(row.get(column) for row in rows) for name, column in columns.items()}
    figures["structure over noise"] = _median(quality["profile"]["snr"])
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def cell_figures(image: NDArray[np.uint8], labels: NDArray[np.uint8], taxonomy: Taxonomy) -> Figures:
    """Grey levels of a cell and the shares of its classes; nothing of a cell without voxels.

    Parameters
    ----------
    image, labels : ndarray of uint8, shape (z, y, x)
        As the pipeline crops them, 0 outside the cell.
    taxonomy : Taxonomy
    """
    inside = labels > 0
    if not inside.any():
        return {}
    grey, classes = image[inside], np.bincount(labels[inside], minlength=len(taxonomy)) / np.count_nonzero(inside)
    shares = {f"share of {kind.name}": float(classes[kind.id]) for kind in taxonomy.foreground}
    return {"grey of a cell": float(grey.mean()), "contrast of a cell": float(grey.std()), **shares}


def usual(former: Iterable[Figures]) -> dict[str, Usual]:
    """Median and spread of each figure over acquisitions or cells that have it."""
    values: dict[str, list[float]] = {}
    for figures in former:
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
    return {name: _usual(np.array(some)) for name, some in values.items()}


def typical(cells: Iterable[Figures]) -> Figures:
    """The median of each figure over the cells of an acquisition."""
    return {name: one.median for name, one in usual(cells).items()}


def unusual(figures: Figures, known: Mapping[str, Usual], of: str) -> list[Drift]:
    """The figures that lie far from what is usual, the farthest first; none where too little is known.

    Parameters
    ----------
    figures : dict of str to float
    known : mapping of str to Usual
    of : str
        What `known` was counted over, as in "acquisitions before".
    """
    found: list[tuple[float, Drift]] = []
    for name, value in figures.items():
        one = known.get(name)
        if one is None or one.count < FEWEST:
            continue
        bounded = name.startswith(("share", "confidence", "review", "disagreement"))
        least = LEAST_SPREAD * (max(one.median, 0.25) if bounded else abs(one.median))
        distance = abs(value - one.median) / max(one.spread, least, 1e-9)
        if distance > LIMIT:
            found.append((distance, Drift(figure=name, value=value, usual=one, of=of)))
    return [drift for _, drift in sorted(found, key=lambda pair: -pair[0])]


def _usual(values: NDArray[np.float64]) -> Usual:
    median = float(np.median(values))
    return Usual(median=median, spread=_NORMAL * float(np.median(np.abs(values - median))), count=len(values))


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else float("nan")
