"""``cluster_by = "auto"``: the filters that columns are chosen for, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout.choice import Choice, Queries
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError, LakeError
from bronze.maintenance import query_log
from bronze.model.locations import Place


def filters_of(settings: Settings, own: TableSettings, names: Sequence[str]) -> Queries:
    """The filters of the query log on a table that has these names; none without a log.

    Raises:
        ConfigError: the query log cannot be read.
    """
    if settings.maintain.queries is None:
        return Queries()
    found = query_log.read(settings.maintain.queries).of(*names)
    renamed = {old.lower(): new for old, new in own.rename.items()}
    points = {renamed.get(name, name): count for name, count in found.points.items()}
    ranges = {renamed.get(name, name): count for name, count in found.ranges.items()}
    return Queries(points, ranges)


def choice_note(choice: Choice) -> str:
    """A sentence about the columns that bronze chose to cluster a table by, and why."""
    by = f"by {', '.join(choice.by)}" if choice.by else "by no column"
    return f'cluster_by = "auto" clusters it {by}: {choice.why}'


def notes_of(settings: Settings, own: TableSettings, place: Place) -> tuple[str, ...]:
    """What was chosen for the table at a place, and whether the query log can be read."""
    if own.cluster_by != "auto":
        return ()
    try:
        state = log.read(place)
        stored = state and Choice.read(TableProperties.read(state.properties).clustering_choice)
        notes = [
            choice_note(stored)
            if stored
            else 'cluster_by = "auto" has chosen no columns yet: the table is small, or new'
        ]
        path = settings.maintain.queries
        if path and (skipped := query_log.read(path).skipped):
            notes.append(f"{skipped:,} statements of the query log cannot be parsed")
    except (ConfigError, LakeError) as error:
        return (error.message,)
    return tuple(notes)
