"""Units: how the rows of a table are divided among workers, within the memory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg import errors as pg

from bronze.delta.commit import Shape
from bronze.delta.layout.optimize import SORTABLE
from bronze.delta.log import State
from bronze.errors import TableRefused
from bronze.execution import budget
from bronze.ingest.shape import cluster_columns
from bronze.model.columns import Column, RowKey
from bronze.model.units import (
    BronzeRows,
    Clustering,
    Enrichment,
    KnownRows,
    RowSizeLimits,
    SourceRead,
    SplitGroup,
    Unit,
)
from bronze.postgres import statement
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import row_sizes, splits
from bronze.postgres.copy.packed_reader import OLDEST_VERSION as OLDEST_PACKED
from bronze.postgres.copy.splits import Split
from bronze.printable import count
from bronze.rows.metadata import COMMIT_TIMESTAMP
from bronze.tables import row_format
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract

# How many times as many keys as rows fit into the same memory.
_KEYS_FACTOR = 4
# The least files that a table has to have for its load to write clusters.
_FEWEST_FILES = 2


def row_units(
    context: TableContext,
    contract: ColumnContract,
    shape: Shape,
    key: RowKey,
    where: str,
    enrichment: Enrichment,
    *,
    merging: bool,
    against: State | None = None,
    doubting: bool = False,
) -> list[Unit]:
    """The units that read the rows for which ``where`` is true.

    Args:
        context: the table.
        contract: its columns.
        shape: the schema of the Bronze table.
        key: the columns that tell rows apart.
        where: a condition in SQL over the source's columns.
        enrichment: what is added to the rows.
        merging: whether rows are merged into the table; otherwise they replace all of its rows.
        against: the Bronze table to compare rows with, None to compare with none.
        doubting: whether each row of ``against`` is checked against its own hashes first.
    """
    memory = context.run.memory
    shares: list[KnownRows | None] = [None]
    if against is not None:
        shares = list(_known_rows(context, shape, key.names, (), against))
        if doubting:
            form = row_format.row_format_of(against.columns, against.properties, against.partition)
            shares = [replace(share, form=form) for share in shares if share]
        memory = budget.beside_known_rows(memory)
    units = budget.UNITS_OF_COMPARISON if merging else budget.UNITS_OF_LOAD
    clustering = None if merging else _clustering(context, contract, shape)
    largest = budget.LARGEST_CLUSTER if clustering else budget.LARGEST_FILE
    groups = grouped_splits(context, memory, key.source_names, units, largest, rounds=len(shares))
    if clustering:
        groups = [replace(group, scattered=True) for group in groups]
    rows = _bronze_rows(context, contract, shape, key, enrichment)
    limits = row_size_limits(context, contract.columns, key)
    few = budget.result_bytes(context.run.memory, len(shares) * len(groups))
    work: list[Unit] = []
    for known in shares:
        for group in groups:
            read = _source_read(context, contract.columns, _restricted(group, where), limits)
            size = group.size
            number = len(work)
            if merging:
                work.append(Unit.merge(number, read, rows, size, known, few))
            else:
                work.append(Unit.load(number, read, rows, size, clustering))
    return work


def _clustering(context: TableContext, contract: ColumnContract, shape: Shape) -> Clustering | None:
    """How the rows of a load are clustered; None if they are not, or are too few to be written as
    clusters: `bronze.delta.layout` clusters the files of such a table when they are worth it.
    """
    file_size = context.settings.maintain.file_size
    whole = splits.size_of(context.target.relation)
    if shape.partition or whole < file_size * max(_FEWEST_FILES, context.readers):
        return None
    by = cluster_columns(context.target, contract)
    kinds = dict(shape.columns)
    if not by or any(kinds[name].name not in SORTABLE for name in by):
        return None
    memory = budget.cluster_memory(context.run.memory, context.readers_of_process)
    return Clustering(by, file_size, memory)


def row_size_limits(
    context: TableContext, columns: Sequence[Column], key: RowKey
) -> RowSizeLimits | None:
    """How the sizes of rows are measured before they are read, None where rows are small enough."""
    snapshot, relation = context.snapshot, context.target.relation
    names = [column.name for column in columns if column.name]
    weight = row_sizes.row_size_expression(relation, names)
    if not (weight and splits.has_page_ranges(relation, snapshot.version) and snapshot.name):
        return None
    large = row_sizes.has_large_values(relation, names)
    if large is None:
        large = ask_source(
            context, lambda holder: row_sizes.samples_large_values(holder, relation, names)
        )
    if not large:
        return None
    # Errors name a row by its key; a protected key must not be shown.
    named = () if any(column.protect for column in key.columns) else key.columns
    key_parts = [f"{statement.literal(column.name)}::text, {column.text}" for column in named]
    parts = context.settings.memory_parts
    heaviest = budget.largest_row(context.run.memory, context.readers_of_process, parts)
    return RowSizeLimits(
        table=statement.quoted(relation.schema, relation.name),
        weight=weight,
        key=(
            f"json_build_object({', '.join(key_parts)})::text"
            if key_parts
            else "'at ' || ctid::text"
        ),
        size=min(budget.LARGEST_SPLIT, heaviest),
        heaviest=heaviest,
        copies=budget.copies_of_row(parts) * parts,
        # Memory that suffices for the row is to suffice for the other readers, too.
        rest=budget.process_memory(budget.beside_large_row(context.most_readers), parts),
    )


def grouped_splits(
    context: TableContext,
    memory: int,
    key: Sequence[str],
    units: int = budget.UNITS_OF_COMPARISON,
    largest: int = budget.LARGEST_FILE,
    factor: int = 1,
    rounds: int = 1,
) -> list[SplitGroup]:
    """The splits of a table, in groups for one worker each, of at most ``largest`` bytes: at least
    ``units`` for each reader, but no more than `budget.MOST_UNITS`.

    ``key`` has names of source columns. Splits and groups are ``factor`` times as large as whole
    rows may be; all are read ``rounds`` times.
    """
    relation = context.target.relation
    whole = splits.size_of(relation)
    largest, most = budget.largest_file(whole, largest, rounds), _largest_split(context)
    each = budget.reader_memory(memory, context.readers_of_process)
    per_split, _ = budget.split_and_file(whole, each, context.readers, most, units, largest)
    by_pages = context.snapshot.name is not None and splits.by_pages(
        relation, context.snapshot.version, key
    )
    parts = [] if by_pages else _splits(context, per_split * factor, key)
    total = splits.total_of(relation) if by_pages else sum(part.size for part in parts)
    _, per_file = budget.split_and_file(total, each, context.readers, most, units, largest)
    if by_pages:
        return splits.page_groups(relation, per_split * factor, per_file * factor)
    groups = splits.group_splits(parts, per_file * factor)
    return [splits.condition_group(group) for group in groups]


def _largest_split(context: TableContext) -> int:
    packed = context.origin.reader == "packed" and context.snapshot.version >= OLDEST_PACKED
    return budget.largest_split(packed)


def key_units(
    context: TableContext,
    contract: ColumnContract,
    shape: Shape,
    key: RowKey,
    state: State,
    start: int,
    enrichment: Enrichment,
) -> list[Unit]:
    """The units, numbered from ``start``, that find the keys that the source still has."""
    memory = budget.beside_known_rows(context.run.memory)
    groups = grouped_splits(context, memory, key.source_names, factor=_KEYS_FACTOR)
    rows = _bronze_rows(context, contract, shape, key, enrichment)
    work: list[Unit] = []
    for known in _known_rows(context, shape, key.names, key.names, state):
        for group in groups:
            read = _source_read(context, key.columns, group)
            size = group.size // _KEYS_FACTOR
            number = start + len(work)
            work.append(Unit.keys(number, read, rows, size, known))
    return work


def _source_read(
    context: TableContext,
    columns: tuple[Column, ...],
    group: SplitGroup,
    limits: RowSizeLimits | None = None,
) -> SourceRead:
    relation = context.target.relation
    return SourceRead(
        table=context.target.label,
        origin=context.origin,
        session=context.snapshot.session,
        query=statement.select(columns, statement.quoted(relation.schema, relation.name)),
        splits=group,
        columns=columns,
        row_sizes=limits,
    )


def _bronze_rows(
    context: TableContext,
    contract: ColumnContract,
    shape: Shape,
    key: RowKey,
    enrichment: Enrichment,
) -> BronzeRows:
    return BronzeRows(
        key=key,
        into=shape.destination(context.target.place, key.names, context.stamp),
        base=contract.base,
        history=context.target.settings.history,
        streamed=COMMIT_TIMESTAMP in dict(shape.columns),
        enrichment=enrichment,
    )


def _restricted(group: SplitGroup, where: str) -> SplitGroup:
    return group if where == splits.WHOLE_TABLE else replace(group, where=where)


def _known_rows(
    context: TableContext, shape: Shape, key: tuple[str, ...], by: tuple[str, ...], state: State
) -> list[KnownRows]:
    """Which fingerprints rows are compared with, in as many shares as the memory requires; ``by``
    has the columns of the key, none for fingerprints of whole rows.
    """
    rows = sum(max(file.rows, 0) for file in state.files)
    history = context.target.settings.history
    if history:
        check_history_fits(context, rows)
    shares = 1 if history else budget.shares_of_known_rows(context.run.memory, rows)
    # Each run compares other digits, so that a chance collision is not repeated by the next.
    offset = int(context.stamp.batch_id[-1], 16)
    whole = KnownRows(
        place=context.target.place,
        version=state.version,
        files=state.files,
        layout=shape.columns,
        key=by,
        offset=offset,
        shares=shares,
        versions=key if history else (),
        batch=context.stamp.batch_id,
    )
    return [replace(whole, share=share) for share in range(shares)]


def check_fits(context: TableContext, state: State | None) -> None:
    """Checks by sizes that a table can be loaded within the memory.

    Raises:
        TableRefused: its history has too many versions; or it is too large for one statement, where
            there is no snapshot that several could share.
    """
    if context.snapshot.name is None:
        _single_split(context)
    if state is not None and context.target.settings.history:
        check_history_fits(context, sum(max(file.rows, 0) for file in state.files))


def check_history_fits(context: TableContext, rows: int) -> None:
    """Checks that the last versions of a history of so many ``rows`` can be found in the memory.

    Raises:
        TableRefused: they cannot.
    """
    if lacking := budget.lacking_for_history(context.run.memory, rows):
        lacking *= context.settings.memory_parts
        raise TableRefused(
            f"The history {context.target.name} has {count(rows, 'version')}, too many for the"
            " memory.",
            hint=f"Raise [run] memory: about {lacking // 10**6} MB more are needed.",
            table=context.target.label,
        )


def _splits(context: TableContext, size: int, key: Sequence[str]) -> list[Split]:
    snapshot, relation = context.snapshot, context.target.relation
    if snapshot.name is None:
        return [_single_split(context)]

    def split(holder: Connection) -> list[Split]:
        return splits.splits_of(holder, relation, snapshot.version, size, key)

    try:
        return list(ask_source(context, split))
    except TableRefused as error:
        if error.sqlstate not in _NO_BOUNDS:
            raise
        return [Split(splits.WHOLE_TABLE, size)]


# A type without an order, such as json; or bounds that cannot be converted to text.
_NO_BOUNDS = (
    pg.UndefinedFunction.sqlstate,
    pg.UndefinedObject.sqlstate,
    pg.CharacterNotInRepertoire.sqlstate,
    pg.UntranslatableCharacter.sqlstate,
)


def _single_split(context: TableContext) -> Split:
    # Without a shared snapshot only one statement sees one state.
    relation, memory = context.target.relation, context.run.memory // context.readers_of_process
    size = splits.size_of(relation)
    needed = size * budget.GROWTH
    if needed > memory:
        needed *= context.settings.memory_parts
        raise TableRefused(
            f"Table {relation.label} is too large to be read by one statement, which"
            ' consistency = "per-table" asks for.',
            hint=f"Raise [run] memory: about {needed // 10**6} MB are needed for each worker.",
            table=relation.label,
        )
    return Split(splits.WHOLE_TABLE, size)
