"""The JSON documents of commands that are more than their results: with a verdict, and without JSON
in strings.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bronze.api.check import CheckReport
    from bronze.governance.audit_proof import AuditReport
    from bronze.quality.report import QualityReport


def check(report: CheckReport) -> dict[str, Any]:
    """The document of `bronze check`."""
    verdict = {
        "ok": report.exit_code == 0,
        "tables": len(report.tables),
        "problems": len(report.problems),
        "warnings": report.warnings,
    }
    return {"verdict": verdict, **asdict(report)}


def quality(report: QualityReport) -> dict[str, Any]:
    """The document of `bronze quality`."""
    verdict = {
        "ok": report.exit_code == 0,
        "tables": len(report.tables),
        "unmet": sum(len(table.unmet) for table in report.tables),
        "stale": sum(not table.fresh for table in report.tables),
        "missing": len(report.missing),
    }
    return {"verdict": verdict, **asdict(report)}


def audit(report: AuditReport) -> dict[str, Any]:
    """The document of `bronze audit`; details are objects."""
    document = asdict(report)
    for record in document["records"]:
        # Text of another writer stays as it is.
        with suppress(TypeError, ValueError, RecursionError):
            record["details"] = json.loads(record["details"])
    return document
