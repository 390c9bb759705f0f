"""Copies from one store to another, and objects that are locked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from bronze.api.client import Bronze
from bronze.backup import copy, proof, purges
from bronze.backup.object_lock import ObjectLock
from bronze.delta import store
from bronze.delta.storage import client
from bronze.errors import ConfigError, LakeError
from bronze.verify import verify
from tests.conftest import Source
from tests.support import object_store
from tests.support.object_store import Store
from tests.support.small_lake import SmallLake

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    """S3 behind a gateway."""
    with object_store.s3() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh() -> None:
    """No clients of other tests."""
    client.forget()


def test_a_lake_on_azure_is_copied_to_s3(source: Source, s3: Store, tmp_path: Path) -> None:
    """Large objects in parts too; a second pass puts a manifest alone; a cut connection is an error
    after which the next pass goes on; the copy can be read as a lake.
    """
    command = object_store.azurite()
    if command is None:
        pytest.skip("azurite cannot be had: it needs node and npm")
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, gen_random_uuid()::text || gen_random_uuid() AS v,"
        " gen_random_uuid()::text AS w FROM generate_series(1, 150000) i"
    )
    with object_store.azure(tmp_path, command) as azure:
        settings = source.settings(
            lake={"root": f"{azure.root}/copied", "options": azure.options},
            backup={"root": f"{s3.root}/copy", "options": s3.options},
        )
        result = Bronze(settings).run()
        assert (result.exit_code, result.copy_error) == (0, None)
        assert max(meta["size"] for meta in store.objects(settings.place("bronze", "bz_t"))) > 5e6
        s3.gateway.requests.clear()
        again = copy.back_up(settings)
        puts = [path for method, path in s3.gateway.requests if method == "PUT"]
        source.execute("DELETE FROM t WHERE id > 100000")
        s3.gateway.cut = lambda method, path, length: method == "PUT" and length > 1e6
        s3.gateway.away = 60.0
        broken = Bronze(settings).run()
        s3.gateway.back = 0.0
        whole = copy.back_up(settings)
        assert Bronze(settings).verify_backup().faults == ()
    assert again.objects <= 8, "the governance tables of the run itself"
    assert any("_backup/manifests" in path for path in puts)
    assert (broken.tables[0].error, broken.exit_code) == (None, 1)
    assert broken.copy_error is not None
    assert "The copy at" in broken.copy_error.message
    assert whole.exit_code == 0
    copied = source.settings(lake={"root": f"{s3.root}/copy", "options": s3.options})
    assert verify.verify(copied).exit_code == 0


@pytest.fixture
def bucket(s3: Store) -> Any:
    """A client of S3, and a bucket with object lock."""
    options = s3.options
    s3_client = boto3.client(
        "s3", endpoint_url=options["aws_endpoint_url"], region_name="us-east-1",
        aws_access_key_id=options["aws_access_key_id"],
        aws_secret_access_key=options["aws_secret_access_key"],
    )  # fmt: skip
    s3_client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    return s3_client


def locked_lake(folder: Path, s3: Store, bucket: str) -> SmallLake:
    """A lake whose copy is locked for an hour."""
    options = {"root": f"s3://{bucket}/locked", "options": dict(s3.options), "lock": "1h"}
    return SmallLake(folder, {**options, "keep": "1h"}).begin()


def test_objects_are_locked_and_an_erasure_waits(s3: Store, bucket: Any, tmp_path: Path) -> None:
    """Each object of the copy, manifests and lists too, is locked in compliance mode; an erasure is
    outstanding until the locks end, and then all versions are deleted.
    """
    lake = locked_lake(tmp_path, s3, "locked")
    lake.append("zoltan", "bob")
    lake.append("cyd")
    copy.check_copy(lake.settings)
    assert lake.back_up().exit_code == 0
    keys = [o["Key"] for o in bucket.list_objects_v2(Bucket="locked")["Contents"]]
    for key in keys:
        found = bucket.head_object(Bucket="locked", Key=key)
        assert found.get("ObjectLockMode") == "COMPLIANCE", key
        left = found["ObjectLockRetainUntilDate"] - datetime.now(UTC)
        assert timedelta(minutes=55) < left <= timedelta(hours=1)
    lake.erase("zoltan")
    done = lake.back_up()
    assert done.exit_code == 1
    assert "objects of the copy are locked until" in done.erasures[0].reason
    root = lake.settings.copy_root
    assert root is not None
    assert len(purges.outstanding(lake.settings.lake_root, root)) == 1
    with pytest.raises(LakeError, match="could not be deleted"):
        object_lock_of(lake).delete([f"bronze/bz_orders/_delta_log/{0:020}.json"])


def object_lock_of(lake: SmallLake) -> ObjectLock:
    """What locks and deletes objects."""
    root = lake.settings.copy_root
    assert root is not None
    return ObjectLock(root, 3600)


def test_a_bucket_without_object_lock_is_refused(s3: Store, tmp_path: Path) -> None:
    """By `bronze check` and by the first copy."""
    lake = locked_lake(tmp_path, s3, s3.root.removeprefix("s3://").partition("/")[0])
    lake.append("a")
    with pytest.raises(ConfigError, match="cannot lock objects"):
        copy.check_copy(lake.settings)
    with pytest.raises(ConfigError, match="cannot lock objects"):
        lake.back_up()


def test_a_store_without_put_if_absent_is_refused(s3: Store, tmp_path: Path) -> None:
    """Two writers of one object would overwrite each other: the first copy says so."""
    options = {**s3.options, "aws_conditional_put": "disabled"}
    lake = SmallLake(tmp_path, {"root": f"{s3.root}/plain", "options": options}).begin()
    lake.append("a")
    with pytest.raises(LakeError, match="The copy at"):
        lake.back_up()


def test_a_copy_that_was_away_catches_up(s3: Store, tmp_path: Path) -> None:
    """While the store does not answer there is an error of the copy; then one pass has all."""
    lake = SmallLake(tmp_path, {"root": f"{s3.root}/away", "options": dict(s3.options)}).begin()
    lake.append("a")
    lake.back_up()
    s3.gateway.refuse = lambda _: True
    for word in ("b", "c"):
        lake.append(word)
        with pytest.raises(LakeError, match="The copy at"):
            lake.back_up()
    s3.gateway.refuse = lambda _: False
    done = lake.back_up()
    assert (done.exit_code, done.generation) == (0, 2)
    assert done.behind is not None
    assert done.behind > 0
    assert proof.verify_copy(lake.settings).faults == ()
