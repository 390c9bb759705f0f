"""The table properties in which a Bronze table says what it was made from."""

from __future__ import annotations

# Properties of a Bronze table in which it says what it was made from.
SOURCE = "bronze.source"


SCHEMA = "bronze.schema"


TABLE = "bronze.table"


OID = "bronze.oid"


KEY = "bronze.key"


BASE = "bronze.base"


NUMBERS = "bronze.columns"


DEFINITION = "bronze.definition"


PUBLISHED = "bronze.published"


PROTECT = "bronze.protect"


WIDENED = "bronze.widened"


WATCHED = "bronze.watched"


RULES = "bronze.rules"


CUT = "bronze.cut"


ENFORCED = "bronze.enforced"


FORMER = "bronze.former"


THRESHOLDS = "bronze.thresholds"


LAYOUT = "bronze.layout"


KEYED = "bronze.keyed"
"""In a table with `KEY_TEXT`: the Bronze names of the columns that the key has in the source."""
