"""The Python interface: the commands of the command line as methods."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bronze.audit import Report as AuditReport
    from bronze.check import Report
    from bronze.config import Settings
    from bronze.maintain import Notify as NotifyMaintained
    from bronze.model import MaintainResult, RunResult, StreamResult
    from bronze.pipeline import Notify
    from bronze.stream import Notify as NotifyStep


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
        """Takes tables of the source into the lake; see `bronze.pipeline.run`."""
        from bronze import audited

        return audited.run(self.settings, tables, pool=pool, notify=notify or (lambda _: None))

    def stream(
        self,
        tables: Sequence[str] = (),
        *,
        until_caught_up: bool = False,
        stop: Event | None = None,
        notify: NotifyStep | None = None,
        copied: Notify | None = None,
    ) -> StreamResult:
        """Follows the tables that the config has streamed; see `bronze.stream.stream`."""
        from bronze import audited

        return audited.follow(
            self.settings,
            tables,
            until_caught_up=until_caught_up,
            stop=stop,
            notify=notify or (lambda _: None),
            copied=copied or (lambda _: None),
        )

    def drop_stream(self, tables: Sequence[str] = ()) -> str:
        """Drops the stream's slot and publication; see `bronze.stream.drop`."""
        from bronze import audited

        return audited.drop(self.settings, tables)

    def maintain(
        self,
        tables: Sequence[str] = (),
        *,
        pool: Executor | None = None,
        notify: NotifyMaintained | None = None,
    ) -> MaintainResult:
        """Joins, clusters and expires files; see `bronze.maintain.maintain`."""
        from bronze import audited

        return audited.tidy(self.settings, tables, pool=pool, notify=notify or (lambda _: None))

    def audit(
        self,
        *,
        verify: bool = False,
        head: str = "",
        since: datetime | None = None,
        action: str = "",
        table: str = "",
    ) -> AuditReport:
        """Reads the audit log, and proves it; see `bronze.audit.report`."""
        from bronze import audit

        return audit.report(
            self.settings, verify=verify, head=head, since=since, action=action, table=table
        )

    def check(self, tables: Sequence[str] = ()) -> Report:
        """Says what a run would do, and what stands in its way; see `bronze.check.check`."""
        from bronze import check

        return check.check(self.settings, tables)


def open(path: str | Path = "bronze.toml") -> Bronze:  # noqa: A001 - as in gzip.open
    """Reads a config.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    from bronze import config

    return Bronze(config.load(path))
