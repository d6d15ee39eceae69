"""Outputs of pipeline stages under keys made of everything that decides them.

A stage is a pure function of its inputs, its settings and its code. Its key is the hash of those, and what it makes
stands below ``work/<stage>/<key>/``. The output counts only once its marker, written last, is there; so a stage may be
killed at any point, retried, or run twice at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import zarr
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from zarr.codecs import ZstdCodec
from zarr.errors import ArrayNotFoundError, ContainsArrayError, GroupNotFoundError, NodeNotFoundError

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.storage.store import DELETABLE, Store

CHUNK = 64
"""Edge of a chunk in voxels: what one read fetches."""
SHARD = 256
"""Edge of a shard in voxels: what one object holds and one writer writes."""
MARKER = "_complete.json"
PARTS = "parts"
_PARTS_LAST = timedelta(days=7)
"""For how long a part of an output that is not complete counts: less than any lifecycle rule lets it last."""
_FORMAT = 2
"""Of what this module writes: raised where outputs of before cannot be read any more."""
_STAGE = re.compile(r"[a-z][a-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted names, no blanks, no NaN; pydantic models and paths included."""
    plain = to_jsonable_python(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def stage_key(stage: str, inputs: Mapping[str, str], config: Mapping[str, Any] | BaseModel, code: str) -> str:
    """Key under which the output of a stage stands.

    Parameters
    ----------
    stage : str
        Name of the stage.
    inputs : mapping of str to str
        Role to key or content hash of everything that the stage reads, models included.
    config : mapping or pydantic model
        The settings that the stage looks at, and no others.
    code : str
        Version of the code of the stage.

    Returns
    -------
    str
        SHA-256 in hexadecimal.

    Raises
    ------
    ValueError
        Where a setting is not a finite number.
    """
    parts = {"stage": stage, "inputs": dict(inputs), "config": config, "code": code, "format": _FORMAT}
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def slabs(shape: tuple[int, ...], depth: int = SHARD) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) along the first axis of `depth` sections each; whole shards at the depth of the array."""
    if depth < 1:
        raise ValueError(f"a slab has at least one section, not {depth}")
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])


def layout(shape: tuple[int, ...], depth: int = SHARD) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunks and shards of a volume; shards None where the volume is one chunk.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x).
    depth : int
        Sections of a shard: a multiple of 64. Fewer sections need less memory in a writer, and make more objects.
    """
    if depth % CHUNK:
        raise ValueError(f"the depth of a shard is a multiple of {CHUNK}, not {depth}")
    chunks = tuple(min(CHUNK, max(side, 1)) for side in shape)
    limits = (depth, *[SHARD] * (len(shape) - 1))
    shards = tuple(
        c * min(limit // CHUNK, math.ceil(side / c)) for side, c, limit in zip(shape, chunks, limits, strict=True)
    )
    return chunks, None if shards == chunks else shards


class StageRef(Frozen):
    """Where the output of a stage stands: small enough to pass from task to task."""

    uri: str
    """URI of the store."""
    stage: str
    key: str


_DAMAGED = "doesn't match checksum"
_SIGNS = (_DAMAGED, "Zstd decompression error", "computed checksum do not match")
"""Parts of what zarr and this module say of data that has changed since it was written."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def is_damage(error: BaseException) -> bool:
    """Whether an error says that what a stage had left has changed since."""
    return any(sign in str(error) for sign in _SIGNS)


def sealed(data: bytes) -> bytes:
    """Data with its SHA-256 behind it."""
    return data + hashlib.sha256(data).digest()


def unsealed(data: bytes, key: str) -> bytes:
    """What was `sealed`.

    Raises
    ------
    RuntimeError
        Where it has changed since.
    """
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise RuntimeError(f"{key} {_DAMAGED}")
    return content


class StageOutput:
    """What one stage made, or is about to make.

    Parameters
    ----------
    store : Store
    stage : str
        Lower-case name of the stage.
    key : str
        From `stage_key`.
    """

    def __init__(self, store: Store, stage: str, key: str) -> None:
        if not _STAGE.fullmatch(stage):
            raise InputError(repr(stage), "is not the name of a stage", "use lower-case letters, digits, - and _")
        if not _KEY.fullmatch(key):
            raise InputError(repr(key), "is not the key of a stage", "use the result of stage_key")
        self.store = store
        self.stage = stage
        self.key = key
        self.prefix = f"{DELETABLE}/{stage}/{key}"

    def __repr__(self) -> str:
        return f"StageOutput({self.store.uri_of(self.prefix)!r})"

    @property
    def reference(self) -> StageRef:
        """The reference that `from_reference` turns back into this output."""
        return StageRef(uri=self.store.uri, stage=self.stage, key=self.key)

    @classmethod
    def from_reference(cls, ref: StageRef, store: Store) -> StageOutput:
        """The output that `ref` points to.

        Raises
        ------
        InputError
            Where `ref` belongs to another store.
        """
        if ref.uri != store.uri:
            raise InputError(ref.uri, f"is not the store in use ({store.uri})", "use one store for all steps of a run")
        return cls(store, ref.stage, ref.key)

    # -------------------------------------------------------------------------------------------------- completion

    @property
    def complete(self) -> bool:
        """Whether the marker is there and everything it lists, in its full size.

        The marker alone is not enough: a lifecycle rule removes the oldest objects first, and the marker is
        the youngest.

        Raises
        ------
        RuntimeError
            Where the description of an array has changed since: a chunk that is sought in vain would be read as zeros.
        """
        marker = self._marker()
        if marker is None or self._sizes() != marker["outputs"]:
            return False
        for name, digest in marker["arrays"].items():
            if self.store.sha256(f"{self.prefix}/{name}") != digest:
                raise RuntimeError(f"{self.prefix}/{name} {_DAMAGED}")
        return True

    @property
    def summary(self) -> dict[str, Any]:
        """What was given to `commit`; KeyError where there is no marker."""
        marker = self._marker()
        if marker is None:
            raise KeyError(f"{self.prefix}/{MARKER}")
        return marker["summary"]

    def commit(self, summary: Mapping[str, Any] | None = None) -> None:
        """Declare the output complete. Of several writers of one key the first marker stands, unless it no longer fits.

        Parameters
        ----------
        summary : mapping, optional
            Small figures worth having without opening the output.
        """
        outputs = self._sizes()
        arrays = [name for name in outputs if name.endswith("/zarr.json")]
        marker = {
            "stage": self.stage,
            "key": self.key,
            "summary": dict(summary or {}),
            "outputs": outputs,
            "arrays": {name: self.store.sha256(f"{self.prefix}/{name}") for name in arrays},
        }
        data = sealed(canonical_json(marker))
        name = f"{self.prefix}/{MARKER}"
        if not self.store.put_if_absent(name, data) and not self.complete:
            # Left by an output whose objects have expired since, or by a neighbour whose bytes differed from ours.
            self.store.put(name, data)

    def _marker(self) -> dict[str, Any] | None:
        key = f"{self.prefix}/{MARKER}"
        try:
            return json.loads(unsealed(self.store.get(key), key))
        except (KeyError, RuntimeError):  # without a marker that can be trusted the output is made again
            return None

    def _sizes(self) -> dict[str, int]:
        sizes = self.store.sizes(self.prefix)
        names = ((key.removeprefix(f"{self.prefix}/"), size) for key, size in sizes.items())
        return {name: size for name, size in names if name != MARKER}

    # -------------------------------------------------------------------------------------------------------- parts

    def finish_part(self, name: str, data: bytes = b"{}") -> None:
        """Declare a part of the output complete, once all else of it is written; `data` is what there is to say of it.

        Parts are for outputs that many tasks make together: after a failure only those that are missing are made again.
        """
        self.write_bytes(f"{PARTS}/{name}", data)

    def read_part(self, name: str) -> bytes:
        """What `finish_part` was given; KeyError where the part is missing."""
        return self.read_bytes(f"{PARTS}/{name}")

    def finished_parts(self) -> set[str]:
        """Names of the parts that are complete.

        None where the output was complete once and objects of it have expired since: they may be any part's. While it
        never was, those that are older than a week do not count, since what they made may have expired before them.
        """
        marked = self._marker() is not None
        if marked and not self.complete:
            return set()
        folder = f"{self.prefix}/{PARTS}"
        oldest = datetime.min.replace(tzinfo=UTC) if marked else datetime.now(UTC) - _PARTS_LAST
        return {key.removeprefix(f"{folder}/") for key, at in self.store.written(folder).items() if at >= oldest}

    # ------------------------------------------------------------------------------------------------------ content

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one object, with its checksum."""
        self.store.put(f"{self.prefix}/{self._checked(name)}", sealed(data))

    def read_bytes(self, name: str) -> bytes:
        """Content of one object; KeyError where there is none, RuntimeError where it has changed since."""
        key = f"{self.prefix}/{self._checked(name)}"
        return unsealed(self.store.get(key), key)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value or a pydantic model as canonical JSON."""
        self.write_bytes(name, canonical_json(value))

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote; KeyError where there is none."""
        return json.loads(self.read_bytes(name))

    def create_array(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.typing.DTypeLike,
        chunks: tuple[int, ...] | None = None,
        *,
        depth: int = SHARD,
    ) -> zarr.Array:
        """Make an array of zeros, or open the same one that another attempt at this output has made.

        Volumes get chunks of 64 and shards of 256 a side. A shard is one object: two writers of the same shard would
        undo each other, so give each writer whole shards, for example with `slabs`.

        Parameters
        ----------
        name : str
        shape : tuple of int
            (z, y, x) for volumes; other numbers of axes give one chunk unless `chunks` is given.
        dtype : dtype
        chunks : tuple of int, optional
            Chunks of an array without shards.
        depth : int
            Sections of a shard, a multiple of 64; pass the same to `slabs`.

        Raises
        ------
        InputError
            Where an array of another shape, type or layout stands there: then the key does not decide the output.
        """
        shards = None
        if chunks is None:
            chunks, shards = layout(shape, depth) if len(shape) == 3 else (tuple(max(n, 1) for n in shape), None)
        place = self.store.zarr_store(f"{self.prefix}/{self._checked(name)}")
        try:
            return zarr.create_array(
                place,
                shape=shape,
                dtype=np.dtype(dtype),
                chunks=chunks,
                shards=shards,
                compressors=ZstdCodec(
                    level=1, checksum=True
                ),  # what was damaged at rest is not read as if it were whole
                fill_value=0,
                zarr_format=3,
            )
        except ContainsArrayError:
            # Never cleared: the other attempt may be alive, and would commit without the shards taken from it.
            found = zarr.open_array(place, mode="r+")
        if (found.shape, found.dtype, found.chunks, found.shards) != (shape, np.dtype(dtype), chunks, shards):
            mend = "put what decides the layout into the stage's key"
            raise InputError(self.store.uri_of(f"{self.prefix}/{name}"), "holds an array of another layout", mend)
        return found

    def array(self, name: str, *, writable: bool = False) -> zarr.Array:
        """Open an array; KeyError where there is none.

        Parameters
        ----------
        name : str
        writable : bool
            For a task that fills its own shards of an array that another made.
        """
        place = f"{self.prefix}/{self._checked(name)}"
        try:
            return zarr.open_array(self.store.zarr_store(place, read_only=not writable), mode="r+" if writable else "r")
        except (ArrayNotFoundError, GroupNotFoundError, NodeNotFoundError, FileNotFoundError) as error:
            raise KeyError(place) from error

    def _checked(self, name: str) -> str:
        if name == MARKER:
            raise InputError(name, "is the name of the marker", "choose another name; commit() writes the marker")
        return name
