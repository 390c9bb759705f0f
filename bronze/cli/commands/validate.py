"""The command `bronze validate`: the checks of a lake, for people and for CI systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes

if TYPE_CHECKING:
    from bronze.operate.validation.results import CheckResult, ValidationResult

_STYLES = {"pass": None, "fail": "red", "unknown": "yellow"}


def validate(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables (table or schema.table); all of the lake if none."),
    ] = None,
    config: Annotated[
        Path, typer.Option("-c", "--config", envvar="BRONZE_CONFIG", help="The config file.")
    ] = Path("bronze.toml"),
    read_within: Annotated[
        str, typer.Option("--read-within", help="The limit of a small read of each table.")
    ] = "5s",
    junit: Annotated[
        Path | None, typer.Option(help="Also write the checks as JUnit XML into this file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, nothing else.")
    ] = False,
) -> None:
    """Measure quality, schema, performance and security of the lake; exit 1 if a check fails."""
    from bronze.cli import output
    from bronze.config.settings import Settings
    from bronze.operate.validation import junit as xml
    from bronze.operate.validation import validate as validation

    with exit_codes(as_json):
        settings = Settings.from_file(config)
        result = validation.validate(settings, tables or (), _seconds(read_within))
        if junit:
            xml.write(result, junit)
        output.print_result(result) if as_json else _print(result)
        raise typer.Exit(result.exit_code)


def _seconds(text: str) -> float:
    from bronze.config.fields import to_seconds
    from bronze.errors import ConfigError

    try:
        return float(str(to_seconds(text)))
    except ValueError as error:
        raise ConfigError(f"--read-within {text!r}: {error}.") from None


def _print(result: ValidationResult) -> None:
    from bronze.cli.output import print_error, print_line

    for group in dict.fromkeys(check.group for check in result.checks):
        print_line(group, "bold")
        of_group = [check for check in result.checks if check.group == group]
        for name in dict.fromkeys(check.name for check in of_group):
            same = [check for check in of_group if check.name == name]
            passed = [check for check in same if check.state == "pass"]
            for line in _passed(passed):
                print_line(line)
            for check in same:
                if check.state != "pass":
                    for line in _lines(check):
                        print_line(line, _STYLES[check.state])
    counts = [f"{result.count(state)} {state}" for state in ("pass", "fail", "unknown")]
    print_line(f"\n{', '.join(counts)} of {result.lake} in {result.seconds:.1f} s.")
    if result.unrecorded:
        print_error(f"It is not recorded: {result.unrecorded.message}", result.unrecorded.hint)


def _passed(checks: Sequence[CheckResult]) -> Iterator[str]:
    """One check alone as it is, several in one line: the document of --json has each."""
    if len(checks) == 1:
        yield from _lines(checks[0])
    elif checks:
        yield f"  {'pass':7} {checks[0].name} of {len(checks)}"


def _lines(check: CheckResult) -> Iterator[str]:
    from bronze.operate.validation.results import figure

    subject = f" of {check.subject}" if check.subject else ""
    demand = (
        f" ({check.demand} {figure(check.limit, check.unit)})" if check.unit != "faults" else ""
    )
    value = "" if check.value is None else f" {figure(check.value, check.unit)}"
    shown = "" if check.unit == "faults" else value + demand
    yield f"  {check.state:7} {check.name}{subject}:{shown} {check.text}"
    if check.hint and check.state != "pass":
        yield f"          {check.hint}"
