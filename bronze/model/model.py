"""The frozen values that cross stages. They hold no behaviour beyond what their names say."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bronze.model.anomaly import NO_OUTLIERS, NO_PROFILE, Outliers, Profile, Watch
from bronze.model.quality import Quality, Scored

KindName = Literal[
    "short",
    "int",
    "long",
    "float",
    "double",
    "boolean",
    "decimal",
    "string",
    "binary",
    "date",
    "timestamp",
    "timestamp_ntz",
    "array",
]


@dataclass(frozen=True)
class Kind:
    """What a value is in the Bronze table, in Delta's terms.

    ``precision`` and ``scale`` belong to ``decimal``, ``element`` to ``array``.
    """

    name: KindName
    precision: int = 0
    scale: int = 0
    element: Kind | None = None

    @property
    def of(self) -> Kind:
        """An array's element."""
        if self.element is None:
            raise TypeError(f"{self} is no array")
        return self.element

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.element is not None:
            return f"array<{self.element}>"
        return self.name


Wire = Literal["same", "unscaled", "text", "texts"]
"""How a value travels from PostgreSQL to us: as it is; as the integer ``value * 10**scale``; as
text to be parsed; as an array of such texts."""


ProtectMethod = Literal["encrypt", "encrypt_deterministic", "tokenize", "hash", "mask"]

STABLE = ("encrypt_deterministic", "tokenize", "hash")
"""The methods by which equal values stay equal, so that rows can be told apart by them."""


@dataclass(frozen=True)
class Protect:
    """How the values of a column are protected (see `bronze.protection.protect`).

    ``join`` names a key that several columns share; ``format`` says that tokens have the shape of
    their values, ``keep`` how many characters at the end a mask leaves.
    """

    method: ProtectMethod
    join: str = ""
    format: bool = False
    keep: int = 0

    @property
    def stable(self) -> bool:
        """Whether equal values stay equal."""
        return self.method in STABLE


_NUMBERS = ("short", "int", "long", "float", "double", "decimal")


@dataclass(frozen=True)
class Column:
    """One column of a table, with everything the stages need to carry it exactly.

    ``name`` is the source's, ``target`` the Bronze table's. ``select`` is the SQL that fetches the
    value, ``canonical`` the SQL of the value whose binary form is hashed, ``reject`` a SQL
    condition that is true for values which Delta cannot hold ("" where there are none),
    ``text`` the SQL of PostgreSQL's own text of the value, and ``element``, for arrays, the
    canonical SQL of one element ``e``. ``kind`` is that of the value as it is read and hashed,
    ``stored`` that of what the Bronze table has of it. ``base_type`` is PostgreSQL's own name of
    the type, of a domain's the type beneath it; "" of what the source has no more.
    """

    name: str
    target: str
    source_type: str
    kind: Kind
    wire: Wire
    select: str
    canonical: str
    reject: str
    text: str
    element: str = ""
    not_null: bool = False
    protect: Protect | None = None
    base_type: str = ""

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, be they kept as text because Delta has no such type."""
        return self.kind.name in _NUMBERS or (
            self.kind.name == "string" and self.base_type == "numeric"
        )

    @property
    def stored(self) -> Kind:
        """What the value is in the Bronze table."""
        return Kind("string") if self.protect else self.kind


KEY_TEXT = "key_as_text"
"""The column that only those Bronze tables have whose key has values that Delta cannot hold or
compare: in a row with such values they are here, as a JSON object of text; elsewhere NULL."""


@dataclass(frozen=True)
class RowKey:
    """What tells the rows of a table apart: ``columns`` of the source, none where nothing does.

    ``names`` are the columns of the Bronze table by which a row is found there. Those of its key
    that are arrays are not among them; where it has `KEY_TEXT`, that is the last one.
    """

    columns: tuple[Column, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def has_text(self) -> bool:
        """Whether the table has `KEY_TEXT`."""
        return self.names[-1:] == (KEY_TEXT,)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The key's columns as the source calls them."""
        return tuple(column.name for column in self.columns)


