"""Output for terminals has no control characters, whatever the source or the lake contain."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.api.display import progress
from bronze.cli import output
from bronze.cli.screens import results, revealed
from bronze.config import loading
from bronze.errors import ConfigError
from bronze.model.events import BatchApplied, Notice, TableFailed, TableLanded
from bronze.model.results import Failure, RunResult, TableResult
from bronze.printable import VisibleFormatter, count, size, visible, visible_json
from tests.support.effort import examples

EVIL = "a\x1b[2J\x9b31m\u202eb\x07\r\n\u2028c\x00\u200fd"
SHOWN = r"a\x1b[2J\x9b31m\u202eb"
RAW = set("\x1b\x9b\u202e\x07\r\u2028\x00\u200f")
TEXTS = st.text(st.characters(codec=None, exclude_categories=[]))


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(25))
@given(TEXTS)
def test_text_that_is_not_printable_is_escaped(text: str) -> None:
    """Control and format characters are escaped; printable text is unchanged."""
    shown = visible(text)
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    if text.isprintable():
        assert shown == text


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(25))
@given(TEXTS)
def test_escaped_json_is_printable_and_equal(text: str) -> None:
    """The document has only printable characters, and is parsed to the same text."""
    document = visible_json(json.dumps({"a": text}, ensure_ascii=False))
    assert document.isprintable()
    assert json.loads(document) == {"a": text}


def test_printed_results_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, notes, errors, hints and values are escaped in lines, tables, logs and JSON."""
    failure = Failure("LakeError", EVIL, EVIL, "")
    tables = (
        TableResult(EVIL, f"bronze.{EVIL}", "failed", error=failure, notes=(EVIL,)),
        TableResult(EVIL, f"bronze.{EVIL}", "landed", notes=(EVIL,)),
    )
    result = RunResult("b", 1, 1.0, tables, notes=(EVIL,), unrecorded=failure)
    results.run_result(result)
    output.print_result(result)
    with progress.progress(False) as shown:
        shown.notify(TableFailed(EVIL, failure))
        shown.notify(TableLanded(tables[1]))
    steps = progress.stream_log(False)
    steps(Notice(EVIL))
    steps(BatchApplied(1, 1, 1, 0, 0.0, (EVIL,), datetime.now(UTC)))
    revealed.print_rows(pl.DataFrame({EVIL: [EVIL]}))
    revealed.print_document(pl.DataFrame({EVIL: [EVIL]}), "json")
    out = capsys.readouterr()
    assert not RAW & set(out.out + out.err)
    assert out.out.count(SHOWN) >= 4
    assert out.err.count(SHOWN) >= 4


def test_csv_is_escaped_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets the values unchanged."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, raw in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr("sys.stdout", stream)
        revealed.print_document(pl.DataFrame({"x": ["\x1b[2J"]}), "csv")
        assert ("\x1b" in stream.getvalue()) is raw


def test_a_log_record_is_one_printable_line() -> None:
    """Control characters and line breaks of the message are escaped."""
    formatter = VisibleFormatter("%(levelname)s:%(message)s")
    line = formatter.format(logging.LogRecord("x", 30, "", 0, "a %s", (EVIL,), None))
    assert line.isprintable()
    assert line.startswith(f"WARNING:a {SHOWN}")


def test_a_traceback_in_a_log_is_printable() -> None:
    """It keeps its lines, and control characters in the error's text are escaped."""
    error = (ValueError, ValueError(EVIL), None)
    text = VisibleFormatter("%(message)s").format(logging.LogRecord("x", 30, "", 0, "a", (), error))
    first, *others = text.split("\n")
    assert first == "a"
    assert others[0].startswith(f"ValueError: {SHOWN}")
    assert all(line.isprintable() for line in others)


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
def test_a_nul_character_in_the_config_is_an_error(place: str, document: dict[str, object]) -> None:
    """The error names its place, for any setting."""
    whole = {"source": {"dsn": "postgresql://a/b"}, "lake": {"root": "lake"}, **document}
    with pytest.raises(ConfigError, match="NUL") as caught:
        loading.parse(whole)
    assert place in caught.value.message


def test_a_target_with_control_characters_is_refused(tmp_path: Path) -> None:
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


def test_things_are_counted_in_words() -> None:
    """One is singular; a plural that is not made with an s is given, with a verb if need be."""
    assert (count(0, "row"), count(1, "row"), count(1000, "row")) == (
        "0 rows",
        "1 row",
        "1,000 rows",
    )
    assert (count(1, "batch", "batches"), count(2, "batch", "batches")) == ("1 batch", "2 batches")
    assert count(2, "row is", "rows are") == "2 rows are"


def test_sizes_have_a_unit() -> None:
    """With decimal prefixes."""
    assert [size(n) for n in (0, 999, 1500, 2_000_000, 3 * 10**9)] == [
        "0 B", "999 B", "1.5 kB", "2.0 MB", "3.0 GB",
    ]  # fmt: skip
