"""Which Bronze tables there are to be proven at rest: those that lie in the lake, and those that
are remembered to have landed there. What cannot be opened, or is gone, is a table all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log, store
from bronze.errors import (
    BronzeError,
    FileDamaged,
    LakeError,
    LakeUnreachable,
    TableVanished,
)
from bronze.governance.tables import data_lineage as book
from bronze.model.locations import Place
from bronze.tables import lake
from bronze.tables.lake import LakeTable


@dataclass(frozen=True)
class Lying(LakeTable):
    """A Bronze table, which governance remembers to have reached a ``version``."""

    version: int = 0


def resting_tables(settings: Settings, tables: Sequence[str]) -> list[Lying]:
    """The tables of these names (theirs, or those of the source's tables); all if none. Where it
    cannot be read in full which there should be, the table of governance that says so is one of
    them, with the error.

    Raises:
        ConfigError: there is no such table.
        LakeError: there is none at all.
        LakeUnreachable: the lake cannot be read.
    """
    known, lost = recorded_tables(settings)
    found = list(_all(settings, known))
    chosen = lake.find(settings, found, tables)
    if not found:
        raise LakeError(
            f"There is no Bronze table at {settings.place(settings.lake.schema_, '').url}: nothing"
            " was proven.",
            hint="Check [lake] root and schema, and whether the lake is mounted.",
        )
    return [*chosen, *([] if lost is None else [_unread(lost)])]


def _unread(error: BronzeError) -> Lying:
    label = f"{GOVERNANCE}.{book.NAME}"
    lost = LakeError(
        f"Which Bronze tables there should be, and at which versions, is not known in full:"
        f" {error.message}",
        hint=f"The other tables were looked at all the same. Restore the files of {label} from a"
        " backup; or move its folder away, and the runs to come begin it anew.",
        table=label,
    )
    return Lying(GOVERNANCE, book.NAME, "", label, error=lost)


def _all(settings: Settings, known: dict[str, tuple[str, str, int]]) -> Iterator[Lying]:
    schema = settings.lake.schema_
    for there in lake.opened(settings, schema):
        found = _opened(settings, there, known.pop(there.name, None))
        if found is not None:
            yield found
    for name, (source, label, version) in known.items():
        url = settings.place(schema, name).url
        gone = TableVanished(
            f"The Bronze table {name} is not at {url}, where governance.data_lineage has it.",
            hint="Restore it, or have a run load it anew. If it was moved away on purpose, name the"
            " tables to be proven.",
            table=label,
        )
        yield Lying(schema, name, source, label, error=gone, version=version)


def _opened(
    settings: Settings, there: LakeTable, known: tuple[str, str, int] | None
) -> Lying | None:
    """The table in a folder, None where it is none of ours."""
    source, label, version = known or ("", there.name, 0)
    if there.is_bronze:
        return Lying(
            there.schema, there.name, there.source, there.label, there.state, None, version
        )
    lost = there.error
    if lost is None:
        place = settings.place(there.schema, there.name)
        try:
            if not known and not any(files.batch_of(path) for path in store.listing(place)):
                return None
        except BronzeError as error:
            lost = error
        what = (
            "has no Delta log"
            if there.state is None
            else "does not say any more that bronze made it"
        )
        hint = "Restore its log from a backup; or move the folder away, and a run loads it anew."
        lost = lost or LakeError(f"The Bronze table at {place.url} {what}.", hint=hint, table=label)
    return Lying(there.schema, there.name, source, label, error=lost)


def recorded_tables(
    settings: Settings,
) -> tuple[dict[str, tuple[str, str, int]], BronzeError | None]:
    """By the names of Bronze tables the sources and tables that landed there last, and the version
    that they reached, of those that the config takes; and why that is not all, if so.

    Raises:
        LakeUnreachable: the lake cannot be read.
    """
    parts, lost = _records(settings.place(GOVERNANCE, book.NAME))
    if not parts:
        return {}, lost
    # A source's table may have become another Bronze table, and a Bronze table another source's.
    latest = (
        pl.concat(parts)
        .filter(pl.col("version_after").is_not_null())
        .sort("created_timestamp", "version_after")
        .unique(["source_system", "source_table"], keep="last", maintain_order=True)
        .unique("target_table", keep="last", maintain_order=True)
    )
    prefix = f"{settings.lake.schema_}."
    return {
        row["target_table"].removeprefix(prefix): _memory(row)
        for row in latest.iter_rows(named=True)
        if row["target_table"].startswith(prefix)
        and _is_selected(settings, row["source_system"], row["source_table"])
    }, lost


def _records(place: Place) -> tuple[list[pl.DataFrame], BronzeError | None]:
    """What can be read of the records of what landed; and why it is not all, if so."""
    names = ["created_timestamp", "source_system", "source_table", "target_table", "version_after"]
    layout = [pair for pair in book.COLUMNS if pair[0] in names]
    parts: list[pl.DataFrame] = []
    lost: BronzeError | None = None
    try:
        state = log.read(place)
        named = state.named if state else ()
    except LakeUnreachable:
        raise
    except LakeError as error:
        return [], error
    for file in named:
        try:
            opened = files.opened(place, file)
            parts += [pl.DataFrame(part) for _, part in files.parts(opened, layout)]
        except FileDamaged as error:
            lost = lost or error
    return parts, lost


def _memory(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["source_system"], row["source_table"], row["version_after"]


def _is_selected(settings: Settings, source: str, label: str) -> bool:
    names = {label.partition(".")[2], label.rpartition(".")[2]}
    return source in settings.source and any(map(settings.source[source].takes, names))
