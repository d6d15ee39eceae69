"""Which sections are looked at in one go, and which of them the model is asked everywhere."""

from __future__ import annotations

from cmseg_core.schema import ForegroundConfig

LEAST_EVIDENCE = 105
"""Evidence, of 255, from which a voxel belongs to a cell. Less than half, because smoothing along the sections and the
median of the directions draw outlines in; on simulated fields the foreground is as good at 105 as at 128 and cells lose
less of their rim."""
_RUN = 32
"""Sections of a run, rounded up to whole distances between key sections."""
_BEFORE, _AFTER = 1, 2
"""Sections beyond a run that are needed: its neighbours, and the next key section with its own neighbour."""


def key_stride(config: ForegroundConfig) -> int:
    """Sections from one key section to the next: so few that the smallest cell does not fit between them."""
    if config.prompts != "propagated":
        return 1
    return max(1, int(config.min_diameter_fraction * config.cell_diameter_px))


def section_runs(count: int, config: ForegroundConfig) -> list[tuple[int, int]]:
    """Half-open ranges of sections that are looked at in one go; each begins with a key section."""
    stride = key_stride(config)
    length = stride * -(-_RUN // stride)
    return [(start, min(start + length, count)) for start in range(0, count, length)]


def around(start: int, stop: int, count: int) -> tuple[int, int]:
    """The sections that have to be at hand for a run."""
    return max(0, start - _BEFORE), min(count, stop + _AFTER)