NO_KEY = RowKey()


@dataclass(frozen=True)
class Secret:
    """Where a secret is to be found; never the secret itself.

    ``provider`` is one of ``bronze.secrets.PROVIDERS``, ``place`` what that provider needs to find
    its store (a vault's URL, a folder), ``name`` the secret's name there.
    """

    provider: str
    name: str
    place: str = ""


@dataclass(frozen=True)
class Origin:
    """How to reach one PostgreSQL database, without the password.

    ``conninfo`` is libpq's, with no password in it; ``password`` or ``dsn`` say where the missing
    part is to be found. Times are in seconds; 0 is no limit. ``connections`` are the config's
    pool.min and pool.max.
    """

    name: str
    conninfo: str
    dsn: Secret | None = None
    password: Secret | None = None
    connect_timeout: int = 10
    statement_timeout: int = 0
    lock_timeout: int = 10
    row_security: Literal["refuse", "apply"] = "refuse"
    application_name: str = "bronze"
    connections: tuple[int, int] = (1, 10)


@dataclass(frozen=True)
class Place:
    """Where one Delta table lies: a URL or path, and the object store's options."""

    url: str
    options: tuple[tuple[str, str | Secret], ...] = field(default=(), repr=False)


ACTIVE, QUARANTINED, DELETED = "ACTIVE", "QUARANTINED", "DELETED"
"""What record_status says of a row: it is in the source; it is there, but its quality is below the
threshold; it has gone from there.
"""

Method = Literal["batch", "micro_batch", "full_refresh", "streaming"]


@dataclass(frozen=True)
class AuditMark:
    """A record of an audit log: the id of the log, and the record's number and hash in it."""

    log: str
    sequence: int
    hash: str


@dataclass(frozen=True)
class Stamp:
    """What a run writes beside every row. ``lineage`` is the id of the run's record of the table
    in ``governance.data_lineage``, ``audited`` the newest record of the audit log that its commits
    name, if it could be read (see `bronze.delta.audit_mark`).
    """

    batch_id: str
    loaded_at: datetime
    source_system: str
    method: Method
    lineage: str = ""
    audited: AuditMark | None = None


@dataclass(frozen=True)
class DataKey:
    """A key for data as the lake keeps it: wrapped by the master key ``master`` (its id).

    It serves one ``purpose`` for one ``column`` of one ``table`` ("": for all columns that share
    the key called ``column``).
    """

    id: str
    table: str
    column: str
    purpose: str
    wrapped: str = field(repr=False)
    master: str


@dataclass(frozen=True)
class Protected:
    """A protected column: ``column`` is the Bronze table's, ``name`` the source's ("": it has
    none). The first of ``keys`` is for new values, the others for those that are there.
    """

    column: str
    name: str
    kind: Kind
    protect: Protect
    keys: tuple[DataKey, ...] = ()


@dataclass(frozen=True)
class Protection:
    """How the rows of a table are protected.

    ``row_hash`` is the key of the hashes of rows, None where no column is protected; ``masters``
    say where the keys are found that wrap all others.
    """

    columns: tuple[Protected, ...]
    row_hash: DataKey | None
    masters: tuple[Secret, ...]


@dataclass(frozen=True)
class Enrichment:
    """What the rows of a table are given on their way in, beside identity, times and hashes.

    ``protection`` is None for a table all of whose columns are taken in clear. With ``watch``, a
    score that tells anomalies, in columns of its own.
    """

    protection: Protection | None = None
    watch: Watch | None = None

    quality: Quality = field(default_factory=Quality)


