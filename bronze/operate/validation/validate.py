"""`bronze validate`: measures quality, schema, performance and security of a lake against limits.

Source and lake are only read. What the source is needed for is unknown where it cannot be reached,
and everything else is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from bronze.api import check
from bronze.api.check import CheckReport
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.governance import audit
from bronze.operate.validation import (
    performance_checks,
    quality_checks,
    schema_checks,
    security_checks,
)
from bronze.operate.validation.results import CheckResult, ValidationResult

READ_WITHIN = 5.0
"""Seconds within which a small read of a table has to end."""


def validate(
    settings: Settings, tables: Sequence[str] = (), read_within: float = READ_WITHIN
) -> ValidationResult:
    """Measures every check, and records the validation in the audit log.

    Args:
        settings: the config.
        tables: the tables; all that the config and the lake know without any.
        read_within: the limit of a small read, in seconds.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    began = time.monotonic()
    audit.refuse_newer_lake(settings, is_needed=False)
    views = quality_checks.tables_of(settings, tables, datetime.now(UTC))
    checked = _checked(settings, tables)
    checks: list[CheckResult] = [
        *quality_checks.checks(settings, views),
        *schema_checks.contract(checked, views),
        *schema_checks.at_rest(settings, views, tables),
        *performance_checks.checks(settings, views, read_within),
        *security_checks.personal(checked, views),
        security_checks.audit_log(settings),
        *security_checks.encryption(settings),
        security_checks.secrets_in_config(settings),
    ]
    seconds = time.monotonic() - began
    return _recorded(settings, tables, ValidationResult(settings.lake.root, seconds, tuple(checks)))


def _checked(settings: Settings, tables: Sequence[str]) -> CheckReport | BronzeError:
    """What `bronze check` finds, or why it finds nothing."""
    try:
        return check.check(settings, tables)
    except BronzeError as error:
        return error


def _recorded(
    settings: Settings, tables: Sequence[str], result: ValidationResult
) -> ValidationResult:
    failed = sorted({f"{c.name} of {c.subject}" for c in result.checks if c.state == "fail"})
    details = {
        "seconds": round(result.seconds, 3),
        **({"asked": list(tables)} if tables else {}),
        "passed": result.count("pass"),
        "unknown": result.count("unknown"),
        **({"failed": failed} if failed else {}),
    }
    try:
        outcome = "incomplete" if result.exit_code else "succeeded"
        audit.record(settings, "validate", "", outcome, details)
    except ConfigError:
        raise
    except BronzeError as error:
        return replace(result, unrecorded=error.failure())
    return result
