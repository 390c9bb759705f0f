"""How the tables in the lake fare: the latest figures of each, and how they came to be so.

It needs the lake alone. How fresh a table is, is measured anew: by the moment of the source that
its last run has brought, or, for a table that is streamed, that its stream has recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log, properties, store
from bronze.delta.log import State
from bronze.errors import ConfigError
from bronze.governance.tables import quality as book
from bronze.governance.tables import streams
from bronze.governance.tables.quality import Figure
from bronze.model.files import StoredFile
from bronze.model.results import Shown
from bronze.quality import checks
from bronze.tables import evolution
from bronze.tables.naming import short_name

# Of a stream's records only so many files are looked into, from the newest on.
_RECORDS = 20


@dataclass(frozen=True)
class Run:
    """How the rows of one run fared; ``unmet`` counts the rules and checks that were not met."""

    batch_id: str
    evaluated: datetime
    mode: str
    landed: bool
    rows: int
    score: float
    flawed: int
    quarantined: int
    unmet: int


@dataclass(frozen=True)
class TableQuality:
    """One table: its runs, newest first, and the figures of the newest.

    ``age`` is how old the source's state is that the table holds, in seconds; it is to be below
    ``allowed``.
    """

    table: str
    target: str
    runs: tuple[Run, ...]
    figures: tuple[Figure, ...]
    age: float
    allowed: int

    @property
    def fresh(self) -> bool:
        """Whether it is as fresh as demanded."""
        return self.age < self.allowed

    @property
    def unmet(self) -> tuple[Figure, ...]:
        """The figures of the newest run that are not as demanded."""
        return tuple(f for f in self.figures if f.passed is False and f.rule != checks.FRESHNESS)


@dataclass(frozen=True, repr=False)
class QualityReport(Shown):
    """How tables fare; ``missing`` are Bronze tables that there are no figures of, ``lake`` is
    where it was looked for them.
    """

    tables: tuple[TableQuality, ...]
    missing: tuple[str, ...] = ()
    lake: str = ""

    @property
    def exit_code(self) -> int:
        """0: all is as demanded; 1: something is not, or there are no figures of it."""
        unmet = any(table.unmet or not table.fresh for table in self.tables)
        return 1 if unmet or self.missing or not self.tables else 0

    def _row(self, item: TableQuality) -> Mapping[str, Any]:
        latest = asdict(item.runs[0]) if item.runs else {}
        rules = [figure.rule for figure in item.unmet]
        return {"table": item.table, "target": item.target, **latest, "unmet": rules}


def quality(settings: Settings, tables: Sequence[str] = (), trend: int = 1) -> QualityReport:
    """How tables fare.

    Args:
        settings: the config.
        tables: names of the source's tables, or of Bronze tables; none takes all that there are.
        trend: how many of the last runs are told.

    Raises:
        ConfigError: there are no figures of such a table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    state = log.read(settings.place(GOVERNANCE, book.NAME))
    frame = (
        _read(state, state.files) if state else pl.DataFrame(schema=dict.fromkeys(_KEYS, pl.String))
    )
    found = [
        _Recorded(str(source), *_original(settings, str(source), str(target)), str(target), records)
        for (source, target), records in _ours(settings, frame)
        .partition_by(_KEYS, as_dict=True)
        .items()
    ]
    unknown = [name for name in tables if not any(name in one.names for one in found)]
    if unknown:
        raise ConfigError(
            f"There are no figures of a table {unknown[0]} in {settings.lake.root}.",
            hint="They are entered by `bronze run` and `bronze stream`. There are those of"
            f" {', '.join(sorted(one.target for one in found)) or 'none'}.",
        )
    recorded = _recorded(settings)
    fared = tuple(
        _table(settings, one, recorded.get(one.target), trend)
        for one in sorted(found, key=lambda one: (one.source, one.target))
        if not tables or set(one.names) & set(tables)
    )
    missing = () if tables else tuple(_without_figures(settings, [one.target for one in found]))
    return QualityReport(fared, missing, settings.lake.root)


def _without_figures(settings: Settings, targets: Sequence[str]) -> Iterator[str]:
    """The Bronze tables in the lake that are none of these."""
    schema = settings.lake.schema_
    known = {target.removeprefix(f"{schema}.") for target in targets}
    for name in store.folders(settings.place(schema, "")):
        if name not in known:
            state = log.read(settings.place(schema, name))
            if state is not None and properties.TABLE in state.properties:
                yield f"{schema}.{name}"


_KEYS = ["source_table", "target_table"]


