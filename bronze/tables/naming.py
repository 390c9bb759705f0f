"""Names of tables in the lake, and of columns that Delta does not allow."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

PREFIX = "bz_"

# Delta refuses these without column mapping, which not all readers and writers support.
_FORBIDDEN = frozenset(" ,;{}()\n\t=")


def table_name(source_name: str) -> str:
    """``bz_`` and the source's name in lower case, with ``_`` for all but letters and digits."""
    name = unicodedata.normalize("NFC", source_name).lower()
    return PREFIX + "".join(c if c.isalnum() else "_" for c in name)


def short_name(full_name: str) -> str:
    """The name of a Bronze table without its schema, as governance tables of early versions have
    it. Schemas of the lake have no dots.
    """
    return full_name.partition(".")[2]


def name_faults(names: Iterable[str], metadata: Collection[str]) -> Mapping[str, str]:
    """The column names that are not possible, each with the reason.

    Args:
        names: the columns' names in the Bronze table, in order.
        metadata: the names of the columns that bronze adds.
    """
    found: dict[str, str] = {}
    taken = {name.lower(): name for name in metadata}
    for name in names:
        other = taken.get(name.lower())
        bad = sorted(_FORBIDDEN.intersection(name))
        if bad:
            found[name] = f"Delta does not allow {' '.join(map(repr, bad))} in a name"
        elif other in metadata:
            found[name] = "bronze adds a column of that name"
        elif other is not None:
            found[name] = f"Delta does not distinguish it from {other!r}"
        taken.setdefault(name.lower(), name)
    return found


def proposed_names(names: Sequence[str], metadata: Collection[str]) -> Mapping[str, str]:
    """A possible name for each of `name_faults`, similar to the column's own."""
    taken = {name.lower() for name in (*names, *metadata)}
    found: dict[str, str] = {}
    for name in name_faults(names, metadata):
        wanted = "".join("_" if c in _FORBIDDEN else c for c in name)
        if wanted.lower() in metadata:
            wanted = f"source_{wanted}"
        found[name] = free(wanted, taken)
        taken.add(found[name].lower())
    return found


def free(wanted: str, taken: Collection[str]) -> str:
    """``wanted``, with a number appended if its lower case is among ``taken``."""
    number, name = 1, wanted
    while name.lower() in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
