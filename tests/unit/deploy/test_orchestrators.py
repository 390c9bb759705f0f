"""The files for Airflow, Dagster and Prefect: without these tools, whether they fit bronze."""

from __future__ import annotations

import ast
from typing import Any

import click
import pytest
import typer

from bronze import errors
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.deploy import jobs, writer
from bronze.model.results import EXIT_CODES
from tests.unit.deploy.configs import settings

FILES = [
    ("airflow", "dags/bronze_taskflow.py"),
    ("airflow", "dags/bronze_bash.py"),
    ("dagster", "bronze_definitions.py"),
    ("prefect", "bronze_flows.py"),
]


def constants(text: str) -> dict[str, Any]:
    """The values of the names in capitals that are literals."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


@pytest.mark.parametrize(("target", "name"), FILES)
def test_jobs_are_commands_of_bronze_on_their_schedules(target: str, name: str) -> None:
    """The file compiles, and each job is one that the command line can parse, with --json."""
    text = writer.render(settings(), target)[name]
    compile(text, name, "exec")
    listed = constants(text)["JOBS"]
    assert listed == [[job.name, job.cron, list(job.arguments)] for job in jobs.jobs_of(settings())]
    assert '"UTC"' in text
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    for _, _, (command, *arguments) in listed:
        known = group.commands[command]
        given = [*arguments, "--config", "bronze.toml", "--json"]
        assert known.make_context(command, given).params["as_json"]


@pytest.mark.parametrize(("target", "name"), [one for one in FILES if "bash" not in one[1]])
def test_what_is_retried_is_what_bronze_says_can_help(target: str, name: str) -> None:
    """The exit codes of errors that can pass, and that of a command that was stopped; not 1, with
    which tables have failed for reasons of their own, and not 2, a wrong config.
    """
    retried = constants(writer.render(settings(), target)[name])["RETRIED"]
    kinds = [getattr(errors, kind) for kind in EXIT_CODES]
    passing = {EXIT_CODES[kind.__name__] for kind in kinds if kind.retry}
    assert set(retried) == {*passing, EXIT_CODES["Stopped"]}
    assert errors.ConfigError("").exit_code not in retried
    assert errors.QualityRefused("").exit_code not in retried


def test_names_with_quotes_and_braces_stay_texts_of_python() -> None:
    """The name of a table cannot end the text that it is in."""
    name = 'a"b\\{x}\u2028\nc'
    document = {
        "source": {"dsn": "postgresql://db/shop"},
        "lake": {"root": "lake"},
        "tables": {name: {"pattern": "batch", "schedule": "hourly"}},
    }
    for target, file in FILES:
        text = writer.render(Settings.from_dict(document), target)[file]
        assert ["run", name] in [job[2] for job in constants(text)["JOBS"]]
