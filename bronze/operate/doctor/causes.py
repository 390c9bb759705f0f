"""Why something is wrong: the checks that belong to a kind of alert, run when it opens."""

from __future__ import annotations

from collections.abc import Mapping

from bronze.config.settings import Settings
from bronze.operate.alerts.kinds import CHANNEL, TEST
from bronze.operate.alerts.life import Condition
from bronze.operate.doctor import diagnosis
from bronze.operate.doctor.examination import LIMIT, Check

_WITH_SUBJECTS = ("source", "channels")
"""The groups whose subjects are subjects of alerts, too."""
_LATE = ("source", "lake", "memory")
_FAILED = ("secrets", "source", "lake")

CHECKS: Mapping[str, tuple[str, ...]] = {
    "freshness": _LATE,
    "quality": (),
    "duration": _LATE,
    "failed_records": (),
    "resources": ("memory", "lake.space"),
    "will_be_late": _LATE,
    "table_failed": _FAILED,
    "table_quarantined": _FAILED,
    "schema_refused": ("source.rights",),
    "verify_differs": ("governance", "audit"),
    "stream_down": ("secrets", "source"),
    "slot_retains": ("source", "lake"),
    "slot_lost": ("source",),
    "source_unreachable": ("secrets", "source"),
    "lake_unreachable": ("secrets", "lake"),
    "lake_slow": ("lake",),
    "lake_full": ("lake",),
    "backup_failed": ("lake",),
    "drill_failed": ("secrets", "lake"),
    "audit_broken": ("lake", "governance", "audit"),
    "keys_missing": ("secrets",),
    "personal_data": (),
    "process_crashed": ("memory", "versions"),
    "clock_jumped": ("source.clock",),
    CHANNEL: ("secrets", "channels"),
    "config_invalid": ("config",),
    TEST: (),
}
"""By the kind of an alert the checks that may find its cause; none where the alert has it."""


def why(settings: Settings, condition: Condition, limit: float = LIMIT) -> tuple[str, ...]:
    """Sentences about problems and warnings that may be the cause of a condition.

    Where the condition's subject is a source or a channel, others are not looked at.

    Args:
        settings: the config.
        condition: what is wrong.
        limit: the seconds for each check, which run side by side.
    """
    available = diagnosis.checks(settings)
    known = {name for c in available for step in c.steps for name in c.selectors(step)}
    names = [name for name in CHECKS.get(condition.kind, ()) if name in known]
    if not names:
        return ()
    selected = diagnosis.select(available, names)
    if any(_is_about(check, condition) for check in selected):
        selected = [c for c in selected if c.group not in _WITH_SUBJECTS or _is_about(c, condition)]
    findings = diagnosis.findings(settings, selected, names, limit)
    messages = (f.message for f in findings if f.state in ("problem", "warning"))
    return tuple(dict.fromkeys(messages))


def _is_about(check: Check, condition: Condition) -> bool:
    return check.group in _WITH_SUBJECTS and check.subject == condition.subject
