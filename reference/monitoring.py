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
What the service tells to others. [metrics.md](metrics.md) defines what the five metrics mean,
and when a table is late."""


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
        "Monitoring",
        _INTRODUCTION,
        "## Metrics for Prometheus",
        "At `/metrics` of the dashboard ([web] listen); what is unknown is left out. Besides these"
        " there are the usual ones of the process (`process_…`) and of Python (`python_…`).",
        table(("metric", "meaning", "labels"), metrics),
        "## Kinds of alerts",
        "`bronze runbook KIND` has the steps. Of the five metrics, `[alerts]` sets the level.",
        table(("kind", "level", "scenario", "what bronze does by itself"), kinds),
        "## Scenarios",
        "Within which time somebody acknowledges an alert, before the next of the path is told;"
        " `[alerts.scenarios]` sets it.",
        table(("scenario", "default"), times),
    )
