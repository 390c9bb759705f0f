"""All of bronze.toml as one frozen value, which `bronze.config.loading` reads.

Its sections are in `bronze.config.sections`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    PrivateAttr,
    model_validator,
)

from bronze.config.fields import (
    SecretName,
    Section,
    is_secret_option,
)
from bronze.config.sections.alerts import AlertSettings
from bronze.config.sections.audit import AuditSettings, LineageSettings
from bronze.config.sections.backup import BackupSettings
from bronze.config.sections.catalog import CatalogSettings
from bronze.config.sections.lake import LakeSettings
from bronze.config.sections.protection import MASTER_KEY, ProtectionSettings
from bronze.config.sections.quality import QualitySettings
from bronze.config.sections.run import MaintainSettings, RunSettings, StreamSettings
from bronze.config.sections.secrets import SecretSettings
from bronze.config.sections.serve import BreakerSettings, ServeSettings, WebSettings
from bronze.config.sections.source import CommandAuth, SourceSettings
from bronze.config.sections.tables import TableSettings
from bronze.errors import ConfigError
from bronze.model import object_store
from bronze.model.locations import Auth, Origin, Place, Secret, Vended, Workspace
from bronze.model.quality import ResolvedRule
from bronze.model.schedule import Schedule

GOVERNANCE = "governance"
"""The schema of the governance tables; the folder of that name in the lake."""


class Settings(Section):
    """All of bronze.toml.

    ``path`` is the file it was read from, "" if it is not from a file, and ``digest`` the SHA-256
    of that file; ``lake_options`` are section and key of the lake's options in it. ``alone`` says
    that [source] is one source, not a table of several. ``added`` are the rules made in Python, by
    table.
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
    alerts: AlertSettings = AlertSettings()
    serve: ServeSettings = ServeSettings()
    breaker: BreakerSettings = BreakerSettings()
    web: WebSettings = WebSettings()
    backup: BackupSettings = BackupSettings()
    catalog: Mapping[str, CatalogSettings] = {}
    tables: Mapping[str, TableSettings] = {}
    path: str = Field(default="", exclude=True)
    digest: str = Field(default="", exclude=True)
    lake_options: tuple[str, str] = Field(default=("lake", "options"), exclude=True)
    alone: bool = Field(default=False, exclude=True)
    added: Mapping[str, tuple[ResolvedRule, ...]] = Field(default={}, exclude=True)
    _whole: Settings | None = PrivateAttr(default=None)
    _parts: int = PrivateAttr(default=1)

    @model_validator(mode="after")
    def _check_vended(self) -> Settings:
        if self.lake.storage == "direct":
            return self
        workspaces = {self.workspace(catalog) for catalog in self.catalog.values()}
        if len(workspaces) != 1:
            have = "there are several" if workspaces else "there is none"
            raise ValueError(
                'lake.storage = "vended" takes the credentials of the store from the server of'
                f" [catalog], and {have}"
            )
        return self

    @model_validator(mode="after")
    def _check_streamed_tables(self) -> Settings:
        for name, table in self.tables.items():
            if table.pattern == "streaming" and self.quality_of(table).on_failure == "stop":
                raise ValueError(
                    f'tables.{name} has pattern = "streaming", and a stream cannot skip a batch:'
                    f' on_failure = "stop" is not possible; set on_failure = "land" in'
                    f" [tables.{name}.quality]"
                )
        return self

    @model_validator(mode="after")
    def _check_service_levels(self) -> Settings:
        for name, table in self.tables.items():
            interval = self.stream.interval
            if table.pattern == "streaming" and table.sla is not None and table.sla <= interval:
                raise ValueError(
                    f"tables.{name}.sla is {table.sla} s, and [stream] interval is {interval} s:"
                    " the table would be late most of the time"
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

    def with_memory(self, memory: int, parts: int) -> Settings:
        """The config for a work that has a share of the process's memory.

        Args:
            memory: what the work has instead of [run] memory, in bytes.
            parts: as how many parts of the process's memory it counts (`memory_parts`).
        """
        run = self.run.model_copy(update={"memory": memory})
        copy = self.model_copy(update={"run": run})
        copy._whole, copy._parts = self.whole, parts
        return copy

    def for_work(self, source: str = "", workers: int = 0) -> Settings:
        """The config for a work on one source alone, or with another number of workers."""
        update: dict[str, object] = {}
        if source and len(self.source) > 1:
            update["source"] = {source: self.source[source]}
        if workers and workers != self.run.workers:
            update["run"] = self.run.model_copy(update={"workers": workers})
        if not update:
            return self
        copy = self.model_copy(update=update)
        copy._whole = self.whole
        return copy

    @property
    def whole(self) -> Settings:
        """The config as it was read, where this one is for a work with a share of its memory."""
        return self._whole or self

    @property
    def memory_parts(self) -> int:
        """How many times as much memory the process needs for a work that needs more; 1 if the
        process has no other work.
        """
        return self._parts

    def quality_of(self, table: TableSettings) -> QualitySettings:
        """The quality settings of a table: its own, and those of [quality] for the rest."""
        overrides = {name: getattr(table.quality, name) for name in table.quality.model_fields_set}
        if table.sla is not None:
            overrides.setdefault("freshness", table.sla)
        return self.quality.model_copy(update=overrides)

    def table(self, source: str, schema: str, name: str) -> TableSettings:
        """The settings of a table; a section with a longer form of its name takes precedence."""
        for key in (f"{source}.{schema}.{name}", f"{schema}.{name}", name):
            if key in self.tables:
                return self.tables[key]
        return TableSettings()

    def schedule_of(self, table: TableSettings) -> Schedule:
        """When a table is due: by its own schedule, or else by that of its pattern."""
        return self.serve.schedule_of(table.schedule or self.serve.schedule.of(table.pattern))

    def origin(self, name: str) -> Origin:
        """How to connect to a source; passwords are references to where they are kept.

        Raises:
            ConfigError: the connection string cannot be read, or has a password and is not from a
                file.
        """
        source = self.source[name]
        conninfo = source.dsn if isinstance(source.dsn, str) else ""
        dsn = self.secret(source.dsn) if isinstance(source.dsn, SecretName) else None
        if conninfo and _has_password(conninfo, name):
            if not self.path:
                raise ConfigError(
                    f"The connection string of source {name} contains a password.",
                    hint="Use password = { secret = … }, PGPASSWORD or ~/.pgpass instead.",
                )
            path = ["source", "dsn"] if self.alone else ["source", name, "dsn"]
            dsn, conninfo = self._config_secret(path), ""
        return Origin(
            name=name,
            conninfo=conninfo,
            dsn=dsn,
            password=self.secret(source.password) if source.password else None,
            auth=_auth(source),
            connect_timeout=source.connect_timeout,
            statement_timeout=source.statement_timeout,
            lock_timeout=source.lock_timeout,
            row_security=source.row_security,
            reader=source.reader,
            connections=(source.pool.min, source.pool.max),
        )

    @property
    def masters(self) -> tuple[Secret, ...]:
        """Where the master keys are kept; the first one wraps new data keys."""
        key = self.protection.key
        first = self.secret(key) if key else Secret("env", MASTER_KEY)
        return (first, *(self.secret(name) for name in self.protection.previous))

    def place(self, schema: str, name: str) -> Place:
        """The location of a table in the lake."""
        root = self.lake_root
        return replace(root, url=f"{root.url}/{schema}/{name}")

    @property
    def lake_root(self) -> Place:
        """The location of the lake."""
        root = self._store(self.lake.root, self.lake.options, *self.lake_options)
        return replace(root, vended=self._vended(root.url))

    def with_lake_at(self, root: str) -> Settings:
        """The config for a lake at another root. Its store is reached with the options of [lake],
        or with those of [backup] if it is in the copy's bucket, or in the copy's cloud alone.

        Raises:
            ConfigError: there is no such store.
        """
        try:
            cloud, path = object_store.cloud_of(root), ("lake", "options")
            options: Mapping[str, str | SecretName] = {}
            if cloud is not None:
                stores = [(self.lake.root, self.lake.options, path)]
                copy = self.backup
                stores += [(copy.root, copy.options, ("backup", "options"))] if copy.root else []
                same = [store for store in stores if object_store.cloud_of(store[0]) == cloud]
                same.sort(key=lambda store: not root.startswith(f"{_bucket(store[0])}/"))
                _, options, path = same[0] if same else ("", options, path)
            else:
                root = str(Path(root).expanduser().absolute())
            there = LakeSettings(root=root, schema=self.lake.schema_, options=options)
        except ValueError as error:
            raise ConfigError(f"{root} cannot be the root of a lake: {error}.") from None
        return self.model_copy(update={"lake": there, "lake_options": path})

    @property
    def copy_root(self) -> Place | None:
        """The location of the copy of the lake, None if there is to be none."""
        copy = self.backup
        return self._store(copy.root, copy.options, "backup", "options") if copy.root else None

    @property
    def escrow(self) -> Place | None:
        """Where the heads of the audit log are kept outside of the lake; None if nowhere."""
        audit, path = self.audit, ("audit", "escrow_options")
        return self._store(audit.escrow, audit.escrow_options, *path) if audit.escrow else None

    def _store(self, root: str, options: Mapping[str, str | SecretName], *path: str) -> Place:
        resolved: dict[str, str | Secret] = {}
        for key, value in options.items():
            if isinstance(value, SecretName):
                resolved[key] = self.secret(value)
            elif self.path and is_secret_option(key):
                resolved[key] = self._config_secret([*path, key])
            else:
                resolved[key] = value
        return Place(root.rstrip("/"), tuple(resolved.items()))

    def _vended(self, root: str) -> Vended | None:
        if self.lake.storage == "direct":
            return None
        catalog = next(iter(self.catalog.values()))
        api: Literal["2.0", "2.1"] = "2.0" if catalog.provider == "databricks" else "2.1"
        return Vended(self.workspace(catalog), root, api)

    def workspace(self, catalog: CatalogSettings) -> Workspace:
        """How to log in to the server of a catalog.

        Raises:
            ConfigError: the provider of its secret has no place in [secrets].
        """
        auth = catalog.auth
        if auth is None or auth == "azure":
            return Workspace(catalog.host, auth or "none")
        if auth.token:
            return Workspace(catalog.host, "token", secret=self.secret(auth.token))
        secret = self.secret(auth.client_secret) if auth.client_secret else None
        return Workspace(catalog.host, "oauth", auth.client_id, secret)

    def secret(self, name: SecretName) -> Secret:
        """A reference to a secret that the config names.

        Raises:
            ConfigError: its provider has no place in [secrets].
        """
        provider = name.provider or self.secrets.provider
        try:
            place = self.secrets.place(provider)
        except ValueError as error:
            raise ConfigError(f"The secret {name.secret} cannot be read: {error}.") from None
        return Secret(provider, name.secret, place, self.secrets.ttl)

    def _config_secret(self, path: list[str]) -> Secret:
        # Workers read the value from the config file, so that no unit of work carries it.
        return Secret("config", json.dumps(path), self.path)


def _bucket(root: str) -> str:
    """The scheme and bucket of an address."""
    parts = urlsplit(root)
    return f"{parts.scheme}://{parts.netloc}"


def _auth(source: SourceSettings) -> Auth | None:
    if isinstance(source.auth, CommandAuth):
        return Auth("command", source.auth.command)
    return Auth(source.auth) if source.auth else None


def _has_password(conninfo: str, name: str) -> bool:
    from bronze.dsn import parse_dsn

    return "password" in parse_dsn(conninfo, name)
