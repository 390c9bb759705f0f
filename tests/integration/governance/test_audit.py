"""The audit log: what is recorded, and that every change of a record is detected."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

import bronze
from bronze.api.client import Bronze
from bronze.cli.screens import reports
from bronze.config import fingerprint, loading
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError, LakeError, LakeUnreachable, TableRefused
from bronze.governance import actor, audit, audit_proof, audit_state
from bronze.governance.tables import audit_log
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.maintenance import maintain
from tests.conftest import Source
from tests.support.effort import examples

KEY = "a key for sealing"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A config with an empty lake."""
    return config(tmp_path)


def config(folder: Path, **sections: Any) -> Settings:
    """A config whose source is never connected to."""
    return loading.parse(
        {
            "source": {"name": "test", "dsn": "postgresql://u@nowhere/db"},
            "lake": {"root": str(folder / "lake")},
            **sections,
        }
    )


def write_records(settings: Settings, count: int) -> None:
    """Writes records, each in its own commit; the first also has the record of the config."""
    for number in range(count):
        audit.record(settings, "reveal", f"public.t{number}", "succeeded", {"rows": number})


def problems(settings: Settings, head: str = "") -> tuple[str, ...]:
    """The problems that `--verify` finds."""
    return audit_proof.report(settings, verify=True, head=head).problems


def folder(settings: Settings) -> Path:
    """Where the log is."""
    return Path(audit_state.place(settings).url)


def file_of(settings: Settings, sequence: int) -> Path:
    """The file that has a record."""
    for file in folder(settings).glob("*.parquet"):
        if sequence in pl.read_parquet(file)["sequence"]:
            return file
    raise AssertionError(sequence)


def edit_file(
    settings: Settings, sequence: int, edit: Callable[[list[AuditRecord]], list[AuditRecord]]
) -> None:
    """Rewrites the file that has a record."""
    file = file_of(settings, sequence)
    audit_log.frame(edit(audit_log.read(pl.read_parquet(file)))).write_parquet(file)


def test_records_have_actor_action_time_and_result(settings: Settings) -> None:
    """A record has what was passed; the process adds who and where."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    audit.record(settings, "reveal", "public.t", "denied", {"columns": ["é"]})
    first, own = audit_proof.report(settings).records
    assert (first.action, first.result) == ("config", "first seen")
    assert (own.sequence, own.action, own.subject, own.result) == (
        2,
        "reveal",
        "public.t",
        "denied",
    )
    assert json.loads(own.details) == {"columns": ["é"]}
    assert before < own.recorded_timestamp <= datetime.now(UTC)
    assert own.actor
    assert own.host
    assert own.bronze_version == bronze.__version__
    assert own.previous_hash == first.record_hash


def details_hash(opened: Bronze) -> str:
    """The hash of a config, as records of commands have it."""
    return fingerprint.fingerprint_of(fingerprint.imprint(opened.config))


def test_verify_forget_and_keys_are_recorded(source: Source) -> None:
    """Also if they find differences or fail; a command that makes a key has a record of it."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, mail text)")
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    opened = Bronze(source.settings(tables={"t": {"protect": {"mail": "encrypt"}}}))
    assert opened.run().exit_code == 0
    assert opened.verify(["t"]).exit_code == 0
    source.execute("DELETE FROM t WHERE id = 1")
    assert opened.verify().exit_code == 1
    assert opened.verify(repair=True).exit_code == 0
    with pytest.raises(TableRefused):
        opened.forget("t", {"id": "2"})
    assert opened.forget("t", {"id": "1"}).exit_code == 0
    assert opened.delete_old_versions("t").exit_code == 0
    opened.rotate_keys()
    records = [one for one in opened.audit().records if one.action != "schema"]
    assert [(one.action, one.subject, one.result) for one in records] == [
        ("config", "python", "first seen"),
        ("keys", "", "made"),
        ("run", "", "succeeded"),
        ("verify", "", "succeeded"),
        ("verify", "", "incomplete"),
        ("verify", "", "succeeded"),
        ("forget", "", "failed"),
        ("forget", "bronze.bz_t", "succeeded"),
        ("forget", "bronze.bz_t", "succeeded"),
        ("keys", "", "made"),
    ]
    details = [json.loads(one.details) for one in records]
    assert set(details[1]["made"].values()) == {"bronze.bz_t row_hash", "bronze.bz_t mail encrypt"}
    assert (details[3]["asked"], details[3]["equal"]) == (["t"], 1)
    assert details[4]["differing"] == {"bronze.bz_t": {"extra": 1}}
    assert details[5]["differing"] == {"bronze.bz_t": {"repaired": 1}}
    # Which config each command had.
    configs = [one.pop("config", {}) for one in details[2:9]]
    assert configs == [{"path": "", "hash": details_hash(opened)}] * 7
    assert details[6] == {
        "asked": ["t"],
        "error": "TableRefused",
        "message": "The source still has such a row in public.t: the next run would bring it back.",
    }
    assert (details[7]["by"], details[7]["rows"]) == ("id", 1)
    assert list(details[9]["made"].values()) == ["bronze.bz_t mail encrypt"]


