"""How figures read."""

import numpy as np
import pytest

from cmseg_core.report.tables import cell_entries, class_scores, figure, fraction, mean, plain
from cmseg_core.schema import C_MEROLAE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        ("", "–"),
        ("n/a", "n/a"),
        (True, "yes"),
        (0.0, "0"),
        (3.0, "3.00"),
        (7, "7"),
        (np.int64(12345), "12,345"),
        (0.0123456, "0.0123"),
        (1234.5, "1,234"),
        (-1.5, "-1.50"),
        (1.2e-9, "1.20e-09"),
    ],
)
def test_figures(value, text):
    assert figure(value) == text


def test_plain_numbers_and_fractions():
    assert [plain(v) for v in (1.0, 12.5, None, np.float64("nan"))] == ["1", "12.5", "–", "–"]
    assert [fraction(v) for v in (0.5, None)] == ["0.500", "–"]
    assert mean([0.5, None, 1.0]) == 0.75 and mean([None]) is None


def test_rows_from_a_table_with_gaps():
    row = {
        "cell_id": np.int64(3),
        "touches_border": np.bool_(True),
        "flags": float("nan"),
        "stage": float("nan"),
        "plastid_volume_um3": np.float32(0.5),
    }
    entry = cell_entries([row], C_MEROLAE)[0]
    assert entry.cell_id == 3 and entry.touches_border and entry.flags == () and entry.stage is None
    assert [c.volume_um3 for c in entry.classes] == [None, 0.5, None, None, None]


def test_contact_with_the_border_has_its_own_column():
    row = {"cell_id": 1, "touches_border": True, "flags": "touches_border;missing:nucleus"}
    assert cell_entries([row], C_MEROLAE)[0].flags == ("missing:nucleus",)


def test_scores_keep_the_taxonomys_order_and_show_strangers_last():
    evaluation = {"organelles": {"iou": {"zebra": 0.1, "nucleus": 0.2, "plastid": None}, "dice": {"nucleus": 0.3}}}
    scores = class_scores(evaluation, C_MEROLAE)
    assert [s["name"] for s in scores] == ["plastid", "nucleus", "zebra"]
    assert scores[0]["iou"] is None and scores[1]["dice"] == 0.3
