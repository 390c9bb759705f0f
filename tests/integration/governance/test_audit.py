"""The audit: what is recorded, and that no record can be touched without being noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
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
from bronze.cli import render
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError, LakeUnreachable, TableRefused
from bronze.governance import actor, audit
from bronze.governance.tables import audit_log as book
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.maintenance import maintain
from tests.conftest import Source
from tests.support.effort import examples

KEY = "a key for sealing"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A config with a lake that nothing is in yet."""
    return parsed(tmp_path)


def parsed(folder: Path, **sections: Any) -> Settings:
    """A config whose source is not asked."""
    return loading.parse(
        {
            "source": {"name": "test", "dsn": "postgresql://u@nowhere/db"},
            "lake": {"root": str(folder / "lake")},
            **sections,
        }
    )


def recorded(settings: Settings, count: int) -> None:
    """Enters records, each by a commit of its own; the config's is the first."""
    for number in range(count):
        audit.record(settings, "reveal", f"public.t{number}", "succeeded", {"rows": number})


def problems(settings: Settings, head: str = "") -> tuple[str, ...]:
    """What `--verify` finds."""
    return audit.report(settings, verify=True, head=head).problems


def folder(settings: Settings) -> Path:
    """Where the log is."""
    return Path(audit.place(settings).url)


def held(settings: Settings, sequence: int) -> Path:
    """The file with a record."""
    for file in folder(settings).glob("*.parquet"):
        if sequence in pl.read_parquet(file)["sequence"]:
            return file
    raise AssertionError(sequence)


def edited(
    settings: Settings, sequence: int, edit: Callable[[list[AuditRecord]], list[AuditRecord]]
) -> None:
    """Writes the file with a record anew."""
    file = held(settings, sequence)
    book.frame(edit(book.read(pl.read_parquet(file)))).write_parquet(file)


def test_records_say_who_what_when_and_what_came_of_it(settings: Settings) -> None:
    """One record has all that was told, and the process adds who and where."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    audit.record(settings, "reveal", "public.t", "denied", {"columns": ["é"]})
    first, own = audit.report(settings).records
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


def test_proofs_erasures_and_keys_are_recorded(source: Source) -> None:
    """So are those that find or cannot do something; what makes a key is a record of its own."""
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
    assert details[6] == {
        "asked": ["t"],
        "error": "TableRefused",
        "message": "The source still has such a row in public.t: the next run would bring it back.",
    }
    assert (details[7]["by"], details[7]["rows"]) == ("id", 1)
    assert list(details[9]["made"].values()) == ["bronze.bz_t mail encrypt"]


def test_what_could_not_be_recorded_is_told(source: Source) -> None:
    """A proof whose record cannot be written is no success, and says why."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    settings = source.settings()
    assert Bronze(settings).run().exit_code == 0
    log = Path(audit.place(settings).url) / "_delta_log"
    log.rename(log.with_name("elsewhere"))
    log.write_text("not a folder")
    done = Bronze(settings).verify()
    assert [table.status for table in done.tables] == ["equal"]
    assert done.exit_code == 1
    assert done.unrecorded


def test_an_untouched_log_is_whole(settings: Settings) -> None:
    """Nothing is found where nothing was done; after maintenance it is the same in fewer files."""
    recorded(settings, 6)
    before = audit.report(settings, verify=True)
    assert (before.count, before.problems) == (7, ())
    (result,) = maintain.maintain(settings).tables
    assert (result.target, result.error) == ("governance.audit_log", None)
    assert result.files_after < result.files_before
    after = audit.report(settings, verify=True)
    assert (before.files, after.files) == (6, result.files_after)
    assert replace(after, files=before.files) == before
    assert problems(settings, before.head) == ()


def test_it_can_only_be_appended_to(settings: Settings) -> None:
    """Other writers are told so by the table itself."""
    recorded(settings, 1)
    with pytest.raises(Exception, match=r"(?i)append.?only"):
        DeltaTable(str(folder(settings))).delete()


def changed(settings: Settings) -> None:
    """A record says something else."""
    edited(settings, 3, lambda found: [replace(found[0], result="denied")])


def changed_with_its_hash(settings: Settings) -> None:
    """A record says something else, and its hash is right."""

    def edit(found: list[AuditRecord]) -> list[AuditRecord]:
        other = replace(found[0], result="denied")
        return [replace(other, record_hash=book.digest(other, None))]

    edited(settings, 3, edit)


