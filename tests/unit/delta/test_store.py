"""The lake on an object store: the protocol is S3's, spoken by moto's server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pytest
from moto.server import ThreadedMotoServer

from bronze.delta import store
from bronze.errors import LakeError
from bronze.ingest import pipeline
from bronze.model.locations import Place
from tests.conftest import Source


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The options that reach the bucket ``lake``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "word"}
    url = f"http://{host}:{port}"
    client: Any = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **login)
    client.create_bucket(Bucket="lake")
    yield {"aws_endpoint_url": url, "aws_region": "us-east-1", "allow_http": "true", **login}
    client.close()
    server.stop()


def test_a_lake_on_s3_equals_the_source(source: Source, bucket: dict[str, str]) -> None:
    """Two runs land on S3 by the same code as on a local disk, and leave nothing else there."""
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 99) v FROM generate_series(1, 5000) i"
    )
    settings = source.settings(lake={"root": "s3://lake/one", "options": bucket})
    first = pipeline.run(settings)
    source.execute("DELETE FROM t WHERE id > 4000")
    second = pipeline.run(settings)
    assert [first.exit_code, second.exit_code] == [0, 0]
    assert [first.tables[0].version, second.tables[0].version] == [0, 1]
    url = "s3://lake/one/bronze/bz_t"
    assert pl.read_delta(url, storage_options=bucket).height == 4000
    assert pl.read_delta(url, version=0, storage_options=bucket).height == 5000
    kept = store.listing(Place(url, tuple(bucket.items())))
    assert len([path for path in kept if path.endswith(".parquet")]) == 2


def test_an_upload_that_fails_leaves_no_object(bucket: dict[str, str]) -> None:
    """An error while a file is written leaves nothing under its name."""
    place = Place("s3://lake/two", tuple(bucket.items()))

    def half() -> None:
        with store.writer(place, "half") as file:
            file.write(b"x" * 20_000_000)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert store.listing(place) == []


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://nowhere/x", {}),
        ("s3://lake/x", {"no_such_option": "1"}),
        ("s3://lake/x", {"aws_endpoint_url": "http://127.0.0.1:9", "max_retries": "0"}),
        ("ftp://lake/x", {}),
    ],
)
def test_a_lake_that_cannot_be_written_is_refused_in_a_sentence(
    bucket: dict[str, str], url: str, options: dict[str, str]
) -> None:
    """A wrong bucket, option, address or scheme is one of our errors, which names the lake."""
    with pytest.raises(LakeError) as caught:
        store.prove_writable(Place(url, tuple({**bucket, **options}.items())))
    assert url in caught.value.message


def test_local_files_are_written_and_cleaned(tmp_path: Path) -> None:
    """A local lake is proven writable without a trace."""
    store.prove_writable(Place(str(tmp_path / "deep" / "lake")))
    assert list((tmp_path / "deep" / "lake").iterdir()) == []
