"""One interface to a local folder and to an S3 bucket.

Keys are relative POSIX paths such as ``acquisitions/night-1/manifest.json``. Every single object is written
atomically: a reader sees the whole object or none.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as failures
from obstore.store import LocalStore, S3Store
from zarr.storage import ObjectStore

from cmseg_core.errors import InputError, StoreRefusal
from cmseg_core.storage.keys import checked_key, checked_prefix, s3_endpoint, s3_location
from cmseg_core.storage.trees import transfer, tree_files

if TYPE_CHECKING:
    from obstore import ObjectMeta

LAST = ("manifest.json",)
"""Files that declare a tree complete, and therefore arrive after everything else in it."""
DELETABLE = "work"
"""The only top folder whose content may be deleted: stage outputs, which can be computed again."""
RETRIES = 5
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
Keys = list[str]
# The umask can only be read by setting it, which is safe while the module is imported and not in a thread later.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


class Store:
    """A place for artifacts: a local folder, or a bucket (or a prefix in one).

    Use `Store.open`. Instances can be pickled; credentials are never part of the pickle, they are read from the
    environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``) where the store is opened.

    Methods raise `InputError` for an invalid key, `StoreRefusal` where access is refused, `KeyError` where a key that
    must exist does not, and `OSError` (`ConnectionError` for S3) where the disk or the service fails: worth a retry.

    Attributes
    ----------
    uri : str
        Absolute path of the folder, or ``s3://bucket[/prefix]``.
    endpoint : str or None
        Endpoint of the S3 service; None is AWS itself, or a local folder.
    region : str
    """

    def __init__(self, uri: str, endpoint: str | None, region: str) -> None:
        self.uri = uri
        self.endpoint = endpoint
        self.region = region
        self._objects = self._open_at("", make=True)

    @classmethod
    def open(cls, uri: str | Path, *, endpoint: str | None = None, region: str = "us-east-1") -> Store:
        """Open a local folder (made where absent) or ``s3://bucket[/prefix]``.

        The bucket is neither made nor contacted here; `cmseg_core.storage.buckets.ensure_bucket` makes it.
        """
        text = str(uri)
        if text.startswith("s3://"):
            bucket, prefix = s3_location(text)
            return cls(f"s3://{bucket}/{prefix}".rstrip("/"), s3_endpoint(endpoint), region)
        if "://" in text:
            raise InputError(text, "is not a store that cmseg can use", "give a folder or s3://bucket[/prefix]")
        return cls(str(Path(text).expanduser().absolute()), None, region)

    def __reduce__(self) -> tuple[type, tuple[str, str | None, str]]:
        return type(self), (self.uri, self.endpoint, self.region)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return not self.uri.startswith("s3://")

    def uri_of(self, key: str) -> str:
        """Full path or ``s3://`` address of `key`."""
        return f"{self.uri}/{checked_key(key)}"

    # ------------------------------------------------------------------------------------------ single objects

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`, replacing what is there."""
        with self._translated(key):
            obstore.put(self._objects, checked_key(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write `data` only where nothing stands under `key`; of several writers one gets True, the others False.

        Where the service loses its answer to the winner, even the winner gets False.
        """
        with self._translated(key):
            try:
                obstore.put(self._objects, checked_key(key), data, mode="create")
            except (failures.AlreadyExistsError, failures.PreconditionError):
                return False
        return True

    def get(self, key: str) -> bytes:
        """Content of `key`; KeyError where there is none."""
        with self._translated(key):
            return bytes(obstore.get(self._objects, checked_key(key)).bytes())

    def sha256(self, key: str) -> str:
        """SHA-256 of the content of `key`, in hexadecimal, read a piece at a time; KeyError where there is none."""
        digest = hashlib.sha256()
        with self._translated(key):
            for chunk in obstore.get(self._objects, checked_key(key)).stream():
                digest.update(chunk)
        return digest.hexdigest()

    def exists(self, key: str) -> bool:
        """Whether an object stands under exactly this key (a prefix of other keys does not count)."""
        return self._size(key) is not None

    def size(self, key: str) -> int:
        """Bytes of `key`; KeyError where there is none."""
        size = self._size(key)
        if size is None:
            raise KeyError(key)
        return size

    def _size(self, key: str) -> int | None:
        with self._translated(key):
            try:
                return obstore.head(self._objects, checked_key(key))["size"]
            except FileNotFoundError:
                return None

    def modified(self, key: str) -> datetime:
        """When `key` was written, by the clock of the service; KeyError where there is none."""
        with self._translated(key):
            return obstore.head(self._objects, checked_key(key))["last_modified"]

    # ------------------------------------------------------------------------------------------ many objects

    def list(self, prefix: str = "") -> Keys:
        """Every key below the folder `prefix`, sorted; ``a`` holds ``a/b`` but not ``ab``."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every key below the folder `prefix` with its bytes."""
        return dict(self.each_size(prefix))

    def each_size(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """As `sizes`, one after the other: memory does not grow with their number."""
        for entry in self._each(prefix):
            yield entry["path"], entry["size"]

    def written(self, prefix: str) -> dict[str, datetime]:
        """Every key below the folder `prefix` with the time when it was written, by the clock of the service."""
        return {entry["path"]: entry["last_modified"] for entry in self._each(prefix)}

    def _each(self, prefix: str) -> Iterator[ObjectMeta]:
        prefix = checked_prefix(prefix)
        with self._translated(prefix):
            for batch in obstore.list(self._objects, f"{prefix}/" if prefix else None):
                yield from batch

    def folders(self, prefix: str = "") -> Keys:
        """Names of the folders directly below `prefix`, sorted: one request, however much lies in them.

        Some services keep listing a folder for a while after its last key was deleted.
        """
        prefix = checked_prefix(prefix)
        with self._translated(prefix):
            found = obstore.list_with_delimiter(self._objects, f"{prefix}/" if prefix else None)
        return sorted(PurePosixPath(name).name for name in found["common_prefixes"])

    def delete(self, prefix: str) -> int:
        """Delete every key below `prefix`, which must lie in ``work/``; returns how many there were."""
        prefix = checked_prefix(prefix)
        if prefix.split("/")[0] != DELETABLE:
            raise InputError(
                prefix or "everything", "may not be deleted", f"only {DELETABLE}/ holds what can be made again"
            )
        keys = self.list(prefix)
        with self._translated(prefix):
            obstore.delete(self._objects, keys)
        return len(keys)

    # ------------------------------------------------------------------------------------------ files and trees

    def upload_file(self, path: str | Path, key: str) -> None:
        """Stream a file to `key`, in parts where it is large; memory does not grow with the file."""
        path = Path(path)
        if not path.is_file():
            raise InputError(path, "is not a file", "give the path of an existing file")
        with self._translated(key):
            obstore.put(self._objects, checked_key(key), path)

    def download_file(self, key: str, path: str | Path) -> Path:
        """Stream `key` to `path` by way of a temporary name beside it; KeyError where there is none."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(key):
            chunks = obstore.get(self._objects, checked_key(key)).stream()
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
                try:
                    for chunk in chunks:
                        partial.write(chunk)
                    partial.flush()
                    os.chmod(partial.name, 0o666 & ~_UMASK)
                    os.replace(partial.name, path)
                except BaseException:
                    os.unlink(partial.name)
                    raise
        return path

    def upload_tree(self, folder: str | Path, prefix: str, last: Iterable[str] = LAST) -> Keys:
        """Upload every file below `folder`; the files named in `last` follow when all others are there.

        Parameters
        ----------
        folder : path
            Holds regular files and folders only.
        prefix : str
            Folder of the store that receives the content of `folder`.
        last : iterable of str
            Paths relative to `folder`, uploaded one by one in this order.

        Returns
        -------
        list of str
            The keys written, sorted.
        """
        files = tree_files(Path(folder))
        prefix = checked_prefix(prefix)
        keys = {name: checked_key(f"{prefix}/{name}".lstrip("/")) for name in files}
        transfer(files, last, lambda name: self.upload_file(files[name], keys[name]))
        return sorted(keys.values())

    def download_tree(self, prefix: str, folder: str | Path, last: Iterable[str] = LAST) -> list[Path]:
        """Download everything below `prefix` into `folder`; the counterpart of `upload_tree`.

        Raises
        ------
        KeyError
            Where nothing lies below `prefix`.
        """
        prefix = checked_prefix(prefix)
        keys = {key.removeprefix(f"{prefix}/"): checked_key(key) for key in self.list(prefix)}
        if not keys:
            raise KeyError(prefix)
        folder = Path(folder)
        transfer(keys, last, lambda name: self.download_file(keys[name], folder / name))
        return sorted(folder / name for name in keys)

    def zarr_store(self, prefix: str, *, read_only: bool = False) -> ObjectStore:
        """The folder `prefix` as a store for zarr, the same for a local folder and for S3."""
        return ObjectStore(self._open_at(checked_prefix(prefix), make=not read_only), read_only=read_only)

    # ------------------------------------------------------------------------------------------ the service below

    def _open_at(self, prefix: str, *, make: bool) -> LocalStore | S3Store:
        if self.is_local:
            folder = Path(self.uri, prefix)
            if make:
                _make_folder(folder)
            elif not folder.is_dir():
                raise KeyError(prefix)
            return LocalStore(folder, automatic_cleanup=True)
        bucket, root = s3_location(self.uri)
        if self.endpoint and not os.environ.get("AWS_ACCESS_KEY_ID"):
            # Without keys obstore would go on to ask the metadata service of a cloud machine, and hang elsewhere.
            raise InputError(self.uri, "no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        # Under this name, because the environment variable of the name would otherwise override what was asked for.
        config: Any = {"region": self.region, "conditional_put": "etag"}
        if self.endpoint:
            config["aws_endpoint_url_s3"] = self.endpoint
        return S3Store(
            bucket,
            prefix="/".join(part for part in (root, prefix) if part) or None,
            config=config,
            client_options={
                "allow_http": bool(self.endpoint and self.endpoint.startswith("http://")),
                # The default of 30 s covers a whole request, body included: too short for a slow line.
                "timeout": timedelta(seconds=300),
                "connect_timeout": timedelta(seconds=5),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=30)},
        )

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn the client's errors into the three that callers need to tell apart."""
        try:
            yield
        except (failures.BaseError, FileNotFoundError, PermissionError) as error:
            raise self._plain_error(key, error) from error

    def _plain_error(self, key: str, error: Exception) -> Exception:
        # Listing reports every failure as a generic error; only its text tells a refusal from an outage.
        text = str(error)
        refused = isinstance(error, PermissionError | failures.PermissionDeniedError | failures.UnauthenticatedError)
        if refused or "status code: 403" in text or "status code: 401" in text:
            mend = "check the permissions of the folder" if self.is_local else "check AWS_ACCESS_KEY_ID and its secret"
            return StoreRefusal(f"{self.uri}/{key}", "access was refused", mend)
        if "NoSuchBucket" in text:
            return StoreRefusal(self.uri, "there is no such bucket", "create it or correct the address")
        if isinstance(error, FileNotFoundError):
            return KeyError(key)
        if "(os error 20)" in text or "(os error 21)" in text:
            return InputError(f"{self.uri}/{key}", "a file or a folder stands in its way", "choose another name")
        line = f"{self.uri}/{key}: {text.strip().splitlines()[0]}"
        if not self.is_local:
            return ConnectionError(line)
        number = _OS_ERROR.search(text)
        return OSError(int(number[1]), os.strerror(int(number[1])), f"{self.uri}/{key}") if number else OSError(line)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror})", "choose a folder that can be written") from error
