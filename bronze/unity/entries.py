"""The entries of the catalog: what each table of the lake is to be in Unity Catalog."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bronze import secrets
from bronze.config.sections.catalog import CatalogSettings
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError
from bronze.model import object_store
from bronze.model.locations import Place, Secret
from bronze.tables.lake import LakeTable
from bronze.unity.column_types import CatalogColumn, columns_of
from bronze.unity.source_facts import SourceTable

TableTags = Mapping[str, Mapping[str, str]]
"""Tags by column; those of the table itself are under ""."""

PII = "pii"
"""The tag of a column with personal data: it is set where there is none, and never changed, as
people set it as well.
"""
OWN_TAGS = ("protection", "source", "source_table", "pattern", "sla")
"""The tags whose values are bronze's: one that no longer holds is removed."""

_DFS = "dfs.core.windows.net"
_LONGEST_TAG = 256
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


@dataclass(frozen=True)
class Entry:
    """What a table of the lake, ``target``, is to be in the catalog.

    ``name`` is its catalog, schema and table there. ``schema`` is Delta's JSON. ``comments`` are by
    column, as ``tags`` are; that of the table itself is under "". ``grants`` are privileges by
    principal. ``original`` is the source's table, None if it is not known now.
    """

    target: str
    name: tuple[str, str, str]
    location: str
    schema: str = field(repr=False)
    partition_columns: tuple[str, ...] = ()
    comments: Mapping[str, str] = field(default_factory=dict)
    tags: TableTags = field(default_factory=dict)
    grants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    owner: str = ""
    original: SourceTable | None = None

    @property
    def full_name(self) -> str:
        """The name with dots."""
        return ".".join(self.name)

    @property
    def columns(self) -> tuple[CatalogColumn, ...]:
        """The columns, by the Delta log.

        Raises:
            CatalogError: one of them has a type that Unity Catalog does not have.
        """
        return columns_of(self.schema)


def entry_of(
    settings: Settings, catalog: CatalogSettings, table: LakeTable, original: SourceTable | None
) -> Entry:
    """The entry of a table, which has a state.

    Raises:
        ConfigError: Databricks cannot reach the lake.
        LakeError: a property of the table cannot be read.
    """
    if table.state is None:
        raise ValueError(f"{table.target} has no state")
    metadata = table.state.content.metadata
    names = [column.name for column in columns_of(metadata.schema)]
    is_bronze = table.schema != GOVERNANCE
    schema = (catalog.schema_ or table.schema) if is_bronze else catalog.governance
    return Entry(
        target=table.target,
        name=(catalog.name, schema.lower(), table.name.lower()),
        location=location_of(table.state.place, catalog.provider),
        schema=metadata.schema,
        partition_columns=metadata.partition_columns,
        comments=_comments(original, names),
        tags=_tags(settings, table.state, original, names) if is_bronze else {},
        grants=catalog.grants if is_bronze else catalog.governance_grants,
        owner=catalog.owner,
        original=original,
    )


def _comments(original: SourceTable | None, names: Sequence[str]) -> dict[str, str]:
    """The comments of PostgreSQL, where it has one."""
    if original is None:
        return {}
    return {name: text for name in ("", *names) if (text := original.comments.get(name, ""))}


def _tags(
    settings: Settings, state: State, original: SourceTable | None, names: Sequence[str]
) -> TableTags:
    known = TableProperties.read(state.properties)
    own = settings.table(known.source, *known.source_table)
    of_table = {"source": known.source, "source_table": known.label, "pattern": own.pattern}
    if own.sla is not None:
        of_table["sla"] = _duration(own.sla)
    tags: dict[str, dict[str, str]] = {"": of_table}
    for name, (rule, _) in known.protection.items():
        tags[name] = {PII: "personal", "protection": rule.method}
    for name, kind in (original.personal if original else {}).items():
        tags.setdefault(name, {})[PII] = kind
    return {
        name: {key: value[:_LONGEST_TAG] for key, value in values.items()}
        for name, values in tags.items()
        if name in ("", *names)
    }


def _duration(seconds: int) -> str:
    """A duration as the config has it."""
    return next((f"{seconds // n}{unit}" for n, unit in _UNITS if not seconds % n), f"{seconds}s")


def location_of(place: Place, provider: str) -> str:
    """The address of a table as Unity Catalog takes it: abfss://, s3:// or gs://, or for the
    open-source server also file:///.

    Raises:
        ConfigError: Databricks cannot reach it, or it lacks the name of the storage account.
    """
    cloud = object_store.cloud_of(place.url)
    if cloud is None:
        if provider == "databricks":
            raise ConfigError(
                f"The lake at {place.url} is a folder of this machine, which Databricks cannot"
                " reach: its tables cannot be registered there.",
                hint="Register a lake on abfss://, s3:// or gs://; or a local one at an open-source"
                ' Unity Catalog, provider = "unitycatalog".',
            )
        return _path(place.url).absolute().as_uri()
    parts = urlsplit(place.url)
    path = parts.path.rstrip("/")
    if cloud == "azure":
        return f"abfss://{_container(parts.netloc, place)}{path}"
    return f"{'gs' if cloud == 'google' else 's3'}://{parts.netloc}{path}"


def is_same_location(one: str, other: str) -> bool:
    """Whether two addresses are of one place."""
    return _plain(one) == _plain(other)


def _plain(location: str) -> tuple[str, str, str]:
    parts = urlsplit(location)
    scheme = {"s3a": "s3", "abfs": "abfss", "": "file"}.get(parts.scheme, parts.scheme)
    netloc = "" if scheme == "file" else parts.netloc.lower()
    # Servers write file:/path as well as file:///path, and escape what is in it or not.
    return scheme, netloc, "/" + unquote(parts.path).strip("/")


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path)) if url.lower().startswith("file:") else Path(url)


def _container(netloc: str, place: Place) -> str:
    """``container@account.dfs.core.windows.net``."""
    container, at, host = netloc.partition("@")
    if at:
        return f"{container}@{host.replace('.blob.', '.dfs.')}"
    options: Mapping[str, Any] = dict(place.options)
    account = next((v for k, v in options.items() if k.lower().endswith("account_name")), "")
    if isinstance(account, Secret):
        account = secrets.resolve(account)
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not account:
        raise ConfigError(
            f"The lake at {place.url} has no storage account in its address, which Databricks"
            " needs.",
            hint=f'Write root = "abfss://{container}@ACCOUNT.{_DFS}/…", or set account_name in'
            " [lake.options].",
        )
    return f"{container}@{account}.{_DFS}"
