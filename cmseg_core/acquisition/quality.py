"""Is this acquisition worth processing? Each check has a figure, a limit and the sections at fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from cmseg_core.acquisition.findings import QualityCheck, QualityReport, SectionProfile
from cmseg_core.acquisition.measures import SectionFigures, Step, compare, measure_section
from cmseg_core.acquisition.source import SectionSource
from cmseg_core.preprocess.intensity import find_window, to_uint8
from cmseg_core.schema import QualityConfig

__all__ = ["QualityCheck", "QualityReport", "SectionProfile", "assess"]

WINDOW = (0.001, 0.999)
"""Quantiles that stand for 0 and 255 where the samples are not 8 bit."""
DRIFT_SECTIONS = 9
"""Sections over which the brightness is averaged before its range is taken."""
LISTED = 20
"""Sections at fault that a check names."""
EQUAL_CHANGE = 0.1
"""A section that changes less than this share of the median change repeats the one before."""
EQUAL_FLOOR = 1e-6
BREAK_CHANGE = (3.0, 0.1)
"""A change above this multiple of the median change plus this constant is a break."""


def assess(source: SectionSource, limits: QualityConfig) -> QualityReport:
    """Judge an acquisition in one pass over its sections, with memory for one slab.

    Parameters
    ----------
    source : SectionSource
    limits : QualityConfig

    Returns
    -------
    QualityReport
        Fatal are: fewer sections than the limit, nothing but blank sections, and structure that does not rise above the
        noise. Every other failed check is for people to weigh.
    """
    seen = _measure(source)
    checks = (
        _sections(source, limits),
        _blank(seen, limits),
        _saturation(seen, limits),
        _finite(seen),
        _duplicates(seen, limits),
        _continuity(source, seen, limits),
        _jitter(seen, limits),
        _drift(seen, limits),
        _noise(seen, limits),
        _curtaining(seen, limits),
    )
    return QualityReport(checks=checks, sections=source.shape[0], profile=_profile(seen), fatal=_fatal(seen, checks))


@dataclass
class _Pass:
    """What the pass over the sections leaves behind."""

    figures: list[SectionFigures] = field(default_factory=list)
    shift: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    brightening: list[float] = field(default_factory=list)
    saturated: list[int] = field(default_factory=list)
    """Voxels of each section at the ends of the grey range."""
    voxels: int = 0
    """Of one section."""
    unusable: list[int] = field(default_factory=list)
    """Sections with samples that are no finite number."""

    @property
    def blank(self) -> np.ndarray:
        return np.array([f.blank for f in self.figures])

    @property
    def usable(self) -> list[SectionFigures]:
        return [f for f in self.figures if not f.blank]


def _measure(source: SectionSource) -> _Pass:
    window = None if source.dtype == np.uint8 else find_window(source, *WINDOW)
    ends = _Ends(source.dtype)
    seen = _Pass(voxels=source.shape[1] * source.shape[2])
    previous: SectionFigures | None = None
    for z, section in enumerate(chain.from_iterable(slab for _, slab in source.slabs())):
        if source.dtype.kind == "f" and not np.isfinite(section).all():
            seen.unusable.append(z)
        figures = measure_section(to_uint8(section, window))
        step = Step(math.nan, math.nan, math.nan, 0.0)
        if previous is not None and not figures.blank:
            step = compare(previous, figures)
        seen.shift.append(math.hypot(step.shift_y, step.shift_x))
        seen.change.append(step.change)
        seen.brightening.append(step.brightening)
        ends.add(section, counted=not figures.blank)
        if not figures.blank:
            previous = figures
        # Only the last section's image is needed again.
        seen.figures.append(_without_image(figures))
    seen.saturated = ends.per_section()
    return seen


def _without_image(figures: SectionFigures) -> SectionFigures:
    nothing = np.empty((0, 0), np.float32)
    return replace(figures, reduced=nothing, spectrum=nothing)


class _Ends:
    """Counts voxels at the lowest and the highest grey value: of the type for 8 bit, otherwise as they occur.

    A 16-bit file often holds 12 bits, so that its upper end is known only once all sections were seen.
    """

    def __init__(self, dtype: np.dtype) -> None:
        fixed = dtype == np.uint8
        self.low = 0.0 if fixed else math.inf
        self.high = 255.0 if fixed else -math.inf
        self.fixed = fixed
        self.seen: list[tuple[float, int, float, int]] = []

    def add(self, section: np.ndarray, *, counted: bool) -> None:
        if not counted:
            self.seen.append((math.nan, 0, math.nan, 0))
            return
        low, high = (self.low, self.high) if self.fixed else (float(np.nanmin(section)), float(np.nanmax(section)))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.seen.append((low, int(np.count_nonzero(section == low)), high, int(np.count_nonzero(section == high))))

    def per_section(self) -> list[int]:
        return [(nl if low == self.low else 0) + (nh if high == self.high else 0) for low, nl, high, nh in self.seen]


def _sections(source: SectionSource, limits: QualityConfig) -> QualityCheck:
    depth = source.shape[0]
    return QualityCheck(
        name="sections", figure=depth, limit=limits.min_sections, passed=depth >= limits.min_sections,
        detail=f"{depth} sections; at least {limits.min_sections} are needed",
    )  # fmt: skip


def _upper(
    name: str, figure: float, limit: float, detail: str, sections: Sequence[int] | np.ndarray = ()
) -> QualityCheck:
    """A check whose figure may not exceed its limit."""
    listed = tuple(int(z) for z in sections[:LISTED])
    return QualityCheck(
        name=name,
        figure=round(float(figure), 6),
        limit=limit,
        passed=bool(figure <= limit),
        detail=detail,
        sections=listed,
    )


def _blank(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    at = np.flatnonzero(seen.blank)
    detail = f"{at.size} of {len(seen.figures)} sections are constant or nearly so"
    return _upper("blank", at.size / len(seen.figures), limits.max_blank_fraction, detail, at)


def _saturation(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    shares = np.array(seen.saturated) / seen.voxels
    share = float(shares.sum() / max(1, len(seen.usable)))
    at = np.flatnonzero(shares > limits.max_saturated_fraction)
    detail = f"{share:.2%} of the voxels lie at an end of the grey range"
    return _upper("saturation", share, limits.max_saturated_fraction, detail, at)


def _finite(seen: _Pass) -> QualityCheck:
    detail = f"{len(seen.unusable)} sections hold samples that are no finite number"
    return _upper("finite", len(seen.unusable) / len(seen.figures), 0.0, detail, seen.unusable)


def _duplicates(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    change = np.array(seen.change)
    # The floor is for stacks that repeat themselves throughout, whose median is no measure.
    at = np.flatnonzero(change <= max(EQUAL_CHANGE * _median(change), EQUAL_FLOOR))
    detail = f"{at.size} sections repeat the one before"
    return _upper("duplicates", at.size / len(seen.figures), limits.max_duplicate_fraction, detail, at)


def _continuity(source: SectionSource, seen: _Pass, limits: QualityConfig) -> QualityCheck:
    change = np.array(seen.change)
    factor, constant = BREAK_CHANGE
    at = np.flatnonzero(change > factor * _median(change) + constant)
    missing = source.metadata.get("missing_sections", [])
    named = f" ({', '.join(map(str, missing[:LISTED]))})" if missing else ""
    detail = f"the numbering skips {len(missing)}{named}; {at.size} sudden changes between sections"
    figure = (len(missing) + at.size) / (len(seen.figures) + len(missing))
    return _upper("continuity", figure, limits.max_missing_fraction, detail, at)


def _jitter(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    shift = np.array(seen.shift)
    known = shift[np.isfinite(shift)]
    figure = float(np.quantile(known, 0.95)) if known.size else 0.0
    at = np.flatnonzero(shift > limits.max_jitter_px)
    detail = f"95 % of the shifts between neighbouring sections are below {figure:.2f} pixels"
    return _upper("jitter", figure, limits.max_jitter_px, detail, at)


def _drift(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    # The mean grey of a section follows how many cells it cuts; the sum of the steps follows the microscope alone.
    level = np.cumsum(seen.brightening)
    width = min(DRIFT_SECTIONS, level.size)
    figure = float(np.ptp(np.convolve(level, np.full(width, 1 / width), mode="valid")))
    detail = f"the brightness of like structure moves over {figure:.1f} grey levels of 255"
    return _upper("drift", figure, limits.max_drift_grey, detail)


def _noise(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    snr = np.array([f.snr for f in seen.figures])
    figure = float(np.median([f.snr for f in seen.usable])) if seen.usable else 0.0
    at = np.flatnonzero((snr < limits.min_snr) & ~seen.blank)
    return QualityCheck(
        name="noise", figure=round(figure, 4), limit=limits.min_snr, passed=figure >= limits.min_snr,
        detail=f"structure over noise is {figure:.2f} in the median section", sections=tuple(at[:LISTED].tolist()),
    )  # fmt: skip


def _curtaining(seen: _Pass, limits: QualityConfig) -> QualityCheck:
    stripes = np.array([f.stripes for f in seen.figures])
    usable = np.array([f.stripes for f in seen.usable]).reshape(-1, 2)
    vertical, horizontal = np.median(usable, axis=0) if len(usable) else (1.0, 1.0)
    direction = "along y" if vertical >= horizontal else "along x"
    figure = max(vertical, horizontal)
    at = np.flatnonzero(stripes.max(axis=1) > limits.max_curtaining)
    detail = f"stripes {direction} hold {figure:.2f} times the energy of other directions"
    return _upper("curtaining", figure, limits.max_curtaining, detail, at)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else 0.0


def _fatal(seen: _Pass, checks: tuple[QualityCheck, ...]) -> str | None:
    by_name = {check.name: check for check in checks}
    if not by_name["sections"].passed:
        return by_name["sections"].detail
    if not seen.usable:
        return "every section is blank"
    if not by_name["noise"].passed:
        return f"{by_name['noise'].detail}; at least {by_name['noise'].limit:g} is needed"
    return None


def _profile(seen: _Pass) -> SectionProfile:
    def known(values: list[float]) -> tuple[float | None, ...]:
        return tuple(round(v, 4) if math.isfinite(v) else None for v in values)

    return SectionProfile(
        mean=tuple(round(f.mean, 3) for f in seen.figures),
        deviation=tuple(round(f.deviation, 3) for f in seen.figures),
        snr=known([math.nan if f.blank else f.snr for f in seen.figures]),
        shift_px=known(seen.shift),
        change=known(seen.change),
    )
