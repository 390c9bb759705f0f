"""The audit log belongs to its lake: the tables of the lake contradict any other log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from bronze import failpoint
from bronze.api.client import Bronze
from bronze.cli.screens import reports
from bronze.delta import audit_mark, log, properties
from bronze.governance import audit, audit_proof, audit_state, audit_witnesses
from bronze.governance.audit_proof import AuditReport
from bronze.governance.tables import audit_log
from bronze.ingest import pipeline
from bronze.model.stamp import AuditMark
from tests.conftest import Source


@pytest.fixture
def opened(source: Source) -> Bronze:
    """A lake with one table, after three runs."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    made = Bronze(source.settings())
    for number in range(3):
        source.execute("INSERT INTO t VALUES (%s)", number)
        assert made.run().exit_code == 0
    report = proven(made)
    assert (report.problems, report.exit_code) == ((), 0)
    assert (report.tables, report.vouching) == (1, 1)
    return made


def proven(opened: Bronze) -> AuditReport:
    """The report of `bronze audit --verify`."""
    return opened.audit(verify=True)


def folder(opened: Bronze) -> Path:
    """Where the log is."""
    return Path(audit_state.place(opened.config).url)


def cut_off(opened: Bronze, commits: int) -> None:
    """Deletes the newest entries of the log."""
    entries = sorted((folder(opened) / "_delta_log").glob("*.json"))
    for entry in entries[-commits:]:
        entry.unlink()


def emptied(opened: Bronze) -> None:
    """An empty table replaces the log."""
    shutil.rmtree(folder(opened))
    empty = pl.DataFrame(schema={"sequence": pl.Int64})
    empty.write_delta(str(folder(opened)))
    DeltaTable(str(folder(opened)))


def bare(opened: Bronze) -> None:
    """The folder of the log is empty."""
    shutil.rmtree(folder(opened))
    folder(opened).mkdir()


def without_rows(opened: Bronze) -> None:
    """The log keeps its properties, but has no files."""
    table = DeltaTable(str(folder(opened)))
    entries = [
        {"remove": {"path": path, "deletionTimestamp": 0, "dataChange": True}}
        for path in pl.DataFrame(table.get_add_actions(flatten=True))["path"]
    ]
    entry = folder(opened) / "_delta_log" / f"{table.version() + 1:020}.json"
    entry.write_text("".join(json.dumps(one) + "\n" for one in entries))


DAMAGES: dict[str, tuple[Callable[[Bronze], None], str]] = {
    "deleted": (lambda one: shutil.rmtree(folder(one)), "there is no record at"),
    "an empty folder": (bare, "there is no record at"),
    "an empty table": (emptied, "there is no record at"),
    "without rows": (without_rows, "there is no record at"),
    "cut off": (lambda one: cut_off(one, 2), "the newest records were taken away"),
}


def test_a_deleted_log_is_never_valid(opened: Bronze, tmp_path: Path) -> None:
    """Whether deleted, emptied or cut off: the tables contradict it, and are named."""
    kept = tmp_path / "kept"
    shutil.copytree(folder(opened), kept)
    for name, (damage, message) in DAMAGES.items():
        damage(opened)
        report = proven(opened)
        assert report.exit_code == 1, name
        for each in (message, "table bronze.bz_t"):
            assert any(each in problem for problem in report.problems), (name, report.problems)
        assert not report.notes
        shutil.rmtree(folder(opened), ignore_errors=True)
        shutil.copytree(kept, folder(opened))


@pytest.mark.soak
@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_a_damaged_log_that_grows_again_stays_contradicted(
    source: Source, opened: Bronze, damage: str
) -> None:
    """The following runs report it, and keep all evidence of it."""
    DAMAGES[damage][0](opened)
    notes: list[str] = []
    for number in range(10, 16):
        source.execute("INSERT INTO t VALUES (%s)", number)
        notes += [note for table in opened.run().tables for note in table.notes]
    report = proven(opened)
    assert report.exit_code == 1
    if damage == "deleted":
        assert any("under another audit log" in problem for problem in report.problems)
    else:
        assert any("knew of records" in problem for problem in report.problems)
        assert any("see `bronze audit --verify`" in note for note in notes)
        assert [(r.subject, r.result) for r in report.records if r.action == "audit"] == [
            ("bronze.bz_t", "cut off")
        ]


