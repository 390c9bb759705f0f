"""Results: their exit codes, and how they show themselves."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bronze import errors
from bronze.errors import BronzeError
from bronze.model.results import EXIT_CODES, Failure, RunResult, TableResult, exit_code
from bronze.protection.erasure_result import ErasureResult, Evidence
from bronze.protection.keys import KeyReport

BAD = Failure("TableRefused", "It <b>cannot</b> be read.", "")
AWAY = Failure("SourceUnreachable", "It is away.", "")
LOST = Failure("LakeUnreachable", "It is away.", "")


@pytest.mark.parametrize(
    ("failures", "unrecorded", "code"),
    [
        ([], None, 0),
        ([None, None], None, 0),
        ([None], BAD, 1),
        ([None, AWAY], None, 1),
        ([AWAY, LOST], None, 3),
        ([AWAY], BAD, 3),
        ([AWAY, BAD], None, 1),
    ],
)
def test_an_exit_code_says_what_became_of_all_tables(
    failures: list[Failure | None], unrecorded: Failure | None, code: int
) -> None:
    """3 only where nothing but an unreachable side stopped every table."""
    assert exit_code(failures, unrecorded) == code


def test_every_exit_code_is_of_an_error() -> None:
    """The kinds with a code of their own are classes of errors, and raise with it."""
    for kind, code in EXIT_CODES.items():
        error: BronzeError = getattr(errors, kind)("It failed.")
        assert error.exit_code == exit_code([error.failure()]) or code == 2
        assert error.exit_code == code
    assert errors.TableRefused("No.").exit_code == 1


def test_a_result_shows_itself_in_a_line_and_a_notebook() -> None:
    """Counts by status; in HTML the figures that there are, with what is in them escaped."""
    tables = (
        TableResult("public.a", "bronze.bz_a", "landed", inserted=3),
        TableResult("public.b", "bronze.bz_b", "failed", error=BAD),
    )
    result = RunResult("b", 1, 1.0, tables)
    assert repr(result) == "<RunResult: 2 tables, 1 landed, 1 failed, exit code 1>"
    html = result._repr_html_()
    assert "<th>inserted</th>" in html
    assert "<th>deleted</th>" not in html
    assert "It &lt;b&gt;cannot&lt;/b&gt; be read." in html


def test_an_erasure_shows_itself_in_a_line_and_a_notebook() -> None:
    """What was erased and what is left, in words; where nothing was found, that."""
    evidence = Evidence(files=2, rows=9, found=3)
    erased = ErasureResult("bronze.bz_a", 4, 3, 2, files=1, before=evidence, after=Evidence())
    assert repr(erased) == (
        "<ErasureResult: bronze.bz_a, 3 rows and 2 records erased, 0 left, exit code 0>"
    )
    assert "<th>records</th>" in erased._repr_html_()
    assert "<th>left</th>" not in erased._repr_html_()
    absent = ErasureResult("bronze.bz_a", 4, before=Evidence(doubtful=2), notes=("<b>",))
    assert repr(absent) == (
        "<ErasureResult: bronze.bz_a, nothing found, 0 left, 2 doubtful, exit code 1>"
    )
    assert "&lt;b&gt;" in absent._repr_html_()


def test_a_key_shows_itself_in_a_line_and_a_notebook() -> None:
    """What it is for, and whether new values are protected with it."""
    created = datetime(2026, 1, 2, tzinfo=UTC)
    key = KeyReport("a1", "bronze.bz_a", "mail", "hash", "m1", created, current=False)
    assert repr(key) == "<KeyReport: a1, bronze.bz_a mail hash, old>"
    assert "<td>2026-01-02 00:00:00+00:00</td>" in key._repr_html_()
