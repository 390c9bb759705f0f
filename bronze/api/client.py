"""The Python interface: the commands of the command line as methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from bronze.errors import ConfigError
from bronze.model.quality import POINTS, Criterion, Severity

if TYPE_CHECKING:
    import polars as pl
    from polars import DataFrame

    from bronze.api.check import Report
    from bronze.cdc.stream import Notify as NotifyStep
    from bronze.config.settings import Settings
    from bronze.governance.audit import Report as AuditReport
    from bronze.ingest.pipeline import Notify
    from bronze.maintenance.maintain import Notify as NotifyMaintained
    from bronze.model.results import MaintainResult, RunResult, StreamResult
    from bronze.protection.erasure import Forgotten
    from bronze.protection.keys import KeyReport
    from bronze.quality.report import QualityReport
    from bronze.verify.results import VerifyResult


@dataclass(frozen=True)
class Rule:
    """A rule for the rows of a table, made in Python.

    Args:
        name: what it is called, once in its table.
        holds: a polars expression over the source's columns that is false for rows that break
            the rule; where it is NULL they keep it. It looks at no other rows.
        severity: "low", "medium", "high" or "critical"; see `bronze.model.quality.POINTS`.
        allow: the share of rows that may break it.
        allow_rows: how many rows may break it, whatever their share is.
    """

    name: str
    holds: pl.Expr = field(compare=False)
    severity: Severity = "medium"
    allow: float = 0.0
    allow_rows: int = 0

    def criterion(self) -> Criterion:
        """The rule as it travels.

        Raises:
            ConfigError: it has no such severity, share or number of rows.
        """
        fits = self.severity in POINTS and 0 <= self.allow <= 1 and self.allow_rows >= 0
        if not fits:
            raise ConfigError(
                f"The rule {self.name!r} has the severity {self.severity!r} and allows"
                f" {self.allow!r} and {self.allow_rows!r} rows.",
                hint=f"A severity is one of {', '.join(POINTS)}; a share is from 0 to 1, a number"
                " of rows at least 0.",
            )
        serialised = self.holds.meta.serialize()
        return Criterion(
            self.name,
            "expression",
            (),
            self.severity,
            "python",
            self.allow,
            holds=serialised,
            allow_rows=self.allow_rows,
        )


@dataclass(frozen=True)
class Bronze:
    """A config, ready to be worked with."""

    settings: Settings

    def run(
        self,
        tables: Sequence[str] = (),
        *,
        pool: Executor | None = None,
        notify: Notify | None = None,
    ) -> RunResult:
        """Takes tables of the source into the lake; see `bronze.ingest.pipeline.run`."""
        from bronze.api import recorded

        return recorded.run(self.settings, tables, pool=pool, notify=notify or (lambda _: None))

    def stream(
        self,
        tables: Sequence[str] = (),
        *,
        until_caught_up: bool = False,
        stop: Event | None = None,
        notify: NotifyStep | None = None,
        copied: Notify | None = None,
    ) -> StreamResult:
        """Follows the tables that the config has streamed; see `bronze.cdc.stream.stream`."""
        from bronze.api import recorded

        return recorded.follow(
            self.settings,
            tables,
            until_caught_up=until_caught_up,
            stop=stop,
            notify=notify or (lambda _: None),
            copied=copied or (lambda _: None),
        )

    def drop_stream(self, tables: Sequence[str] = ()) -> str:
        """Drops the stream's slot and publication; see `bronze.cdc.stream.drop`."""
        from bronze.api import recorded

        return recorded.drop(self.settings, tables)

    def maintain(
        self,
        tables: Sequence[str] = (),
        *,
        pool: Executor | None = None,
        notify: NotifyMaintained | None = None,
    ) -> MaintainResult:
        """Joins, clusters and expires files; see `bronze.maintenance.maintain.maintain`."""
        from bronze.api import recorded

        return recorded.maintain(
            self.settings, tables, pool=pool, notify=notify or (lambda _: None)
        )

    def audit(
        self,
        *,
        verify: bool = False,
        head: str = "",
        since: datetime | None = None,
        action: str = "",
        table: str = "",
    ) -> AuditReport:
        """Reads the audit log, and proves it; see `bronze.governance.audit.report`."""
        from bronze.governance import audit

        return audit.report(
            self.settings, verify=verify, head=head, since=since, action=action, table=table
        )

    def keys(self) -> tuple[KeyReport, ...]:
        """The keys that protect the tables, without their secrets; see `bronze.protection.keys`."""
        from bronze.protection import keys

        return keys.reports(keys.held(self.settings)[1])

    def rotate_keys(
        self, tables: Sequence[str] = (), *, reencrypt: bool = False
    ) -> tuple[KeyReport, ...]:
        """Makes new keys; those that were made. See `bronze.protection.keys.rotate`."""
        from bronze.protection import keys, lake_table

        names = [lake_table.held(self.settings, table).name for table in tables]
        return keys.rotate(self.settings, names, reencrypt)

    def rewrap_keys(self) -> int:
        """Wraps all keys by the config's master key; see `bronze.protection.keys.rewrap`."""
        from bronze.protection import keys

        return keys.rewrap(self.settings)

    def reveal(
        self,
        table: str,
        *,
        key: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
        limit: int = 100,
    ) -> DataFrame:
        """Decrypts rows of a Bronze table; see `bronze.protection.reveal.reveal`."""
        from bronze.protection import reveal

        return reveal.reveal(self.settings, table, key=key, columns=columns, limit=limit)

    def forget(self, table: str, key: Mapping[str, str], *, ask: bool = True) -> Forgotten:
        """Erases the rows of a person; see `bronze.protection.erasure.forget`."""
        from bronze.api import recorded

        return recorded.forget(self.settings, table, key, ask=ask)

    def delete_old_versions(self, table: str) -> Forgotten:
        """Deletes what a table was before; see `bronze.protection.erasure.old_versions`."""
        from bronze.api import recorded

        return recorded.old_versions(self.settings, table)

    def verify(
        self,
        tables: Sequence[str] = (),
        *,
        repair: bool = False,
        at_rest: bool = False,
        trust_hashes: bool = False,
        pool: Executor | None = None,
        notify: Notify | None = None,
    ) -> VerifyResult:
        """Proves that Bronze equals the source, or names what differs; `bronze.verify.verify`."""
        from bronze.api import recorded

        return recorded.verify(
            self.settings,
            tables,
            repair=repair,
            at_rest=at_rest,
            trust_hashes=trust_hashes,
            pool=pool,
            notify=notify or (lambda _: None),
        )

    def with_rules(self, rules: Mapping[str, Sequence[Rule]]) -> Bronze:
        """The same with more rules, by the names of their tables.

        Raises:
            ConfigError: one of them cannot be used.
        """
        added = dict(self.settings.added)
        for table, more in rules.items():
            added[table] = (*added.get(table, ()), *(rule.criterion() for rule in more))
        return Bronze(self.settings.model_copy(update={"added": added}))

    def quality(self, tables: Sequence[str] = (), *, trend: int = 1) -> QualityReport:
        """How the tables in the lake fare; see `bronze.quality.report.quality`."""
        from bronze.quality import report as past

        return past.quality(self.settings, tables, trend)

    def check(self, tables: Sequence[str] = ()) -> Report:
        """Says what a run would do, and what stands in its way; see `bronze.api.check.check`."""
        from bronze.api import check

        return check.check(self.settings, tables)


def open(path: str | Path = "bronze.toml") -> Bronze:  # noqa: A001 - as in gzip.open
    """Reads a config.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    from bronze.config import loading

    return Bronze(loading.load(path))
