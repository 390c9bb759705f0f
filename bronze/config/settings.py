"""The sections of bronze.toml as frozen settings; `bronze.config.loading` reads them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from bronze.config.fields import Bytes, Decimal, Names, Seconds, Section, duration
from bronze.config.protection import MASTER_KEY, ColumnProtection
from bronze.config.quality import QualitySettings, RuleSettings
from bronze.errors import ConfigError
from bronze.model.locations import Origin, Place, Secret
from bronze.model.quality import Criterion
from bronze.model.stamp import Method

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SECRET = re.compile(r"key|secret|token|password|credential|sas", re.IGNORECASE)
MINIMUM_MEMORY = 512 * 10**6
GOVERNANCE = "governance"
"""The folder of the lake in which is remembered what happened."""


def _plain(root: str) -> str:
    if "://" not in root and _ESCAPE.search(root):
        raise ValueError("a percent sign before two digits is taken for an escape by readers")
    return root


class SecretName(Section):
    """``{ secret = "KConnectionString" }``: asked of the provider under [secrets]."""

    secret: str


class Pool(Section):
    """Connections to the source: ``max`` bounds all of them, the parallel reads included."""

    min: PositiveInt = 1
    max: PositiveInt = 10

    @property
    def readers(self) -> int:
        """How many reads may go on at once beside the pool's own connections.

        Each read opens a connection anew while PostgreSQL may still be closing the last one.
        """
        return (self.max - self.min) // 2

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.max < self.min + 2:
            raise ValueError("max is at least min + 2: a read has one connection, and one closing")
        return self


class SourceSettings(Section):
    """One PostgreSQL database."""

    name: str = ""
    dsn: str | SecretName = Field(repr=False)
    password: SecretName | None = None
    schema_: Names = Field(default=("public",), alias="schema")
    tables: Names = ("*",)
    exclude: Names = ()
    consistency: Literal["run", "per-table"] = "run"
    pool: Pool = Pool()
    connect_timeout: Seconds = 10
    statement_timeout: Seconds = 0
    lock_timeout: Seconds = 10
    row_security: Literal["refuse", "apply"] = "refuse"

    def takes(self, table: str) -> bool:
        """Whether a table of this name is wanted, by the patterns of tables and exclude."""
        return any(fnmatchcase(table, p) for p in self.tables) and not any(
            fnmatchcase(table, p) for p in self.exclude
        )


class LakeSettings(Section):
    """Where the Delta tables are."""

    root: Annotated[str, AfterValidator(_plain)]
    schema_: str = Field(default="bronze", alias="schema", pattern=r"^[\w-]+$")
    options: Mapping[str, str | SecretName] = Field(default={}, repr=False)


class RunSettings(Section):
    """How a run works."""

    workers: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 2)
    memory: Bytes = 10**9
    engine: str = Field(default="threads", pattern=r"^(threads|processes|dask://.+)$")
    max_retries: int = Field(default=3, ge=0)
    retry_delay: Seconds = 2

    @model_validator(mode="after")
    def _enough(self) -> RunSettings:
        if self.memory < MINIMUM_MEMORY:
            raise ValueError("memory is at least 512MB: the libraries alone take most of that")
        return self


class StreamSettings(Section):
    """How changes are streamed. Slot and publication are called after the source by default."""

    slot: str = Field(default="", pattern=r"^[a-z0-9_]{0,63}$")
    publication: str = ""
    interval: Seconds = 1
    heartbeat: Seconds = 60
    wal_budget: Bytes = 10**9

    def names(self, source: str) -> tuple[str, str]:
        """The names of slot and publication for a source."""
        plain = re.sub(r"[^a-z0-9]+", "_", source.lower()).strip("_")
        own = f"bronze_{plain}"[:63]
        return self.slot or own, self.publication or own


class MaintainSettings(Section):
    """How the tables are kept in shape, after runs and by ``bronze maintain``."""

    auto: bool = True
    file_size: Bytes = 128 * 2**20
    retention: Annotated[int, Field(ge=86400), BeforeValidator(duration)] = 30 * 86400

    @model_validator(mode="after")
    def _sensible(self) -> MaintainSettings:
        if self.file_size < 10**6:
            raise ValueError("file_size is at least 1MB")
        return self

    def properties(self) -> tuple[tuple[str, str], ...]:
        """The table properties that say the same to others."""
        # What ages is counted in whole days there.
        days = f"interval {-(-self.retention // 86400)} days"
        return (
            ("delta.deletedFileRetentionDuration", days),
            ("delta.logRetentionDuration", days),
        )


class SecretSettings(Section):
    """Where ``{ secret = … }`` is looked up."""

    provider: Literal["env", "file", "azure-key-vault", "databricks"] = "env"
    folder: str = ""
    vault: str = ""
    scope: str = ""

    @model_validator(mode="after")
    def _placed(self) -> SecretSettings:
        places = {"file": "folder", "azure-key-vault": "vault", "databricks": "scope"}
        needs = places.get(self.provider)
        if needs and not getattr(self, needs):
            raise ValueError(f'provider "{self.provider}" needs {needs}')
        return self

    def place(self) -> str:
        """What the provider needs to find its store."""
        return self.vault or self.folder or self.scope


class ProtectionSettings(Section):
    """The keys that wrap all others: ``key`` wraps new ones, ``previous`` open old ones."""

    key: SecretName | None = None
    previous: tuple[SecretName, ...] = ()


def _switched(value: object) -> object:
    if isinstance(value, bool):
        return {} if value else None
    return value


class AnomalySettings(Section):
    """How a table's rows are watched: ``anomalies = true``, or some of these."""

    expected: float = Field(default=0.01, gt=0, le=0.5)
    trees: int = Field(default=100, ge=10, le=1000)
    columns: Names = ()
    retrain: Seconds = 30 * 86400
    seed: int = Field(default=7, ge=0, lt=2**31)