def test_verify_without_its_record_fails(source: Source) -> None:
    """The exit code is 1, and the result says why the record could not be written."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    settings = source.settings()
    assert Bronze(settings).run().exit_code == 0
    log = Path(audit_state.place(settings).url) / "_delta_log"
    log.rename(log.with_name("elsewhere"))
    log.write_text("not a folder")
    done = Bronze(settings).verify()
    assert [table.status for table in done.tables] == ["equal"]
    assert done.exit_code == 1
    assert done.unrecorded


def test_an_unchanged_log_has_no_problems(settings: Settings) -> None:
    """Also after maintenance, when it has fewer files."""
    write_records(settings, 6)
    before = audit_proof.report(settings, verify=True)
    assert (before.count, before.problems) == (7, ())
    (result,) = maintain.maintain(settings).tables
    assert (result.target, result.error) == ("governance.audit_log", None)
    assert result.files_after < result.files_before
    after = audit_proof.report(settings, verify=True)
    assert (before.files, after.files) == (6, result.files_after)
    assert replace(after, files=before.files) == before
    assert problems(settings, before.head) == ()


def test_it_can_only_be_appended_to(settings: Settings) -> None:
    """The table is append-only for other writers."""
    write_records(settings, 1)
    with pytest.raises(Exception, match=r"(?i)append.?only"):
        DeltaTable(str(folder(settings))).delete()


def changed(settings: Settings) -> None:
    """A record says something else."""
    edit_file(settings, 3, lambda found: [replace(found[0], result="denied")])


def changed_with_its_hash(settings: Settings) -> None:
    """A record says something else, and its hash is right."""

    def edit(found: list[AuditRecord]) -> list[AuditRecord]:
        other = replace(found[0], result="denied")
        return [replace(other, record_hash=audit_log.digest(other, None))]

    edit_file(settings, 3, edit)


def swapped(settings: Settings) -> None:
    """Two records have swapped places and numbers."""
    ours, theirs = file_of(settings, 3), file_of(settings, 4)
    first, second = (audit_log.read(pl.read_parquet(file))[0] for file in (ours, theirs))
    audit_log.frame([replace(first, sequence=4)]).write_parquet(ours)
    audit_log.frame([replace(second, sequence=3)]).write_parquet(theirs)


def put_in(settings: Settings) -> None:
    """A record was inserted."""

    def edit(found: list[AuditRecord]) -> list[AuditRecord]:
        (more,) = audit_log.continue_chain([found[0]], Head(3, found[0].record_hash), None)
        return [*found, more]

    edit_file(settings, 3, edit)


def removed(number: int) -> Callable[[Settings], None]:
    """A record is removed by an entry of the Delta log, by a writer that ignores append-only."""

    def remove(settings: Settings) -> None:
        table = DeltaTable(str(folder(settings)))
        path = file_of(settings, number).name
        entry = {"remove": {"path": path, "deletionTimestamp": 0, "dataChange": True}}
        log = folder(settings) / "_delta_log" / f"{table.version() + 1:020}.json"
        log.write_text(json.dumps(entry) + "\n")

    return remove


def flipped(settings: Settings) -> None:
    """One byte of a file has another value."""
    file = file_of(settings, 3)
    data = bytearray(file.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 12] ^= 0xFF
    file.write_bytes(data)


def lost(settings: Settings) -> None:
    """A file is missing."""
    file_of(settings, 3).unlink()


def headless(settings: Settings) -> None:
    """The property with the end of the chain has another name."""
    for entry in (folder(settings) / "_delta_log").glob("*.json"):
        entry.write_text(entry.read_text().replace("bronze.audit.head", "bronze.audit.other"))


def rewritten(settings: Settings) -> None:
    """The chain is computed again with a changed record, and so is the end in the last commit."""
    last = max((folder(settings) / "_delta_log").glob("*.json"))
    before = audit_proof.report(settings)
    edits = [replace(r, result="denied") if r.sequence == 3 else r for r in before.records]
    links = audit_log.continue_chain(edits, Head(), None)
    for number in (1, 3, 4, 5):
        file = file_of(settings, number)
        mine = pl.read_parquet(file)["sequence"].to_list()
        audit_log.frame([link for link in links if link.sequence in mine]).write_parquet(file)
    last.write_text(last.read_text().replace(before.head, links[-1].record_hash))


TAMPERINGS = {
    "changed": (changed, "record 3 was changed"),
    "changed with its hash": (changed_with_its_hash, "record 4 does not follow"),
    "swapped": (swapped, "record 3 does not follow"),
    "put in": (put_in, "record 4 is there twice"),
    "removed in the middle": (removed(3), "record 3 is missing"),
    "removed at the end": (removed(5), "record 5 is missing at the end"),
    "a byte flipped": (flipped, "3 "),
    "a file lost": (lost, "cannot be read"),
    "the end taken away": (headless, "does not say where the chain ends"),
    "rewritten": (rewritten, "record 3 is not the one that was committed"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_detected(settings: Settings, name: str) -> None:
    """Every change of a record or file is found, and reported with the number of the record."""
    tamper, message = TAMPERINGS[name]
    write_records(settings, 4)
    assert problems(settings) == ()
    tamper(settings)
    found = problems(settings)
    assert any(message in problem for problem in found), found


def test_an_older_state_of_the_log_contradicts_a_kept_head(settings: Settings) -> None:
    """Without its newest entries the log is valid but shorter: only a kept hash detects it."""
    write_records(settings, 4)
    head = audit_proof.report(settings).head
    newest = max((folder(settings) / "_delta_log").glob("*.json"))
    newest.unlink()
    assert problems(settings) == ()
    (problem,) = problems(settings, head)
    assert "put back" in problem


def test_the_newest_records_of_a_long_log_are_proven_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long log only the newest file is read: damage there and of the log's end is found, older
    damage is not. A short log is read whole.
    """
    assert audit_proof.prove_newest(settings) is None
    write_records(settings, 9)
    assert audit_proof.prove_newest(settings) == audit_proof.QuickProof(10, 10, ())
    monkeypatch.setattr(audit_proof, "_QUICK", 5)
    assert audit_proof.prove_newest(settings) == audit_proof.QuickProof(10, 1, ())
    edit_file(settings, 4, lambda records: [replace(one, actor="eve") for one in records])
    assert audit_proof.prove_newest(settings) == audit_proof.QuickProof(10, 1, ())
    monkeypatch.setattr(audit_proof, "_QUICK", 100)
    whole = audit_proof.prove_newest(settings)
    assert whole
    assert whole.problems == ("record 4 was changed",)
    monkeypatch.setattr(audit_proof, "_QUICK", 5)
    edit_file(settings, 10, lambda records: [replace(one, actor="eve") for one in records])
    newest = audit_proof.prove_newest(settings)
    assert newest
    assert newest.problems == ("record 10 was changed",)
    file_of(settings, 10).unlink()
    lost = audit_proof.prove_newest(settings)
    assert lost
    assert any("cannot be read" in problem for problem in lost.problems)


