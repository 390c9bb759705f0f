"""The audit log is bound to its lake: the tables that lie there contradict what is not theirs."""

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
from bronze.cli import render
from bronze.delta import audit_mark, log
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
    """What `bronze audit --verify` finds."""
    return opened.audit(verify=True)


def folder(opened: Bronze) -> Path:
    """Where the log is."""
    return Path(audit_state.place(opened.config).url)


def cut_off(opened: Bronze, commits: int) -> None:
    """Deletes the newest entries of the log, as if they had never been."""
    entries = sorted((folder(opened) / "_delta_log").glob("*.json"))
    for entry in entries[-commits:]:
        entry.unlink()


def emptied(opened: Bronze) -> None:
    """An empty table takes the log's place."""
    shutil.rmtree(folder(opened))
    empty = pl.DataFrame(schema={"sequence": pl.Int64})
    empty.write_delta(str(folder(opened)))
    DeltaTable(str(folder(opened)))


def bare(opened: Bronze) -> None:
    """Only the log's folder is left."""
    shutil.rmtree(folder(opened))
    folder(opened).mkdir()


def without_rows(opened: Bronze) -> None:
    """All files of the log are taken out of it, and its properties stay."""
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


def test_a_log_that_is_gone_is_never_whole(opened: Bronze, tmp_path: Path) -> None:
    """Deleted, emptied or cut off, it is contradicted by the tables, each with what it knows."""
    kept = tmp_path / "kept"
    shutil.copytree(folder(opened), kept)
    for name, (damage, said) in DAMAGES.items():
        damage(opened)
        report = proven(opened)
        assert report.exit_code == 1, name
        for each in (said, "table bronze.bz_t"):
            assert any(each in problem for problem in report.problems), (name, report.problems)
        assert not report.notes
        shutil.rmtree(folder(opened), ignore_errors=True)
        shutil.copytree(kept, folder(opened))


@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_a_damaged_log_that_grows_again_stays_contradicted(
    source: Source, opened: Bronze, damage: str
) -> None:
    """The runs that follow say so, and write over nothing that tells of it."""
    DAMAGES[damage][0](opened)
    told: list[str] = []
    for number in range(10, 16):
        source.execute("INSERT INTO t VALUES (%s)", number)
        told += [note for table in opened.run().tables for note in table.notes]
    report = proven(opened)
    assert report.exit_code == 1
    if damage == "deleted":
        assert any("under another audit log" in problem for problem in report.problems)
    else:
        assert any("knew of records" in problem for problem in report.problems)
        assert any("see `bronze audit --verify`" in note for note in told)
        assert [(r.subject, r.result) for r in report.records if r.action == "audit"] == [
            ("bronze.bz_t", "cut off")
        ]


def test_a_log_of_another_lake_is_not_whole_here(
    source: Source, opened: Bronze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed by the same key or not, the tables know of other records."""
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


def test_a_record_made_anew_is_contradicted(opened: Bronze) -> None:
    """A log whose chain is whole is contradicted by a table that knows another hash."""
    state = log.read(opened.config.place("bronze", "bz_t"))
    assert state
    (known,) = audit_mark.known_records(state)
    told = audit_witnesses.testimony_of(opened.config, "audit_log")
    hashes = {one.sequence: one.record_hash for one in opened.audit().records}
    last = max(hashes)
    faults = audit_witnesses.faults
    assert list(faults(told, known.log, hashes, last)) == []
    hashes[known.sequence] = hashes[1][::-1]
    assert list(faults(told, known.log, hashes, last)) == [
        f"record {known.sequence} is not the one that table bronze.bz_t knows of"
    ]
    other = AuditMark(known.log, known.sequence, hashes[known.sequence])
    assert audit_mark.knows_more(state, other)
    assert not audit_mark.knows_more(state, replace(other, hash=known.digits))


def test_a_run_that_dies_gives_no_false_alarm(
    source: Source, opened: Bronze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a table names was recorded before, wherever a run ends between the two."""
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


def test_a_lake_of_before_is_read_on(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    """Log and tables that do not know each other are whole, with what is not proven; the next run
    binds them.
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
            for name in ("bronze.audit.log", audit_mark.LOGS):
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
    render.audit(report)
    assert "0 of 1 Bronze tables know of them" in capsys.readouterr().out
    assert opened.run().exit_code == 0
    assert opened.run().exit_code == 0
    after = proven(opened)
    assert (after.problems, after.vouching) == ((), 1)
    assert after.log
    assert not any("before" in note for note in after.notes)
    shutil.rmtree(folder(opened))
    assert proven(opened).exit_code == 1


def _without_id(opened: Bronze, details: str) -> None:
    """Chains the log anew with a first record that names no id, as it was written before."""
    place = folder(opened)
    records = audit_log.read(pl.read_delta(str(place)))
    records[0] = replace(records[0], details=details)
    links = audit_log.chained(records, audit_log.Head(), None)
    swaps = {old.record_hash: new.record_hash for old, new in zip(records, links, strict=True)}
    for file in place.glob("*.parquet"):
        mine = pl.read_parquet(file)["sequence"].to_list()
        audit_log.frame([one for one in links if one.sequence in mine]).write_parquet(file)
    for entry in (place / "_delta_log").glob("*.json"):
        text = entry.read_text()
        for old, new in swaps.items():
            text = text.replace(old, new)
        entry.write_text(text)


def test_what_could_not_be_looked_at_is_no_yes(opened: Bronze, tmp_path: Path) -> None:
    """Without a log, a table, a file, a permission or the right root, nothing is called whole."""
    table = Path(opened.config.place("bronze", "bz_t").url)
    root = tmp_path / "no such lake"
    lake = opened.config.lake.model_copy(update={"root": str(root)})
    elsewhere = opened.config.model_copy(update={"lake": lake})
    wrong = audit_proof.report(elsewhere, verify=True)
    assert wrong.problems == (
        f"there is no record at {root}/governance/audit_log, and no table in the lake:"
        " nothing was ever done there",
    )
    assert not root.exists()
    last = max((table / "_delta_log").glob("*.json"))
    kept = last.read_text()
    last.write_text("{")
    assert any("could not be asked" in said for said in proven(opened).problems)
    last.write_text(kept)
    held = next(folder(opened).glob("*.parquet"))
    held.rename(held.with_suffix(".gone"))
    assert any("cannot be read" in said for said in proven(opened).problems)


def test_a_stream_names_records_too(source: Source) -> None:
    """Its commits name the newest record, and a log cut off before them is found."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings(tables={"t": {"pattern": "streaming"}}))
    for number in range(3):
        source.execute("INSERT INTO t VALUES (%s)", number)
        assert opened.stream(until_caught_up=True).exit_code == 0
    assert proven(opened).problems == ()
    cut_off(opened, 3)
    assert any("were taken away" in said for said in proven(opened).problems)
    source.execute("INSERT INTO t VALUES (9)")
    assert opened.stream(until_caught_up=True).exit_code == 0
    records = [r.subject for r in proven(opened).records if r.action == "audit"]
    assert records == ["bronze.bz_t"]
    opened.drop_stream()


def test_many_writers_never_contradict_each_other(source: Source) -> None:
    """A process that knows less than a table names nothing there: what was named stays."""
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