def swapped(settings: Settings) -> None:
    """Two records have changed places, numbers included."""
    ours, theirs = held(settings, 3), held(settings, 4)
    first, second = (book.read(pl.read_parquet(file))[0] for file in (ours, theirs))
    book.frame([replace(first, sequence=4)]).write_parquet(ours)
    book.frame([replace(second, sequence=3)]).write_parquet(theirs)


def put_in(settings: Settings) -> None:
    """A record is there that nobody has entered."""

    def edit(found: list[AuditRecord]) -> list[AuditRecord]:
        (more,) = book.chained([found[0]], Head(3, found[0].record_hash), None)
        return [*found, more]

    edited(settings, 3, edit)


def removed(number: int) -> Callable[[Settings], None]:
    """A record is taken out by an entry of the log, as a writer would who heeds nothing."""

    def remove(settings: Settings) -> None:
        table = DeltaTable(str(folder(settings)))
        path = held(settings, number).name
        entry = {"remove": {"path": path, "deletionTimestamp": 0, "dataChange": True}}
        log = folder(settings) / "_delta_log" / f"{table.version() + 1:020}.json"
        log.write_text(json.dumps(entry) + "\n")

    return remove


def flipped(settings: Settings) -> None:
    """One byte of a file has another value."""
    file = held(settings, 3)
    data = bytearray(file.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 12] ^= 0xFF
    file.write_bytes(data)


def lost(settings: Settings) -> None:
    """A file is gone."""
    held(settings, 3).unlink()


def headless(settings: Settings) -> None:
    """The property that tells of the end is gone, and the entries tell of another one."""
    for entry in (folder(settings) / "_delta_log").glob("*.json"):
        entry.write_text(entry.read_text().replace("bronze.audit.head", "bronze.audit.other"))


