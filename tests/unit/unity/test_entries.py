"""Where Unity Catalog finds a table of the lake."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze.errors import ConfigError
from bronze.model.locations import Place
from bronze.unity.entries import is_same_location, location_of

ACCOUNT = (("azure_storage_account_name", "acct"),)


@pytest.mark.parametrize(
    ("url", "options", "location"),
    [
        ("s3://lake/a/bz_t", (), "s3://lake/a/bz_t"),
        ("s3a://lake/a/bz_t/", (), "s3://lake/a/bz_t"),
        ("gs://lake/bz_ü", (), "gs://lake/bz_ü"),
        (
            "abfss://c@acct.dfs.core.windows.net/a/bz_t",
            (),
            "abfss://c@acct.dfs.core.windows.net/a/bz_t",
        ),
        (
            "abfs://c@acct.blob.core.windows.net/a",
            (),
            "abfss://c@acct.dfs.core.windows.net/a",
        ),
        ("az://c/a/bz_t", ACCOUNT, "abfss://c@acct.dfs.core.windows.net/a/bz_t"),
        ("abfss://c/a/bz_t", ACCOUNT, "abfss://c@acct.dfs.core.windows.net/a/bz_t"),
    ],
)
def test_locations_are_spelled_as_databricks_takes_them(
    url: str, options: tuple[tuple[str, str], ...], location: str
) -> None:
    """Whatever of its spellings the config has."""
    assert location_of(Place(url, options), "databricks") == location


def test_a_lake_that_databricks_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is refused there, and has a file:// address at the open-source server; a container
    needs its storage account.
    """
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="folder of this machine, which Databricks cannot reach"):
        location_of(Place(str(tmp_path)), "databricks")
    assert location_of(Place(f"{tmp_path}/a b"), "unitycatalog") == f"file://{tmp_path}/a%20b"
    with pytest.raises(ConfigError, match="no storage account in its address"):
        location_of(Place("az://c/a"), "databricks")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("s3://b/x", "s3a://b/x/", True),
        ("file:///tmp/a%20b", "file:/tmp/a b", True),
        ("abfss://c@a.dfs.core.windows.net/x", "abfss://c@A.dfs.core.windows.net/x", True),
        ("s3://b/x", "s3://b/y", False),
        ("s3://b/x", "s3://B2/x", False),
        ("s3://b/x", "gs://b/x", False),
        ("s3://b/x", "", False),
    ],
)
def test_spellings_of_one_location_are_the_same(one: str, other: str, same: bool) -> None:
    """Servers normalise addresses in their own ways."""
    assert is_same_location(one, other) is same