@dataclass(frozen=True)
class Findings:
    """What was found out about rows on their way in. Those of parts may be added up."""

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
    """A value that Delta cannot hold, as PostgreSQL writes it. ``key`` is a JSON object."""

    column: str
    key: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class DataFile:
    """One Parquet file that was written. ``path`` is relative to the table, ``stats`` is Delta's
    JSON, ``partition`` the value of the partition column, if the table has one.
    """

    path: str
    size: int
    rows: int
    stats: str
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Stored:
    """One Parquet file that is part of a table, as the log has it.

    ``path`` is percent-encoded, as in the log; ``rows`` is -1 where its writer did not say;
    ``low`` and ``high`` are the bounds that the log knows of columns of safe kinds.
    """

    path: str
    size: int
    rows: int
    low: tuple[tuple[str, Any], ...] = ()
    high: tuple[tuple[str, Any], ...] = ()
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Form:
    """What the rows of a Bronze table are made of, by which each can be proven to be as written.

    ``values`` are the columns of the source, of which the table began with ``base``; ``earlier``
    are kinds that columns had before they were widened, at one time or another. With ``hashed``,
    row_hash is of the values as they are stored, without a key. ``partition`` is the column with
    the partitions' dates, "" where there is none, ``thresholds`` are the scores below which rows
    were quarantined at one time or another, none where that is not remembered.
    """

    values: tuple[str, ...]
    base: int
    earlier: tuple[tuple[tuple[str, Kind], ...], ...] = ()
    hashed: bool = True
    partition: str = ""
    thresholds: tuple[int, ...] = ()
    history: bool = False


@dataclass(frozen=True)
class Known:
    """What a table is known by: the fingerprints of its rows, or of their keys.

    ``files`` and ``layout`` are the table's; ``key`` are the key's columns, none for rows;
    ``offset`` chooses the digits of row_hash that are compared; ``share`` of ``shares`` is the
    part of all fingerprints that is meant. Rows that are marked as deleted do not count; in a
    table that keeps the history of its rows, whose key is ``versions``, only last versions do.
    With ``form`` a row which is not as it was written is one that the source does not have.
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
        """Whether the table keeps every version of a row."""
        return bool(self.versions)


@dataclass(frozen=True)
class Weighing:
    """How the rows of a table with large values are weighed before they are read.

    ``table`` is its name in SQL, ``weight`` the SQL of the bytes of a row's values, ``key`` the SQL
    of its key as text, to name it. A slice may have ``size`` bytes, and a row ``heaviest``; a row
    takes ``copies`` times its bytes, beside the ``rest`` of the memory of a run that has enough.
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
    """A piece of work that any worker can do alone: read some slices, write them beside the table.

    ``query`` is the SELECT without its WHERE; ``slices`` are the conditions, each of which fits in
    the memory of one worker. ``session`` are the statements that join the run's snapshot.
    ``key`` tells rows apart, ``stats`` are the target names that get file statistics, ``base`` is
    as in `bronze.rows.encoding`. With ``known``, only rows that the table does not hold are kept;
    with ``keys_only``, none are, and all that matters is which of the table's keys were seen. With
    ``inline``, rows of less than ``few`` bytes are given back rather than written. ``dates_of`` is
    the column whose dates are the table's partitions; ``history`` says that the table keeps every
    version of a row, ``streamed`` that it has the time of a row's commit. With ``summed``, the
    fingerprints of all rows are added up. With ``weighing``, slices are divided further where their
    rows are large.
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
    """What one unit did: how many rows it read, and those that it kept, in files or, where they
    are few, as they are. ``seen`` is a mask over the fingerprints of the unit's ``known``, ``sum``
    what the rows' fingerprints add up to (see `bronze.rows.fingerprint.total`).
    """

    unit: int
    rows: int
    files: tuple[DataFile, ...] = ()
    frame: Any = field(default=None, repr=False)
    rejected: tuple[Rejected, ...] = ()
    seen: bytes = field(default=b"", repr=False)
    sum: int = 0
    findings: Findings = NOTHING_FOUND
