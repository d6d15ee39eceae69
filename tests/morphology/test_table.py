"""The table of cells as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow.parquet as pq

from cmseg_core.morphology.measure import column_names
from cmseg_core.morphology.table import to_csv, to_parquet
from cmseg_core.schema import C_MEROLAE


def _row() -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(column_names(C_MEROLAE))
    return row | {"cell_id": 4, "touches_border": True, "volume_um3": 0.1 + 0.2, "flags": "a;b", "plastid_count": 1}


def test_both_forms_hold_the_same_values_and_no_value_is_empty() -> None:
    (text,) = csv.DictReader(io.StringIO(to_csv([_row()], C_MEROLAE).decode()))
    (typed,) = pq.read_table(io.BytesIO(to_parquet([_row()], C_MEROLAE))).to_pylist()
    assert typed == _row()
    assert float(text["volume_um3"]) == 0.1 + 0.2 and text["stage"] == "" and text["plastid_count"] == "1"
    assert list(text) == list(typed) == column_names(C_MEROLAE)


def test_table_without_cells_has_its_columns() -> None:
    table = pq.read_table(io.BytesIO(to_parquet([], C_MEROLAE)))
    assert table.column_names == column_names(C_MEROLAE) and table.num_rows == 0
    assert table.schema.field("cell_id").type == "int64"
    assert to_csv([], C_MEROLAE).decode().strip().split(",") == column_names(C_MEROLAE)
