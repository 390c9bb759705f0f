"""Units of work for workers, and their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from bronze.model.anomaly import NO_OUTLIERS, NO_PROFILE, Monitoring, Outliers, Profile
from bronze.model.columns import Column, DeltaType, RowKey
from bronze.model.files import RowFormat, StoredFile, WrittenFile
from bronze.model.locations import Destination, Origin, Place
from bronze.model.protection import TableProtection
from bronze.model.quality import QualityRules, QualityTotals

T = TypeVar("T")

ACTIVE, QUARANTINED, DELETED = "ACTIVE", "QUARANTINED", "DELETED"
"""The values of record_status: the row is in the source; it is, but its score is below the
threshold; it is no longer in the source.
"""


@dataclass(frozen=True)
class Enrichment:
    """What is done to the rows of a table before they are written, besides adding metadata.

    ``protection`` is None if no column is protected. With ``watch``, rows get an anomaly score.
    """

    protection: TableProtection | None = None
    watch: Monitoring | None = None
    quality: QualityRules = field(default_factory=QualityRules)


@dataclass(frozen=True)
class Findings:
    """What was measured about rows before they were written. Parts can be added."""

    outliers: Outliers = NO_OUTLIERS
    profile: Profile = NO_PROFILE
    quality: QualityTotals = field(default_factory=QualityTotals)

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.outliers + other.outliers,
            self.profile + other.profile,
            self.quality + other.quality,
        )


NO_ENRICHMENT = Enrichment()
NO_FINDINGS = Findings()


@dataclass(frozen=True)
class RejectedValue:
    """A value that Delta cannot hold, as PostgreSQL's text. ``key`` is the row's, a JSON object."""

    column: str
    key: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class KnownRows:
    """Which fingerprints of a Bronze table a worker compares its rows with: of rows, or of keys.

    ``files`` and ``layout`` are the files and the schema of the table; ``key`` are the columns of
    the key, none to compare whole rows; ``offset`` is the first digit of row_hash that is compared;
    ``share`` of ``shares`` is the part of all fingerprints that is compared. Rows marked as deleted
    are left out; of a table with history, whose key is ``versions``, only last versions count.
    With ``form``, a row that was altered since it was written counts as missing from the source.
    ``batch`` is the id of the batch that compares: works beside each other share no index.
    """

    place: Place
    version: int
    files: tuple[StoredFile, ...] = field(repr=False)
    layout: tuple[tuple[str, DeltaType], ...]
    key: tuple[str, ...]
    offset: int
    share: int = 0
    shares: int = 1
    versions: tuple[str, ...] = ()
    form: RowFormat | None = None
    batch: str = ""

    def __hash__(self) -> int:
        # One of all files would take longer than the rest of a comparison of a small table.
        return hash((self.place, self.version, self.key, self.offset, self.share))

    @property
    def history(self) -> bool:
        """Whether the table has history: every version of a row."""
        return bool(self.versions)


@dataclass(frozen=True)
class RowSizeLimits:
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


PAGES = "ctid >= "
"""The beginning of the condition of a split that is a range of pages."""


@dataclass(frozen=True)
class PageRange:
    """The pages of a heap from ``low`` to before ``end``, of which ``step`` are read at a time.

    If it is ``open``, the last part also has what comes after ``end``. ``heap`` is the FROM of a
    partition or child that is read by itself, "" where the table is read as a whole.
    """

    low: int
    end: int
    step: int
    open: bool
    heap: str = ""

    def __len__(self) -> int:
        return max(1, -(-(self.end - self.low) // self.step))

    def conditions(self) -> Iterator[str]:
        """The conditions of its parts."""
        for number in range(len(self)):
            low = self.low + number * self.step
            high = min(low + self.step, self.end)
            is_last = number == len(self) - 1
            below = "" if is_last and self.open else f" AND ctid < '({high},0)'::tid"
            yield f"{PAGES}'({low},0)'::tid{below}"


@dataclass(frozen=True)
class SplitGroup:
    """The splits of a table for one worker, of ``size`` bytes in all: ``ranges`` of pages, or
    ``conditions``. Those of ranges are made where they are read: a table of a terabyte has a
    quarter of a million.

    With ``scattered``, they come in an order in which the first ones, however many, are spread over
    all of them. ``where`` is a condition for all of them.
    """

    size: int
    conditions: tuple[str, ...] = ()
    ranges: tuple[PageRange, ...] = ()
    scattered: bool = False
    where: str = ""

    def __len__(self) -> int:
        return len(self.conditions) + sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The heap (see `PageRange`) and the condition of each split."""
        found = [("", condition) for condition in self.conditions]
        found += [(part.heap, condition) for part in self.ranges for condition in part.conditions()]
        for heap, condition in scatter(found) if self.scattered else found:
            yield heap, f"{condition} AND {self.where}" if self.where else condition


