"""Buckets themselves: making them, versions and expiry, for which obstore has no calls and boto3 has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cmseg_core.errors import StoreRefusal
from cmseg_core.storage.keys import s3_endpoint, s3_location
from cmseg_core.storage.store import DELETABLE, Store

_EXISTS = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}


def ensure_bucket(
    uri: str,
    *,
    endpoint: str | None = None,
    region: str = "us-east-1",
    versioning: bool = True,
    work_days: int | None = 30,
) -> bool:
    """Make the bucket of `uri` where it is absent, and give it versioning and its lifecycle rules.

    Safe to repeat, also from several processes at once. Lifecycle rules that others gave to the bucket are kept.

    Parameters
    ----------
    uri : str
        ``s3://bucket[/prefix]``.
    endpoint : str, optional
        Endpoint of the S3 service; by default that of the environment, else AWS.
    region : str
    versioning : bool
        Keep former versions of objects. Never switches versioning off.
    work_days : int, optional
        Days after which stage outputs expire (``work/`` below the prefix); None leaves them for ever.

    Returns
    -------
    bool
        Whether the bucket was made by this call.

    Raises
    ------
    StoreRefusal
        Where the credentials are absent or refused, or the bucket belongs to someone else.
    ConnectionError
        Where the service cannot be reached.
    """
    bucket, prefix = s3_location(uri)
    with _translated(uri):
        client = s3_client(endpoint=endpoint, region=region)
        made = _make(client, bucket, region)
        if versioning:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        if work_days is not None:
            _expire(client, bucket, f"{prefix}/{DELETABLE}/".lstrip("/"), work_days)
    return made


def former_versions(store: Store) -> Iterator[tuple[str, int]]:
    """Key and bytes of each version that was deleted or written over and that the bucket keeps; none of a folder.

    Raises
    ------
    StoreRefusal
        Where versions may not be listed.
    ConnectionError
        Where the service cannot be reached.
    """
    if store.is_local:
        return
    bucket, prefix = s3_location(store.uri)
    below = f"{prefix}/" if prefix else ""
    with _translated(store.uri):
        client = s3_client(endpoint=store.endpoint, region=store.region)
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=below):
            for version in page.get("Versions", []):
                if not version["IsLatest"]:
                    yield version["Key"].removeprefix(below), version["Size"]


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn the client's errors into those that callers tell apart."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _REFUSED:
            mend = "check AWS_ACCESS_KEY_ID and its secret, and who owns the bucket"
            raise StoreRefusal(uri, f"access was refused ({code})", mend) from error
        raise ConnectionError(f"{uri}: {error}") from error
    except BotoCoreError as error:
        if "credentials" in str(error).lower():
            raise StoreRefusal(uri, "no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        raise ConnectionError(f"{uri}: {error}") from error


def s3_client(*, endpoint: str | None = None, region: str = "us-east-1") -> Any:
    """A boto3 S3 client with bounded waits; path-style addresses where an endpoint is given."""
    endpoint = s3_endpoint(endpoint)
    style = {"addressing_style": "path"} if endpoint else {}
    config = Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 4, "mode": "standard"}, s3=style)
    # A session of its own: boto3's default one keeps the first credentials it saw, even after the environment changed.
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)


def _make(client: Any, bucket: str, region: str) -> bool:
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"404", "NoSuchBucket"}:
            raise
    else:
        return False
    # AWS refuses the name of its own default region as a constraint.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **where)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _EXISTS:
            raise
        client.head_bucket(Bucket=bucket)  # made by a neighbour a moment ago: fine if we may use it
        return False
    return True


def _expire(client: Any, bucket: str, prefix: str, days: int) -> None:
    """Let `prefix` expire, and everywhere the parts of uploads that were never finished."""
    ours = [
        {
            "ID": f"cmseg-{prefix}",
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "Expiration": {"Days": days},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        },
        # What expires in a bucket with versions leaves a mark, which would be kept for ever.
        {
            "ID": f"cmseg-{prefix}-marks",
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
        },
        {
            "ID": "cmseg-unfinished-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
        },
    ]
    try:
        present = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        present = []
    names = {rule["ID"] for rule in ours}
    kept = [rule for rule in present if rule.get("ID") not in names]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": kept + ours})
