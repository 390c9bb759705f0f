"""Which checks belong to which kind of alert."""

from __future__ import annotations

from bronze.config import loading
from bronze.operate.alerts.kinds import KINDS
from bronze.operate.doctor import diagnosis
from bronze.operate.doctor.causes import CHECKS


def test_every_kind_has_its_checks_and_every_check_exists() -> None:
    """The table has all kinds and no others, and names that a full config has."""
    assert set(CHECKS) == set(KINDS)
    settings = loading.parse(
        {
            "source": {"dsn": "postgresql://localhost/x", "password": {"secret": "P"}},
            "lake": {"root": "lake"},
        }
    )
    available = diagnosis.checks(settings)
    known = {name for check in available for step in check.steps for name in check.selectors(step)}
    assert {name for names in CHECKS.values() for name in names} <= known


def test_all_groups_are_in_their_order() -> None:
    """The list of groups is that of the checks."""
    settings = loading.parse(
        {
            "source": {"dsn": "postgresql://localhost/x", "password": {"secret": "P"}},
            "lake": {"root": "lake"},
            "alerts": {"heartbeat": "https://localhost/"},
        }
    )
    groups = list(dict.fromkeys(check.group for check in diagnosis.checks(settings)))
    assert groups == list(diagnosis.GROUPS)