class TableSettings(Section):
    """What one table has of its own."""

    pattern: Method = "full_refresh"
    cursor: str = "xmin"
    overlap: Seconds | None = None
    deletes: Literal["detect", "ignore"] | Seconds = "detect"
    on_delete: Literal["mark", "remove"] = "mark"
    history: bool = False
    cluster_by: Names = Field(default=(), max_length=4)
    partition_by: str | None = None
    priority: int = Field(default=2, ge=1, le=9)
    target: str | None = Field(default=None, pattern=r"^[^/\\\s.\x00-\x1f\x7f-\x9f]+$")
    columns: Names = ()
    key: Names = ()
    rename: Mapping[str, str] = {}
    decimals: Mapping[str, Decimal] = {}
    arrays: Literal["array", "string"] = "array"
    timestamps: Literal["timestamp_ntz", "timestamp"] = "timestamp_ntz"
    protect: Mapping[str, ColumnProtection] = {}
    anomalies: Annotated[AnomalySettings | None, BeforeValidator(_switched)] = None
    sla: Annotated[int, Field(ge=1), BeforeValidator(duration)] | None = None
    rules: tuple[RuleSettings, ...] = ()
    quality: QualitySettings = QualitySettings()

    @model_validator(mode="after")
    def _sensible(self) -> TableSettings:
        given = self.model_fields_set
        if self.pattern in ("full_refresh", "streaming"):
            for name in ("cursor", "overlap", "deletes"):
                if name in given:
                    raise ValueError(f'{name} is for the patterns "batch" and "micro_batch" only')
        if self.history and self.pattern == "streaming":
            raise ValueError(
                'history is not for the pattern "streaming": there the change data feed is the'
                " history"
            )
        if self.history and "on_delete" in given:
            raise ValueError("on_delete is not for a history, which removes nothing")
        if self.overlap is not None and self.cursor == "xmin":
            raise ValueError('overlap is for a cursor column only; cursor = "xmin" needs none')
        both = next(
            (name for name in self.columns if name in self.protect and self.protect[name].dropped),
            None,
        )
        if both:
            raise ValueError(f'column {both} is named in columns, and protect says "drop" of it')
        names = [rule.called for rule in self.rules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two rules are called {twice!r}: give one of them another name")
        return self

    @property
    def method(self) -> Method:
        """The name of the pattern in the column ingestion_method."""
        return self.pattern


class AuditSettings(Section):
    """How the records of ``governance.audit_log`` are sealed: by a key, or by their hashes alone.

    ``former_keys`` are those that older records were sealed with.
    """

    key: SecretName | None = None
    former_keys: tuple[SecretName, ...] = ()


class LineageSettings(Section):
    """Where lineage goes as OpenLineage events, beside ``governance.data_lineage``."""

    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    file: str = ""
    api_key: SecretName | None = None
    namespace: str = "bronze"
    timeout: Annotated[int, Field(ge=1), BeforeValidator(duration)] = 5

    @model_validator(mode="after")
    def _one(self) -> LineageSettings:
        if self.url and self.file:
            raise ValueError("events go to a url or to a file")
        return self


class Settings(Section):
    """All of bronze.toml.

    ``path`` is the file it came from, if any; ``alone`` says that [source] is itself a source.
    """

    source: Mapping[str, SourceSettings]
    lake: LakeSettings
    run: RunSettings = Field(default_factory=RunSettings)
    stream: StreamSettings = StreamSettings()
    maintain: MaintainSettings = MaintainSettings()
    quality: QualitySettings = QualitySettings()
    secrets: SecretSettings = SecretSettings()
    protection: ProtectionSettings = ProtectionSettings()
    audit: AuditSettings = AuditSettings()
    lineage: LineageSettings = LineageSettings()
    tables: Mapping[str, TableSettings] = {}
    path: str = Field(default="", exclude=True)
    alone: bool = Field(default=False, exclude=True)
    added: Mapping[str, tuple[Criterion, ...]] = Field(default={}, exclude=True)

    @model_validator(mode="after")
    def _streams_go_on(self) -> Settings:
        for name, own in self.tables.items():
            if own.pattern == "streaming" and self.demanded(own).on_failure == "stop":
                raise ValueError(
                    f"tables.{name} is streamed, and a stream cannot leave a batch out: on_failure"
                    f' = "stop" is not for it; say "land" in [tables.{name}.quality]'
                )
        return self

    @classmethod
    def from_dict(cls, document: Mapping[str, object]) -> Settings:
        """The config of a dictionary that has what would be in ``bronze.toml``.

        Raises:
            ConfigError: with all that is wrong in it.
        """
        from bronze.config import loading

        return loading.parse(document)

    @classmethod
    def from_file(cls, path: str | Path) -> Settings:
        """The config of a TOML file. Relative paths in it are relative to the file.

        Raises:
            ConfigError: with all that is wrong in it.
        """
        from bronze.config import loading

        return loading.load(path)

    def demanded(self, own: TableSettings) -> QualitySettings:
        """What is demanded of a table's quality, by [quality] and what the table has of its own."""
        given = {name: getattr(own.quality, name) for name in own.quality.model_fields_set}
        if own.sla is not None:
            given.setdefault("freshness", own.sla)
        return self.quality.model_copy(update=given)

    def table(self, source: str, schema: str, name: str) -> TableSettings:
        """A table's settings; the longest of its names that the config has wins."""
        for key in (f"{source}.{schema}.{name}", f"{schema}.{name}", name):
            if key in self.tables:
                return self.tables[key]
        return TableSettings()

    def origin(self, name: str) -> Origin:
        """How to reach a source, its passwords left where they are."""
        given = self.source[name]
        conninfo = given.dsn if isinstance(given.dsn, str) else ""
        dsn = self.secret(given.dsn) if isinstance(given.dsn, SecretName) else None
        if conninfo and _has_password(conninfo, name):
            if not self.path:
                raise ConfigError(
                    f"The connection string of source {name} has a password in it.",
                    hint="Give it as password = { secret = … }, or by PGPASSWORD or ~/.pgpass.",
                )
            where = ["source", "dsn"] if self.alone else ["source", name, "dsn"]
            dsn, conninfo = self._written(where), ""
        return Origin(
            name=name,
            conninfo=conninfo,
            dsn=dsn,
            password=self.secret(given.password) if given.password else None,
            connect_timeout=given.connect_timeout,
            statement_timeout=given.statement_timeout,
            lock_timeout=given.lock_timeout,
            row_security=given.row_security,
            connections=(given.pool.min, given.pool.max),
        )

    @property
    def masters(self) -> tuple[Secret, ...]:
        """Where the master keys are found; the first one wraps new keys."""
        given = self.protection
        first = self.secret(given.key) if given.key else Secret("env", MASTER_KEY)
        return (first, *(self.secret(name) for name in given.previous))

    def place(self, schema: str, name: str) -> Place:
        """Where a table lies in the lake."""
        options: dict[str, str | Secret] = {}
        for key, value in self.lake.options.items():
            if isinstance(value, SecretName):
                options[key] = self.secret(value)
            elif self.path and is_secret(key):
                options[key] = self._written(["lake", "options", key])
            else:
                options[key] = value
        root = self.lake.root.rstrip("/")
        return Place(f"{root}/{schema}/{name}", tuple(options.items()))

    def secret(self, name: SecretName) -> Secret:
        """Where a secret that the config names is to be found."""
        return Secret(self.secrets.provider, name.secret, self.secrets.place())

    def _written(self, where: list[str]) -> Secret:
        # It stands in the file: there it is found again, so that nothing has to carry it.
        return Secret("config", json.dumps(where), self.path)


def is_secret(option: str) -> bool:
    """Whether an option of the object store, by its name, holds a secret."""
    return bool(_SECRET.search(option))


def _has_password(conninfo: str, name: str) -> bool:
    from bronze.dsn import parse_dsn

    return "password" in parse_dsn(conninfo, name)