def scatter(items: Sequence[T]) -> list[T]:
    """The items in the order of the reversed bits of their numbers (van der Corput)."""
    bits = len(items).bit_length()
    order = sorted(range(len(items)), key=lambda number: f"{number:0{bits}b}"[::-1])
    return [items[number] for number in order]


@dataclass(frozen=True)
class SourceRead:
    """Which rows of a source table a unit reads.

    ``query`` is the SELECT without its WHERE; each of ``splits`` selects rows that fit into the
    memory of one worker. ``session`` are the statements that join the snapshot of the run. With
    ``row_sizes``, splits are divided further where their rows are large.
    """

    table: str
    origin: Origin
    session: tuple[str, ...]
    query: str
    splits: SplitGroup
    columns: tuple[Column, ...]
    row_sizes: RowSizeLimits | None = None


@dataclass(frozen=True)
class BronzeRows:
    """How rows of the source become rows of the Bronze table.

    ``key`` tells rows of the source apart, ``into`` is the Bronze table, ``base`` as in
    `bronze.rows.encoding`. ``history`` says that the table keeps every version of a row,
    ``streamed`` that it has the time of a row's commit.
    """

    key: RowKey
    into: Destination
    base: int = 0
    history: bool = False
    streamed: bool = False
    enrichment: Enrichment = NO_ENRICHMENT


@dataclass(frozen=True)
class Clustering:
    """How the rows of a load are clustered: by the columns ``by``, in files of about ``file_size``
    bytes, within ``memory`` bytes.
    """

    by: tuple[str, ...]
    file_size: int
    memory: int


@dataclass(frozen=True)
class Unit:
    """A piece of work that any worker can do alone: read rows, and write files beside the table.

    There are three kinds, each with a constructor:

    - `load`: all rows become files of the table;
    - `merge`: rows that the table does not hold yet (all of them without ``known``) are kept to be
      merged: given back where they have less than ``few`` bytes, in a file otherwise;
    - `keys`: no row is kept; the result says which keys of the table the source still has.

    ``estimate`` is about how many bytes of the source are read. With ``clustering``, the files of a
    load are one cluster; without it, they have the rows in the order in which they are read.
    """

    number: int
    kind: Literal["load", "merge", "keys"]
    read: SourceRead
    rows: BronzeRows
    estimate: int
    known: KnownRows | None = None
    few: int = 0
    clustering: Clustering | None = None

    @classmethod
    def load(
        cls,
        number: int,
        read: SourceRead,
        rows: BronzeRows,
        estimate: int,
        clustering: Clustering | None,
    ) -> Unit:
        """The unit that writes all its rows to files of the table."""
        return cls(number, "load", read, rows, estimate, clustering=clustering)

    @classmethod
    def merge(
        cls,
        number: int,
        read: SourceRead,
        rows: BronzeRows,
        estimate: int,
        known: KnownRows | None,
        few: int,
    ) -> Unit:
        """The unit that keeps rows to be merged."""
        return cls(number, "merge", read, rows, estimate, known, few)

    @classmethod
    def keys(
        cls, number: int, read: SourceRead, rows: BronzeRows, estimate: int, known: KnownRows
    ) -> Unit:
        """The unit that looks which keys are still there."""
        return cls(number, "keys", read, rows, estimate, known)

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
class UnitResult:
    """The result of one unit: how many rows it read, and the rows that it kept, in ``files`` or, if
    they are few, in ``frame``. ``seen`` is a mask over the fingerprints of the unit's ``known``,
    ``sum`` the total of the fingerprints of all rows (see `bronze.rows.fingerprint.total`).
    """

    unit: int
    rows: int
    files: tuple[WrittenFile, ...] = ()
    frame: Any = field(default=None, repr=False)
    rejected: tuple[RejectedValue, ...] = ()
    seen: bytes | memoryview = field(default=b"", repr=False)
    sum: int = 0
    findings: Findings = NO_FINDINGS
