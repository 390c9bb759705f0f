"""Help, the version and options of commands, without a source."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bronze.cli import groups, options
from bronze.cli.main import app
from bronze.dsn import dsn_of_environment
from bronze.errors import ConfigError
from bronze.version import VERSION


def help_of(*names: str) -> str:
    """The help of a command."""
    result = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    return result.stdout


def test_the_version_is_printed() -> None:
    """Without a command."""
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"bronze {VERSION}\n")


def test_the_overview_is_in_the_order_of_a_newcomer() -> None:
    """Groups of commands, and how shells complete them."""
    text = help_of()
    panels = (groups.BEGIN, groups.LOAD, groups.TRUST, groups.OPERATE, groups.RECOVER)
    begin, load, *others = (f"─ {panel} ─" for panel in panels)
    order = (begin, "│ demo", "│ init", "│ check", load, "│ run", *others, "--install-completion")
    places = [text.index(name) for name in order[:-1]] + [text.rindex(order[-1])]
    assert places == sorted(places)
    assert "─ Commands ─" not in text


def test_each_command_has_an_example() -> None:
    """Also those in groups of their own."""
    command = typer.main.get_command(app)
    found = 0
    for name, child in command.commands.items():  # type: ignore[attr-defined]
        children = getattr(child, "commands", None) or {"": child}
        for inner in children:
            names = [part for part in (name, inner) if part]
            assert f"Example: bronze {' '.join(names)}" in help_of(*names), names
            found += 1
    assert found > 20


def test_help_shows_names_in_brackets() -> None:
    """They are no markup."""

    def work() -> None:
        """Uses [protection] key."""

    own = typer.Typer()
    groups.add(own, groups.LOAD, work, "bronze work [x]")
    text = CliRunner().invoke(own, ["--help"]).stdout
    assert "Uses [protection] key." in text
    assert "Example: bronze work [x]" in text


@pytest.mark.parametrize(
    ("variables", "dsn"),
    [
        ({"PGHOST": "db", "PGUSER": "u", "PGDATABASE": "d"}, "host=db user=u dbname=d"),
        ({"PGSERVICE": "shop", "PGPASSWORD": "secret"}, "service=shop"),
        ({"PGDATABASE": "it's"}, r"dbname=it\'s"),
    ],
)
def test_libpq_variables_name_the_database(variables: dict[str, str], dsn: str) -> None:
    """Never with the password."""
    assert dsn_of_environment(variables) == dsn


@pytest.mark.parametrize("variables", [{}, {"PGUSER": "u", "PGPASSWORD": "p"}, {"PGHOST": ""}])
def test_without_a_database_init_says_how_to_name_one(variables: dict[str, str]) -> None:
    """A user alone is no database."""
    with pytest.raises(ConfigError) as caught:
        dsn_of_environment(variables)
    assert "bronze init postgresql://" in caught.value.hint


def test_a_database_is_given_once(tmp_path: Path) -> None:
    """As an argument or as an option."""
    result = CliRunner().invoke(
        app, ["init", "host=a", "--dsn", "host=b", "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 2
    assert "given twice" in result.stderr


@pytest.mark.parametrize(
    ("terminal", "yes", "answer", "asked", "done"),
    [
        (True, False, True, True, True),
        (True, False, False, True, False),
        (True, True, False, False, True),
        (False, False, False, False, True),
    ],
)
def test_only_terminals_are_asked(
    terminal: bool,
    yes: bool,
    answer: bool,
    asked: bool,
    done: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not with --yes; a no does nothing."""
    questions: list[str] = []

    def confirm(question: str, err: bool) -> bool:
        questions.append(question)
        return answer

    monkeypatch.setattr("bronze.cli.options.typer.confirm", confirm)
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    refusal = nullcontext() if done else pytest.raises(typer.Exit)
    with refusal:
        options.confirm("Drop \x1bit?", yes)
    assert questions == (["Drop \\x1bit?"] if asked else [])


def test_a_wrong_config_is_an_error_before_large_imports(tmp_path: Path) -> None:
    """So that it comes at once."""
    (tmp_path / "bronze.toml").write_text("[source]\nnme = 1\n")
    code = (
        "import sys, atexit\n"
        "from bronze.cli.main import main\n"
        "atexit.register(lambda: print([m for m in ('polars', 'deltalake', 'connectorx', 'psycopg',"
        " 'sklearn', 'pyarrow') if m in sys.modules]))\n"
        "sys.argv = ['bronze', 'run']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 2, done.stderr
    assert "nme" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["runbook"], ["now", "--hlp"]])
def test_no_variable_makes_a_terminal_of_a_file(arguments: list[str]) -> None:
    """Help, output and errors have no codes of terminals, although rich is asked for them."""
    done = subprocess.run(
        [sys.executable, "-m", "bronze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
