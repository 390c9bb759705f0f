"""The commands about the service: alerts, doctor, runbook."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.groups import epilog
from bronze.cli.options import AsJson, Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bronze.operate.alerts.requests import AlertReport
    from bronze.operate.alerts.trial import Trial
    from bronze.operate.runbook import Contents

_DEFAULT = Path("bronze.toml")


def doctor(
    checks: Annotated[
        list[str] | None,
        typer.Argument(help="Checks: source, lake, channels, …, or a line of it; all if none."),
    ] = None,
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Find out what is wrong with config, source, lake and machine, within seconds."""
    from bronze.cli import output
    from bronze.cli.screens import reports
    from bronze.operate.doctor.diagnosis import diagnose

    with exit_codes(as_json):
        report = diagnose(config, checks or ())
        output.print_result(report) if as_json else reports.diagnosis(report)
        raise typer.Exit(report.exit_code)


def runbook(
    name: Annotated[
        str, typer.Argument(help="A scenario or a kind of alert; the list of them if none.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what to do about an alert, step by step."""
    from bronze.cli.output import print_json, print_markdown
    from bronze.operate import runbook as books

    with exit_codes(as_json):
        if as_json:
            print_json(
                {"text": books.text(name)} if name else [asdict(b) for b in books.contents()]
            )
        elif name:
            print_markdown(books.text(name))
        else:
            _print_contents(books.contents())


alerts_app = typer.Typer(
    help="What is wrong, who was told, and who sees to it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@alerts_app.command("list", epilog=epilog("bronze alerts list --all"))
def list_alerts(
    everything: Annotated[
        bool, typer.Option("--all", help="Resolved ones as well, the last of each.")
    ] = False,
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the open alerts, from the lake."""
    from bronze.cli.output import print_json
    from bronze.config.settings import Settings
    from bronze.operate.alerts import requests

    with exit_codes(as_json):
        reports = requests.alerts(Settings.from_file(config), resolved=everything)
        if as_json:
            print_json([asdict(report) for report in reports])
        else:
            _print_alerts(reports)


@alerts_app.command(epilog=epilog("bronze alerts ack table_failed:shop.orders"))
def ack(
    alert: Annotated[str, typer.Argument(help="kind:subject, as the list has it, or an id.")],
    reason: Annotated[str, typer.Option(help="What you do about it.")] = "",
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say that you see to an alert: nobody else is told of it."""
    from bronze.cli.output import print_line, print_result
    from bronze.config.settings import Settings
    from bronze.operate.alerts import requests

    with exit_codes(as_json):
        record = requests.acknowledge(Settings.from_file(config), alert, reason)
        if as_json:
            print_result(record)
        else:
            print_line(f"{record.subject} is acknowledged by {record.actor}.")


@alerts_app.command(
    epilog=epilog('bronze alerts silence "table_failed:*" --until 2h --reason migration')
)
def silence(
    alerts: Annotated[str, typer.Argument(help='kind:subject, with patterns: "table_failed:*".')],
    until: Annotated[str, typer.Option(help='The end: "2h", or an ISO date or time.')],
    reason: Annotated[str, typer.Option(help="Why.")],
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Tell nobody of some alerts until a time; what is still open then is told."""
    from bronze.cli.output import print_line, print_result
    from bronze.config.settings import Settings
    from bronze.operate.alerts import requests

    with exit_codes(as_json):
        end = end_of(until)
        record = requests.silence(Settings.from_file(config), alerts, end, reason)
        if as_json:
            print_result(record)
        else:
            print_line(f"Nobody is told of {record.subject} until {_time(end)}.")


@alerts_app.command("test", epilog=epilog("bronze alerts test"))
def try_channels(config: Config = _DEFAULT, as_json: AsJson = False) -> None:
    """Open and resolve a real alert by every channel, and print what each answers."""
    from bronze.cli.output import print_json
    from bronze.config.settings import Settings
    from bronze.operate.alerts import trial

    with exit_codes(as_json):
        result = trial.try_channels(Settings.from_file(config))
        print_json(asdict(result)) if as_json else _print_trial(result)
        raise typer.Exit(result.exit_code)


def end_of(text: str) -> datetime:
    """The time that an option like "2h" or an ISO date means.

    Raises:
        ConfigError: it is not a time.
    """
    from datetime import timedelta

    from bronze.config.fields import to_seconds
    from bronze.errors import ConfigError

    try:
        return datetime.now(UTC) + timedelta(seconds=float(str(to_seconds(text))))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.astimezone()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is not a time.", hint='It looks like "2h", "30m", or "2026-05-01T08:00".'
        ) from None


def _print_contents(contents: Sequence[Contents]) -> None:
    from bronze.cli.output import print_line

    for book in contents:
        print_line(f"{book.scenario}: somebody answers within {book.respond}", "bold")
        for kind in book.kinds:
            print_line(f"  {kind}")
    print_line("\n`bronze runbook NAME` has the steps of a scenario, or of a kind of alert.")


def _print_alerts(reports: list[AlertReport]) -> None:
    from bronze.cli.output import print_line
    from bronze.operate.facts.wording import clause

    if not reports:
        print_line("No alert is open.")
    for report in reports:
        style = "red" if report.level == "critical" and report.state == "open" else None
        # What is to be copied into another command is not broken into lines.
        print_line(f"{report.alert}  {report.level}, {_state(report)}", style, whole=True)
        told = f"told: {', '.join(report.told)}" if report.told else "nobody was told"
        waiting = f"; waiting: {', '.join(report.waiting)}" if report.waiting else ""
        print_line(f"  {clause(report.text)}, since {_time(report.since)}; {told}{waiting}")


def _state(report: AlertReport) -> str:
    if report.state == "acknowledged":
        return f"acknowledged by {report.acknowledged_by}"
    if report.state == "open" and report.silenced_until:
        return f"silenced until {_time(report.silenced_until)}"
    return report.state


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _print_trial(trial: Trial) -> None:
    from bronze.cli.output import print_error, print_line

    for answer in trial.answers:
        name = f"{answer.channel} ({answer.kind})"
        if answer.error:
            print_error(f"{name}: {answer.error}")
        else:
            print_line(f"{name}: opened: {answer.opened}; resolved: {answer.resolved}")
    if trial.unstored:
        print_error(f"The alert was not stored: {trial.unstored}")
