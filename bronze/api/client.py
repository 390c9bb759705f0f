"""The Python interface: the commands of the command line as methods.

Results have the ``exit_code`` of the command. Where a command could do nothing, its method raises
an error of `bronze.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    from polars import DataFrame, LazyFrame

    from bronze.api.check import CheckReport
    from bronze.api.drift import DriftReport
    from bronze.api.rule import Rule
    from bronze.backup.copy import Notify as NotifyBackedUp
    from bronze.backup.manifest import Manifest
    from bronze.backup.recovery.drill import DrillResult
    from bronze.backup.recovery.metadata import MetadataReport
    from bronze.backup.recovery.restore import Notify as NotifyRestored
    from bronze.backup.recovery.restore import RestoreResult
    from bronze.backup.results import BackupResult, VerifiedCopy
    from bronze.cdc.stream import Notify as NotifyStep
    from bronze.config.settings import Settings
    from bronze.governance.audit_proof import AuditReport
    from bronze.ingest.pipeline import Notify
    from bronze.maintenance.maintain import Notify as NotifyMaintained
    from bronze.model.events import RunPlanned
    from bronze.model.results import MaintainResult, RunResult, StreamResult
    from bronze.protection.erasure_result import ErasureResult
    from bronze.protection.keys import KeyReport
    from bronze.quality.report import QualityReport
    from bronze.unity.results import RegisterResult
    from bronze.verify.results import VerifyResult


@dataclass(frozen=True)
class Bronze:
    """The tables of one config, and what can be done with them.

    Each call opens its own connections and closes them; an object may be used by several threads.
    ``tables`` are names of tables in PostgreSQL, ``table`` or ``schema.table``; none means all of
    the config.
    """

    config: Settings

    def run(
        self,
        tables: Sequence[str] = (),
        *,
        pool: Executor | None = None,
        notify: Notify | None = None,
        stop: Event | None = None,
        planned: Callable[[RunPlanned], None] = lambda _: None,
    ) -> RunResult:
        """Loads tables from PostgreSQL into the lake from one snapshot.

        A table that fails does not stop the others. When the source goes away, the run starts again
        from a new snapshot, up to ``[run] max_retries`` times.

        Args:
            tables: which tables.
            pool: where tasks run instead of the config's ``[run] engine``.
            notify: called with what happens to each table, from this thread; without it, a
                notebook shows the progress.
            stop: ends the run when it is set, from any thread, within a second or two: a table
                that has not landed by then is stopped, and loaded by the next run.
            planned: called with the tables of the run before they are read, from this thread.

        Returns:
            The result of each table: rows read, inserted, updated, deleted, or why it failed.

        Raises:
            ConfigError: the config or a name is wrong.
            SourceError, LakeError: no table could be loaded.
            Stopped: before the tables were known.
        """
        from bronze.api import backup, recorded
        from bronze.api.display import progress

        with progress.shown_in_notebook(notify) as show:

            def plan(made: RunPlanned) -> None:
                show.planned(made)
                planned(made)

            done = recorded.run(
                self.config, tables, pool=pool, notify=show.notify, stop=stop, planned=plan
            )
        return backup.after_run(self.config, done, stop)

    def stream(
        self,
        tables: Sequence[str] = (),
        *,
        until_caught_up: bool = False,
        stop: Event | None = None,
        notify: NotifyStep | None = None,
        copied: Notify | None = None,
    ) -> StreamResult:
        """Applies the changes of tables whose pattern is "streaming", batch after batch.

        Tables that are new are loaded first, on the config's ``[run] engine``; batches are applied
        by threads of this process. The stream ends when ``stop`` is set, after the current batch;
        the next stream continues from the position that was recorded last.

        Args:
            tables: which tables.
            until_caught_up: end when all that is committed now has been applied.
            stop: ends the stream when it is set, from any thread.
            notify: called with what happens, from this thread.
            copied: called with the progress of tables that are copied; without it, a notebook
                shows it.

        Returns:
            What was applied to each table until the end.

        Raises:
            ConfigError: the config or a name is wrong.
            SourceError, LakeError: it cannot begin, or cannot go on.
        """
        from bronze.api import recorded
        from bronze.api.display import progress

        with progress.shown_in_notebook(copied, "Connecting") as show:
            return recorded.follow(
                self.config,
                tables,
                until_caught_up=until_caught_up,
                stop=stop,
                notify=notify or (lambda _: None),
                copied=show.notify,
            )

    def stream_name(self, tables: Sequence[str] = ()) -> str:
        """The name of the stream of these tables: that of its replication slot.

        Raises:
            ConfigError: the tables are of several sources.
        """
        from bronze.cdc import stream

        return stream.stream_name(self.config, tables)

    def drop_stream(self, tables: Sequence[str] = ()) -> str:
        """Drops the replication slot and the publication; Bronze tables are not changed.

        Returns:
            The name of the stream.

        Raises:
            ConfigError: no table is streamed.
            SourceError: they cannot be dropped.
            LakeError: they were dropped, and that cannot be recorded.
        """
        from bronze.api import recorded

        return recorded.drop(self.config, tables)

    def maintain(
        self,
        tables: Sequence[str] = (),
        *,
        upgrade: bool = False,
        pool: Executor | None = None,
        notify: NotifyMaintained | None = None,
        stop: Event | None = None,
    ) -> MaintainResult:
        """Optimizes and vacuums tables of the lake: joins small files, clusters rows, deletes files
        and log entries that are older than the retention. It does not connect to the source.

        Args:
            tables: names of tables in PostgreSQL, of Bronze tables or of governance tables.
            upgrade: also name the features of tables of older versions of bronze (Delta's writer
                version 7), which DuckDB needs to insert into them.
            pool: where tasks run instead of the config's ``[run] engine``.
            notify: called with what was done to each table, from this thread.
            stop: ends the maintenance when it is set, from any thread, within a second or two.

        Raises:
            ConfigError: there is no such table in the lake.
            LakeError: the lake cannot be read.
            Stopped: before the tables were known.
        """
        from bronze.api import recorded

        show = notify or (lambda _: None)
        return recorded.maintain(
            self.config, tables, upgrade=upgrade, pool=pool, notify=show, stop=stop
        )

    def dbt_sources(self, tables: Sequence[str] = (), *, ask: bool = True) -> str:
        """The text of dbt's ``sources.yml`` for the Bronze tables of the lake: columns with types,
        comments of PostgreSQL, freshness by the ``sla``, and rules as data tests.

        Args:
            tables: which tables; none means all in the lake.
            ask: whether PostgreSQL is asked for comments; what is in the lake needs no source.

        Raises:
            ConfigError: there is no such table, or PyYAML is not installed.
            LakeError: the lake or one of the tables cannot be read.
        """
        from bronze.api.dbt import sources
        from bronze.governance.audit import refuse_newer_lake

        refuse_newer_lake(self.config)
        return sources.sources_text(self.config, tables, ask=ask)

    def dbt_rules(self, path: str | Path) -> str:
        """The data tests in a schema file of dbt, as rules in the TOML of a config; what bronze has
        no rule for is named in comments.

        Raises:
            ConfigError: the file cannot be read, or PyYAML is not installed.
        """
        from bronze.api.dbt import rules_text

        return rules_text.rules_text(Path(path), self.config)

    def tables(self) -> tuple[str, ...]:
        """The names of the Bronze tables in the lake, sorted, without the governance tables.

        Raises:
            LakeError: the lake cannot be read.
        """
        from bronze.tables import lake

        found = lake.tables_of(self.config, self.config.lake.schema_)
        return tuple(sorted(table.name for table in found if table.is_bronze))

    def table(self, name: str) -> LazyFrame:
        """The active rows of a Bronze table, to be filtered, joined and collected with polars.

        It has no rows that were deleted at the source or are in quarantine, and of a history the
        latest version of each row. Values are as stored: protected ones stay protected.

        Args:
            name: the Bronze table's, or the source table's.

        Raises:
            ConfigError: there is no such table in the lake.
            LakeError: it cannot be read.
        """
        from bronze.api import frame
        from bronze.governance.audit import refuse_newer_lake

        refuse_newer_lake(self.config, is_needed=False)
        return frame.active_rows(self.config, name)

    def arrow(self, name: str) -> pyarrow.Table:
        """The rows of `table`, read whole, as an Arrow table: for DuckDB, pandas and others.

        Raises:
            ConfigError: there is no such table in the lake.
            LakeError: it cannot be read.
        """
        return self.table(name).collect().to_arrow()

    def audit(
        self,
        *,
        verify: bool = False,
        head: str = "",
        since: datetime | None = None,
        action: str = "",
        table: str = "",
    ) -> AuditReport:
        """Reads the audit log, the newest record first.

        Args:
            verify: whether to check the chain of hashes, also against the tables of the lake.
            head: a hash that was noted earlier; the log has to contain it.
            since: only records of that time or later.
            action: only records of this command, such as "run".
            table: only records about this table: its name, or that of the source's table.

        Returns:
            The records and, with ``verify``, the faults of the log.

        Raises:
            LakeError: the lake cannot be read.
        """
        from bronze.governance import audit_proof
        from bronze.governance.audit import refuse_newer_lake
        from bronze.tables import lake

        refuse_newer_lake(self.config)
        there = lake.tables_of(self.config, self.config.lake.schema_) if table else ()
        # Records have the name in the source, without the source.
        named = next((known.label for known in there if table in known.labels), table)
        return audit_proof.report(
            self.config, verify=verify, head=head, since=since, action=action, table=named
        )

    def keys(self) -> tuple[KeyReport, ...]:
        """The keys that protect columns, without their secrets.

        Raises:
            LakeError: the lake cannot be read.
        """
        from bronze.protection import keys

        return keys.key_reports(keys.stored_keys(self.config)[1])

    def rotate_keys(
        self, tables: Sequence[str] = (), *, reencrypt: bool = False, dry_run: bool = False
    ) -> tuple[KeyReport, ...]:
        """Makes new keys for new values.

        Args:
            tables: names of Bronze tables, or of tables in PostgreSQL.
            reencrypt: whether the next run reloads the tables, so that no value has an old key.
            dry_run: whether to make no key.

        Returns:
            The keys that were made; with ``dry_run`` those that new ones would take the place of.

        Raises:
            ConfigError: a table is not protected, or cannot be reloaded.
            LakeError: the lake cannot be read or written.
        """
        from bronze.backup.recovery import takeover
        from bronze.protection import keys, lake_table

        takeover.take_over(self.config, "keys")
        names = [lake_table.protected_table(self.config, table).name for table in tables]
        act = keys.keys_to_rotate if dry_run else keys.rotate
        return act(self.config, names, reencrypt)

    def rewrap_keys(self) -> int:
        """Wraps all keys with the config's master key; ``previous`` has the old one.

        Returns:
            How many keys were wrapped again.

        Raises:
            ConfigError: a master key is missing.
            LakeError: the lake cannot be read or written.
        """
        from bronze.backup.recovery import takeover
        from bronze.protection import keys

        takeover.take_over(self.config, "keys")
        return keys.rewrap(self.config)

    def reveal(
        self,
        table: str,
        *,
        key: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
        limit: int = 100,
    ) -> DataFrame:
        """Decrypts rows of a Bronze table.

        Args:
            table: the Bronze table's name, or the source table's.
            key: values of key columns, as PostgreSQL writes them; none means any row.
            columns: which columns; none means all.
            limit: how many rows at most.

        Returns:
            The rows, with encrypted values in clear as text.

        Raises:
            ConfigError: there is no such table or column, or no master key.
            LakeError: the lake cannot be read.
        """
        from bronze.backup.recovery import takeover
        from bronze.governance.audit import refuse_newer_lake
        from bronze.protection import reveal

        refuse_newer_lake(self.config)
        takeover.take_over(self.config, "reveal")
        return reveal.reveal(self.config, table, key=key, columns=columns, limit=limit)

    def forget(
        self, table: str, key: Mapping[str, str], *, ask: bool = True, dry_run: bool = False
    ) -> ErasureResult:
        """Erases the rows of a person from a Bronze table, its older versions and the governance
        tables, then reads everything that is left as proof.

        Args:
            table: the Bronze table's name, or the source table's.
            key: values of columns that select the rows, as PostgreSQL writes them.
            ask: whether to check first that the source has no such row.
            dry_run: whether to search only, and to erase nothing.

        Returns:
            What was erased, what was read before and after, and what is left.

        Raises:
            ConfigError: there is no such table or column, or the source still has the row.
            SourceError, LakeError: a side cannot be read or written.
        """
        from bronze.api import backup, recorded

        done = recorded.forget(self.config, table, key, ask=ask, dry_run=dry_run)
        return done if dry_run else backup.after_erasure(self.config, done)

    def delete_old_versions(self, table: str) -> ErasureResult:
        """Deletes all older versions of a table, regardless of the retention.

        Raises:
            ConfigError: there is no such table.
            LakeError: the lake cannot be read or written.
        """
        from bronze.api import backup, recorded

        return backup.after_erasure(self.config, recorded.old_versions(self.config, table))

    def verify(
        self,
        tables: Sequence[str] = (),
        *,
        repair: bool = False,
        at_rest: bool = False,
        trust_hashes: bool = False,
        pool: Executor | None = None,
        notify: Notify | None = None,
        stop: Event | None = None,
    ) -> VerifyResult:
        """Proves that Bronze tables equal their sources, or names the rows that differ.

        Args:
            tables: which tables.
            repair: whether to reload what differs, and to verify it again.
            at_rest: whether to check files against the log and their own hashes instead, without
                the source.
            trust_hashes: whether to trust the stored hashes instead of hashing the values.
            pool: where tasks run instead of the config's ``[run] engine``.
            notify: called with what happens to each table, from this thread; without it, a
                notebook shows the progress.
            stop: ends the verification when it is set, from any thread, within a second or two.

        Raises:
            ConfigError: the config or a name is wrong.
            SourceError, LakeError: no table could be verified.
            Stopped: before the tables were known.
        """
        from bronze.api import recorded
        from bronze.api.display import progress

        with progress.shown_in_notebook(notify, "Connecting", verifying=True) as show:
            return recorded.verify(
                self.config,
                tables,
                repair=repair,
                at_rest=at_rest,
                trust_hashes=trust_hashes,
                pool=pool,
                notify=show.notify,
                stop=stop,
            )

    def register(
        self, tables: Sequence[str] = (), *, recreate: bool = False, stop: Event | None = None
    ) -> RegisterResult:
        """Registers tables of the lake in the catalogs of the config, governance tables included.

        What the catalog has already is only read; nothing is ever dropped, and no file is touched.

        Args:
            tables: names of tables in PostgreSQL, of Bronze tables or of governance tables.
            recreate: whether entries whose columns REST cannot change are made anew, with their
                grants and tags.
            stop: ends the registration when it is set, from any thread, before the next table.

        Returns:
            For each table what was written.

        Raises:
            ConfigError: there is no [catalog], no such table, or the catalog cannot reach the lake.
            LakeError: the lake cannot be read.
            Stopped: before all tables were registered.
        """
        from bronze.api import registration

        return registration.register(self.config, tables, recreate=recreate, stop=stop)

    def with_rules(self, rules: Mapping[str, Sequence[Rule]]) -> Bronze:
        """The same config with more quality rules, by the names of their tables.

        Raises:
            ConfigError: one of them cannot be used.
        """
        added = dict(self.config.added)
        for table, more in rules.items():
            added[table] = (*added.get(table, ()), *(rule.criterion() for rule in more))
        return Bronze(self.config.model_copy(update={"added": added}))

    def quality(self, tables: Sequence[str] = (), *, trend: int = 1) -> QualityReport:
        """The latest quality figures of tables in the lake.

        Args:
            tables: which tables.
            trend: how many of the last runs are included.

        Raises:
            ConfigError: a table has no quality figures.
            LakeError: the lake cannot be read.
        """
        from bronze.governance.audit import refuse_newer_lake
        from bronze.quality import report

        refuse_newer_lake(self.config)
        return report.quality(self.config, tables, trend)

    def report(
        self, path: str | Path = "report.html", tables: Sequence[str] = (), *, days: int = 30
    ) -> Path:
        """Writes one page of HTML about tables of the lake: freshness, rows and durations, quality,
        anomalies, lineage, layout and schema history. The source is not asked.

        Args:
            path: the file; an earlier report is replaced, another file is not.
            tables: which tables; all that are known if none.
            days: how many days of records the page has.

        Returns:
            The path of the file.

        Raises:
            ConfigError: there is no such table, or the file cannot be written.
            LakeError: the lake cannot be read.
        """
        from bronze.operate.report import page

        page.write(Path(path), page.report(self.config, tables, days=days))
        return Path(path)

    def check(self, tables: Sequence[str] = ()) -> CheckReport:
        """Says what a run would do with each table and column, and what prevents it.

        It takes the same locks as a run, and reads no rows except a small sample.

        Raises:
            ConfigError, SourceError, LakeError: neither a run nor this check can start.
        """
        from bronze.api import check

        if self.config.backup.root:
            from bronze.backup import copy

            copy.check_copy(self.config)
        return check.check(self.config, tables)

    def restore(
        self,
        to: str,
        tables: Sequence[str] = (),
        *,
        at: str = "",
        dry_run: bool = False,
        notify: NotifyRestored | None = None,
        stop: Event | None = None,
    ) -> RestoreResult:
        """Restores a generation of the copy into an empty root; the lake itself is not needed.

        Args:
            to: the root to restore into: a folder or an address.
            tables: names of Bronze tables; all if none. The governance tables come with them.
            at: the id of a generation, or a time: the newest generation before it counts.
            dry_run: whether to say only what would be done.
            notify: called with each table that is restored, from this thread.
            stop: ends the restore when it is set, from any thread; the next one continues it.

        Raises:
            ConfigError: there is no copy or no such generation or table, or the root is not empty.
            LakeError: the copy is damaged or cannot be read, or the root cannot be written.
            Stopped: it was stopped.
        """
        from bronze.backup.recovery import restore

        show = notify or (lambda _: None)
        return restore.restore(
            self.config, to, tables, at=at, dry_run=dry_run, notify=show, stop=stop
        )

    def metadata(self, *, at: str = "", to: str = "") -> MetadataReport:
        """A daily snapshot of the lake's metadata, from beside its copy, and how a lake differs.

        Args:
            at: a time: the newest snapshot of that day or before counts; the newest if empty.
            to: the root of the lake to compare; that of the config if empty.

        Raises:
            ConfigError: there is no copy, or no such snapshot.
            LakeError: the copy or the lake cannot be read.
        """
        from bronze.backup.recovery import metadata

        return metadata.report(self.config, at, to)

    def drill(self, to: str = "", *, stop: Event | None = None) -> DrillResult:
        """Restores the newest generation of the copy into a scratch root, uses it, and deletes it;
        the result is in ``governance.drills``.

        Args:
            to: the root for scratch lakes instead of the config's.
            stop: ends the drill when it is set, from any thread.

        Raises:
            ConfigError: there is no copy, or the scratch root cannot be used.
            LakeError: the copy cannot be read.
            Stopped: it was stopped.
        """
        from bronze.backup.recovery import drill

        return drill.drill(self.config, to, stop=stop)

    def drift(self) -> DriftReport:
        """Says whether the config that ran last is the one on disk, and the one that is committed.

        Raises:
            LakeError: the audit log cannot be read.
        """
        from bronze.api import drift

        return drift.drift(self.config)

    def backup(
        self, *, notify: NotifyBackedUp | None = None, stop: Event | None = None
    ) -> BackupResult:
        """Copies what has changed in the lake since the last generation to ``[backup] root``.

        Args:
            notify: called with each table, from this thread.
            stop: ends it when it is set, from any thread; the next call continues.

        Raises:
            ConfigError: there is no [backup], or its root cannot be that of this lake's copy.
            LakeError: the lake or the copy cannot be read or written.
            Stopped: it was stopped.
        """
        from bronze.api import backup

        return backup.back_up(self.config, notify=notify or (lambda _: None), stop=stop)

    def verify_backup(self, *, sample: str = "100%", stop: Event | None = None) -> VerifiedCopy:
        """Reads the copy back, and compares it with the hashes in its manifests.

        Args:
            sample: which part of the data files is read.
            stop: ends it when it is set, from any thread.

        Raises:
            ConfigError: there is no copy, or ``sample`` is not a part.
            LakeError: the copy cannot be read.
            Stopped: it was stopped.
        """
        from bronze.backup import proof

        return proof.verify_copy(self.config, sample=proof.part_of(sample), stop=stop)

    def generations(self) -> tuple[Manifest, ...]:
        """The generations of the copy, the oldest first.

        Raises:
            ConfigError: there is no [backup].
            LakeError: the copy cannot be read.
        """
        from bronze.backup import copy, manifest

        _, root = copy.roots_of(self.config)
        return tuple(manifest.read(root, number) for number in manifest.generations(root))


def open(config: str | Path | Mapping[str, object] = "bronze.toml") -> Bronze:  # noqa: A001 - as in gzip.open
    """Reads a config.

    Args:
        config: the path of a file, or the content of such a file as a dictionary.

    Raises:
        ConfigError: with all errors of the config.
    """
    from bronze.config import loading

    return Bronze(loading.parse(config) if isinstance(config, Mapping) else loading.load(config))