@pytest.mark.soak
def test_a_log_of_another_lake_is_not_valid(
    source: Source, opened: Bronze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if sealed by the same key, as the tables know of other records."""
    monkeypatch.setenv("AUDIT", "a key for sealing")
    for key in ({}, {"audit": {"key": {"secret": "AUDIT"}}}):
        mine, other = (
            Bronze(source.settings(lake={"root": str(tmp_path / f"{name}{len(key)}")}, **key))
            for name in ("mine", "other")
        )
        for one in (mine, other):
            assert one.run().exit_code == 0
            assert one.run().exit_code == 0
            assert proven(one).exit_code == 0
        shutil.rmtree(folder(mine))
        shutil.copytree(folder(other), folder(mine))
        problems = proven(mine).problems
        assert any("under another audit log" in problem for problem in problems), problems


def test_a_rewritten_record_is_contradicted(opened: Bronze) -> None:
    """A table that knows another hash contradicts a log with a valid chain."""
    state = log.read(opened.config.place("bronze", "bz_t"))
    assert state
    (known,) = audit_mark.known_records(state)
    testimony = audit_witnesses.testimony_of(opened.config, "audit_log")
    hashes = {one.sequence: one.record_hash for one in opened.audit().records}
    last = max(hashes)
    faults = audit_witnesses.faults
    assert list(faults(testimony, known.log, hashes, last)) == []
    hashes[known.sequence] = hashes[1][::-1]
    assert list(faults(testimony, known.log, hashes, last)) == [
        f"record {known.sequence} is not the one that table bronze.bz_t knows of"
    ]
    other = AuditMark(known.log, known.sequence, hashes[known.sequence])
    assert audit_mark.knows_more(state, other)
    assert not audit_mark.knows_more(state, replace(other, hash=known.digits))


@pytest.mark.soak
def test_a_run_that_dies_gives_no_false_alarm(
    source: Source, opened: Bronze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record is written before a table names it, wherever the run dies."""
    for number, where in enumerate(("planned", "read", "commit", "committed", "landed")):
        source.execute("INSERT INTO t VALUES (%s)", 100 + number)

        def reach(name: str, where: str = where) -> None:
            if name == where:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(failpoint, "reach", reach)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(opened.config)
        assert proven(opened).problems == (), where
    assert opened.run().exit_code == 0
    assert proven(opened).problems == ()


def test_a_log_of_an_earlier_release_is_valid(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log and tables that do not name each other have notes about what is not proven; the next run
    adds the names.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings())
    assert opened.run().exit_code == 0
    for entry in source.lake.glob("**/_delta_log/*.json"):
        kept = []
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if action.get("txn", {}).get("appId", "").startswith("bronze/audit/"):
                continue
            configuration = action.get("metaData", {}).get("configuration", {})
            for name in ("bronze.audit.log", properties.AUDIT_LOGS):
                configuration.pop(name, None)
            kept.append(json.dumps(action) + "\n")
        entry.write_text("".join(kept))
    rewritten = audit_log.read(pl.read_delta(str(folder(opened))))
    first = json.loads(rewritten[0].details)
    del first["log"]
    _without_id(opened, json.dumps(first, sort_keys=True))
    report = proven(opened)
    assert report.problems == ()
    assert (report.tables, report.vouching, report.log) == (1, 0, "")
    assert any("before logs had an id" in note for note in report.notes)
    assert any("were last written before" in note for note in report.notes)
    reports.audit(report)
    assert "known to 0 of 1 Bronze table" in capsys.readouterr().out
    assert opened.run().exit_code == 0
    assert opened.run().exit_code == 0
    after = proven(opened)
    assert (after.problems, after.vouching) == ((), 1)
    assert after.log
    assert not any("before" in note for note in after.notes)
    shutil.rmtree(folder(opened))
    assert proven(opened).exit_code == 1


def _without_id(opened: Bronze, details: str) -> None:
    """Rewrites the chain with a first record that names no id, as earlier releases wrote it."""
    place = folder(opened)
    records = audit_log.read(pl.read_delta(str(place)))
    records[0] = replace(records[0], details=details)
    links = audit_log.continue_chain(records, audit_log.Head(), None)
    swaps = {old.record_hash: new.record_hash for old, new in zip(records, links, strict=True)}
    for file in place.glob("*.parquet"):
        mine = pl.read_parquet(file)["sequence"].to_list()
        audit_log.frame([one for one in links if one.sequence in mine]).write_parquet(file)
    for entry in (place / "_delta_log").glob("*.json"):
        text = entry.read_text()
        for old, new in swaps.items():
            text = text.replace(old, new)
        entry.write_text(text)


def test_unreadable_evidence_is_a_problem(opened: Bronze, tmp_path: Path) -> None:
    """Without a log, a table, a file or the right root the log is not valid."""
    table = Path(opened.config.place("bronze", "bz_t").url)
    root = tmp_path / "no such lake"
    lake = opened.config.lake.model_copy(update={"root": str(root)})
    elsewhere = opened.config.model_copy(update={"lake": lake})
    wrong = audit_proof.report(elsewhere, verify=True)
    assert wrong.problems == (
        f"there is no record at {root}/governance/audit_log, and no table in the lake:"
        " no command has ever written to it",
    )
    assert not root.exists()
    last = max((table / "_delta_log").glob("*.json"))
    kept = last.read_text()
    last.write_text("{")
    assert any("could not be asked" in problem for problem in proven(opened).problems)
    last.write_text(kept)
    held = next(folder(opened).glob("*.parquet"))
    held.rename(held.with_suffix(".gone"))
    assert any("cannot be read" in problem for problem in proven(opened).problems)


def test_commits_of_a_stream_name_records(source: Source) -> None:
    """A log cut off before them is detected."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings(tables={"t": {"pattern": "streaming"}}))
    for number in range(3):
        source.execute("INSERT INTO t VALUES (%s)", number)
        assert opened.stream(until_caught_up=True).exit_code == 0
    assert proven(opened).problems == ()
    cut_off(opened, 3)
    assert any("were taken away" in problem for problem in proven(opened).problems)
    source.execute("INSERT INTO t VALUES (9)")
    assert opened.stream(until_caught_up=True).exit_code == 0
    records = [r.subject for r in proven(opened).records if r.action == "audit"]
    assert records == ["bronze.bz_t"]
    opened.drop_stream()


def test_a_table_never_names_an_earlier_record(source: Source) -> None:
    """A process that knows fewer records than the table leaves its record as it is."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings())
    opened.run()
    early = audit.mark(opened.config)
    assert early
    opened.run()
    opened.run()
    state = log.read(opened.config.place("bronze", "bz_t"))
    assert state
    assert audit_mark.knows_more(state, early)
    assert audit_mark.transactions(state, early) == ()
    assert audit.records_lost(opened.config, early, {"bronze.bz_t": state}) == ()
    assert proven(opened).problems == ()
