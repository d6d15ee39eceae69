"""Buckets are made once, versioned, and forget stage outputs only."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from cmseg_core.storage.buckets import ensure_bucket, former_versions, s3_client
from cmseg_core.storage.store import Store
from deployments.object_store import object_store


def _days(bucket: str) -> dict[str, int]:
    """After how many days what is under a prefix expires."""
    rules = s3_client().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    return {
        rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules if rule.get("Expiration", {}).get("Days")
    }


def test_a_bucket_is_made_once_with_versions_and_expiry(s3_env) -> None:
    assert ensure_bucket("s3://cmseg-buckets/lab", work_days=7)
    assert not ensure_bucket("s3://cmseg-buckets/lab", work_days=9)
    client = s3_client()
    assert client.get_bucket_versioning(Bucket="cmseg-buckets")["Status"] == "Enabled"
    assert _days("cmseg-buckets") == {"lab/work/": 9}


def test_the_rules_of_others_are_kept(s3_env) -> None:
    client = s3_client()
    client.create_bucket(Bucket="cmseg-rules")
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket="cmseg-rules", LifecycleConfiguration={"Rules": [theirs]})
    ensure_bucket("s3://cmseg-rules")
    assert _days("cmseg-rules") == {"tmp/": 3, "work/": 30}


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


def test_former_versions_are_counted_below_the_prefix_alone(s3_env, tmp_path: Path) -> None:
    for lab in ("lab-a", "lab-b"):
        ensure_bucket(f"s3://cmseg-versions/{lab}")
        store = Store.open(f"s3://cmseg-versions/{lab}")
        for content in (b"1", b"22", b"333"):
            store.put("incoming/one", content)
        store.put("work/gone", b"4444")
        store.delete("work")
    assert sorted(former_versions(store)) == [("incoming/one", 1), ("incoming/one", 2), ("work/gone", 4)]
    assert list(former_versions(Store.open(tmp_path))) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_store_of_cmseg_up_lets_outputs_of_steps_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks five minutes after it was started, and then once a day. The rule says a date here in place of days."""
    bucket = "cmseg-expiring"
    with object_store(tmp_path) as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        ensure_bucket(f"s3://{bucket}")
        client = s3_client()
        for key in ("work/old", "work/old", "work/gone", "acquisitions/result"):
            client.put_object(Bucket=bucket, Key=key, Body=b"bytes")
        version = client.head_object(Bucket=bucket, Key="work/gone")["VersionId"]
        client.delete_object(Bucket=bucket, Key="work/gone")
        client.delete_object(Bucket=bucket, Key="work/gone", VersionId=version)  # leaves the mark of its deletion alone

        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        for rule in rules:
            if "Days" in rule.get("Expiration", {}):
                rule["Expiration"] = {"Date": datetime(2026, 1, 1, tzinfo=UTC)}
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})

        def keys(kind: str) -> list[str]:
            return sorted(one["Key"] for one in client.list_object_versions(Bucket=bucket).get(kind, []))

        deadline = time.monotonic() + 600
        while keys("DeleteMarkers") != ["work/old"]:
            assert time.monotonic() < deadline, (keys("Versions"), keys("DeleteMarkers"))
            time.sleep(5)
        current = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert current == ["acquisitions/result"]
