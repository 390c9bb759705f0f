"""The metrics for Prometheus."""

from __future__ import annotations

from dataclasses import replace

from bronze.operate.view import DrillFacts
from bronze.operate.web import exposition
from tests.support.operators import at
from tests.unit.operate.test_conditions import FINE, LANDED, ORDERS, view_at


def test_the_last_drill_has_metrics() -> None:
    """Whether it passed, when it was, how long it took and what it lacked; none without a drill."""
    facts = DrillFacts(at(0), True, 61.5, 30.0)
    view = view_at(5, [ORDERS], LANDED, replace(FINE, drill=facts))
    values = {
        family.name: family.samples[0].value
        for family in exposition.families(view)
        if family.name.startswith("bronze_drill")
    }
    assert values == {
        "bronze_drill_passed": 1,
        "bronze_drill_age_seconds": (view.now - at(0)).total_seconds(),
        "bronze_drill_recovery_seconds": 61.5,
        "bronze_drill_lost_seconds": 30.0,
    }
    plain = view_at(5, [ORDERS], LANDED)
    assert not [f for f in exposition.families(plain) if "drill" in f.name]
