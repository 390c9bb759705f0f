"""What a scheduler outside of bronze runs, and when."""

from __future__ import annotations

import re

import pytest

from bronze.deploy import jobs
from bronze.deploy.jobs import Job
from tests.unit.deploy.configs import settings


def test_there_is_a_job_for_each_pattern_and_each_schedule_of_a_table() -> None:
    """With the requirement's schedules by default; the stream is no job of a schedule."""
    scheduled = {job.name: (" ".join(job.arguments), job.cron) for job in jobs.jobs_of(settings())}
    assert scheduled == {
        "micro-batch": ("run --pattern micro_batch", "0 * * * *"),
        "batch": ("run --pattern batch", "0 2 * * *"),
        "full-refresh": ("run --pattern full_refresh", "0 3 * * *"),
        "table-stock-levels": ("run stock_levels", "*/15 * * * *"),
        "table-products": ("run products", "30 5 * * 0"),
        "maintain": ("maintain", "30 4 * * *"),
        "verify": ("verify", "0 5 * * 0"),
        "validate": ("validate", "0 6 * * *"),
    }
    assert jobs.is_streaming(settings())


def test_a_pattern_without_tables_has_no_job() -> None:
    """Tables without a section are of the default pattern, unless all of them have one."""
    listed = {"dsn": "postgresql://db/shop", "tables": ["orders"]}
    only = settings(source=listed, tables={"orders": {"pattern": "batch"}})
    assert [job.name for job in jobs.jobs_of(only)] == ["batch", "maintain", "verify", "validate"]
    any_ = settings(source={"dsn": "postgresql://db/shop"}, tables={})
    assert jobs.jobs_of(any_)[0].name == "full-refresh"


@pytest.mark.parametrize(
    ("cron", "quartz"),
    [
        ("0 2 * * *", "0 0 2 * * ?"),
        ("*/15 * * * *", "0 */15 * * * ?"),
        ("0 5 * * 0", "0 0 5 ? * SUN"),
        ("0 5 * * 7", "0 0 5 ? * SUN"),
        ("0 5 * * 1-5", "0 0 5 ? * MON-FRI"),
        ("0 5 * * mon,3", "0 0 5 ? * MON,WED"),
        ("30 4 1 * *", "0 30 4 1 * ?"),
    ],
)
def test_quartz_counts_days_from_sunday_and_needs_a_question_mark(cron: str, quartz: str) -> None:
    """Days of the week are written by name."""
    assert Job("job", (), cron).quartz == quartz


def test_tables_with_similar_names_have_jobs_of_their_own() -> None:
    """Names differ, and fit into those of Kubernetes, whatever the tables are called."""
    names = ["s.a_b", "s.a_b_3", "s.a-b", "S.A B", "long" * 30, "long" * 40, "\u00e9"]
    tables = {name: {"pattern": "batch", "schedule": "hourly"} for name in names}
    scheduled = jobs.jobs_of(settings(tables=tables))
    assert {job.arguments for job in scheduled} >= {("run", name) for name in names}
    assert len({job.name for job in scheduled}) == len(scheduled)
    for job in scheduled:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", job.name)
        assert len(f"bronze-{job.name}") <= 52
