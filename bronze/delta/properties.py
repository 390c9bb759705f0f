"""The table properties in which a Bronze table says what it was made from.

This is the only module that knows their names and how each is read. "shape" is
`bronze.ingest.shape`, which writes most of them; "tables" is `bronze.tables`.

| property | content | written by | read by |
|---|---|---|---|
| `SOURCE` | name of the source in the config | shape | tables, protection |
| `TABLE` | ``schema.table`` of the source table | shape | everybody |
| `SCHEMA` | its schema; not in old tables | shape | tables, protection |
| `OID` | its oid | shape | tables, ingest, api.check, protection |
| `KEY` | Bronze columns that identify a row: JSON array | shape | ingest, verify, protection |
| `KEYED` | with `KEY_TEXT`, the key's columns in the source: JSON array | shape | tables |
| `BASE` | number of columns that the table began with | shape | tables |
| `NUMBERS` | attnum by Bronze column: JSON object | shape | tables, protection |
| `FORMER` | earlier names by Bronze column: JSON object of arrays | shape | tables |
| `LAYOUT` | columns that bronze wrote: Delta schema | shape | tables |
| `WIDENED` | types before each widening: JSON array of objects | shape | tables |
| `THRESHOLDS` | all thresholds of the score: JSON array | shape | tables |
| `DEFINITION` | definition of the source table: JSON object | shape | ingest.watermarks |
| `PUBLISHED` | how the publication has the table: text | shape | ingest.watermarks |
| `ENFORCED` | whether PostgreSQL enforces the key: JSON | shape | ingest.watermarks |
| `RULES` | fingerprint of the rules: text | shape | ingest.plan |
| `WATCHED` | "true" if the table has anomaly scores | shape | shape, tables, anomaly |
| `PROTECT` | rule and type by protected column: JSON object | shape | tables, protection |
| `KEY_IDS` | key that equality depends on, by protected column: JSON object | shape | protection |
| `CUT` | "true" if a repair removed rows, "" since | verify.repair, shape | ingest.watermarks |
| `FORMAT` | format of the table, see `bronze.version` | delta.commit | delta.log |
| `WRITER` | version of bronze that wrote its schema last | delta.commit | api.check |
| `CLUSTERING` | clustering that bronze chose, and why: JSON object | delta.layout | delta.layout |
| `AUDIT_LOGS` | ids of audit logs, commas between | delta.commit | delta.audit_mark, governance |

Tables of governance have properties of their own, in `bronze.governance.audit_state`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, get_args

from bronze.delta.files import arrow_type
from bronze.delta.schema import kinds
from bronze.errors import LakeError
from bronze.model.columns import DeltaType, ProtectionRule, ProtectMethod
from bronze.model.locations import TableName

T = TypeVar("T")

SOURCE = "bronze.source"
SCHEMA = "bronze.schema"
TABLE = "bronze.table"
OID = "bronze.oid"
KEY = "bronze.key"
KEYED = "bronze.keyed"
BASE = "bronze.base"
NUMBERS = "bronze.columns"
FORMER = "bronze.former"
LAYOUT = "bronze.layout"
WIDENED = "bronze.widened"
THRESHOLDS = "bronze.thresholds"
DEFINITION = "bronze.definition"
PUBLISHED = "bronze.published"
ENFORCED = "bronze.enforced"
RULES = "bronze.rules"
WATCHED = "bronze.watched"
PROTECT = "bronze.protect"
KEY_IDS = "bronze.keys"
CUT = "bronze.cut"
FORMAT = "bronze.format"
WRITER = "bronze.version"
AUDIT_LOGS = "bronze.audit.logs"
CLUSTERING = "bronze.clustering"


@dataclass(frozen=True)
class TableProperties:
    """What the properties of a table say. Each is parsed when it is asked for, so that one that
    cannot be read stops only those who need it.

    Raises:
        LakeError: another writer has changed the property that an attribute reads.
    """

    _texts: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, properties: Mapping[str, str]) -> TableProperties:
        """The properties of a table, as its log has them."""
        return cls(properties)

    @property
    def source(self) -> str:
        """The name of the source in the config, "" where it is not known."""
        return self._texts.get(SOURCE, "")

    @property
    def label(self) -> str:
        """The source table's ``schema.table``, "" where it is not known."""
        return self._texts.get(TABLE, "")

    @property
    def schema(self) -> str:
        """The schema of the source table, which may have dots."""
        # Tables of early versions have the label alone.
        return self._texts.get(SCHEMA, self.label.partition(".")[0])

    @property
    def source_table(self) -> TableName:
        """The schema and the name of the source table, "" where they are not known."""
        return TableName(self.schema, self.label[len(self.schema) + 1 :])

    @property
    def is_bronze(self) -> bool:
        """Whether bronze made the table from a table of a source."""
        return TABLE in self._texts

    @cached_property
    def oid(self) -> int | None:
        """The oid of the source table, None where it is not known."""
        return self._value(OID, None, int)

    @cached_property
    def key(self) -> tuple[str, ...] | None:
        """The Bronze columns that identify a row, none for a table without a key; None where it is
        not known.
        """
        return self._value(KEY, None, _names)

    @cached_property
    def key_text_columns(self) -> tuple[str, ...]:
        """In a table with `bronze.model.columns.KEY_TEXT`, the Bronze names of the columns that the
        key has in the source.
        """
        return self._value(KEYED, (), _names)

    @cached_property
    def base(self) -> int | None:
        """How many columns the table began with, None where it is not known."""
        return self._value(BASE, None, int)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The attnum in the source of each Bronze column that the source has."""
        return self._value(NUMBERS, {}, lambda text: _mapping(text, int))

    @cached_property
    def former(self) -> Mapping[str, tuple[str, ...]]:
        """For Bronze columns that were renamed, the columns that had their values before, the
        latest first.
        """
        return self._value(FORMER, {}, _former)

    @cached_property
    def layout(self) -> tuple[tuple[str, DeltaType], ...] | None:
        """The columns that bronze gave the table, None where it is not known."""
        return self._value(LAYOUT, None, kinds)

    @cached_property
    def types_before_widening(self) -> tuple[Mapping[str, DeltaType], ...]:
        """For each time that columns were widened, their types before."""
        return self._value(WIDENED, (), _parse_types)

    @cached_property
    def thresholds(self) -> tuple[int, ...] | None:
        """The scores below which rows were quarantined at one time or another, none where this was
        not recorded from the beginning; None where it is not recorded at all.
        """
        return self._value(THRESHOLDS, None, _numbers)

    @cached_property
    def definition(self) -> Mapping[str, str] | None:
        """The definition of the source table (see `bronze.postgres.catalog.definition`), None where
        it was not recorded.
        """
        return self._value(DEFINITION, None, _definition)

    @property
    def publication_state(self) -> str:
        """How a publication has the table, "" if it is not streamed."""
        return self._texts.get(PUBLISHED, "")

    @cached_property
    def is_key_enforced(self) -> bool:
        """Whether PostgreSQL enforced the key at once when the table was loaded last."""
        return self._value(ENFORCED, True, _boolean)

    @property
    def rules(self) -> str | None:
        """The fingerprint of the rules of the last run, None where it was not recorded."""
        return self._texts.get(RULES)

    @property
    def has_anomaly_columns(self) -> bool:
        """Whether the table has the columns of anomaly scores."""
        return WATCHED in self._texts

    @property
    def has_protection(self) -> bool:
        """Whether columns of the table are, or were, protected."""
        return PROTECT in self._texts

    @cached_property
    def protection(self) -> Mapping[str, tuple[ProtectionRule, DeltaType]]:
        """How the protected columns are protected, and their types in the source."""
        return self._value(PROTECT, {}, _parse_protection)

    @cached_property
    def key_ids(self) -> Mapping[str, str]:
        """The id of the key that values were protected with, for each column whose equal values
        have to stay equal, and under "" that of ``row_hash``.
        """
        return self._value(KEY_IDS, {}, lambda text: _mapping(text, str))

    @property
    def has_removed_rows(self) -> bool:
        """Whether a repair has removed rows since the table was compared last."""
        return bool(self._texts.get(CUT))

    @cached_property
    def format(self) -> int:
        """The format in which the table was written."""
        return self._value(FORMAT, 1, int)

    @property
    def writer(self) -> str:
        """The version of bronze that wrote the table last, "" where it was not recorded yet."""
        return self._texts.get(WRITER, "")

    @property
    def clustering_choice(self) -> str:
        """The columns that bronze chose to cluster by, as `bronze.delta.layout.choice` reads them;
        "" if it did not.
        """
        return self._texts.get(CLUSTERING, "")

    @property
    def audit_logs(self) -> tuple[str, ...]:
        """The ids of the audit logs under which the table was written."""
        return tuple(filter(None, self._texts.get(AUDIT_LOGS, "").split(",")))

    def _value(self, name: str, absent: T, parse: Callable[[str], T]) -> T:
        """What a property says, ``absent`` where the table does not have it.

        Raises:
            LakeError: ``parse`` cannot read it.
        """
        if name not in self._texts:
            return absent
        try:
            return parse(self._texts[name])
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
            LakeError,
        ) as error:
            raise LakeError(
                f"The property {name} of the Bronze table cannot be read: another writer has"
                " changed it.",
                hint="Set it to its previous value, which older entries of the table's _delta_log"
                " have; or move the table's folder away, and the next run loads the table.",
            ) from error


def _names(text: str) -> tuple[str, ...]:
    """A JSON array of names."""
    return tuple(_array(json.loads(text), str))


def _numbers(text: str) -> tuple[int, ...]:
    """A JSON array of numbers."""
    return tuple(_array(json.loads(text), int))


def _mapping(text: str, kind: type[T]) -> dict[str, T]:
    """A JSON object whose values are all of one type."""
    values: dict[str, T] = json.loads(text)
    _array(list(values.values()), kind)
    return values


def _definition(text: str) -> dict[str, str]:
    # PostgreSQL has NULL for an aspect without facts.
    aspects: dict[str, str] = json.loads(text)
    _array([aspect for aspect in aspects.values() if aspect is not None], str)
    return aspects


def _boolean(text: str) -> bool:
    flag = json.loads(text)
    if not isinstance(flag, bool):
        raise TypeError("it is not true or false")
    return flag


def _former(text: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(_array(names, str)) for name, names in _mapping(text, list).items()}


def _parse_types(text: str) -> tuple[dict[str, DeltaType], ...]:
    return tuple(
        {name: _stored_type(*kind) for name, kind in types.items()} for types in json.loads(text)
    )


def _stored_type(name: Any, precision: int, scale: int) -> DeltaType:
    kind = DeltaType(name, precision, scale)
    # A type that does not exist is an error here.
    arrow_type(kind)
    return kind


def _parse_protection(text: str) -> dict[str, tuple[ProtectionRule, DeltaType]]:
    return {
        name: (_protection_rule(column["protect"]), kinds(column["kind"])[0][1])
        for name, column in _mapping(text, dict).items()
    }


def _protection_rule(fields: dict[str, Any]) -> ProtectionRule:
    rule = ProtectionRule(**fields)
    if rule.method not in get_args(ProtectMethod):
        raise ValueError("it is not a method of protection")
    return rule


def _array(values: Any, kind: type[T]) -> list[T]:
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"it is not an array of {kind.__name__}")
    return values
