"""Copies tables, and names each one's objects in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace

import polars as pl

from bronze import failpoint
from bronze.backup import manifest, table_log, versions
from bronze.backup.manifest import Manifest, Moment, TableCopy
from bronze.backup.results import BackedUpTable
from bronze.backup.table_log import LAST_CHECKPOINT, TableLog
from bronze.backup.transfer import MissingError, Transfer, copy_errors
from bronze.backup.versions import Chosen
from bronze.delta import store
from bronze.delta.layout.purge_entries import PurgeEntry
from bronze.errors import BronzeError, FileDamaged, LakeError, LakeUnreachable
from bronze.model.locations import Place

# How often a table's version is chosen again, as its files were vacuumed meanwhile.
_ATTEMPTS = 3


class CopiedTables:
    """The tables that a pass has copied.

    Attributes:
        tables: as the manifest has them.
        results: what was done to each.
        moments: the moments that they refer to.
        objects: the paths of their objects, by their folders; not of tables that have not changed.
    """

    def __init__(self, copy: Place, put: Callable[[str, bytes], bool]) -> None:
        """For the root of a copy; ``put`` puts a new object there."""
        self._copy, self._put = copy, put
        self.tables: list[TableCopy] = []
        self.results: list[BackedUpTable] = []
        self.moments: list[Moment] = []
        self.objects: dict[str, pl.DataFrame] = {}

    def add(
        self, moving: Transfer, chosen: Chosen, last: Manifest | None, erased: list[PurgeEntry]
    ) -> BackedUpTable:
        """Copies a table.

        Args:
            moving: copies its objects.
            chosen: the table and its version.
            last: the last generation. A table that cannot be copied stays at the version of it.
            erased: the purges of the table that have not reached the copy.

        Raises:
            FileDamaged: another object is where one is to be put.
            LakeError, LakeUnreachable: the copy cannot be written, or the lake not be reached.
            Stopped: it was stopped.
        """
        before = last.table(chosen.table) if last else None
        error = chosen.error
        if isinstance(error, LakeUnreachable):
            raise error
        if error is None:
            try:
                table = self._current_table(moving, chosen, before, erased)
            except LakeError as caught:
                if not _is_of_table(caught, chosen):
                    raise
                error = caught
        result = self._kept(chosen, last, error) if error else self._copied(table, before)
        self.results.append(result)
        return result

    def _copied(self, table: TableCopy, before: TableCopy | None) -> BackedUpTable:
        self.tables.append(table)
        is_known = before is not None and table.list == before.list
        return BackedUpTable(
            table.table.label,
            "unchanged" if is_known else "copied",
            table.version,
            table.objects,
            table.bytes,
        )

    def _kept(self, chosen: Chosen, last: Manifest | None, error: BronzeError) -> BackedUpTable:
        """A table that could not be copied, as the last generation has it."""
        result = BackedUpTable(chosen.table.label, "failed", error=error.failure())
        before = last.table(chosen.table) if last else None
        if last is None or before is None:
            return result
        moment = self._moment(replace(last.moments[before.moment], note=error.message))
        self.tables.append(replace(before, moment=moment, error=error.message))
        return replace(result, version=before.version)

    def _moment(self, moment: Moment) -> int:
        """The index of a moment."""
        if moment not in self.moments:
            self.moments.append(moment)
        return self.moments.index(moment)

    def _current_table(
        self,
        moving: Transfer,
        chosen: Chosen,
        before: TableCopy | None,
        erased: list[PurgeEntry],
    ) -> TableCopy:
        first = max((entry.version for entry in erased), default=0)
        if chosen.version < first:
            chosen = versions.at_newest(chosen, "rows of it were erased")
        if chosen.same is not None and not erased and not chosen.same.error:
            return replace(chosen.same, moment=self._moment(chosen.moment))
        for attempt in range(_ATTEMPTS):
            try:
                return self._copied_table(moving, chosen, before)
            except (MissingError, FileDamaged) as error:
                newer = versions.at_newest(chosen, "files of its version were vacuumed")
                if newer is chosen or attempt == _ATTEMPTS - 1:
                    raise _missing_error(chosen, error) from None
                chosen = newer
        raise AssertionError("unreachable")

    def _copied_table(
        self, moving: Transfer, chosen: Chosen, before: TableCopy | None
    ) -> TableCopy:
        needs = table_log.read(chosen.place, chosen.version)
        folder = f"{chosen.table.schema}/{chosen.table.name}"
        known = self._known(moving, folder, before)
        data = _paths([*needs.live, *needs.older])
        missing = data.join(known, on="path", how="anti")["path"].to_list()
        new = [astuple(c) for c in moving.copy_all(folder, missing, optional=needs.older)]
        logged = _paths([*needs.checkpoints, *needs.entries])
        there = set(known.join(logged, on="path", how="semi")["path"])
        in_order = (path for path in logged["path"] if path not in there)
        new += [astuple(c) for c in moving.copy_in_order(folder, in_order)]
        rows = pl.concat([known, pl.DataFrame(new, schema=dict(manifest.OBJECTS), orient="row")])
        objects = rows.join(pl.concat([data, logged]), on="path", how="semi").sort("path")
        self.objects[folder] = objects.select("path")
        return self._listed(chosen, needs, objects)

    def _known(self, moving: Transfer, folder: str, before: TableCopy | None) -> pl.DataFrame:
        """The objects of a table that the copy has already."""
        continued = moving.continued.filter(pl.col("table") == folder).drop("table")
        if before is None:
            return continued
        with copy_errors():
            return pl.concat([manifest.objects_of(self._copy, before), continued]).unique("path")

    def _listed(self, chosen: Chosen, needs: TableLog, objects: pl.DataFrame) -> TableCopy:
        """Puts the list of the objects, and names the checkpoint."""
        data = manifest.list_bytes(objects)
        digest = manifest.sha256(data)
        path = manifest.list_path(chosen.table, chosen.version, digest)
        with copy_errors():
            self._put(path, data)
            failpoint.reach("listed")
            if needs.last_checkpoint:
                name = f"{chosen.table.schema}/{chosen.table.name}/{LAST_CHECKPOINT}"
                store.put(self._copy, name, needs.last_checkpoint.encode())
        return TableCopy(
            schema=chosen.table.schema,
            name=chosen.table.name,
            table_id=needs.table_id,
            version=needs.version,
            checkpoint=needs.checkpoint,
            moment=self._moment(chosen.moment),
            positions=needs.positions,
            list=path,
            sha256=digest,
            objects=objects.height,
            bytes=int(objects["size"].sum()),
            entry=needs.entry,
            last_checkpoint=needs.last_checkpoint,
        )


def _paths(paths: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"path": paths}, schema={"path": pl.String})


def _missing_error(chosen: Chosen, error: MissingError | FileDamaged) -> FileDamaged:
    if isinstance(error, FileDamaged):
        return error
    path = str(error).removeprefix(f"{chosen.table.schema}/{chosen.table.name}/")
    return store.damage_error(chosen.place, path, "is missing")


def _is_of_table(error: LakeError, chosen: Chosen) -> bool:
    """Whether an error is of one table of the lake. Others end the pass: those of the copy, and of
    a lake that cannot be reached.
    """
    names = (f"at {chosen.place.url} ", f"Table {chosen.table.label} ")
    is_named = any(name in f"{error.message} " for name in names)
    return is_named and not isinstance(error, LakeUnreachable)
