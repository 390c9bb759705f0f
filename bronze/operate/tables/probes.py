"""Probes: whether a source or the lake can be reached now, by the least that tells it."""

from __future__ import annotations

from dataclasses import replace

from bronze.config.settings import Settings
from bronze.delta import store
from bronze.errors import BronzeError, ConfigError, LakeUnreachable
from bronze.model.results import Failure
from bronze.operate.tables import guards
from bronze.operate.tables.guards import Blame
from bronze.postgres.connection import connect, translation


def source_failure(settings: Settings, source: str) -> Failure | None:
    """Why a source cannot be reached: by a connection and ``SELECT 1``."""
    try:
        origin = replace(settings.origin(source), application_name="bronze serve")
        with translation.source_errors(origin), connect.connect(origin) as connection:
            connection.execute("SELECT 1")
    except ConfigError:
        return None
    except BronzeError as error:
        return error.failure()
    return None


LAKE_REQUESTS = 2
"""How many requests `lake_failure` sends to the lake, one after the other."""


def lake_failure(settings: Settings, *, has_been: bool) -> Failure | None:
    """Why the lake cannot be written: by an object that is put and deleted.

    Args:
        settings: the config.
        has_been: whether the lake was there before. A local folder that was, and is not there any
            more, is not made again: it may have been renamed, or its disk is not mounted.
    """
    try:
        root = settings.place("", "")
        if has_been and store.is_missing(root):
            raise LakeUnreachable(
                f"The lake at {settings.lake.root} could not be written: there is no such folder.",
                hint="Put it back, or start the service again to begin a new lake.",
            )
        store.prove_writable(settings.place(settings.lake.schema_, ""))
    except BronzeError as error:
        return error.failure()
    return None


def blame(settings: Settings, source: str, failure: Failure, *, has_been: bool) -> Blame:
    """What a failure is of: the source or the lake only if a probe fails now, too."""
    suspect = guards.suspect(failure.kind, failure.sqlstate)
    if suspect == "source" and source_failure(settings, source) is None:
        return "table"
    if suspect == "lake" and lake_failure(settings, has_been=has_been) is None:
        return "table"
    return suspect
