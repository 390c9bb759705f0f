"""Single rows of a data file: of its large columns only the values that are wanted are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bronze import stopping
from bronze.delta import file_names, files
from bronze.delta.storage.client import is_local
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

_ROW = "\0row"
# Of more rows most pages are read anyway; these and a row group of so many bytes fit the memory.
_MOST, _GROUP_BYTES = 1_000, 32 * 2**20


def read(
    place: Place,
    file: StoredFile,
    parquet: pq.ParquetFile,
    layout: Sequence[tuple[str, DeltaType]],
    numbers: npt.NDArray[np.int64],
    by: str,
    values: pl.Series,
) -> pa.Table | None:
    """Reads a few rows, several times cheaper than their row groups.

    pyarrow decodes row groups whole. polars finds the rows by the values of one column, skips row
    groups by its statistics, and decodes of the other columns what it has found.

    Args:
        place: the table.
        file: a file of it.
        parquet: the file, opened.
        layout: the columns to read.
        numbers: the sorted numbers of the rows, deleted ones not counted.
        by: the column by which they are found.
        values: its values in these rows.

    Returns:
        The rows in their order, with the columns of ``layout``; None where the file is not one of
        bronze in a local folder, the rows are many or large, or polars does not find them all.
    """
    if (
        not is_local(place)
        or file_names.batch_of(file.path) is None
        or not _is_cheap(parquet, values)
    ):
        return None
    stopping.check()
    wanted = files.numbers_in_file(parquet, numbers)
    names = [n for n, _ in layout if n in parquet.schema_arrow.names]
    path = Path(place.url) / unquote(file.path)
    try:
        found = (
            pl.scan_parquet(path, row_index_name=_ROW, glob=False, hive_partitioning=False)
            .filter(pl.col(by).is_in(values.unique().implode()))
            .select(_ROW, *names)
            .collect()
        )
    except (OSError, pl.exceptions.PolarsError):
        # pyarrow's reader names what is wrong with the file.
        return None
    found = found.filter(pl.Series(np.isin(found[_ROW].to_numpy(), wanted))).sort(_ROW)
    if found.height != len(wanted):
        return None
    partition: Mapping[str, str | None] = dict(file.partition)
    return files.conform(files.arrow(found.drop(_ROW)), layout, partition, found.height)


def _is_cheap(parquet: pq.ParquetFile, values: pl.Series) -> bool:
    """Whether the rows are few, and a comparison with their values finds them in small groups."""
    kind = values.dtype
    exact = kind.is_integer() or kind.is_temporal() or kind == pl.String
    sizes = (parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups))
    return exact and len(values) <= _MOST and not values.null_count() and max(sizes) <= _GROUP_BYTES
