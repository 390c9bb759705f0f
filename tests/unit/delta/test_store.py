"""The lake on an object store: the protocol is S3's, spoken by moto's server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze.delta import store
from bronze.errors import LakeError
from bronze.model.locations import Place


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
