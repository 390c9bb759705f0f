"""The escrow of the audit log on S3 with Object Lock, and on Azure with an immutability policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import ClientError

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta.storage import client
from bronze.errors import LakeError
from bronze.governance import audit, audit_proof
from bronze.governance.escrow import heads
from tests.support import object_store
from tests.support.object_store import Store

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


def config(folder: Path, store: Store, bucket: str, **of_audit: Any) -> Settings:
    """A config with a lake in a folder and a locked escrow in a bucket."""
    return loading.parse(
        {
            "source": {"name": "test", "dsn": "postgresql://u@nowhere/db"},
            "lake": {"root": str(folder / "lake")},
            "audit": {
                "escrow": bucket,
                "escrow_options": store.options,
                "escrow_lock": "30d",
                **of_audit,
            },
        }
    )


# One process has one imitated S3, whose locked objects stay.
LOCKED = f"locked-{uuid4().hex[:8]}"


@contextmanager
def bucket_with_lock() -> Iterator[tuple[Store, Any]]:
    """An S3 with a bucket that has Object Lock, and its client."""
    with object_store.s3() as store:
        s3 = boto3.client(
            "s3",
            endpoint_url=store.gateway.url,
            aws_access_key_id="key",
            aws_secret_access_key="word",
            region_name="us-east-1",
        )
        s3.create_bucket(Bucket=LOCKED, ObjectLockEnabledForBucket=True)
        client.forget()
        yield store, s3


def test_heads_on_s3_are_locked_and_stay_after_a_deletion(tmp_path: Path) -> None:
    """In COMPLIANCE mode for the time of the config: a version cannot be deleted, and a delete
    marker hides no head from the proof.
    """
    with bucket_with_lock() as (store, s3):
        settings = config(tmp_path, store, f"s3://{LOCKED}/audit")
        audit.record(settings, "reveal", "public.t", "succeeded")
        assert audit_proof.report(settings, verify=True).problems == ()
        heads.put_newest(settings)
        (version,) = s3.list_object_versions(Bucket=LOCKED)["Versions"]
        key, number = version["Key"], version["VersionId"]
        kept = s3.head_object(Bucket=LOCKED, Key=key)
        assert kept["ObjectLockMode"] == "COMPLIANCE"
        assert 29 <= (kept["ObjectLockRetainUntilDate"] - version["LastModified"]).days <= 30
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.delete_object(Bucket=LOCKED, Key=key, VersionId=number)
        s3.delete_object(Bucket=LOCKED, Key=key)
        report = audit_proof.report(settings, verify=True)
        assert report.escrowed == 2
        (problem,) = report.problems
        assert "has kept 1 head that was deleted" in problem
        assert heads.heads_after(settings, report.log, 1)
        assert not heads.heads_after(settings, report.log, 2)


def test_a_bucket_without_lock_is_refused(tmp_path: Path) -> None:
    """The record stays, and the error says that nothing can be locked there."""
    with bucket_with_lock() as (store, _):
        settings = config(tmp_path, store, "s3://lake/audit")
        with pytest.raises(LakeError, match="has no Object Lock"):
            audit.record(settings, "reveal", "public.t", "succeeded")
        store.gateway.failures.append(403)
        with pytest.raises(LakeError, match="credentials are refused"):
            audit.record(settings, "reveal", "public.t", "succeeded")


def test_azure_needs_an_immutability_policy(tmp_path: Path) -> None:
    """It is set outside; without it the error says so, with it the head is put."""
    command = object_store.azurite()
    if command is None:
        pytest.skip("azurite cannot be had: it needs node and npm")
    with object_store.azure(tmp_path / "azurite", command) as store:
        client.forget()
        settings = config(tmp_path, store, f"{store.root}/escrow")
        with pytest.raises(LakeError, match="no immutability policy"):
            audit.record(settings, "reveal", "public.t", "succeeded")
        store.gateway.immutable = True
        audit.record(settings, "reveal", "public.t", "succeeded")
        assert audit_proof.report(settings, verify=True).escrowed == 3
