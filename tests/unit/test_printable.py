"""What leaves for a terminal shows, whatever the source or the lake hold."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from typer.testing import CliRunner

from bronze.cdc.stream import Step
from bronze.cli import render
from bronze.cli.main import app
from bronze.config import loading
from bronze.errors import ConfigError
from bronze.ingest.pipeline import Progress
from bronze.model.results import Failure, RunResult, TableResult
from bronze.printable import Visible, visible, visible_json
from tests.conftest import Source

EVIL = "a\x1b[2J\x9b31m\u202eb\x07\r\n\u2028c\x00\u200fd"
SHOWN = r"a\x1b[2J\x9b31m\u202eb"
RAW = set("\x1b\x9b\u202e\x07\r\u2028\x00\u200f")
TEXTS = st.text(st.characters(codec=None, exclude_categories=[]))


@settings(derandomize=True, database=None, deadline=None)
@given(TEXTS)
def test_every_character_shows(text: str) -> None:
    """Of any text nothing is left that a terminal obeys; what shows stays as it is."""
    made = visible(text)
    assert made.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in made)
    if text.isprintable():
        assert made == text


@settings(derandomize=True, database=None, deadline=None)
@given(TEXTS)
def test_json_is_the_same_and_shows(text: str) -> None:
    """The document has the same text, whose characters all show."""
    document = visible_json(json.dumps({"a": text}, ensure_ascii=False))
    assert document.isprintable()
    assert json.loads(document) == {"a": text}


def test_results_show(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, notes, errors, hints and values, in lines, tables, logs and JSON."""
    failure = Failure("LakeError", EVIL, EVIL, "")
    tables = (
        TableResult(EVIL, f"bronze.{EVIL}", "failed", error=failure, notes=(EVIL,)),
        TableResult(EVIL, f"bronze.{EVIL}", "landed", notes=(EVIL,)),
    )
    result = RunResult("b", 1, 1.0, tables, notes=(EVIL,), unrecorded=failure)
    render.run(result)
    render.document(result)
    with render.progress(False) as notify:
        for table in tables:
            notify(Progress(EVIL, 1, 1.0, table))
    steps = render.steps(False)
    steps(Step(1, note=EVIL))
    steps(Step(1, changes=1, tables=(EVIL,)))
    render.revealed(pl.DataFrame({EVIL: [EVIL]}), "")
    render.revealed(pl.DataFrame({EVIL: [EVIL]}), "json")
    out = capsys.readouterr()
    assert not RAW & set(out.out + out.err)
    assert out.out.count(SHOWN) >= 4
    assert out.err.count(SHOWN) >= 4


def test_csv_shows_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets the values as they are."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, raw in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr("sys.stdout", stream)
        render.revealed(pl.DataFrame({"x": ["\x1b[2J"]}), "csv")
        assert ("\x1b" in stream.getvalue()) is raw


def test_log_lines_show() -> None:
    """A record is one line."""
    form = Visible("%(levelname)s:%(message)s")
    made = form.format(logging.LogRecord("x", 30, "", 0, "a %s", (EVIL,), None))
    assert made.isprintable()
    assert made.startswith(f"WARNING:a {SHOWN}")


def test_a_traceback_in_a_log_shows() -> None:
    """It has its lines, and of the error's text what a terminal would obey is escaped."""
    error = (ValueError, ValueError(EVIL), None)
    made = Visible("%(message)s").format(logging.LogRecord("x", 30, "", 0, "a", (), error))
    first, *others = made.split("\n")
    assert first == "a"
    assert others[0].startswith(f"ValueError: {SHOWN}")
    assert all(line.isprintable() for line in others)


def test_a_source_cannot_write_to_the_terminal(source: Source, tmp_path: Path) -> None:
    """Escapes in names, comments and values reach no output of any command as they are."""
    name = "t\x1b]0;x\x07\u202e"
    table = sql.Identifier(name).as_string()
    source.execute(f'CREATE TABLE {table} (id int PRIMARY KEY, "v\x1b[31m" text, n numeric(5,2))')
    source.execute(f"COMMENT ON TABLE {table} IS 'a\x1b[2Jcomment\u202e'")
    source.execute(f"INSERT INTO {table} VALUES (1, 'x\x1b[2J', 1), (2, NULL, 'NaN')")
    source.execute("CREATE TABLE good (id int PRIMARY KEY)")
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
        '[tables."t\\u001b]0;x\\u0007\\u202e"]\ntarget = "bz_t"\n'
        'protect = { "v\\u001b[31m" = "encrypt" }\n'
    )
    runs = [
        ["check"],
        ["run"],
        ["verify"],
        ["maintain"],
        ["quality"],
        ["audit", "--verify"],
        ["keys"],
        ["reveal", "bz_t"],
        ["run", "no\x1b[2J"],
        ["init", "--dsn", source.dsn, "--out", str(tmp_path / "new.toml")],
    ]
    for arguments in runs:
        given = [] if arguments[0] == "init" else ["-c", str(file)]
        forms: list[list[str]] = [[], ["--json"]] if given else [[]]
        for form in forms:
            done = CliRunner().invoke(app, [*arguments, *given, *form])
            assert done.exit_code < 3, (arguments, done.output)
            assert not RAW & set(done.stdout + done.stderr), (arguments, form)
            if form:
                json.loads(done.stdout)
    assert not RAW & set((tmp_path / "new.toml").read_text())


@pytest.mark.parametrize(
    ("place", "document"),
    [
        ("tables.t.target", {"tables": {"t": {"target": "a\0"}}}),
        ("lake.root", {"lake": {"root": "a\0"}}),
        ("source.dsn", {"source": {"dsn": "postgresql://a\0/b"}}),
        ("tables.t.columns", {"tables": {"t": {"columns": ["a\0"]}}}),
        (
            "tables.t.rules.pattern",
            {"tables": {"t": {"rules": [{"column": "a", "pattern": "\0"}]}}},
        ),
        ("lake.options.key", {"lake": {"root": "x", "options": {"key": "\0"}}}),
        ("secrets.folder", {"secrets": {"provider": "file", "folder": "\0"}}),
        ("the name of the key tables.a", {"tables": {"a\0": {}}}),
    ],
)
def test_a_nul_in_the_config_is_said(place: str, document: dict[str, object]) -> None:
    """With its place, whatever the text is for."""
    whole = {"source": {"dsn": "postgresql://a/b"}, "lake": {"root": "lake"}, **document}
    with pytest.raises(ConfigError, match="NUL") as caught:
        loading.parse(whole)
    assert place in caught.value.message


def test_a_target_has_no_control_characters(tmp_path: Path) -> None:
    """It becomes the name of a folder."""
    for bad in ("a\x1b", "a\x9b", "a\x07"):
        with pytest.raises(ConfigError, match="target"):
            loading.parse(
                {
                    "source": {"dsn": "postgresql://a/b"},
                    "lake": {"root": str(tmp_path)},
                    "tables": {"t": {"target": bad}},
                }
            )
    with pytest.raises(ConfigError, match="cannot be read"):
        loading.load("a\0b")
