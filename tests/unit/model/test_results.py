"""Results: their exit codes, and how they show themselves."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

import bronze
from bronze import errors
from bronze.api.check import CheckReport, ColumnReport, TableReport
from bronze.api.drift import DriftReport, RunningConfig
from bronze.backup.purges import OutstandingErasure
from bronze.backup.recovery.drill import DrillResult
from bronze.backup.recovery.metadata import Metadata, MetadataReport, TableMetadata
from bronze.backup.recovery.restore import RestoredTable, RestoreResult
from bronze.backup.results import BackedUpTable, BackupResult, VerifiedCopy
from bronze.errors import BronzeError
from bronze.governance.audit_proof import AuditReport
from bronze.governance.tables.audit_log import AuditRecord
from bronze.governance.tables.drills import DrillRecord
from bronze.model.results import (
    EXIT_CODES,
    Failure,
    MaintainedTable,
    MaintainResult,
    RunResult,
    Shown,
    StreamResult,
    TableResult,
    exit_code,
)
from bronze.operate.doctor.diagnosis import Diagnosis
from bronze.operate.doctor.examination import Finding
from bronze.operate.validation.results import CheckResult, ValidationResult
from bronze.protection.erasure_result import ErasureResult, Evidence
from bronze.quality.report import QualityReport, Run, TableQuality
from bronze.unity.results import RegisteredTable, RegisterResult
from bronze.verify.results import VerifiedTable, VerifyResult

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
    assert ">inserted</th>" in html
    assert ">deleted</th>" not in html
    assert "It &lt;b&gt;cannot&lt;/b&gt; be read." in html


def test_a_check_shows_columns_and_problems() -> None:
    """The columns of a table by their Delta types; a problem of no table below the tables."""
    columns = (ColumnReport("Id", "integer", "id", "int", ""),)
    tables = (TableReport("public.a", "bronze.bz_a", "table", 1, 8192, ("id",), columns),)
    report = CheckReport(tables, (BAD,), ("A note.",))
    assert repr(report) == "<CheckReport: 1 table, exit code 1>"
    html = report._repr_html_()
    assert ">id int</td>" in html
    assert ">It &lt;b&gt;cannot&lt;/b&gt; be read.</p>" in html
    assert ">A note.</p>" in html
    assert CheckReport(tables, ()).exit_code == 0


def test_an_audit_shows_its_records_up_to_a_limit() -> None:
    """A notebook gets a hundred records; the line says how many there are."""
    record = AuditRecord(1, datetime(2026, 1, 1, tzinfo=UTC), "", "", "", "run", "", "", "", "", "")
    report = AuditReport((record,) * 103, 103, "ab", problems=("Record 7 was changed",))
    assert repr(report) == "<AuditReport: 103 of 103 records, not verified, exit code 1>"
    html = report._repr_html_()
    assert html.count(">run</td>") == 100
    assert ">and 3 more records</p>" in html
    assert ">Record 7 was changed</p>" in html


def test_quality_shows_the_latest_run_of_each_table() -> None:
    """Its figures, and not those of the runs before."""
    runs = tuple(
        Run("b", datetime(2026, 1, d, tzinfo=UTC), "", True, d, 99, 0, 0, 0) for d in (2, 1)
    )
    report = QualityReport((TableQuality("a", "bronze.bz_a", runs, (), 1.0, 10),))
    assert repr(report) == "<QualityReport: 1 table, exit code 0>"
    html = report._repr_html_()
    assert "2026-01-02" in html
    assert "2026-01-01" not in html


def test_an_erasure_shows_itself_as_a_row() -> None:
    """What was erased and what is left, with the evidence."""
    seen = Evidence(files=3, rows=70, found=2)
    done = ErasureResult(
        "bronze.bz_a", 9, rows=2, before=seen, after=Evidence(), notes=("A note.",)
    )
    assert repr(done) == (
        "<ErasureResult: bronze.bz_a, 2 rows and 0 records erased, 0 left, exit code 0>"
    )
    html = done._repr_html_()
    assert ">files 3, rows 70, found 2</td>" in html
    assert html.count("A note.") == 1


MOMENT = datetime(2026, 5, 1, 8, 30, tzinfo=UTC)
DRILL = DrillRecord(
    drill_id="d", began=MOMENT, ended=MOMENT, result="too slow", message="It took too long.",
    generation=3, made=MOMENT, recovery_seconds=1.25, lost_seconds=30.0, rto_seconds=1,
    rpo_seconds=900, tables=1, objects=4, bytes=5_500, rows=20, decrypted="public.a.email",
    actor="", host="", bronze_version="",
)  # fmt: skip
METADATA = Metadata(
    "2026-05-01", "1.0", "s3://lake", 3, {"b.bz_a": TableMetadata(version=7)}, {}, {"lake.root": ""}
)
RUNNING = RunningConfig(9, MOMENT, "run", "ada", "bronze.toml", "cd" * 32, "", "", {"a": "secret"})
TABLE = TableResult("public.a", "b.bz_a", "landed", rows_read=5)
RESULTS: list[tuple[Shown, str, list[str]]] = [
    (
        RunResult("r", 1, 1.0, (TABLE,), unrecorded=BAD, copy_error=AWAY),
        "<RunResult: 1 table, 1 landed, exit code 1>",
        ["Not recorded: It &lt;b&gt;cannot", "The lake was not copied: It is away."],
    ),
    (
        StreamResult("bronze_s", 1, 1.0, 1, 1, 5, (TABLE,)),
        "<StreamResult: stream bronze_s, 1 table, 1 landed, 5 changes in 1 transaction,"
        " exit code 0>",
        [">public.a</td>"],
    ),
    (
        MaintainResult(1.0, (MaintainedTable("b.bz_a", 3, 9, 1, 5_500),)),
        "<MaintainResult: 1 table, exit code 0>",
        [">5.5 kB</td>"],
    ),
    (
        VerifyResult(False, 1.0, (VerifiedTable("public.a", "b.bz_a", "differs", missing=2),)),
        "<VerifyResult: 1 table, 1 differs, exit code 1>",
        [">differs</td>", ">missing</th>"],
    ),
    (
        QualityReport((), ("b.bz_a",), "lake"),
        "<QualityReport: exit code 1>",
        ["b.bz_a: there are no figures yet"],
    ),
    (
        BackupResult(
            3, MOMENT, (BackedUpTable("b.bz_a", "copied", 7, 4, 5_500),), 1, 2_000, 9, 4, 5_500,
            None, 0, (OutstandingErasure("b.bz_a", MOMENT, "it is locked"),), {"b.bz_c": "no log"},
        ),
        "<BackupResult: generation 3, 1 table, 1 copied, 1 object (2.0 kB) copied, 4 objects"
        " (5.5 kB) in all, exit code 1>",
        ["b.bz_a, 2026-05-01 08:30:00 UTC: it is locked", "b.bz_c is not in it: no log"],
    ),
    (
        VerifiedCopy(1, 4, 5_500, 6, ("A fault.",), 1.25),
        "<VerifiedCopy: 1 generation, 4 of 6 objects read, 1 fault, exit code 1>",
        [">5.5 kB</td>", ">A fault.</p>"],
    ),
    (
        RestoreResult(3, MOMENT, "s3://new", (RestoredTable("b.bz_a", 7, 4, 5_500, 4),), 1.0),
        "<RestoreResult: generation 3 of 2026-05-01 08:30:00 UTC, restored into s3://new, 1 table,"
        " 5.5 kB, exit code 0>",
        [">b.bz_a</td>"],
    ),
    (
        DrillResult(DRILL, (("restore", 0.5), ("verify", 0.25)), "scratch", notes=("A note.",)),
        "<DrillResult: generation 3, too slow, exit code 1>",
        ["restore in 0.5 s, verify in 0.2 s", "1.2 s (rto 1 s)", "It took too long.", "A note."],
    ),
    (
        MetadataReport(METADATA, "s3://lake", ("2026-05-01",), ("b.bz_c is gone",), ("b.bz_d",)),
        "<MetadataReport: 2026-05-01, generation 3, 1 table, 0 keys, 1 lacking, 1 changed,"
        " exit code 1>",
        [">b.bz_a v7</td>", "lacking: b.bz_c is gone", "1 day since 2026-05-01"],
    ),
    (
        DriftReport("bronze.toml", "ab" * 32, "", "", RUNNING, ("It differs.",)),
        "<DriftReport: bronze.toml, 1 problem, exit code 1>",
        [">abababababab</td>", ">run of ada</td>", ">It differs.</p>"],
    ),
    (
        RegisterResult(
            1.0, (RegisteredTable("b.bz_a", "main.b.bz_a", "https://w", "created"),),
            changes=("schema main.b was created",), problems=(AWAY,), reads=1, writes=2,
        ),
        "<RegisterResult: 1 table, 1 created, 1 read, 2 writes, exit code 1>",
        [">main.b.bz_a</td>", "schema main.b was created", ">It is away.</p>"],
    ),
    (
        ValidationResult(
            "lake", 1.0,
            (CheckResult("quality", "NULLs", "b.bz_a", "pass", 0.0, "at most", 0.1, "share", ""),),
        ),
        "<ValidationResult: 1 pass, 0 fail, 0 unknown, exit code 0>",
        [">NULLs</td>"],
    ),
    (
        Diagnosis((Finding("source", "problem", "It is <away>.", "Wait."),)),
        "<Diagnosis: 1 finding, 1 problem, exit code 1>",
        [">It is &lt;away&gt;.</td>"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("result", "line", "parts"), RESULTS, ids=[type(one[0]).__name__ for one in RESULTS]
)
def test_each_result_shows_itself(result: Shown, line: str, parts: list[str]) -> None:
    """In a line what it is about; in a notebook its figures, and what went wrong; no value is a
    dataclass or a dictionary as Python writes it.
    """
    assert repr(result) == line
    html = result._repr_html_()
    assert [part for part in parts if part not in html] == []
    assert f"<b>{type(result).__name__}</b>" in html
    assert not re.search(r"[{}]|&#x27;|datetime|secret", html)


def test_a_notebook_gets_figures_with_units_and_notes_once() -> None:
    """Seconds with one decimal and sizes in units; a note on several tables names them all, and a
    long one opens; what no person reads is left out.
    """
    notes = ("A note.", "x" * 300)
    tables = tuple(
        TableResult(name, "", "landed", bytes=12_345, seconds=1.2345, notes=notes, score=99.99)
        for name in ("public.a", "public.b")
    )
    html = RunResult("batch", 1, 1.0, tables)._repr_html_()
    assert html.count(">12.3 kB</td>") == html.count(">1.2</td>") == html.count(">99.9</td>") == 2
    assert html.count("public.a, public.b: A note.") == 1
    assert html.count("<details>") == 1
    assert "batch" not in html


def test_every_public_result_with_an_exit_code_shows_itself() -> None:
    """So does one that is added."""
    public = [getattr(bronze, name) for name in bronze.__all__]
    results = [kind for kind in public if isinstance(kind, type) and hasattr(kind, "exit_code")]
    assert [kind for kind in results if not issubclass(kind, Shown | BronzeError)] == []
    assert len([kind for kind in results if issubclass(kind, Shown)]) == 15
    assert all(kind.__repr__ is Shown.__repr__ for kind in results if issubclass(kind, Shown))


def test_a_result_raises_the_error_of_its_failures() -> None:
    """Nothing if all went well; the class of the failures if they have one; else the base class."""
    good = TableResult("s.a", "b.a", "landed")
    bad, away = (
        TableResult(name, "", "failed", error=failure)
        for name, failure in (("s.b", BAD), ("s.c", AWAY))
    )
    RunResult("r", 1, 1.0, (good,)).raise_for_status()
    with pytest.raises(errors.TableRefused, match=r"s\.b: It <b>cannot</b> be read\."):
        RunResult("r", 1, 1.0, (good, bad)).raise_for_status()
    with pytest.raises(errors.SourceUnreachable):
        RunResult("r", 1, 1.0, (away,)).raise_for_status()
    with pytest.raises(BronzeError) as caught:
        RunResult("r", 1, 1.0, (bad, away)).raise_for_status()
    assert type(caught.value) is BronzeError
    assert "s.c: It is away." in str(caught.value)
    with pytest.raises(errors.TableRefused):
        RunResult("r", 1, 1.0, (good,), unrecorded=BAD).raise_for_status()
    with pytest.raises(errors.TableRefused):
        CheckReport((), (BAD,)).raise_for_status()
    with pytest.raises(BronzeError, match="ErasureResult"):
        ErasureResult("b.a", 1, left=2).raise_for_status()


def test_rows_that_differ_raise_a_mismatch() -> None:
    """Where no table has failed."""
    table = VerifiedTable("s.a", "b.a", "differs")
    with pytest.raises(errors.Mismatch):
        VerifyResult(False, 1.0, (table,)).raise_for_status()