def remade(settings: Settings) -> None:
    """All records are chained anew, and the end in the log's last entry is theirs."""
    last = max((folder(settings) / "_delta_log").glob("*.json"))
    before = audit.report(settings)
    edits = [replace(r, result="denied") if r.sequence == 3 else r for r in before.records]
    links = book.chained(edits, Head(), None)
    for number in (1, 3, 4, 5):
        file = held(settings, number)
        mine = pl.read_parquet(file)["sequence"].to_list()
        book.frame([link for link in links if link.sequence in mine]).write_parquet(file)
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
    "the end taken away": (headless, "does not tell where the chain ends"),
    "chained anew": (remade, "record 3 is not the one that was committed"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_detected(settings: Settings, name: str) -> None:
    """Whatever is done to a record or a file is found, and told with the record's number."""
    tamper, said = TAMPERINGS[name]
    recorded(settings, 4)
    assert problems(settings) == ()
    tamper(settings)
    found = problems(settings)
    assert any(said in problem for problem in found), found


def test_what_was_put_back_is_detected_by_a_head_kept_elsewhere(settings: Settings) -> None:
    """Deleting the newest entries of the log leaves a true, shorter log: only the outside knows."""
    recorded(settings, 4)
    head = audit.report(settings).head
    newest = max((folder(settings) / "_delta_log").glob("*.json"))
    newest.unlink()
    assert problems(settings) == ()
    (said,) = problems(settings, head)
    assert "put back" in said


def test_a_sealed_log_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the lake but not the key cannot chain records anew; with a new key, old ones hold."""
    monkeypatch.setenv("AUDIT", KEY)
    monkeypatch.setenv("NEXT", "another key")
    sealing = parsed(tmp_path, audit={"key": {"secret": "AUDIT"}})
    recorded(sealing, 4)
    assert problems(sealing) == ()
    assert KEY not in "".join(map(str, audit.report(sealing).records))
    next_key = {"key": {"secret": "NEXT"}, "former_keys": [{"secret": "AUDIT"}]}
    renewed = parsed(tmp_path, audit=next_key)
    audit.record(renewed, "reveal", "public.t", "succeeded")
    assert problems(renewed) == ()
    assert any("sealed with another key" in said for said in problems(sealing))
    plain = parsed(tmp_path)
    audit.record(plain, "reveal", "public.t", "succeeded")
    assert any("is not sealed" in said for said in problems(renewed))


def test_a_chain_made_anew_without_the_key_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that nobody has sealed is not taken for one that is."""
    monkeypatch.setenv("AUDIT", KEY)
    recorded(parsed(tmp_path), 2)
    assert problems(parsed(tmp_path, audit={"key": {"secret": "AUDIT"}})) == (
        "no record is sealed with a key, and the config has one",
    )


WRITER = """
import json, sys
from bronze.config import loading
from bronze.governance import audit
settings = loading.parse(json.loads(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    audit.record(settings, "reveal", sys.argv[2], "succeeded", {"number": number})
"""


def test_writers_at_once_keep_one_chain(settings: Settings) -> None:
    """Two processes that record at the same time take turns: nothing is lost, nothing torn."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, document, name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name in ("a", "b")
        ]
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=60)
        assert [writer.returncode for writer in writers] == [0, 0]
    report = audit.report(settings, verify=True)
    assert report.problems == ()
    assert [record.sequence for record in report.records] == list(range(1, 26))
    assert [r.action for r in report.records].count("config") == 1
    for name in ("a", "b"):
        numbers = [json.loads(r.details)["number"] for r in report.records if r.subject == name]
        assert numbers == list(range(12))


def test_a_changed_config_is_recorded_by_its_keys(tmp_path: Path) -> None:
    """The names of what was added, removed and changed are told; values and secrets are not."""

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
    records = audit.report(second).records
    assert [r.action for r in records] == ["config", "run", "run", "config", "run"]
    assert records[3].subject == str(tmp_path / "bronze.toml")
    told = json.loads(records[3].details)
    assert told["added"] == ["tables.t.key", "tables.t.pattern"]
    assert told["removed"] == ["run.workers"]
    assert told["changed"] == ["source.test.dsn.host"]
    everything = b"".join(f.read_bytes() for f in tmp_path.glob("lake/**/*") if f.is_file())
    for word in (b"hush", b"louder", b"silent", b"still", b"elsewhere"):
        assert word not in everything


def test_two_configs_of_one_lake_are_told_apart(tmp_path: Path) -> None:
    """Two files that take turns are no changes of each other."""
    both = []
    for name, workers in (("one.toml", 1), ("two.toml", 2)):
        (tmp_path / name).write_text(
            '[source]\ndsn = "postgresql://u@nowhere/db"\n[lake]\nroot = "lake"\n'
            f"[run]\nworkers = {workers}\n"
        )
        both.append(loading.load(tmp_path / name))
    for own in (*both, *both):
        audit.record(own, "run", "", "succeeded")
    actions = [record.action for record in audit.report(both[0]).records]
    assert actions == ["config", "run", "config", "run", "run", "run"]


def test_a_run_is_one_query_away(source: Source) -> None:
    """Each command is recorded with its figures, and each change of a schema with its table."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("INSERT INTO t VALUES (1), (2)")
    opened = Bronze(source.settings())
    result = opened.run()
    source.execute("ALTER TABLE t ADD word text")
    opened.run(["t"])
    opened.maintain()
    report = opened.audit(verify=True)
    assert report.problems == ()
    told = [(r.action, r.subject, r.result) for r in report.records]
    assert told == [
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
    assert changes == [["created with 1 columns"], ["column word was added"]]
    assert len(opened.audit(table="t").records) == 2
    assert opened.audit(since=datetime.now(UTC) + timedelta(hours=1)).records == ()


def test_failures_are_recorded_and_refusals_are_not(source: Source, tmp_path: Path) -> None:
    """A command that fails leaves a record; one that was never begun for its arguments does not."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings())
    with pytest.raises(ConfigError):
        opened.run(["no_such_table"])
    assert not source.lake.exists()
    with pytest.raises(BronzeError):
        Bronze(parsed(tmp_path, run={"max_retries": 0})).run()
    record = audit.report(parsed(tmp_path)).records[-1]
    assert (record.action, record.result) == ("run", "failed")
    assert json.loads(record.details)["error"] == "SourceUnreachable"


def test_a_stream_is_recorded_at_both_ends(source: Source) -> None:
    """That it began is known while it goes on, what it did when it has ended."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    opened = Bronze(source.settings(tables={"t": {"pattern": "streaming"}}))
    opened.stream(until_caught_up=True)
    name = opened.drop_stream()
    told = [(r.action, r.subject, r.result) for r in opened.audit(verify=True).records[1:]]
    assert told == [
        ("stream", "", "started"),
        ("schema", "public.t", "changed"),
        ("stream", name, "succeeded"),
        ("drop stream", name, "succeeded"),
    ]


def test_what_cannot_be_recorded_is_told(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data has landed; the result says that the audit has not, and the exit code too."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")

    def refuse(*_: object) -> None:
        raise LakeUnreachable("The lake is gone.")

    monkeypatch.setattr(audit, "enter", refuse)
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
        lambda told: told.replace(tzinfo=UTC)
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
    """Records come back from their file as they were; with any field changed they are refused."""
    links = book.chained(drafts, Head(), key)
    head = Head(len(links), links[-1].record_hash)
    keys = {book.key_id(key): key} if key else {}
    assert book.read(book.frame(links)) == links
    assert list(book.faults(links, head, keys, bool(key))) == []
    number = data.draw(st.integers(0, len(links) - 1))
    name = data.draw(st.sampled_from([n for n, k in book.COLUMNS if k.name == "string"]))
    other = replace(links[number], **{name: getattr(links[number], name) + "x"})
    touched = [*links[:number], other, *links[number + 1 :]]
    assert list(book.faults(touched, head, keys, bool(key)))
    if len(links) > 1:
        assert list(book.faults(links[:number] + links[number + 1 :], head, keys, bool(key)))
    assert len(astuple(other)) == len(book.COLUMNS)


@pytest.mark.parametrize("text", ["7d", "12H", "2026-05-01", "2026-05-01T08:00+02:00"])
def test_times_are_understood(text: str) -> None:
    """Durations are back from now, dates are as they are; all have a time zone."""
    assert audit.moment(text).tzinfo


def test_a_time_that_is_none_is_refused() -> None:
    """It is the user's error, with an example of what is right."""
    with pytest.raises(ConfigError, match="not a time") as caught:
        audit.moment("yesterday")
    assert "7d" in caught.value.hint


def test_records_of_before_the_key_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They hold as they are, and anybody could have written them."""
    monkeypatch.setenv("AUDIT", KEY)
    recorded(parsed(tmp_path), 2)
    sealing = parsed(tmp_path, audit={"key": {"secret": "AUDIT"}})
    recorded(sealing, 1)
    report = audit.report(sealing, verify=True)
    assert (report.problems, report.unsealed) == ((), 3)
    render.audit(report)
    assert "the first 3 are not sealed" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["sequence", "recorded_timestamp", "details"])
def test_a_record_without_a_value_is_detected(settings: Settings, column: str) -> None:
    """It is told as a fault, and breaks nothing."""
    recorded(settings, 3)
    file = held(settings, 3)
    rows = pl.read_parquet(file)
    rows.with_columns(pl.lit(None, rows.schema[column]).alias(column)).write_parquet(file)
    assert any("lack values" in said for said in problems(settings))


def test_a_log_without_its_end_is_gone_on_with(settings: Settings) -> None:
    """Runs name the last record that is there, and the next record follows it."""
    recorded(settings, 3)
    headless(settings)
    audit.enter(settings, [])
    known = audit.mark(settings)
    assert known
    assert (known.sequence, known.hash) == (4, audit.report(settings).head)
    recorded(settings, 1)
    assert audit.report(settings).count == 5
    assert problems(settings) == ()


def test_an_entry_of_the_delta_log_that_cannot_be_read_is_a_fault(settings: Settings) -> None:
    """A checkpoint may stand for it."""
    recorded(settings, 3)
    DeltaTable(str(folder(settings))).create_checkpoint()
    (folder(settings) / "_delta_log" / f"{1:020}.json").write_text("not json")
    (said,) = problems(settings)
    assert "is no entry of a Delta log" in said


@pytest.mark.parametrize("value", ["", "[1]", "{"])
def test_properties_and_facts_that_nobody_can_read_break_nothing(
    settings: Settings, value: str
) -> None:
    """The config is recorded again, and what a commit does not tell any more is a fault."""
    recorded(settings, 1)
    for entry in (folder(settings) / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            if "metaData" in action:
                action["metaData"]["configuration"]["bronze.audit.configs"] = value
            if "commitInfo" in action:
                action["commitInfo"]["bronze"] = json.dumps({"audit": value or {"sequence": "x"}})
        entry.write_text("".join(json.dumps(action) + "\n" for action in actions))
    assert "a commit does not tell where the chain ended" in problems(settings)
    recorded(settings, 1)
    assert [one.action for one in audit.report(settings).records] == ["config", "reveal"] * 2


@pytest.mark.parametrize("details", ["", "[1]", '"text"', "{"])
def test_details_that_nobody_can_read_break_nothing(settings: Settings, details: str) -> None:
    """They are shown as they are, and a config whose record is such is recorded anew."""
    recorded(settings, 1)
    edited(settings, 1, lambda held: [replace(one, details=details) for one in held])
    report = audit.report(settings, verify=True)
    assert report.problems
    render.audit(report)
    other = parsed(folder(settings).parents[2], run={"workers": 1})
    audit.record(other, "reveal", "t", "succeeded")


def test_the_environment_does_not_say_who_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can set it."""
    before = actor.user()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody else")
    assert actor.user() == before != "somebody else"
