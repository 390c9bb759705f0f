"""``bronze doctor`` against real servers and lakes: one line for each fault, in the right state."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import psycopg
import pytest
from typer.testing import CliRunner

from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.delta import store
from bronze.demo.server import Server
from bronze.errors import ConfigError, LakeError
from bronze.governance import audit_state
from bronze.ingest import pipeline
from bronze.model.locations import Place
from bronze.operate import beat
from bronze.operate.alerts.life import Condition
from bronze.operate.doctor import causes, source_checks
from bronze.operate.doctor.diagnosis import Diagnosis, diagnose
from bronze.operate.doctor.examination import Finding
from bronze.operate.view import Live
from bronze.postgres.replication.slot import Slot
from tests.acceptance.test_cli import configured, toml
from tests.conftest import Source
from tests.integration.operate.alerts.test_channels import NOON
from tests.support.passwords import password_needed
from tests.support.receiver import post_office, receiver, server_context

SECRET = "pa55-w0rd"
_numbers = itertools.count()


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield listening.getsockname()[1]


def states(report: Diagnosis) -> dict[str, str]:
    """The states of all findings but those that depend on the machine."""
    machine = ("memory", "versions", "lake.space")
    return {f.check: f.state for f in report.findings if f.check not in machine}


def finding(report: Diagnosis, check: str) -> Finding:
    """One finding; it says no secret, as no other does."""
    assert SECRET not in repr(report.findings)
    return next(found for found in report.findings if found.check == check)


@pytest.fixture
def streamed(source: Source) -> Path:
    """The config of a healthy database with a loaded table and one that is to be streamed."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);"
        "CREATE TABLE s (id int PRIMARY KEY)"
    )
    return configured(source, tables={"s": {"pattern": "streaming"}})


def test_a_healthy_setup_is_well(streamed: Path, source: Source) -> None:
    """Every line is ok, but for the slot that no stream has made yet, and nothing is left or
    changed in source or lake.
    """
    pipeline.run(Settings.from_file(streamed), ["t"])
    files = sorted(source.lake.rglob("*"))
    report = diagnose(streamed, limit=30)
    found = states(report)
    assert found.pop("source.test.slot") == "warning"
    assert set(found.values()) == {"ok"}, report.findings
    assert set(found) >= {
        "config",
        *(f"source.test.{step}" for step in ("name", "port", "login", "tls", "rights")),
        *(f"source.test.{step}" for step in ("settings", "stream", "clock")),
        *("lake.read", "lake.write", "lake.logs", "governance", "audit", "channels"),
    }
    assert report.exit_code == 0
    assert sorted(source.lake.rglob("*")) == files
    assert source.execute("SELECT count(*) FROM pg_replication_slots") == [(0,)]


def test_a_dead_source_and_a_lake_that_is_a_file_are_named(tmp_path: Path) -> None:
    """The first step that fails is a problem, what comes after it is unknown; the lake's folder is
    not made.
    """
    (tmp_path / "lake").write_text("")
    config = tmp_path / "bronze.toml"
    config.write_text(
        f'[source]\ndsn = "postgresql://me:{SECRET}@127.0.0.1:1/x"\n[lake]\nroot = "lake/below"\n'
    )
    report = diagnose(config)
    assert states(report) == {
        "config": "ok",
        "source.source.name": "ok",
        "source.source.port": "problem",
        **{f"source.source.{s}": "unknown" for s in ("login", "tls", "rights", "settings")},
        "source.source.clock": "unknown",
        "lake.read": "problem",
        "lake.write": "unknown",
        "lake.logs": "unknown",
        "governance": "unknown",
        "audit": "unknown",
        "channels": "ok",
    }
    assert "127.0.0.1:1 cannot be reached: Connection refused." in str(
        finding(report, "source.source.port")
    )
    assert f"{tmp_path}/lake, a part of" in finding(report, "lake.read").message
    assert report.exit_code == 1


