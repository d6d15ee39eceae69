"""Figures that are unusual are named, and those within their spread are not."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.evaluation.drift import acquisition_figures, cell_figures, typical, unusual, usual
from cmseg_core.schema import C_MEROLAE

RNG = np.random.default_rng(5)
FORMER = [{"grey of a cell": float(g), "confidence of nucleus": float(c), "cells in 1000 µm³": 40.0}
          for g, c in zip(RNG.normal(150, 5, 12), RNG.normal(0.9, 0.01, 12), strict=True)]  # fmt: skip


def test_ordinary_nights_are_not_told() -> None:
    known = usual(FORMER)
    for _ in range(200):
        figures = {"grey of a cell": RNG.normal(150, 5), "confidence of nucleus": RNG.normal(0.9, 0.01)}
        assert unusual(figures, known, "acquisitions before") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("grey of a cell", 90.0), ("grey of a cell", 215.0), ("confidence of nucleus", 0.4), ("cells in 1000 µm³", 12.0)],
)
def test_what_is_far_off_is_named(name: str, value: float) -> None:
    figures = {"grey of a cell": 151.0, "confidence of nucleus": 0.89, "cells in 1000 µm³": 41.0, name: value}
    (found,) = unusual(figures, usual(FORMER), "acquisitions before")
    assert found.figure == name and found.value == value
    assert str(found).startswith(f"{name} is {value:.3g}, and ") and str(found).endswith(" in 12 acquisitions before")


def test_the_farthest_comes_first() -> None:
    figures = {"grey of a cell": 100.0, "confidence of nucleus": 0.0}
    assert [d.figure for d in unusual(figures, usual(FORMER), "")] == ["confidence of nucleus", "grey of a cell"]


def test_little_is_known_of_few() -> None:
    assert unusual({"grey of a cell": 0.0}, usual(FORMER[:4]), "") == []
    assert unusual({"never seen": 0.0}, usual(FORMER), "") == []


def test_figures_of_a_cell() -> None:
    image = np.full((4, 4, 4), 200, np.uint8)
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2], labels[0, 0], image[:2] = 1, 2, 100
    image[0, 0] = 60
    figures = cell_figures(image, labels, C_MEROLAE)
    assert figures["grey of a cell"] == pytest.approx((28 * 100 + 4 * 60) / 32)
    assert figures["contrast of a cell"] == pytest.approx(np.std([100] * 28 + [60] * 4))
    names = C_MEROLAE.names
    assert figures[f"share of {names[1]}"] == 28 / 32 and figures[f"share of {names[2]}"] == 4 / 32
    assert cell_figures(image, np.zeros_like(labels), C_MEROLAE) == {}
    assert typical([figures, {}, figures])["grey of a cell"] == figures["grey of a cell"]


def test_figures_of_an_acquisition_leave_out_what_is_not_known() -> None:
    rows = [{"review_score": 0.2, "volume_um3": 10.0, "nucleus_count": 1.0, "nucleus_confidence": None},
            {"review_score": 0.4, "volume_um3": None, "nucleus_count": 2.0, "nucleus_confidence": None}]  # fmt: skip
    figures = acquisition_figures(rows, {"profile": {"snr": [1.0, None, 3.0]}}, 500.0, C_MEROLAE)
    assert figures["cells in 1000 µm³"] == 4 and figures["review score"] == pytest.approx(0.3)
    assert (
        figures["volume of a cell"] == 10 and figures["nucleus a cell"] == 1.5 and figures["structure over noise"] == 2
    )
    assert "confidence of nucleus" not in figures and "mitochondrion a cell" not in figures
