"""The filters of a query log, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.delta.layout.choice import Queries
from bronze.errors import ConfigError
from bronze.maintenance import maintain, query_log

LOG = """
SELECT * FROM bronze.bz_orders WHERE customer_id = 42;
-- a comment; with a semicolon
SELECT o.total FROM orders AS o JOIN customers c ON o.customer_id = c.id AND c.city = 'Ulm'
WHERE o.ordered_at >= '2026-01-01' AND o.ordered_at < current_date AND total IN (1, 2);
SELECT 1 WHERE;;
this is no SQL at all (;
DELETE FROM orders WHERE 5 = id AND note LIKE 'a;
b%';
UPDATE orders SET total = 3 WHERE id BETWEEN 1 AND 5;
SELECT total = 1 FROM orders;
WITH w AS (SELECT * FROM orders WHERE Status = 'new')
SELECT * FROM w WHERE id = (SELECT max(id) FROM w);
"""


def test_filters_are_counted_by_table_and_column() -> None:
    """Comparisons with values in conditions, by their qualifier; joins of columns are none."""
    log = query_log.parse(LOG)
    assert dict(log.of("orders").points) == {"id": 1, "total": 1, "status": 1}
    assert dict(log.of("orders").ranges) == {"ordered_at": 2, "id": 1}
    assert dict(log.of("customers").points) == {"city": 1, "total": 1}
    assert dict(log.of("bz_orders", "nothing").points) == {"customer_id": 1}
    assert log.of("nothing") == Queries()
    assert log.skipped == 2
    # A text that is not closed hides nothing of the statements before it.
    broken = query_log.parse("SELECT 1 FROM t WHERE a = 1;\nSELECT 'x")
    assert (dict(broken.of("t").points), broken.skipped) == ({"a": 1}, 1)


def test_a_log_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    """Missing, a folder, no text."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("gone", ".", "bytes"):
        with pytest.raises(ConfigError, match="query log"):
            query_log.read(str(tmp_path / name))


def test_the_config_names_columns_or_auto(tmp_path: Path) -> None:
    """``"auto"`` is no column, ``["auto"]`` is one; renamed columns have their new names."""
    assert TableSettings.model_validate({"cluster_by": "auto"}).cluster_columns == ()
    assert TableSettings.model_validate({"cluster_by": ["auto"]}).cluster_columns == ("auto",)
    assert TableSettings.model_validate({"cluster_by": "a"}).cluster_columns == ("a",)
    with pytest.raises(ValueError, match="cluster_by"):
        TableSettings.model_validate({"cluster_by": list("abcde")})
    (tmp_path / "q.sql").write_text("SELECT * FROM t WHERE a = 1")
    settings = Settings.from_dict(
        {
            "source": {"name": "s", "dsn": "postgresql:///x"},
            "lake": {"root": str(tmp_path)},
            "maintain": {"queries": str(tmp_path / "q.sql")},
        }
    )
    own = TableSettings.model_validate({"cluster_by": "auto", "rename": {"A": "b"}})
    wish = maintain.layout_wish(settings, own, ("bz_t", "t"))
    assert wish.auto == Queries({"b": 1})
    assert wish.cluster_by == ()
