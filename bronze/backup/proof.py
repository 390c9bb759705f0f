"""Proves a copy: reads it back, and compares it with the hashes in its manifests."""

from __future__ import annotations

import contextvars
import json
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from bronze import stopping
from bronze.backup import manifest, purges, transfer
from bronze.backup.copy import roots_of
from bronze.backup.manifest import Manifest, TableCopy
from bronze.backup.results import VerifiedCopy
from bronze.backup.table_log import LAST_CHECKPOINT
from bronze.backup.transfer import copy_errors
from bronze.config.settings import Settings
from bronze.delta import store
from bronze.delta.storage.store_errors import store_error
from bronze.errors import ConfigError, FileDamaged
from bronze.execution.throttle import Throttle
from bronze.model.locations import Place
from bronze.stopping import Signal

_THREADS = 4
_AT_ONCE = 1000


def verify_copy(
    settings: Settings, *, sample: float = 1.0, stop: Signal | None = None
) -> VerifiedCopy:
    """Compares a copy with its manifests: their chain, the lists of objects, that each object is
    there with its size, and the hashes of all objects or of a sample of them.

    Args:
        settings: the config.
        sample: which part of the objects is read, more than 0 and at most 1; those of the log are
            all read.
        stop: ends it when it is set.

    Raises:
        ConfigError: there is no [backup], or no copy.
        LakeError, LakeUnreachable: the copy cannot be read.
        Stopped: it was stopped.
    """
    began = time.monotonic()
    _, copy = roots_of(settings)
    with stopping.scope(stop), copy_errors():
        numbers = manifest.generations(copy)
        if not numbers:
            raise ConfigError(
                f"There is no copy at {copy.url} yet.", hint="`bronze backup` makes one."
            )
        proof = _Proof(copy, sample, Throttle(settings.backup.rate))
        proof.faults += manifest.chain_breaks(copy, numbers)
        proof.check(numbers)
    return VerifiedCopy(
        generations=len(numbers),
        objects=proof.objects,
        bytes=proof.bytes,
        total_objects=proof.total,
        faults=tuple(proof.faults),
        seconds=time.monotonic() - began,
    )


class _Proof:
    def __init__(self, copy: Place, sample: float, throttle: Throttle) -> None:
        self._copy, self._sample, self._throttle = copy, sample, throttle
        self._purged = purges.purged_versions(copy)
        self.faults: list[str] = []
        self.objects = self.bytes = self.total = 0

    def check(self, numbers: list[int]) -> None:
        """Checks the tables of all generations, one table at a time."""
        lists: dict[str, dict[str, TableCopy]] = {}
        newest: Manifest | None = None
        for number in numbers:
            try:
                newest = manifest.read(self._copy, number)
            except FileDamaged:
                # It is a fault of the chain.
                continue
            for table in newest.tables:
                if not purges.is_purged(table, self._purged):
                    lists.setdefault(table.path, {})[table.list] = table
        for path, tables in sorted(lists.items()):
            stopping.check()
            self._check_table(path, list(tables.values()))
        for table in newest.tables if newest else ():
            self._check_last_checkpoint(table)

    def _check_table(self, folder: str, tables: list[TableCopy]) -> None:
        known = pl.DataFrame(schema=dict(manifest.OBJECTS))
        for table in tables:
            try:
                known = pl.concat([known, manifest.objects_of(self._copy, table)]).unique()
            except FileDamaged as error:
                self.faults.append(error.message)
        self._report_ambiguous(folder, known)
        self.total += known.height
        there = self._sizes(folder)
        missing = known.join(there, on="path", how="anti")
        self.faults += [self._fault(folder, path, "is missing") for path in missing["path"]]
        found = known.join(there, on="path", how="inner")
        wrong = found.filter(pl.col("size") != pl.col("stored"))
        for row in wrong.iter_rows(named=True):
            text = f"has {row['stored']} bytes instead of {row['size']}"
            self.faults.append(self._fault(folder, row["path"], text))
        for frame in self._chosen(found.filter(pl.col("size") == pl.col("stored"))):
            self._check_hashes(folder, dict(zip(frame["path"], frame["sha256"], strict=True)))

    def _report_ambiguous(self, folder: str, known: pl.DataFrame) -> None:
        for path in known.filter(known["path"].is_duplicated())["path"].unique():
            self.faults.append(self._fault(folder, path, "has different hashes in generations"))

    def _sizes(self, folder: str) -> pl.DataFrame:
        rows: list[tuple[str, int]] = []
        if not store.is_missing(self._copy, folder):
            try:
                found = store.objects(manifest.in_folder(self._copy, folder))
                rows = [(meta["path"], meta["size"]) for meta in found]
            except FileNotFoundError:
                pass
            except OSError as error:
                raise store_error(self._copy, "listed", error) from None
        return pl.DataFrame(rows, schema={"path": pl.String, "stored": pl.Int64}, orient="row")

    def _chosen(self, found: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The objects to read, some at a time."""
        if self._sample < 1:
            is_log = found["path"].str.starts_with("_delta_log/")
            files = found.filter(~is_log)
            count = -int(-files.height * self._sample // 1)
            seed = random.randrange(2**32)  # noqa: S311 - a sample is no secret
            found = pl.concat(
                [found.filter(is_log), files.sample(min(count, files.height), seed=seed)]
            )
        yield from found.sort("path").iter_slices(_AT_ONCE)

    def _check_hashes(self, folder: str, hashes: Mapping[str, str]) -> None:
        def read(path: str) -> transfer.Copied | None:
            return transfer.hash_of(self._copy, f"{folder}/{path}", self._throttle.take)

        with ThreadPoolExecutor(_THREADS) as pool:
            readings = {
                path: pool.submit(contextvars.copy_context().run, read, path) for path in hashes
            }
            for path, reading in readings.items():
                found = reading.result()
                if found is None:
                    self.faults.append(self._fault(folder, path, "is missing"))
                    continue
                self.objects += 1
                self.bytes += found.size
                if found.sha256 != hashes[path]:
                    self.faults.append(self._fault(folder, path, "was changed: its hash differs"))

    def _check_last_checkpoint(self, table: TableCopy) -> None:
        """Checks that readers of the copy find a checkpoint of the log, if there is one."""
        if table.checkpoint is None or purges.is_purged(table, self._purged):
            return
        path = f"{table.path}/{LAST_CHECKPOINT}"
        try:
            version = int(json.loads(manifest.content(self._copy, path))["version"])
        except FileNotFoundError:
            self.faults.append(self._fault(table.path, LAST_CHECKPOINT, "is missing"))
            return
        except (ValueError, KeyError, TypeError):
            version = -1
        # A pass that goes on, or was killed, may have written a later one.
        if version < table.checkpoint:
            self.faults.append(self._fault(table.path, LAST_CHECKPOINT, "was changed"))

    def _fault(self, folder: str, path: str, what: str) -> str:
        return f"The file {folder}/{path} of the copy {what}."


def part_of(text: str) -> float:
    """The part that a text such as "5%" means.

    Raises:
        ConfigError: it is not one.
    """
    try:
        part = float(text.strip().removesuffix("%")) / 100
        if 0 < part <= 1:
            return part
    except ValueError:
        pass
    raise ConfigError(f"{text!r} is not a sample.", hint='It looks like "5%".')
