"""What tests need of PostgreSQL that its older versions lack, each by its name.

A test, or a part of one, is left out on older servers only by naming such a feature; that each
server has just those that are said here is a test of its own (`tests.acceptance.test_versions`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from bronze.demo import installation
from bronze.errors import ConfigError


@dataclass(frozen=True)
class Feature:
    """The first version that has it, and a statement that succeeds only there.

    The statement finds a table ``a`` with the columns ``id`` and ``g``, ``g`` being generated.
    """

    since: int
    statement: str


ODD_SCALES = "scales of numerics that are negative or beyond their precision"
FEATURES: Mapping[str, Feature] = {
    "virtual generated columns": Feature(
        18, "CREATE TABLE b (id int, g int GENERATED ALWAYS AS (id) VIRTUAL)"
    ),
    "generated columns in publications": Feature(
        18, "CREATE PUBLICATION p WITH (publish_generated_columns = stored)"
    ),
    "SET EXPRESSION": Feature(17, "ALTER TABLE a ALTER g SET EXPRESSION AS (id + 1)"),
    "infinite intervals": Feature(17, "SELECT interval 'infinity'"),
    "transaction_timeout": Feature(17, "SET transaction_timeout = 0"),
    "failover slots": Feature(17, "SELECT failover FROM pg_replication_slots"),
    "invalidation_reason": Feature(17, "SELECT invalidation_reason FROM pg_replication_slots"),
    "reserved_connections": Feature(16, "SHOW reserved_connections"),
    "pg_input_is_valid": Feature(16, "SELECT pg_input_is_valid('1', 'int')"),
    "row filters of publications": Feature(15, "CREATE PUBLICATION p FOR TABLE a WHERE (id > 1)"),
    "column lists of publications": Feature(15, "CREATE PUBLICATION p FOR TABLE a (id)"),
    "schemas in publications": Feature(15, "CREATE PUBLICATION p FOR TABLES IN SCHEMA public"),
    ODD_SCALES: Feature(15, "SELECT 1::numeric(5,-2), 0.001::numeric(3,5)"),
    "NULLS NOT DISTINCT": Feature(15, "CREATE TABLE b (id int, UNIQUE NULLS NOT DISTINCT (id))"),
    "pg_stat_force_next_flush": Feature(15, "SELECT pg_stat_force_next_flush()"),
    "strategies and locale providers of databases": Feature(
        15, "SELECT datlocprovider FROM pg_database"
    ),
    "scans of page ranges": Feature(
        14,
        "DO $$ DECLARE plan text; BEGIN EXECUTE 'EXPLAIN SELECT FROM a WHERE ctid > ''(0,1)''::tid'"
        " INTO plan; IF plan NOT LIKE 'Tid Range Scan%' THEN RAISE 'not scanned'; END IF; END $$",
    ),
    "infinite numerics": Feature(14, "SELECT 'infinity'::numeric"),
    "arrays of catalogs' rows": Feature(14, "SELECT NULL::pg_class[]"),
    "multiranges": Feature(14, "SELECT '{[1,3)}'::int4multirange"),
    "idle_session_timeout": Feature(14, "SET idle_session_timeout = 0"),
    "xid8": Feature(13, "SELECT '1'::xid8"),
    "limits of kept log": Feature(13, "SHOW max_slot_wal_keep_size"),
    "publishing by the root": Feature(
        13, "CREATE PUBLICATION p WITH (publish_via_partition_root = true)"
    ),
    "forced drops of databases": Feature(13, "DROP DATABASE IF EXISTS nowhere WITH (FORCE)"),
}

VERSION = installation.version()


def has(feature: str) -> bool:
    """Whether the tests' servers have a feature."""
    return FEATURES[feature].since <= VERSION


def known(kind: str) -> bool:
    """Whether the tests' servers have a type, given as SQL writes it."""
    scaled = re.match(r"numeric\((\d+), ?(-?\d+)\)", kind)
    odd = scaled is not None and not 0 <= int(scaled[2]) <= int(scaled[1])
    feature = ODD_SCALES if odd else {"int4multirange": "multiranges"}.get(kind, kind)
    return feature not in FEATURES or has(feature)


def _owned(program: str) -> bool:
    try:
        place = installation.binary(program)
    except ConfigError:
        return False
    return place.parent == installation.binary("postgres").parent


def with_program(program: str) -> pytest.MarkDecorator:
    """Leaves a test out where the server comes without a program that has to be of its version."""
    reason = f"this PostgreSQL {VERSION} comes without {program}"
    return pytest.mark.skipif(not _owned(program), reason=reason)


def since(*features: str) -> pytest.MarkDecorator:
    """Leaves a test out, by name, where the server lacks one of the features that it is about."""
    lacking = [feature for feature in features if not has(feature)]
    reason = f"PostgreSQL {VERSION} has no {' and no '.join(lacking)}"
    return pytest.mark.skipif(bool(lacking), reason=reason)
