"""The memory budget of a run: how many readers run at once, and what each may take.

All sizes are in bytes. ``memory`` is the limit of the whole process; where it does several works at
once, that of one work, as if it were alone (`bronze.execution.memory_shares`). On a Dask cluster it
is the limit of each worker, and of the driver. ``readers`` is the number of tasks that read at once
in one process.
"""

from __future__ import annotations

# Measured: what the process takes with all its libraries; what a reader takes for the rows that it
# hashes and encodes; how many bytes a split takes for each of its bytes on disk (GROWTH).
_BASE = 320 * 10**6
_READER = 24 * 10**6
# Measured: what the libraries alone take, and the most that a reader takes. At times all readers
# take the most at once.
LIBRARIES = 150 * 10**6
_MOST = 190 * 10**6
# Measured: the least with which a work goes on, beside the libraries.
LEAST_SHARE = 160 * 10**6
# What a service keeps for its schedules, records and pages.
SERVICE = 40 * 10**6
# Measured: what a copy of the lake takes, beside the libraries.
COPY = 90 * 10**6
GROWTH = 4
LARGEST_SPLIT = 12 * 2**20
# Measured: libpq's buffer, its result, and the values copied from it are each as large as a packed
# split, and PostgreSQL's process takes up to five times as much. More splits do not cost more time,
# as they share a connection. The split that is asked for ahead stays with PostgreSQL.
PACKED_SPLIT = 4 * 2**20
LARGEST_FILE = 128 * 2**20
# The driver keeps a value of each unit and the results of all. Of a table beyond a terabyte, units
# and files are larger.
MOST_UNITS = 8192
# A unit of a clustered load writes a cluster of files, which should be many. It has all its rows in
# a scratch file, and is read again after a lost connection.
LARGEST_CLUSTER = 4 * 2**30
# Each unit of a load writes a file, which should be large. Where rows are compared, which takes
# longer for some than for others, more and smaller units leave no reader without work at the end.
UNITS_OF_LOAD = 1
UNITS_OF_COMPARISON = 3
# Measured: how many times its size a row of large values takes at most, on its way from the source
# or the stream into a file, or from one file into another (COPIES); and a change that is received.
COPIES = 16
_RECEIVED = 5
_LEAST_CHANGE = 4 * 2**20
# The result of a unit has rows to merge of up to this size, which saves a file. All results of a
# table together have no more than fits into the memory.
_MOST_FEW = 4 * 2**20
_LEAST_FEW = 2**16
# Changed rows beyond this, and beyond this part of the memory, are written into files before they
# are merged.
_MOST_CHANGES = 32 * 2**20
_CHANGES_PART = 16
INDEXES = 2
"""How many indexes of fingerprints are in memory at once (`bronze.tables.known_rows`): those of the
two tables that are being read where one ends and the next begins. Together they take half of what
the libraries leave.
"""
# A fingerprint in an index, and whether it was seen: by the worker, and by the run.
_KNOWN_ROW = 10
# A version of a row, while the last versions of a history are found.
_VERSION = 100
# The key and hash of a row, while differing rows of both sides are compared by name.
_NAMED_ROW = 300


def readers(memory: int, workers: int, slots: int, engine: str = "threads") -> int:
    """How many units run at once, by the workers, the slots of the source and the memory, which
    they share unless each worker of a cluster has its own.
    """
    most = workers if engine.startswith("dask:") else most_readers(memory)
    return max(1, min(workers, slots, most))


