"""docs/reference/monitoring.md: the metrics for Prometheus, and the kinds of alerts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from bronze.config.sections.alerts import Scenarios
from bronze.operate.alerts.kinds import KINDS
from bronze.operate.view import DrillFacts
from bronze.operate.web.exposition import families
from reference.markdown import code, document, table
from tests.support import views

_INTRODUCTION = """\
The names of the service's metrics for Prometheus, the kinds of its alerts, and what is not alerted.
What the figures mean, and when a table is late, is in
[Lateness and the five metrics](lateness.md)."""
_EXPLAINED = """\
An outage explains what it brings about, so that it is one message: a source that cannot be
reached explains that its stream is down and its tables fail and are late; a lake that cannot be
reached explains everything; one that is slow (more than a second for a request, for 15 seconds)
explains what is late and what it has not answered in time. Where more than five tables of a
source have the same trouble, that is one alert, too. A table that is paused until a time is not
alerted as late; one that is paused without an end is, as it may have been forgotten. The
replication slot is raised when the server keeps more than `[stream] wal_budget` for it, or when
it is lost within six hours at the present rate."""


def page() -> str:
    """The page."""
    view = views.night(datetime(2026, 5, 1, 3, tzinfo=UTC))
    drill = DrillFacts(at=view.now, passed=True, recovery=1.0, lost=0.0)
    metrics = [
        (code(one.name), one.documentation, ", ".join(map(code, vars(one)["_labelnames"])))
        for one in families(replace(view, live=view.live and replace(view.live, drill=drill)))
    ]
    kinds = [
        (code(kind.name), kind.level, kind.scenario, kind.by_itself) for kind in KINDS.values()
    ]
    defaults = Scenarios()
    times = [
        (name, f"{getattr(defaults, name).respond // 60} min") for name in Scenarios.model_fields
    ]
    return document(
        "Metrics and alerts",
        _INTRODUCTION,
        "## Metrics for Prometheus",
        "At `/metrics` of the dashboard ([web] listen); what is unknown is left out. Besides these"
        " there are the usual ones of the process (`process_…`) and of Python (`python_…`).",
        table(("metric", "meaning", "labels"), metrics),
        "## Kinds of alerts",
        "`bronze runbook KIND` has the steps. Of the five metrics, `[alerts]` sets the level.",
        table(("kind", "level", "scenario", "what bronze does by itself"), kinds),
        "## When one alert stands for many",
        _EXPLAINED,
        "## Scenarios",
        "Within which time somebody acknowledges an alert, before the next of the path is told;"
        " `[alerts.scenarios]` sets it.",
        table(("scenario", "default"), times),
    )