@dataclass(frozen=True)
class _Recorded:
    """The figures of one table: ``source`` is the label of the source's table, of which ``schema``
    and ``name`` are the parts; ``target`` the Bronze table's full name.
    """

    source: str
    schema: str
    name: str
    target: str
    records: pl.DataFrame

    @property
    def short(self) -> str:
        """The Bronze table's name within its schema."""
        return short_name(self.target)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it may be asked for by."""
        return self.source, self.name, self.target, self.short


def _ours(settings: Settings, records: pl.DataFrame) -> pl.DataFrame:
    """The records of this config's Bronze tables, each under its full name."""
    target, mine = pl.col("target_table"), f"{settings.lake.schema_}."
    full = target.str.contains(".", literal=True)
    return records.with_columns(pl.when(full).then(target).otherwise(pl.lit(mine) + target)).filter(
        target.str.starts_with(mine)
    )


def _original(settings: Settings, label: str, target: str) -> tuple[str, str]:
    """The schema and the name of the source's table with a label."""
    if label.count(".") > 1:
        # Either has dots: the Bronze table knows which.
        state = log.read(settings.place(settings.lake.schema_, short_name(target)))
        known = evolution.table_of(state.properties) if state else ("", "")
        if ".".join(known) == label:
            return known
    schema, _, name = label.partition(".")
    return schema, name


def _read(state: State, stored: Sequence[StoredFile]) -> pl.DataFrame:
    names = [name for name, _ in state.columns]
    frames = [
        pl.DataFrame(table)
        for file in stored
        for _, table in files.parts(files.opened(state.place, file), state.columns)
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=names)


def _recorded(settings: Settings) -> dict[str, datetime]:
    """For tables that are streamed, by their full names, the moment of the source that they have
    reached. What earlier releases recorded under a name alone is of this config's table only where
    this config's stream has recorded it.
    """
    state = log.read(settings.place(GOVERNANCE, streams.NAME))
    if state is None:
        return {}
    newest = sorted(state.files, key=lambda file: files.batch_of(file.path) or "", reverse=True)
    found: dict[str, datetime] = {}
    records = _read(state, newest[:_RECORDS]).sort("recorded_timestamp")
    own = {(settings.stream.names(source)[0], source) for source in settings.source}
    for stream, source, at, lag, tables in records.select(
        "stream", "source_system", "recorded_timestamp", "lag_seconds", "tables"
    ).iter_rows():
        for name in json.loads(tables):
            if "." in name:
                found[name] = at - timedelta(seconds=lag)
            elif (stream, source) in own:
                found[f"{settings.lake.schema_}.{name}"] = at - timedelta(seconds=lag)
    return found


def _table(
    settings: Settings, one: _Recorded, recorded: datetime | None, trend: int
) -> TableQuality:
    records = one.records
    newest = records.sort("evaluated_timestamp", descending=True, maintain_order=True)
    batches = newest["batch_id"].unique(maintain_order=True).head(max(trend, 1))
    runs = [newest.filter(pl.col("batch_id") == batch) for batch in batches]
    system = newest["source_system"][0]
    landed = records.filter("landed")["as_of_timestamp"].max()
    moments = [at for at in (landed, recorded) if isinstance(at, datetime)]
    age = (datetime.now(UTC) - max(moments)).total_seconds() if moments else float("inf")
    return TableQuality(
        table=one.source,
        target=one.target,
        runs=tuple(_run(rows) for rows in runs),
        figures=tuple(_figure(row) for row in runs[0].to_dicts()),
        age=age,
        allowed=settings.demanded(settings.table(system, one.schema, one.name)).freshness,
    )


def _run(rows: pl.DataFrame) -> Run:
    score = rows.filter(pl.col("rule") == checks.SCORE, pl.col("kind") == "check").to_dicts()[0]
    low = rows.filter(pl.col("rule") == checks.QUARANTINED, pl.col("kind") == "check").to_dicts()[0]
    return Run(
        batch_id=score["batch_id"],
        evaluated=score["evaluated_timestamp"],
        mode=score["mode"],
        landed=score["landed"],
        rows=score["checked"],
        score=score["measured"],
        flawed=score["failed"],
        quarantined=low["failed"],
        unmet=rows.filter(pl.col("passed") == False).height,  # noqa: E712 - NULL is not False
    )


def _figure(row: dict[str, object]) -> Figure:
    names = [name for name in Figure.__dataclass_fields__ if name not in ("column", "examples")]
    examples = tuple(
        json.dumps(key, ensure_ascii=False) for key in json.loads(str(row["examples"]))
    )
    return Figure(
        **{name: row[name] for name in names},  # type: ignore[arg-type]
        column=str(row["column_name"]),
        examples=examples,
    )
