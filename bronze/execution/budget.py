"""The memory of a run, divided: how many readers it has room for, and what each may take.

All sizes are in bytes. ``memory`` is the limit of the whole process, ``readers`` how many tasks
read at once.
"""

from __future__ import annotations

# Measured: what the process takes with all its libraries, what a reader takes for the rows that
# it is hashing and encoding, and how many bytes a split takes for each of its bytes on disk.
_BASE = 320 * 10**6
_READER = 24 * 10**6
# Now and then all readers are at their most: so many as have this much room beside the libraries.
_LIBRARIES = 150 * 10**6
_MOST = 190 * 10**6
GROWTH = 4
LARGEST_SPLIT = 12 * 2**20
_FILE = 128 * 2**20
_UNITS_PER_READER = 3
# Measured: how many times its bytes a row of large values takes at most, on its way from the source
# or the stream into a file, and from one file into another; and a change while it is received.
COPIES = 16
_RECEIVED = 5
_LEAST_CHANGE = 4 * 2**20
# Rows to merge that take no more than this are given back as they are, which saves a file: and all
# units of a table together give back no more than there is room for.
_MOST_FEW = 4 * 2**20
_LEAST_FEW = 2**16
INDEXES = 2
"""How many indexes of fingerprints are in memory at once (`bronze.tables.known_rows`): those of the
two tables that are being read where one ends and the next begins. Together they take half of what
the libraries leave.
"""
# A fingerprint in an index, and whether it was seen: by the worker, and by the run.
_KNOWN_ROW = 10
# A version of a row, while the last ones are found.
_VERSION = 100
# The key and hash of a row that is named, while both sides are compared.
_NAMED_ROW = 300


def readers(memory: int, workers: int, slots: int) -> int:
    """How many units may run at once: as many as the workers, the source and the memory allow."""
    return max(1, min(workers, slots, (memory - _LIBRARIES) // _MOST))


def for_rewriting(memory: int, workers: int) -> int:
    """What each task that rewrites files may take."""
    return (memory - _BASE) // readers(memory, workers, workers)


def beside_large_row(readers: int) -> int:
    """What is taken beside a large row."""
    return _LIBRARIES + (readers - 1) * _MOST


def heaviest_row(memory: int, readers: int) -> int:
    """What a row's values may have; one such row at a time is taken."""
    return max(_LEAST_CHANGE, (memory - beside_large_row(readers)) // COPIES)


def largest_change(memory: int, readers: int) -> int:
    """What a change in the stream may have, as another one may be on its way."""
    return max(_LEAST_CHANGE, (memory - beside_large_row(readers)) // (COPIES + _RECEIVED))


def given_back(memory: int, units: int) -> int:
    """What each of so many units may give back of rows as they are, rather than in a file."""
    return max(_LEAST_FEW, min(_MOST_FEW, _for_known_rows(memory) // 2 // max(units, 1)))


def beside_known_rows(memory: int) -> int:
    """What is left of the memory for reading, beside the fingerprints of a table."""
    return memory - INDEXES * _for_known_rows(memory)


def shares_of_known_rows(memory: int, rows: int) -> int:
    """In how many shares the fingerprints of so many rows are compared."""
    return max(1, -(-rows * _KNOWN_ROW // _for_known_rows(memory)))


def lacking_for_history(memory: int, rows: int) -> int:
    """What is lacking to find the last ones of so many versions; 0 where they fit."""
    return rows * _VERSION * 4 if rows * _VERSION > _for_known_rows(memory) else 0


def rounds_of_named_rows(memory: int, rows: int) -> int:
    """In how many rounds so many rows are named."""
    return max(1, -(-rows * _NAMED_ROW // _for_known_rows(memory)))


def _for_known_rows(memory: int) -> int:
    """What one index may take."""
    return (memory - _BASE) // 2 // INDEXES


def split_and_file(whole: int, memory: int, readers: int) -> tuple[int, int]:
    """The bytes of the source in a split and in a file, for a table of ``whole`` bytes.

    All files are alike, and their number is a multiple of the readers', so that no reader is left
    without work at the end.
    """
    each = (memory - _BASE) // readers - _READER
    largest = max(2**20, min(LARGEST_SPLIT, each // GROWTH))
    if whole <= largest:
        return largest, _FILE
    rounds = max(_UNITS_PER_READER, -(-whole // (_FILE * readers)))
    per_file = -(-whole // (rounds * readers))
    per_split = -(-per_file // -(-per_file // largest))
    # Pages do not divide evenly: a little more room keeps the last one out of a file of its own.
    return per_split, per_file + per_split // 2
