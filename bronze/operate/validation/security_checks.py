"""Personal columns without protection, the audit log, TLS to the sources, secrets in the config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bronze.api.check import CheckReport
from bronze.config.fields import is_secret_option
from bronze.config.settings import Settings
from bronze.dsn import parse_dsn
from bronze.errors import BronzeError, ConfigError
from bronze.governance import audit_proof
from bronze.operate.doctor import examination, source_checks
from bronze.operate.validation.results import CheckResult, Measure, faults
from bronze.operate.view import TableView
from bronze.printable import count

_USERINFO = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_CLEAR = "is in the config in clear"


def personal(
    checked: CheckReport | BronzeError, tables: Sequence[TableView]
) -> Iterator[CheckResult]:
    """Whether the columns of each table that look personal are protected, or "clear" on purpose."""
    measure = Measure("security", "personal data", "faults", "at most", 0)
    if isinstance(checked, BronzeError):
        yield from (measure.unknown(table.target, checked) for table in tables)
        return
    reports = {report.target: report for report in checked.tables}
    for table in tables:
        report = reports.get(table.target)
        if report is None:
            yield measure.unknown(table.target, f"The source has no table {table.table} now.")
            continue
        yield faults(
            "security",
            "personal data",
            table.target,
            [f"{name} looks personal and is not protected" for name in report.unprotected],
            "no column looks personal and is not protected",
            '`bronze check` proposes how to protect them; "clear" means on purpose.',
        )


def audit_log(settings: Settings) -> CheckResult:
    """Whether the audit log is complete and unchanged, by `bronze audit --verify`."""
    measure = Measure("security", "audit log", "faults", "at most", 0)
    try:
        report = audit_proof.report(settings, verify=True)
    except BronzeError as error:
        return measure.unknown("lake", error)
    if not report.count and not report.problems:
        return measure.unknown("lake", "There is no audit log yet.")
    known = count(report.vouching, "table knows", "tables know")
    well = f"{count(report.count, 'record')} in an unbroken chain; {known} of it"
    hint = "`bronze runbook audit_broken` has the steps."
    return faults("security", "audit log", "lake", report.problems, well, hint)


def encryption(settings: Settings) -> Iterator[CheckResult]:
    """Whether the connection to each source is encrypted, or stays on this machine."""
    measure = Measure("security", "TLS", "faults", "at most", 0)
    checks = [source_checks.check(settings, name) for name in settings.source]
    findings = {one.check: one for one in examination.examine(checks)}
    for name, check in zip(settings.source, checks, strict=True):
        finding = findings[check.name("tls")]
        if finding.state in ("ok", "warning"):
            fault = int(finding.state == "warning")
            yield measure.result(name, fault, finding.message, finding.hint)
            continue
        problem = next((one for one in findings.values() if one.state == "problem"), finding)
        yield measure.unknown(name, problem.message)


def secrets_in_config(settings: Settings) -> CheckResult:
    """Whether passwords, keys and tokens are named in the config, not written into it."""
    return faults(
        "security",
        "secrets",
        "config",
        [f"{place} {_CLEAR}" for place in clear_secrets(settings)],
        "no password, key or token is in the config in clear",
        'Write { secret = "NAME" } instead, and change what could be read.',
    )


def clear_secrets(settings: Settings) -> Iterator[str]:
    """The places of the config with a secret in clear."""
    for name, source in settings.source.items():
        if isinstance(source.dsn, str) and _has_password(source.dsn, name):
            yield f"the password in source.{name}.dsn"
    for option, value in settings.lake.options.items():
        if isinstance(value, str) and is_secret_option(option):
            yield f"lake.options.{option}"
    document = settings.model_dump(exclude={"source": True, "tables": True, "added": True})
    for path, text in _texts(document):
        if _USERINFO.match(text):
            yield f"the password in the URL {path}"


def _has_password(dsn: str, name: str) -> bool:
    try:
        return "password" in parse_dsn(dsn, name)
    except ConfigError:
        return bool(_USERINFO.match(dsn))


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a document with their places."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value
