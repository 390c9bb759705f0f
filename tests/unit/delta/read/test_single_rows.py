"""Single rows of a file are those that its row groups have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from bronze.delta import files
from bronze.delta.read import single_rows
from tests.support.vectors import delete, in_file
from tests.unit.delta.read.test_deletion_vectors import COLUMNS, read, table


def test_rows_are_found_by_a_value_in_all_row_groups(tmp_path: Path) -> None:
    """They are the rows with these numbers, also where a vector deletes rows before them; where a
    value is not that of its row, nothing is returned.
    """
    place = table(tmp_path, range(100))
    (file,) = read(place).files
    delete(tmp_path / "t", file.path, in_file(tmp_path / "t", "", [0, 1, 50])[0])
    (file,) = read(place).files
    parquet = files.open_parquet(place, file)
    numbers = np.array([0, 9, 60, 96])
    values = pl.Series([2, 11, 63, 99])
    found = single_rows.read(place, file, parquet, COLUMNS, numbers, "id", values)
    assert found is not None
    assert found["id"].to_pylist() == values.to_list()
    wrong = pl.Series([2, 11, 63, 98])
    assert single_rows.read(place, file, parquet, COLUMNS, numbers, "id", wrong) is None
