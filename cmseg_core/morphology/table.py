"""``cells.csv`` and ``cells.parquet``: the same rows, the same columns, the same bytes for the same cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmseg_core.morphology.measure import column_names
from cmseg_core.schema import Taxonomy


def to_csv(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> bytes:
    """Rows of cells as CSV; a value that is not known is an empty field.

    Parameters
    ----------
    rows : sequence of mapping
        From :func:`~cmseg_core.morphology.measure.measure_cell`, in the order of the table.
    taxonomy : Taxonomy
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, column_names(taxonomy), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_parquet(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> bytes:
    """Rows of cells as Parquet, with the type of every column fixed, so that an empty table has its columns too."""
    schema = pa.schema([(name, _type_of(name)) for name in column_names(taxonomy)])
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _type_of(name: str) -> pa.DataType:
    if name == "touches_border":
        return pa.bool_()
    if name == "flags":
        return pa.string()
    if name in {"cell_id", "stage"} or name.startswith("bbox_") or name.endswith("_count"):
        return pa.int64()
    return pa.float64()