def test_the_newest_records_are_found_after_files_were_joined(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the joined file, and then in the one that was written after it."""
    monkeypatch.setattr(audit_proof, "_QUICK", 2)
    write_records(settings, 5)
    (result,) = maintain.maintain(settings).tables
    assert result.error is None
    assert audit_proof.prove_newest(settings) == audit_proof.QuickProof(6, 6, ())
    audit.record(settings, "reveal", "public.t", "succeeded")
    assert audit_proof.prove_newest(settings) == audit_proof.QuickProof(7, 1, ())


def test_a_sealed_log_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can rewrite the chain without it; after a change of keys old records are valid."""
    monkeypatch.setenv("AUDIT", KEY)
    monkeypatch.setenv("NEXT", "another key")
    sealing = config(tmp_path, audit={"key": {"secret": "AUDIT"}})
    write_records(sealing, 4)
    assert problems(sealing) == ()
    assert KEY not in "".join(map(str, audit_proof.report(sealing).records))
    next_key = {"key": {"secret": "NEXT"}, "former_keys": [{"secret": "AUDIT"}]}
    renewed = config(tmp_path, audit=next_key)
    audit.record(renewed, "reveal", "public.t", "succeeded")
    assert problems(renewed) == ()
    assert any("sealed with another key" in problem for problem in problems(sealing))
    plain = config(tmp_path)
    audit.record(plain, "reveal", "public.t", "succeeded")
    assert any("is not sealed" in problem for problem in problems(renewed))


def test_a_chain_rewritten_without_the_key_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log without a sealed record is a problem if the config has a key."""
    monkeypatch.setenv("AUDIT", KEY)
    write_records(config(tmp_path), 2)
    assert problems(config(tmp_path, audit={"key": {"secret": "AUDIT"}})) == (
        "no record is sealed with a key, and the config has one",
    )


WRITER = """
import json, sys
from bronze.config import fingerprint, loading
from bronze.governance import audit
settings = loading.parse(json.loads(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    audit.record(settings, "reveal", sys.argv[2], "succeeded", {"number": number})
"""


@pytest.mark.soak
def test_concurrent_writers_write_one_chain(settings: Settings) -> None:
    """Two processes that record at the same time lose no record."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    command, pipe = [sys.executable, "-c", WRITER, document, "b"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        for number in range(12):
            audit.record(settings, "reveal", "a", "succeeded", {"number": number})
        other.communicate(timeout=60)
    assert other.returncode == 0
    report = audit_proof.report(settings, verify=True)
    assert report.problems == ()
    assert [record.sequence for record in report.records] == list(range(1, 26))
    assert [r.action for r in report.records].count("config") == 1
    for name in ("a", "b"):
        numbers = [json.loads(r.details)["number"] for r in report.records if r.subject == name]
        assert numbers == list(range(12))


def test_a_changed_config_is_recorded_by_its_keys(tmp_path: Path) -> None:
    """The record has the names of added, removed and changed keys, without values and secrets."""

    def written(text: str, root: str = "lake") -> Settings:
        path = tmp_path / "bronze.toml"
        path.write_text(text.format(root=root))
        return loading.load(path)

    first = written(
        '[source]\nname = "test"\ndsn = "postgresql://u:hush@nowhere/db"\n[lake]\nroot = "{root}"\n'
        '[lake.options]\naccount_key = "silent"\n[run]\nworkers = 2\n'
    )
    audit.record(first, "run", "", "succeeded")
    audit.record(first, "run", "", "succeeded")
    second = written(
        '[source]\nname = "test"\ndsn = "postgresql://u:louder@elsewhere/db"\n'
        '[lake]\nroot = "{root}"\n[lake.options]\naccount_key = "still"\n'
        '[tables.t]\npattern = "batch"\nkey = ["id"]\n'
    )
    audit.record(second, "run", "", "succeeded")
    records = audit_proof.report(second).records
    assert [r.action for r in records] == ["config", "run", "run", "config", "run"]
    assert records[3].subject == str(tmp_path / "bronze.toml")
    details = json.loads(records[3].details)
    assert details["added"] == ["tables.t.key", "tables.t.pattern"]
    assert details["removed"] == ["run.workers"]
    assert details["changed"] == ["source.test.dsn.host"]
    everything = b"".join(f.read_bytes() for f in tmp_path.glob("lake/**/*") if f.is_file())
    for word in (b"hush", b"louder", b"silent", b"still", b"elsewhere"):
        assert word not in everything


def test_two_configs_of_one_lake_are_separate(tmp_path: Path) -> None:
    """Two files that are used in turn are not changes of each other."""
    both = []
    for name, workers in (("one.toml", 1), ("two.toml", 2)):
        (tmp_path / name).write_text(
            '[source]\ndsn = "postgresql://u@nowhere/db"\n[lake]\nroot = "lake"\n'
            f"[run]\nworkers = {workers}\n"
        )
        both.append(loading.load(tmp_path / name))
    for own in (*both, *both):
        audit.record(own, "run", "", "succeeded")
    actions = [record.action for record in audit_proof.report(both[0]).records]
    assert actions == ["config", "run", "config", "run", "run", "run"]


def test_commands_and_schema_changes_are_recorded(source: Source) -> None:
    """Each command has a record with its figures, and each schema change one with its table."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("INSERT INTO t VALUES (1), (2)")
    opened = Bronze(source.settings())
    result = opened.run()
    source.execute("ALTER TABLE t ADD word text")
    opened.run(["t"])
    opened.maintain()
    report = opened.audit(verify=True)
    assert report.problems == ()
    recorded = [(r.action, r.subject, r.result) for r in report.records]
    assert recorded == [
        ("config", "python", "first seen"),
        ("schema", "public.t", "changed"),
        ("run", "", "succeeded"),
        ("schema", "public.t", "changed"),
        ("run", "", "succeeded"),
        ("maintain", "", "succeeded"),
    ]
    run = report.records[2]
    details = json.loads(run.details)
    assert run.batch_id == result.batch_id
    assert (details["landed"], details["rows_read"], details["inserted"]) == (1, 2, 2)
    assert details["position"] == result.position
    assert json.loads(report.records[4].details)["asked"] == ["t"]
    changes = [json.loads(r.details)["changes"] for r in opened.audit(action="schema").records]
    assert changes == [["created with 1 column"], ["column word was added"]]
    assert len(opened.audit(table="t").records) == 2
    assert len(opened.audit(table="test.public.t").records) == 2
    assert opened.audit(since=datetime.now(UTC) + timedelta(hours=1)).records == ()


def test_failures_are_recorded_and_refusals_are_not(source: Source, tmp_path: Path) -> None:
    """A command that fails has a record; one that is refused for its arguments has none."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings())
    with pytest.raises(ConfigError):
        opened.run(["no_such_table"])
    assert not source.lake.exists()
    with pytest.raises(BronzeError):
        Bronze(config(tmp_path, run={"max_retries": 0})).run()
    record = audit_proof.report(config(tmp_path)).records[-1]
    assert (record.action, record.result) == ("run", "failed")
    assert json.loads(record.details)["error"] == "SourceUnreachable"


def test_a_stream_is_recorded_at_its_start_and_end(source: Source) -> None:
    """The first record says that it runs, the last one what it did."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings(tables={"t": {"pattern": "streaming"}}))
    opened.stream(until_caught_up=True)
    name = opened.drop_stream()
    recorded = [(r.action, r.subject, r.result) for r in opened.audit(verify=True).records[1:]]
    assert recorded == [
        ("stream", "", "started"),
        ("schema", "public.t", "changed"),
        ("stream", name, "succeeded"),
        ("drop stream", name, "succeeded"),
    ]


def test_a_run_without_its_record_fails(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables have landed; result and exit code say that the record is missing."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")

    def refuse(*_: object) -> None:
        raise LakeUnreachable("The lake cannot be reached.")

    monkeypatch.setattr(audit, "append", refuse)
    result = Bronze(source.settings()).run()
    assert [table.status for table in result.tables] == ["landed"]
    assert result.unrecorded
    assert result.unrecorded.kind == "LakeUnreachable"
    assert result.exit_code == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
DRAFTS = st.builds(
    AuditRecord,
    sequence=st.just(0),
    recorded_timestamp=st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
        lambda time: time.replace(tzinfo=UTC)
    ),
    **dict.fromkeys(
        ("actor", "identity", "host", "action", "subject", "result", "details", "batch_id"), TEXTS
    ),
    bronze_version=TEXTS,
)


@fuzz(derandomize=True, database=None, deadline=None, max_examples=examples(8))
@given(st.lists(DRAFTS, min_size=1, max_size=5), st.sampled_from([None, b"key"]), st.data())
def test_any_other_value_breaks_the_chain(
    drafts: list[AuditRecord], key: bytes | None, data: st.DataObject
) -> None:
    """Records are read from their file as they were; a change of any field is detected."""
    links = audit_log.continue_chain(drafts, Head(), key)
    head = Head(len(links), links[-1].record_hash)
    keys = {audit_log.key_id(key): key} if key else {}
    assert audit_log.read(audit_log.frame(links)) == links
    assert list(audit_log.faults(links, head, keys, bool(key))) == []
    number = data.draw(st.integers(0, len(links) - 1))
    name = data.draw(st.sampled_from([n for n, k in audit_log.COLUMNS if k.name == "string"]))
    other = replace(links[number], **{name: getattr(links[number], name) + "x"})
    touched = [*links[:number], other, *links[number + 1 :]]
    assert list(audit_log.faults(touched, head, keys, bool(key)))
    if len(links) > 1:
        assert list(audit_log.faults(links[:number] + links[number + 1 :], head, keys, bool(key)))
    assert len(astuple(other)) == len(audit_log.COLUMNS)


@pytest.mark.parametrize("text", ["7d", "12H", "2026-05-01", "2026-05-01T08:00+02:00"])
def test_times_are_parsed(text: str) -> None:
    """Durations count back from now, dates are as written; all have a time zone."""
    assert audit_proof.moment(text).tzinfo


@pytest.mark.parametrize("text", ["yesterday", "9" * 30 + "d", "", "٣d"])
def test_a_text_that_is_not_a_time_is_refused(text: str) -> None:
    """It is an error of the user, with an example."""
    with pytest.raises(ConfigError, match="not a time") as caught:
        audit_proof.moment(text)
    assert "7d" in caught.value.hint


def test_records_older_than_the_key_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are valid, and anybody could have written them."""
    monkeypatch.setenv("AUDIT", KEY)
    write_records(config(tmp_path), 2)
    sealing = config(tmp_path, audit={"key": {"secret": "AUDIT"}})
    write_records(sealing, 1)
    report = audit_proof.report(sealing, verify=True)
    assert (report.problems, report.unsealed) == ((), 3)
    reports.audit(report)
    assert "the first 3 are not sealed" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["sequence", "recorded_timestamp", "details"])
def test_a_record_without_a_value_is_detected(settings: Settings, column: str) -> None:
    """It is a problem, not an error."""
    write_records(settings, 3)
    file = file_of(settings, 3)
    rows = pl.read_parquet(file)
    rows.with_columns(pl.lit(None, rows.schema[column]).alias(column)).write_parquet(file)
    assert any("lack values" in problem for problem in problems(settings))


def test_a_log_without_the_end_property_is_continued(settings: Settings) -> None:
    """Runs name the last record, and the next record follows it."""
    write_records(settings, 3)
    headless(settings)
    audit.record_events(settings, [])
    known = audit.mark(settings)
    assert known
    assert (known.sequence, known.hash) == (4, audit_proof.report(settings).head)
    write_records(settings, 1)
    assert audit_proof.report(settings).count == 5
    assert problems(settings) == ()


def test_an_unreadable_entry_of_the_delta_log_is_a_problem(settings: Settings) -> None:
    """Even if a checkpoint replaces it."""
    write_records(settings, 3)
    DeltaTable(str(folder(settings))).create_checkpoint()
    (folder(settings) / "_delta_log" / f"{1:020}.json").write_text("not json")
    (problem,) = problems(settings)
    assert "is not an entry of a Delta log" in problem


def rewrite_entries(settings: Settings, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes each action of each entry of the Delta log."""
    for entry in (folder(settings) / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            edit(action)
        entry.write_text("".join(json.dumps(action) + "\n" for action in actions))


@pytest.mark.parametrize("facts", [{}, {"sequence": "x"}, [1], "x"])
def test_a_commit_without_a_readable_end_is_a_problem(settings: Settings, facts: object) -> None:
    """It names no record that could be compared."""
    write_records(settings, 1)

    def edit(action: dict[str, Any]) -> None:
        if "commitInfo" in action:
            action["commitInfo"]["bronze"] = json.dumps({"audit": facts})

    rewrite_entries(settings, edit)
    expected = ("a commit does not say where the chain ended",)
    assert problems(settings) == (expected if facts else ())


GARBLED = {
    audit_state.HEAD: ("", "7", "x:" + "0" * 64, "9" * 30 + ":" + "0" * 64, "2:" + "Z" * 64),
    audit_state.CONFIGS: ("", "[1]", "{", "null", '{"python": 1}', '["ab"]'),
}


@pytest.mark.parametrize("name", GARBLED)
def test_a_garbled_property_of_the_log_is_an_error_with_a_hint(
    settings: Settings, name: str
) -> None:
    """Recording is refused and `verify` reports it; without the property both go on."""
    write_records(settings, 2)
    for value in GARBLED[name]:

        def garble(action: dict[str, Any], value: str = value) -> None:
            if "metaData" in action:
                action["metaData"]["configuration"][name] = value

        rewrite_entries(settings, garble)
        message = f"The property {name} of the audit log cannot be read"
        assert [message in problem for problem in problems(settings)] == [True], value
        with pytest.raises(LakeError, match=message) as caught:
            audit.record(settings, "reveal", "t", "succeeded")
        assert "Unset the property" in caught.value.hint
        assert audit.mark(settings) is None or name == audit_state.CONFIGS

    def unset(action: dict[str, Any]) -> None:
        if "metaData" in action:
            del action["metaData"]["configuration"][name]

    rewrite_entries(settings, unset)
    write_records(settings, 1)
    assert problems(settings) == ()
    records = audit_proof.report(settings).records
    again = ["config"] if name == audit_state.CONFIGS else []
    assert [one.action for one in records] == ["config", "reveal", "reveal", *again, "reveal"]


@pytest.mark.parametrize("details", ["", "[1]", '"text"', "{", '{"keys": [[1, 2], ["b", 3]]}'])
def test_unreadable_details_are_shown_as_they_are(settings: Settings, details: str) -> None:
    """A config with such a record is recorded again."""
    write_records(settings, 1)
    edit_file(settings, 1, lambda held: [replace(one, details=details) for one in held])
    report = audit_proof.report(settings, verify=True)
    assert report.problems
    reports.audit(report)
    other = config(folder(settings).parents[2], run={"workers": 1})
    audit.record(other, "reveal", "t", "succeeded")


def test_the_actor_is_not_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can set its variables."""
    before = actor.user()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody else")
    assert actor.user() == before != "somebody else"