def test_a_lake_that_is_not_there_is_a_warning_and_is_not_made(source: Source) -> None:
    """It may be a first run, or a disk that is not mounted."""
    source.execute("CREATE TABLE t (id int)")
    report = diagnose(configured(source), ["lake"])
    assert [found.state for found in report.findings][:2] == ["warning", "unknown"]
    assert report.exit_code == 0
    assert not source.lake.exists()


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role with a password and no right."""
    name = f"doctor_{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
        yield name
        admin.execute(f"DROP ROLE {name}")


def test_faults_of_the_source_are_each_one_line(role: str, source: Source, server: Server) -> None:
    """A wrong password, no such database, no TLS, no right, no schema, no table."""
    source.execute(
        "CREATE TABLE a (id int); CREATE TABLE b (id int, secret text);"
        f"GRANT SELECT (id) ON b TO {role}"
    )
    dsn = source.dsn.replace("postgres@", f"{role}@")

    def of(check: str, /, dsn: str = dsn, **more: Any) -> Finding:
        report = diagnose(configured(source, source={"dsn": dsn, **more}), ["source"], 30)
        found = [one for one in report.findings if one.state != "unknown"]
        assert {one.check for one in found if one.state != "ok"} == {f"source.test.{check}"}
        return finding(report, f"source.test.{check}")

    with password_needed(server, role):
        wrong = of("login", dsn.replace(role, f"{role}:{SECRET}"))
    assert (wrong.state, "password authentication failed" in wrong.message) == ("problem", True)
    assert "no_such" in of("login", source.dsn.rpartition("/")[0] + "/no_such").message
    assert "over TLS" in of("login", f"{dsn}?sslmode=require").message
    assert of("name", dsn.replace("127.0.0.1", "no-such.invalid")).state == "problem"
    right = of("rights")
    assert right.message.startswith(
        "2 tables cannot be loaded (public.a, public.b): Table public.a"
    )
    assert "GRANT USAGE" in right.hint
    assert 'GRANT SELECT ("secret")' in of("rights", tables=["b"]).hint
    assert "no schema gone" in of("rights", schema="gone").message
    assert "takes no table" in of("rights", tables=["none"]).message


def test_each_host_of_a_connection_string_is_looked_at(
    source: Source, server: Server, tmp_path: Path
) -> None:
    """One of several that is down, or without a name, is a warning, as the others serve; a Unix
    socket is looked for in its folder; a host that libpq finds by itself is unknown.
    """
    name = source.dsn.rpartition("/")[2]

    def look(hosts: str, more: str = "") -> dict[str, tuple[str, str]]:
        dsn = f"host={hosts} user=postgres dbname={name} {more}"
        report = diagnose(configured(source, source={"dsn": dsn}), ["source"], 30)
        found = report.findings[:3]
        return {one.check.rpartition(".")[2]: (one.state, one.message) for one in found}

    two = look("127.0.0.1,127.0.0.1", f"port={server.port},1")
    assert [two[step][0] for step in ("name", "port", "login")] == ["ok", "warning", "ok"]
    assert two["port"][1] == "127.0.0.1:1 cannot be reached: Connection refused."
    unnamed = look("127.0.0.1,no-such.invalid", f"port={server.port}")
    assert unnamed["name"] == ("warning", "The name no-such.invalid cannot be resolved.")
    unmatched = look("127.0.0.1,127.0.0.1,127.0.0.1", f"port={server.port},1")
    assert unmatched["login"][0] == "problem"
    folder = look(str(tmp_path), "port=5432")
    assert folder["name"][0] == "ok"
    assert folder["port"] == (
        "problem",
        f"{tmp_path}:5432 cannot be reached: No such file or directory.",
    )
    assert look("127.0.0.1", "service=nowhere")["name"][0] == "unknown"


def test_limits_and_row_security_of_a_role_are_named(role: str, source: Source) -> None:
    """A connection limit that is too low, and rows that the role would not see."""
    source.execute(
        f"CREATE TABLE t (id int); GRANT SELECT ON t TO {role};"
        f"ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER ROLE {role} CONNECTION LIMIT 2"
    )
    dsn = source.dsn.replace("postgres@", f"{role}@")
    report = diagnose(configured(source, source={"dsn": dsn}), ["source"], 30)
    assert "row-level security hides rows" in finding(report, "source.test.rights").message
    limit = finding(report, "source.test.settings")
    assert (limit.state, "CONNECTION LIMIT of 2" in limit.message) == ("problem", True)


def test_the_slot_of_a_stream_is_looked_at(role: str, source: Source, streamed: Path) -> None:
    """Nobody streams from it; it keeps more than the budget; it is one of another plugin; the role
    may not stream.
    """
    source.execute("SELECT pg_create_logical_replication_slot('bronze_test', 'pgoutput')")
    slot = finding(diagnose(streamed, ["source"], 30), "source.test.slot")
    assert (slot.state, "nobody streams from it" in slot.message) == ("warning", True)
    source.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 3000000))")
    config = configured(
        source, tables={"s": {"pattern": "streaming"}}, stream={"wal_budget": "1MB"}
    )
    slot = finding(diagnose(config, ["source.slot"], 30), "source.test.slot")
    assert (slot.state, "wal_budget is 1.0 MB" in slot.message) == ("warning", True)
    source.execute("SELECT pg_drop_replication_slot('bronze_test')")
    source.execute("SELECT pg_create_logical_replication_slot('bronze_test', 'test_decoding')")
    assert finding(diagnose(config, ["source"], 30), "source.test.slot").state == "problem"
    source.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    dsn = source.dsn.replace("postgres@", f"{role}@")
    config = configured(source, source={"dsn": dsn}, tables={"s": {"pattern": "streaming"}})
    stream = finding(diagnose(config, ["source"], 30), "source.test.stream")
    assert (stream.state, "REPLICATION" in stream.message) == ("problem", True)


@pytest.mark.parametrize(
    ("host", "mode", "tls", "state", "words"),
    [
        ("db.internal", "verify-full", True, "ok", "its name are verified"),
        ("db.internal", "verify-ca", True, "ok", "its name is not"),
        ("db.internal", "require", True, "ok", "is not verified (sslmode=require)"),
        ("db.internal", "prefer", False, "warning", "to db.internal is not encrypted"),
        ("127.0.0.1", "prefer", False, "ok", "stays on this machine"),
        ("/run/postgresql", "disable", False, "ok", "stays on this machine"),
    ],
)
def test_a_connection_in_clear_over_a_network_is_a_warning(
    host: str, mode: str, tls: bool, state: str, words: str
) -> None:
    """With TLS it is said what was verified."""
    info = SimpleNamespace(host=host, get_parameters=lambda: {"sslmode": mode})
    connection: Any = SimpleNamespace(info=info, pgconn=SimpleNamespace(ssl_in_use=tls))
    verdict = source_checks._tls_verdict(connection)
    assert (verdict.state, words in verdict.message) == (state, True), verdict


@pytest.mark.parametrize(
    ("ahead", "state"), [(0.0, "ok"), (-20.0, "warning"), (20.0, "warning"), (7200.0, "problem")]
)
def test_the_difference_of_the_clocks_is_shown(
    source: Source, monkeypatch: pytest.MonkeyPatch, ahead: float, state: str
) -> None:
    """Also whose clock is ahead."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - ahead)
    found = finding(diagnose(configured(source), ["source.clock"], 30), "source.test.clock")
    assert found.state == state
    if ahead:
        assert f"{abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'}" in found.message


