"""Names in the lake: of tables, and which names of columns Delta cannot hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

PREFIX = "bz_"

# Delta refuses these without column mapping, which our readers and writers do not share.
_FORBIDDEN = frozenset(" ,;{}()\n\t=")


def table_name(source_name: str) -> str:
    """``bz_`` and the source's name in lower case, what is no letter or digit being ``_``."""
    name = unicodedata.normalize("NFC", source_name).lower()
    return PREFIX + "".join(c if c.isalnum() else "_" for c in name)


def short_name(full_name: str) -> str:
    """A Bronze table's name without its schema, by which records of governance of earlier versions
    know it. The lake's schemas have no dots.
    """
    return full_name.partition(".")[2]


def faults(names: Iterable[str], metadata: Collection[str]) -> Mapping[str, str]:
    """The column names that cannot be, each with the reason.

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
            found[name] = f"Delta allows no {' '.join(map(repr, bad))} in a name"
        elif other in metadata:
            found[name] = "bronze adds a column of that name"
        elif other is not None:
            found[name] = f"Delta takes it for the same as {other!r}"
        taken.setdefault(name.lower(), name)
    return found


def renames(names: Sequence[str], metadata: Collection[str]) -> Mapping[str, str]:
    """A name that can be for each of `faults`, near to the column's own."""
    taken = {name.lower() for name in (*names, *metadata)}
    found: dict[str, str] = {}
    for name in faults(names, metadata):
        wanted = "".join("_" if c in _FORBIDDEN else c for c in name)
        if wanted.lower() in metadata:
            wanted = f"source_{wanted}"
        found[name] = free(wanted, taken)
        taken.add(found[name].lower())
    return found


def free(wanted: str, taken: Collection[str]) -> str:
    """``wanted``, or with a number behind it, so that its lower case is not among ``taken``."""
    number, name = 1, wanted
    while name.lower() in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
