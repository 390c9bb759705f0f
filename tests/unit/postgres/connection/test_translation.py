"""Errors of PostgreSQL become errors of bronze, which say whether a retry may help."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from bronze.errors import SourceBusy, SourceError
from bronze.model.locations import Origin
from bronze.postgres.connection.translation import explain

ORIGIN = Origin("shop", "host=db.example dbname=shop")


@pytest.mark.parametrize(
    "error",
    [
        pg.DeadlockDetected("deadlock detected"),
        pg.SerializationFailure("could not serialize access"),
        pg.DiskFull("could not extend file"),
        pg.OutOfMemory("out of memory"),
        pg.QueryCanceled("canceling statement due to statement timeout"),
        pg.LockNotAvailable("canceling statement due to lock timeout"),
    ],
)
def test_errors_that_pass_are_retried(error: psycopg.Error) -> None:
    """Of a query that is not of one table, such as those of the catalog."""
    explained = explain(error, ORIGIN)
    assert isinstance(explained, SourceBusy)
    assert (explained.retry, explained.sqlstate) == (True, error.sqlstate)
    assert str(error) in explained.message


def test_errors_that_stay_are_not_retried() -> None:
    """The same query would fail again."""
    explained = explain(pg.UndefinedColumn("column c does not exist"), ORIGIN)
    assert type(explained) is SourceError
    assert not explained.retry
