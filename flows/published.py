"""What stands of a published acquisition in the store."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cmseg_core.report.tables import number
from cmseg_core.schema import Manifest, Taxonomy
from cmseg_core.storage.omezarr import open_image
from cmseg_core.storage.store import Store


class Published:
    """A published acquisition; what is asked for is read, and kept where it is small.

    Parameters
    ----------
    store : Store
    name : str
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.place = store, name, f"acquisitions/{name}"

    @cached_property
    def manifest(self) -> Manifest:
        """How it was made."""
        return Manifest.model_validate_json(self.store.get(f"{self.place}/manifest.json"))

    @property
    def taxonomy(self) -> Taxonomy:
        """Classes of its organelles."""
        return Taxonomy.model_validate(self.manifest.config["taxonomy"])

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Of ``cells.csv``, as text."""
        text = self.store.get(f"{self.place}/cells.csv").decode()
        return list(csv.DictReader(io.StringIO(text)))

    def numbers(self) -> list[dict[str, float | None]]:
        """Of ``cells.csv``, with None for what is no number."""
        return [{name: number(value) for name, value in row.items()} for row in self.rows]

    def quality(self) -> dict[str, Any]:
        """``qc.json``."""
        return json.loads(self.store.get(f"{self.place}/qc.json"))

    def field_um3(self) -> float:
        """Volume of the field."""
        source = self.store.uri_of(f"{self.place}/volume.ome.zarr")
        array, voxel_size = open_image(source, endpoint=self.store.endpoint)
        return math.prod(array.shape) * voxel_size.volume_um3

    def segmented(self) -> Iterator[int]:
        """Cells that have organelles."""
        return (int(row["cell_id"]) for row in self.rows if str(row["cell_id"]) not in self.manifest.quarantined_cells)

    def crop(self, cell_id: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Image and organelles of a cell, (z, y, x)."""
        image, labels = (self._stack(f"cells/{cell_id}/{name}.tif") for name in ("image", "organelles"))
        return image, labels

    def _stack(self, path: str) -> NDArray[Any]:
        return np.asarray(tifffile.imread(io.BytesIO(self.store.get(f"{self.place}/{path}"))))
