"""Units of work for workers, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bronze.model.anomaly import NO_OUTLIERS, NO_PROFILE, Outliers, Profile, Watch
from bronze.model.columns import Column, Kind, RowKey
from bronze.model.files import DataFile, Form, Stored
from bronze.model.locations import Origin, Place
from bronze.model.protection import Protection
from bronze.model.quality import Quality, Scored
from bronze.model.stamp import Stamp

ACTIVE, QUARANTINED, DELETED = "ACTIVE", "QUARANTINED", "DELETED"
"""The values of record_status: the row is in the source; it is, but its score is below the
threshold; it is no longer in the source.
"""


@dataclass(frozen=True)
class Enrichment:
    """What is done to the rows of a table before they are written, besides adding metadata.

    ``protection`` is None if no column is protected. With ``watch``, rows get an anomaly score.
    """

    protection: Protection | None = None
    watch: Watch | None = None
    quality: Quality = field(default_factory=Quality)


@dataclass(frozen=True)
class Findings:
    """What was measured about rows before they were written. Parts can be added."""

    outliers: Outliers = NO_OUTLIERS
    profile: Profile = NO_PROFILE
    quality: Scored = field(default_factory=Scored)

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.outliers + other.outliers,
            self.profile + other.profile,
            self.quality + other.quality,
        )


NONE_GIVEN = Enrichment()
NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class Rejected:
    """A value that Delta cannot hold, as PostgreSQL's text. ``key`` is the row's, a JSON object."""

    column: str
    key: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Known:
    """Which fingerprints of a Bronze table a worker compares its rows with: of rows, or of keys.

    ``files`` and ``layout`` are the files and the schema of the table; ``key`` are the columns of
    the key, none to compare whole rows; ``offset`` is the first digit of row_hash that is compared;
    ``share`` of ``shares`` is the part of all fingerprints that is compared. Rows marked as deleted
    are left out; of a table with history, whose key is ``versions``, only last versions count.
    With ``form``, a row that was altered since it was written counts as missing from the source.
    """

    place: Place
    version: int
    files: tuple[Stored, ...] = field(repr=False)
    layout: tuple[tuple[str, Kind], ...]
    key: tuple[str, ...]
    offset: int
    share: int = 0
    shares: int = 1
    versions: tuple[str, ...] = ()
    form: Form | None = None

    @property
    def history(self) -> bool:
        """Whether the table has history: every version of a row."""
        return bool(self.versions)


@dataclass(frozen=True)
class Weighing:
    """How large rows of a table are measured before they are read, and the limits for them.

    ``table`` is the table's name in SQL, ``weight`` the SQL of the size of a row in bytes, ``key``
    the SQL of its key as text, for errors. A split may have ``size`` bytes, and a row ``heaviest``.
    Reading a row needs ``copies`` times its size, and the rest of the run ``rest`` bytes.
    """

    table: str
    weight: str
    key: str
    size: int
    heaviest: int
    copies: int
    rest: int


@dataclass(frozen=True)
class Unit:
    """A task of one worker: read some splits of a table, and write their rows to files.

    ``query`` is the SELECT without its WHERE; ``slices`` are the conditions of the splits, each of
    which fits into the memory of one worker. ``session`` are the statements that join the run's
    snapshot. ``stats`` are the target names of columns with file statistics, ``estimate`` is the
    estimated size of the splits in bytes, ``base`` is as in `bronze.rows.encoding`. With ``known``,
    only rows that the table does not have are kept; with ``keys_only``, no rows are kept, and the
    result is which keys of the table were seen. With ``inline``, rows of less than ``few`` bytes in
    all are returned instead of written. ``dates_of`` is the column whose dates are the partitions
    of the table, None if it has none; ``history`` says that the table has every version of a row,
    ``streamed`` that it has the commit timestamp of each row. With ``summed``, the fingerprints of
    all rows are added up. With ``weighing``, splits with large rows are divided further.
    """

    number: int
    table: str
    origin: Origin
    session: tuple[str, ...]
    query: str
    slices: tuple[str, ...]
    columns: tuple[Column, ...]
    key: RowKey
    stats: tuple[str, ...]
    stamp: Stamp
    place: Place
    estimate: int
    base: int = 0
    known: Known | None = None
    keys_only: bool = False
    inline: bool = False
    few: int = 0
    dates_of: str | None = None
    history: bool = False
    streamed: bool = False
    summed: bool = False
    weighing: Weighing | None = None
    enrichment: Enrichment = NONE_GIVEN


@dataclass(frozen=True)
class Written:
    """The result of one unit: how many rows it read, and the rows that it kept, in ``files`` or, if
    they are few, in ``frame``. ``seen`` is a mask over the fingerprints of the unit's ``known``,
    ``sum`` the total of the fingerprints of all rows (see `bronze.rows.fingerprint.total`).
    """

    unit: int
    rows: int
    files: tuple[DataFile, ...] = ()
    frame: Any = field(default=None, repr=False)
    rejected: tuple[Rejected, ...] = ()
    seen: bytes = field(default=b"", repr=False)
    sum: int = 0
    findings: Findings = NOTHING_FOUND
