"""Buckets are made once, versioned, and forget stage outputs only."""

from __future__ import annotations

import pytest

from cmseg_core.errors import InputError
from cmseg_core.storage.buckets import ensure_bucket, s3_client
from cmseg_core.storage.store import Store


def test_a_bucket_is_made_once_with_versions_and_expiry(s3_env) -> None:
    assert ensure_bucket("s3://cmseg-buckets/lab", work_days=7)
    assert not ensure_bucket("s3://cmseg-buckets/lab", work_days=9)
    client = s3_client()
    assert client.get_bucket_versioning(Bucket="cmseg-buckets")["Status"] == "Enabled"
    rules = client.get_bucket_lifecycle_configuration(Bucket="cmseg-buckets")["Rules"]
    expiring = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules if "Expiration" in rule}
    assert expiring == {"lab/work/": 9}


def test_the_rules_of_others_are_kept(s3_env) -> None:
    client = s3_client()
    client.create_bucket(Bucket="cmseg-rules")
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket="cmseg-rules", LifecycleConfiguration={"Rules": [theirs]})
    ensure_bucket("s3://cmseg-rules")
    rules = client.get_bucket_lifecycle_configuration(Bucket="cmseg-rules")["Rules"]
    expiring = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules if "Expiration" in rule}
    assert expiring == {"tmp/": 3, "work/": 30}


def test_an_overwritten_object_can_be_recovered(s3_env) -> None:
    ensure_bucket("s3://cmseg-versions")
    store = Store.open("s3://cmseg-versions")
    store.put("a", b"first")
    store.put("a", b"second")
    client = s3_client()
    versions = client.list_object_versions(Bucket="cmseg-versions", Prefix="a")["Versions"]
    contents = {
        client.get_object(Bucket="cmseg-versions", Key="a", VersionId=v["VersionId"])["Body"].read() for v in versions
    }
    assert contents == {b"first", b"second"}


def test_refused_and_missing_credentials_are_told_apart(s3_env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="access was refused"):
        ensure_bucket("s3://cmseg-buckets")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="no credentials"):
        ensure_bucket("s3://cmseg-buckets")