def test_the_time_left_of_a_slot_is_shown() -> None:
    """By the server's limit and its average; a lost slot is a problem."""
    slot = Slot("s", 1, 0, 0, "extended", 3_600_000_000, "", 2_000_000_000, "pgoutput", False)
    late = source_checks._slot_state(slot, 1_000_000_000, 1_000_000 / 3)
    assert late.state == "warning"
    assert "keeps 2.0 GB of log; 3.6 GB more may be written" in late.message
    assert "in about 3 h at the average of 1.2 GB/h" in late.message
    lost = Slot("s", None, 0, 0, "lost", None, "wal_removed", 0, "pgoutput", False)
    verdict = source_checks._slot_state(lost, 1, 0)
    assert (verdict.state, "lost (wal_removed)" in verdict.message) == ("problem", True)


def test_secrets_and_channels_are_each_one_line(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing secret, an empty one, a wrong master key; channels that are reached, refuse, or
    have a certificate that nobody trusts. Nothing is sent.
    """
    source.execute("CREATE TABLE t (id int, name text)")
    for name, value in {"KEY": SECRET, "EMPTY": "", "MASTER": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:1/{SECRET}")
    with receiver() as fine, receiver(server_context(tmp_path)) as untrusted, post_office() as mail:
        mailbox = {"kind": "email", "sender": "b@example.com", "to": "a@example.com"}
        channels: list[Mapping[str, Any]] = [
            {"kind": "pagerduty", "name": "fine", "key": {"secret": "KEY"}, "url": fine.url},
            {"kind": "webhook", "name": "dead", "url": {"secret": "HOOK"}},
            {"kind": "webhook", "name": "fake", "url": untrusted.url},
            {"kind": "slack", "name": "lost", "webhook": {"secret": "MISSING"}},
            {"kind": "pagerduty", "name": "keyless", "key": {"secret": "MISSING"}, "url": fine.url},
            {"name": "mail", "server": f"localhost:{mail.port}", "tls": "none", **mailbox},
            {"name": "clear", "server": f"localhost:{mail.port}", **mailbox},
        ]
        config = configured(
            source,
            lake={"options": {"timeout": {"secret": "EMPTY"}}},
            protection={"key": {"secret": "MASTER"}},
            tables={"t": {"protect": {"name": "encrypt"}}},
        )
        lines = [f"[[alerts.channels]]\n{_toml(channel)}" for channel in channels]
        config.write_text(
            "\n".join([config.read_text(), f"[alerts]\nheartbeat = {toml(fine.url)}", *lines])
        )
        report = diagnose(config, ["secrets", "channels", "heartbeat"], 30)
        assert (fine.requests, untrusted.requests, mail.mails) == ([], [], [])
    assert states(report) == {
        "secrets.KEY": "ok",
        "secrets.HOOK": "ok",
        "secrets.EMPTY": "problem",
        "secrets.MASTER": "problem",
        "secrets.MISSING": "problem",
        "channels.fine": "ok",
        "channels.dead": "problem",
        "channels.fake": "problem",
        "channels.lost": "problem",
        "channels.keyless": "problem",
        "channels.mail": "ok",
        "channels.clear": "problem",
        "heartbeat": "ok",
    }
    assert "MISSING is not set" in finding(report, "secrets.MISSING").message
    assert "not the base64" in finding(report, "secrets.MASTER").message
    assert "127.0.0.1 cannot be reached" in finding(report, "channels.dead").message
    assert "no TLS that can be trusted" in finding(report, "channels.fake").message
    settings = Settings.from_file(config)
    condition = Condition("channel", "dead", "critical", NOON, "it fails")
    assert [text for text in causes.why(settings, condition) if "Channel" in text] == [
        finding(report, "channels.dead").message
    ]


def _toml(channel: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {toml(value)}" for name, value in channel.items())


@contextmanager
def all_silent(source: Source) -> Iterator[Path]:
    """A config whose source, lake and heartbeat accept connections and say nothing."""
    with silent_port() as port:
        options = {"aws_endpoint_url": f"http://127.0.0.1:{port}", "allow_http": "true"}
        login = {"aws_region": "x", "aws_access_key_id": "x", "aws_secret_access_key": SECRET}
        yield configured(
            source,
            source={"dsn": f"postgresql://me@127.0.0.1:{port}/x?connect_timeout=60"},
            lake={"root": "s3://lake/x", "options": {**options, **login}},
            alerts={"heartbeat": f"https://127.0.0.1:{port}/"},
        )


def test_what_hangs_is_a_problem_of_its_step(source: Source) -> None:
    """The others are as they are; what a notice says is the same sentence."""
    with all_silent(source) as config:
        report = diagnose(config, limit=0.7)
        condition = Condition("source_unreachable", "test", "critical", NOON, "it is down")
        reasons = causes.why(Settings.from_file(config), condition, 0.7)
    hangs = {found.check for found in report.findings if found.state == "problem"}
    assert hangs == {"source.test.login", "lake.read", "governance", "audit", "heartbeat"}
    assert reasons == ("Source test did not answer within 0.7 s.",)
    assert finding(report, "source.test.login").message == reasons[0]
    assert finding(report, "lake.read").message == (
        "The lake at s3://lake/x did not answer within 0.7 s."
    )


@pytest.mark.soak
@pytest.mark.slow
def test_the_command_ends_within_six_seconds_when_everything_hangs(source: Source) -> None:
    """And what a notice waits for within five."""
    with all_silent(source) as config:
        began = time.monotonic()
        result = CliRunner().invoke(app, ["doctor", "-c", str(config), "--json"])
        assert time.monotonic() - began < 6
        condition = Condition("stream_down", "test", "critical", NOON, "it is down")
        began = time.monotonic()
        assert causes.why(Settings.from_file(config), condition)
        assert time.monotonic() - began < 5
    assert result.exit_code == 1
    assert {one["state"] for one in json.loads(result.stdout)["findings"]} >= {"problem", "ok"}
    assert SECRET not in result.stdout


_DIAGNOSE = """
import json, os, sys
from bronze.operate.doctor.diagnosis import diagnose
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps([vars(one) for one in diagnose(sys.argv[1], ["lake"], 30).findings]))
"""


@pytest.mark.soak
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root becomes another user")
def test_a_lake_that_may_not_be_written_is_named() -> None:
    """Another user may read it; the finding says who has to be asked, and nothing is left."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder, "lake")
        (lake / "bronze").mkdir(parents=True)
        config = Path(folder, "bronze.toml")
        config.write_text(f'[source]\ndsn = "postgresql://x@y/z"\n[lake]\nroot = "{lake}"\n')
        for path in (Path(folder), lake, lake / "bronze"):
            path.chmod(0o555)
        command = [sys.executable, "-c", _DIAGNOSE, str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert [path.name for path in lake.rglob("*")] == ["bronze"]
    found = {one["check"]: one for one in json.loads(done.stdout)}
    assert found["lake.read"]["state"] == "ok"
    assert found["lake.write"]["state"] == "problem"
    assert "permission denied" in found["lake.write"]["message"]
    assert "who owns the folder" in found["lake.write"]["hint"]


def test_damage_of_governance_and_of_the_audit_log_is_found(source: Source) -> None:
    """A lost file, a lost Delta log, a record that was changed, a log that is gone."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    config = configured(source)
    CliRunner().invoke(app, ["run", "-c", str(config)], catch_exceptions=False)
    beat.write(Settings.from_file(config), Live("service", "host", 1, "1", NOON, NOON))
    checks = ["governance", "audit"]
    assert set(states(diagnose(config, checks, 30)).values()) == {"ok"}
    lost = next((source.lake / "governance/runs").glob("*.parquet"))
    content = lost.read_bytes()
    lost.unlink()
    damaged = finding(diagnose(config, checks, 30), "governance")
    assert damaged.message == f"governance.runs lacks {lost.name}."
    assert damaged.state == "problem"
    lost.write_bytes(content)
    hidden = (source.lake / "governance/runs/_delta_log").rename(source.lake / "hidden")
    assert "has no Delta log" in finding(diagnose(config, checks, 30), "governance").message
    hidden.rename(source.lake / "governance/runs/_delta_log")
    place = Path(audit_state.place(Settings.from_file(config)).url)
    record = max(place.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    record.unlink()
    broken = finding(diagnose(config, checks, 30), "audit")
    assert broken.state == "problem"
    assert "bronze audit --verify" in broken.hint
    place.rename(source.lake / "moved")
    gone = finding(diagnose(config, checks, 30), "audit")
    assert (gone.state, "no audit log" in gone.message) == ("problem", True)


def test_long_delta_logs_are_a_warning(source: Source) -> None:
    """Every reader replays what comes after the last checkpoint."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    config = configured(source)
    pipeline.run(Settings.from_file(config))
    log = source.table("t") / "_delta_log"
    for version in range(1, 121):
        (log / f"{version:020}.json").write_text("{}")
    long = finding(diagnose(config, ["lake"], 30), "lake.logs")
    assert long.state == "warning"
    assert "bronze.bz_t has 121 entries, 121 since its last checkpoint" in long.message


def test_a_store_without_put_if_absent_is_refused(
    bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local folders and S3 pass and keep nothing; where a second writer wins, commits could be
    lost.
    """
    for place in (Place(str(tmp_path)), Place("s3://lake/proof", tuple(bucket.items()))):
        store.prove_exclusive(place)
        assert store.listing(place) == []
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda opened, path, data, **_: real(opened, path, data))
    with pytest.raises(LakeError, match="lets a second writer replace"):
        store.prove_exclusive(Place(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_line_for_each_finding(source: Source, tmp_path: Path) -> None:
    """With a hint below it, and exits with 1 for a problem; a broken config is one, and what needs
    none is checked all the same; an unknown check is a mistake of the caller.
    """

    def doctor(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["doctor", *map(str, arguments)], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    source.execute("CREATE TABLE t (id int)")
    config = configured(source)
    code, out, _ = doctor("-c", config, "source.login", "versions")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [
        ["source.test.login", "ok"],
        ["versions", "ok"],
    ]
    assert out.endswith("2 ok\n")
    code, _, error = doctor("-c", config, "sauce")
    assert (code, "There is no check sauce (did you mean source?)" in error) == (2, True)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[source]\nnam = 1\n")
    code, out, _ = doctor("-c", wrong)
    lines = {line.split()[0]: line for line in out.splitlines() if line and line[0] != " "}
    assert code == 1
    assert "unknown key source.nam" in lines["config"]
    assert "did you mean name?" in lines["config"]
    assert lines["versions"].split()[1] == "ok"
    assert lines["source"].split()[1] == "unknown"


def test_what_a_notice_says_is_only_about_its_subject(source: Source, streamed: Path) -> None:
    """Of two sources the one that is down is looked at; nothing is said of what is well, or by
    kinds that no check belongs to.
    """
    config = source.lake.parent / "two.toml"
    config.write_text(
        f'[source.one]\ndsn = "{source.dsn}"\n'
        '[source.two]\ndsn = "postgresql://me@127.0.0.1:1/x"\n'
        f'[lake]\nroot = "{source.lake}"\n'
    )
    settings = Settings.from_file(config)

    def why(kind: str, subject: str) -> tuple[str, ...]:
        return causes.why(settings, Condition(kind, subject, "critical", NOON, ""))

    assert why("source_unreachable", "two") == (
        "127.0.0.1:1 cannot be reached: Connection refused.",
    )
    assert why("source_unreachable", "one") == ()
    assert why("quality", "public.t") == ()
    assert "127.0.0.1:1 cannot be reached: Connection refused." in why("table_failed", "public.t")


def test_an_unknown_check_is_refused(streamed: Path) -> None:
    """Before anything is looked at."""
    with pytest.raises(ConfigError, match=r"no check lake\.rite"):
        diagnose(streamed, ["lake.rite"])
