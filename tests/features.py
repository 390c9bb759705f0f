"""What tests need of PostgreSQL that its older versions lack, each by its name.

A test, or a part of one, is left out on older servers only by naming such a feature; that each
server has just those that are said here is a test of its own (`tests.test_versions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from bronze.demo import server


@dataclass(frozen=True)
class Feature:
    """The first version that has it, and a statement that succeeds only there.

    The statement finds a table ``a`` with the columns ``id`` and ``g``, ``g`` being generated.
    """

    since: int
    statement: str


_EMPTY_PUBLICATION = "CREATE PUBLICATION p WITH (publish_generated_columns = stored)"
FEATURES: Mapping[str, Feature] = {
    "virtual generated columns": Feature(
        18, "CREATE TABLE b (id int, g int GENERATED ALWAYS AS (id) VIRTUAL)"
    ),
    "generated columns in publications": Feature(18, _EMPTY_PUBLICATION),
    "SET EXPRESSION": Feature(17, "ALTER TABLE a ALTER g SET EXPRESSION AS (id + 1)"),
    "infinite intervals": Feature(17, "SELECT interval 'infinity'"),
    "transaction_timeout": Feature(17, "SET transaction_timeout = 0"),
    "failover slots": Feature(17, "SELECT failover FROM pg_replication_slots"),
    "invalidation_reason": Feature(17, "SELECT invalidation_reason FROM pg_replication_slots"),
    "row filters of publications": Feature(15, "CREATE PUBLICATION p FOR TABLE a WHERE (id > 1)"),
    "column lists of publications": Feature(15, "CREATE PUBLICATION p FOR TABLE a (id)"),
    "schemas in publications": Feature(15, "CREATE PUBLICATION p FOR TABLES IN SCHEMA public"),
    "negative scales of numerics": Feature(15, "SELECT 1::numeric(5,-2)"),
    "scales of numerics beyond their precision": Feature(15, "SELECT 0.001::numeric(3,5)"),
    "NULLS NOT DISTINCT": Feature(
        15, "CREATE TABLE b (id int, UNIQUE NULLS NOT DISTINCT (id))"
    ),
    "pg_stat_force_next_flush": Feature(15, "SELECT pg_stat_force_next_flush()"),
    "strategies and locale providers of databases": Feature(
        15, "SELECT datlocprovider FROM pg_database"
    ),
    "multiranges": Feature(14, "SELECT '{[1,3)}'::int4multirange"),
    "idle_session_timeout": Feature(14, "SET idle_session_timeout = 0"),
    "xid8": Feature(13, "SELECT '1'::xid8"),
    "limits of kept log": Feature(13, "SHOW max_slot_wal_keep_size"),
    "publishing by the root": Feature(
        13, "CREATE PUBLICATION p WITH (publish_via_partition_root = true)"
    ),
    "forced drops of databases": Feature(13, "DROP DATABASE IF EXISTS nowhere WITH (FORCE)"),
}

VERSION = server.version()


def has(feature: str) -> bool:
    """Whether the tests' servers have a feature."""
    return FEATURES[feature].since <= VERSION


def since(*features: str) -> pytest.MarkDecorator:
    """Leaves a test out, by name, where the server lacks one of the features that it is about."""
    lacking = [feature for feature in features if not has(feature)]
    reason = f"PostgreSQL {VERSION} has no {' and no '.join(lacking)}"
    return pytest.mark.skipif(bool(lacking), reason=reason)