def most_readers(memory: int) -> int:
    """How many units may run at once in one process."""
    return max(1, (memory - LIBRARIES) // _MOST)


def worker_memory(memory: int, threads: int) -> int:
    """What a worker of a cluster takes at most that runs so many units at once: as many parts of
    the memory, and the indexes of fingerprints, which its units share.
    """
    shared = INDEXES * _for_known_rows(memory)
    rest = memory - _base(memory) - shared
    return (
        _base(memory) + shared + rest * min(threads, most_readers(memory)) // most_readers(memory)
    )


def rewrite_memory(memory: int, workers: int) -> int:
    """What each task that rewrites files may take."""
    return (memory - _base(memory)) // readers(memory, workers, workers)


def process_memory(memory: int, parts: int) -> int:
    """The memory of a process of which a work gets ``memory``, as one of ``parts``
    (`bronze.execution.memory_shares`).
    """
    service = SERVICE if parts > 1 else 0
    return LIBRARIES + service + (memory - LIBRARIES) * parts


def beside_large_row(readers: int) -> int:
    """What everything else takes while a large row is read."""
    return LIBRARIES + (readers - 1) * _MOST


def copies_of_row(parts: int) -> int:
    """How many times its size a large row takes at most. Beside other works it is half as much
    again: what each of them frees is not returned at once.
    """
    return COPIES if parts == 1 else COPIES * 3 // 2


def largest_row(memory: int, readers: int, parts: int = 1) -> int:
    """The largest row that can be read; one such row is read at a time."""
    return max(_LEAST_CHANGE, (memory - beside_large_row(readers)) // copies_of_row(parts))


def largest_change(memory: int, readers: int, parts: int = 1) -> int:
    """The largest change of a stream: one is applied while another one is received."""
    copies = copies_of_row(parts) + _RECEIVED
    return max(_LEAST_CHANGE, (memory - beside_large_row(readers)) // copies)


def result_bytes(memory: int, units: int) -> int:
    """The most bytes of rows to merge in the result of each of ``units``, rather than in a file."""
    return max(_LEAST_FEW, min(_MOST_FEW, _for_known_rows(memory) // 2 // max(units, 1)))


def changes_in_memory(memory: int) -> int:
    """The most bytes of changed rows in memory before they are merged; the others are in files."""
    return min(_MOST_CHANGES, (memory - LIBRARIES) // _CHANGES_PART)


def beside_known_rows(memory: int) -> int:
    """The memory that is left for reading, beside the indexes of fingerprints."""
    return memory - INDEXES * _for_known_rows(memory)


def shares_of_known_rows(memory: int, rows: int) -> int:
    """In how many shares the fingerprints of a table of ``rows`` are compared."""
    return max(1, -(-rows * _KNOWN_ROW // _for_known_rows(memory)))


def lacking_for_history(memory: int, rows: int) -> int:
    """The memory that is lacking to find the last versions of ``rows`` versions; 0 if they fit."""
    return rows * _VERSION * 4 if rows * _VERSION > _for_known_rows(memory) else 0


def rounds_of_named_rows(memory: int, rows: int) -> int:
    """In how many rounds ``rows`` differing rows are compared by name."""
    return max(1, -(-rows * _NAMED_ROW // _for_known_rows(memory)))


def _for_known_rows(memory: int) -> int:
    """What one index may take."""
    return (memory - _base(memory)) // 2 // INDEXES


def _base(memory: int) -> int:
    """What the process takes before it reads: of a small share, no more than a half."""
    return min(_BASE, (LIBRARIES + memory) // 2)


def largest_split(packed: bool) -> int:
    """The most bytes of the source in a split that is read packed, or as rows."""
    return min(PACKED_SPLIT, LARGEST_SPLIT) if packed else LARGEST_SPLIT


def largest_file(whole: int, largest: int, rounds: int = 1) -> int:
    """The most bytes of the source in a file, ``largest`` unless a table of ``whole`` bytes would
    have too many units; it is read ``rounds`` times.
    """
    return max(largest, -(-whole * rounds // MOST_UNITS))


def cluster_memory(memory: int, readers: int) -> int:
    """What a reader takes to sort the rows that it has read."""
    return (memory - _BASE) // readers - _READER


def reader_memory(memory: int, readers: int) -> int:
    """What a reader may take for its split, of so many in the same process."""
    return (memory - _base(memory)) // readers - _READER


def split_and_file(
    whole: int,
    each: int,
    readers: int,
    most: int,
    units: int = UNITS_OF_COMPARISON,
    largest_file: int = LARGEST_FILE,
) -> tuple[int, int]:
    """The bytes of the source in a split (at most ``most``) and in a file (at most
    ``largest_file``), for a table of ``whole`` bytes; ``each`` is the `reader_memory`.

    All files have about the same size, and their number is a multiple of the number of readers, at
    least ``units`` times as many, so that all readers have work until the end.
    """
    largest = max(2**20, min(most, each // GROWTH))
    if whole <= largest:
        return largest, largest_file
    rounds = max(units, -(-whole // (largest_file * readers)))
    per_file = -(-whole // (rounds * readers))
    per_split = -(-per_file // -(-per_file // largest))
    # Pages do not divide evenly: with a little more room the last page needs no file of its own.
    return per_split, per_file + per_split // 2
