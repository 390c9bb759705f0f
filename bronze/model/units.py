"""Units of work for workers, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
class SourceRead:
    """Which rows of a source table a unit reads.

    ``query`` is the SELECT without its WHERE, ``splits`` are conditions, each of which selects rows
    that fit into the memory of one worker. ``session`` are the statements that join the snapshot of
    the run. With ``row_sizes``, splits are divided further where their rows are large.
    """

    table: str
    origin: Origin
    session: tuple[str, ...]
    query: str
    splits: tuple[str, ...]
    columns: tuple[Column, ...]
    row_sizes: Weighing | None = None


@dataclass(frozen=True)
class BronzeRows:
    """How rows of the source become rows of the Bronze table.

    ``key`` tells rows apart, ``base`` is as in `bronze.rows.encoding`. ``dates_of`` is the column
    whose dates are the table's partitions; ``history`` says that the table keeps every version of a
    row, ``streamed`` that it has the time of a row's commit.
    """

    key: RowKey
    stamp: Stamp
    base: int = 0
    dates_of: str | None = None
    history: bool = False
    streamed: bool = False
    enrichment: Enrichment = NONE_GIVEN


@dataclass(frozen=True)
class Unit:
    """A piece of work that any worker can do alone: read rows, and write files beside the table.

    There are three kinds, each with a constructor:

    - `load`: all rows become files of the table;
    - `merge`: rows that the table does not hold yet (all of them without ``known``) are kept to be
      merged: given back where they have less than ``few`` bytes, in a file otherwise;
    - `keys`: no row is kept; the result says which keys of the table the source still has.

    ``place`` is the table's folder, ``stats`` are the columns that get file statistics,
    ``estimate`` is about how many bytes of the source are read.
    """

    number: int
    kind: Literal["load", "merge", "keys"]
    read: SourceRead
    rows: BronzeRows
    place: Place
    stats: tuple[str, ...]
    estimate: int
    known: Known | None = None
    few: int = 0

    @classmethod
    def load(
        cls,
        number: int,
        read: SourceRead,
        rows: BronzeRows,
        place: Place,
        stats: tuple[str, ...],
        estimate: int,
    ) -> Unit:
        """The unit that writes all its rows to files of the table."""
        return cls(number, "load", read, rows, place, stats, estimate)

    @classmethod
    def merge(
        cls,
        number: int,
        read: SourceRead,
        rows: BronzeRows,
        place: Place,
        stats: tuple[str, ...],
        estimate: int,
        known: Known | None,
        few: int,
    ) -> Unit:
        """The unit that keeps rows to be merged."""
        return cls(number, "merge", read, rows, place, stats, estimate, known, few)

    @classmethod
    def keys(
        cls,
        number: int,
        read: SourceRead,
        rows: BronzeRows,
        place: Place,
        estimate: int,
        known: Known,
    ) -> Unit:
        """The unit that looks which keys are still there."""
        return cls(number, "keys", read, rows, place, (), estimate, known)

    @property
    def counts_rows(self) -> bool:
        """Whether its rows count: keys alone are no rows, and what is read once for each share of a
        table's fingerprints counts with the first share.
        """
        return self.kind != "keys" and (self.known is None or self.known.share == 0)

    @property
    def sums_rows(self) -> bool:
        """Whether the fingerprints of its rows are added up: rows without a key cannot be compared
        one by one, but all of them at once.
        """
        return not self.rows.key.columns


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
