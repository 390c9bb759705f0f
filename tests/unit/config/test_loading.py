"""bronze.toml: errors name their place in the config, and no secret is copied or printed."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bronze import secrets
from bronze.cli.main import app
from bronze.config import loading
from bronze.dsn import parse_dsn
from bronze.errors import ConfigError
from bronze.model.locations import Secret
from bronze.protection import keyring

PASSWORD = "pa55-w0rd"
DSN = "postgresql://me@localhost/db"
VALID: dict[str, Any] = {"source": {"dsn": DSN}, "lake": {"root": "lake"}}


BATCH = {"pattern": "batch", "cursor": "at"}


def config_error(*wrong: tuple[str, Any], base: dict[str, Any] = VALID) -> ConfigError:
    """The error for a config that is valid except for the given values, by path."""
    document = json.loads(json.dumps(base))
    for place, value in wrong:
        *path, last = place.split("/")
        section = document
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    with pytest.raises(ConfigError) as caught:
        loading.parse(document)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_a_valid_config_is_accepted() -> None:
    """The config that the other tests change is valid."""
    assert loading.parse(VALID).lake.root == "lake"


@pytest.mark.parametrize(
    ("place", "nearest"),
    [
        ("tabels", "tables"),
        ("source/consistancy", "consistency"),
        ("source/shema", "schema"),
        ("source/pool/maximum", "max"),
        ("source/password/secrt", "secret"),
        ("source/dsn", "secret"),
        ("lake/rot", "root"),
        ("lake/options/key", "secret"),
        ("run/worker", "workers"),
        ("secrets/provder", "provider"),
        ("tables/orders/patern", "pattern"),
        ("tables/run/patern", "pattern"),
        ("tables/source/patern", "pattern"),
        ("tables/pool/decimal", "decimals"),
        ("tables/t/cursr", "cursor"),
        ("tables/t/overlapp", "overlap"),
        ("tables/t/delete", "deletes"),
        ("tables/t/ondelete", "on_delete"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_one(place: str, nearest: str) -> None:
    """At each level of the config, whatever the names of the tables are."""
    value: Any = {"secrt": "X"} if place in ("source/dsn", "lake/options/key") else "x"
    error = config_error((place, value))
    dotted = place.replace("/", ".") + (".secrt" if isinstance(value, dict) else "")
    assert f"unknown key {dotted} (did you mean {nearest}?)" in error.message


def test_an_unknown_key_without_a_near_one_lists_all_known_keys() -> None:
    """If no known key is similar, the error lists all of them."""
    error = config_error(("run/zzz", 1))
    assert "unknown key run.zzz (known keys: workers, memory, engine," in error.message


@pytest.mark.parametrize("misspelt", [DSN, {"secret": "DSN"}])
@pytest.mark.parametrize("more", [{}, {"pool": {"max": 4}}])
def test_a_misspelt_dsn_is_reported_as_such(misspelt: object, more: dict[str, Any]) -> None:
    """A source without a dsn is one source with a wrong key, not a table of sources."""
    base = {"source": {"name": "pg", "dns": misspelt, **more}, "lake": {"root": "lake"}}
    error = config_error(base=base)
    assert "unknown key source.dns (did you mean dsn?)" in error.message
    assert "source.dsn is missing" in error.message


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("source/dsn", 5, "source.dsn"),
        ("source/schema", 5, "source.schema"),
        ("source/pool/max", 1, "max is at least min + 2"),
        ("source/pool", {"min": 5, "max": 4}, "at least min"),
        ("source/consistency", "sometimes", "source.consistency"),
        ("source/row_security", "off", "source.row_security"),
        ("source/lock_timeout", "soon", 'a duration looks like "30s"'),
        ("source/lock_timeout", -1, "source.lock_timeout"),
        ("lake/schema", "a/b", "lake.schema"),
        ("lake", "lake", "lake"),
        ("run/workers", "four", "run.workers"),
        ("run/workers", 0, "run.workers"),
        ("run/memory", "lots", 'a size looks like "500MB"'),
        ("run/memory", "1MB", "memory is at least"),
        ("run/engine", "spark", "run.engine"),
        ("run/max_retries", -1, "run.max_retries"),
        ("secrets/provider", "vault", "secrets.provider"),
        ("secrets/provider", "file", 'provider "file" needs [secrets] folder'),
        ("secrets/provider", "azure-key-vault", 'provider "azure-key-vault" needs [secrets] vault'),
        ("tables", 3, "tables"),
        ("tables/t/priority", 10, "tables.t.priority"),
        ("tables/t/pattern", "hourly", "tables.t.pattern"),
        ("tables/t", {"cursor": "at"}, 'cursor is only for the patterns "batch" and "micro_batch"'),
        ("tables/t", {"overlap": "1h"}, 'overlap is only for the patterns "batch"'),
        ("tables/t", {"deletes": "ignore"}, 'deletes is only for the patterns "batch"'),
        ("tables/t", {"pattern": "batch", "overlap": "1h"}, 'cursor = "xmin" needs none'),
        ("tables/t", {**BATCH, "overlap": "a while"}, 'a duration looks like "30s"'),
        ("tables/t", {**BATCH, "overlap": -1}, "tables.t.overlap"),
        ("tables/t", {**BATCH, "deletes": "sometimes"}, 'a duration looks like "30s"'),
        ("tables/t", {**BATCH, "deletes": -5}, "tables.t.deletes"),
        ("tables/t/on_delete", "keep", "tables.t.on_delete: input should be 'mark' or 'remove'"),
        ("tables/t/key", 5, "tables.t.key"),
        ("tables/t/rename", {"a": 5}, "tables.t.rename.a"),
        ("tables/t/target", "a/b", "tables.t.target"),
        ("tables/t/decimals", {"n": "decimal(39,2)"}, "the precision is 1 to 38"),
        ("tables/t/decimals", {"n": "money"}, 'a decimal type looks like "decimal(38,10)"'),
    ],
)
def test_a_wrong_value_names_its_place(place: str, value: object, message: str) -> None:
    """A value of a wrong type or out of its range is refused with its place in the config."""
    error = config_error((place, value))
    assert message in error.message
    assert place.split("/")[0] in error.message


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, ("full_refresh", "xmin", None, "detect", "mark")),
        ({"pattern": "batch"}, ("batch", "xmin", None, "detect", "mark")),
        ({**BATCH, "overlap": "1h"}, ("batch", "at", 3600, "detect", "mark")),
        ({**BATCH, "deletes": "1d"}, ("batch", "at", None, 86400, "mark")),
        ({**BATCH, "deletes": "ignore"}, ("batch", "at", None, "ignore", "mark")),
        (
            {"pattern": "micro_batch", "deletes": 90, "on_delete": "remove"},
            ("micro_batch", "xmin", None, 90, "remove"),
        ),
        ({"on_delete": "remove"}, ("full_refresh", "xmin", None, "detect", "remove")),
    ],
)
def test_table_settings_have_defaults_and_durations_in_seconds(
    section: dict[str, Any], expected: tuple[object, ...]
) -> None:
    """What a section of a table does not set has its default; durations become seconds."""
    table = loading.parse({**VALID, "tables": {"t": section}}).table("source", "public", "t")
    names = ("pattern", "cursor", "overlap", "deletes", "on_delete")
    assert tuple(getattr(table, name) for name in names) == expected
    assert table.method == expected[0]


def test_a_wrong_value_of_deletes_lists_the_allowed_ones() -> None:
    """The error lists the words and the durations that are allowed, without pydantic's terms."""
    error = config_error(("tables/t", {**BATCH, "deletes": "sometimes"}))
    for part in ("tables.t.deletes: ", "'detect' or 'ignore'", '"30s", "5m" or "2h"'):
        assert part in error.message
    assert "literal" not in error.message


def test_a_key_of_one_column_may_be_a_string() -> None:
    """A key of one column needs no list."""
    for key in ("id", ["id"]):
        table = loading.parse({**VALID, "tables": {"t": {"key": key}}}).table("source", "s", "t")
        assert table.key == ("id",)


def test_all_errors_are_reported_at_once() -> None:
    """One error lists everything that is wrong in the config."""
    error = config_error(("run/workers", 0), ("lake/rot", "x"), ("tables/t/priority", 0))
    for place in ("run.workers", "lake.rot", "tables.t.priority"):
        assert place in error.message


def test_a_missing_section_is_named() -> None:
    """A config without a source or a lake says which is missing."""
    error = config_error(base={"source": {"dsn": DSN}})
    assert "lake is missing" in error.message
    assert "source is missing" in config_error(base={"lake": {"root": "lake"}}).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no config file"),
        (b"[source\ndsn = 1", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_an_unreadable_config_file_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """A missing file, one that is not TOML, and one that is not text are named with the reason."""
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        loading.load(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_a_folder_instead_of_a_config_file_is_an_error(tmp_path: Path) -> None:
    """A folder in the config's place is reported like an unreadable file."""
    with pytest.raises(ConfigError, match="cannot be read"):
        loading.load(tmp_path)


@pytest.mark.parametrize("dsn", ["postgresql://me:pa55-w0rd@[::1", "host=x nonsense=pa55-w0rd"])
def test_an_unreadable_connection_string_is_not_repeated(dsn: str) -> None:
    """The error names the source, not what is in the connection string."""
    settings = loading.parse({**VALID, "source": {"name": "shop", "dsn": dsn}})
    with pytest.raises(ConfigError, match="source shop cannot be read") as caught:
        settings.origin("shop")
    assert PASSWORD not in caught.value.message + caught.value.hint
    assert "postgresql://" in caught.value.hint


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql://me:s3/cret@db.internal:5432/shop", "a / in its user or password"),
        ("postgresql://me:s3cr@et@db.internal/shop", "an @ in its user or password"),
        ("postgresql://me:12/s3cret@db/shop?sslmode=require", "a / in its user or password"),
        ("postgresql://me:s3%zzcret@db/shop", "cannot be read"),
        ("postgresql://s3cret:s3cret", "its port is not a number"),
        ("host=db port=s3cret", "its port is not a number"),
        ("host=db password=s3 cret", "cannot be read"),
    ],
)
def test_a_misread_connection_string_is_not_printed(dsn: str, message: str, tmp_path: Path) -> None:
    """If libpq would take a part of the password for a host, a port or a database, no command
    prints any part of the connection string.
    """
    config = tmp_path / "bronze.toml"
    config.write_text(
        f'[source]\nname = "shop"\ndsn = "{dsn}"\nschema = "public"\n[lake]\nroot = "lake"\n'
        'schema = "b"\n[tables.t]\npattern = "streaming"\n'
    )
    runner = CliRunner()
    commands = [[name, "-c", str(config)] for name in ("check", "run", "stream", "verify")]
    for command in (*commands, ["init", "--dsn", dsn]):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, command
        output = result.output + result.stderr
        assert message in " ".join(output.split()), command
        assert "cret" not in output.replace("secret", ""), command


def test_percent_encoded_parts_of_a_connection_string_are_decoded() -> None:
    """Special characters in user, password, database and options are read as written."""
    dsn = "postgresql://me:a%2Fb%40c@h1:1,h2:2/my%40db?options=-c%20x%3Da@b"
    given = parse_dsn(dsn, "shop")
    assert (given["password"], given["dbname"], given["port"]) == ("a/b@c", "my@db", "1,2")
    assert parse_dsn("postgresql:///shop?host=/run&user=a", "shop")["host"] == "/run"


def config_file(tmp_path: Path, source: str) -> Path:
    """A config file with the given lines for the source."""
    path = tmp_path / "bronze.toml"
    path.write_text(f'{source}\n[lake]\nroot = "lake"\n')
    return path


@pytest.mark.parametrize(
    "section",
    [
        "[source]",
        '[source]\nname = "pg/1"',
        "[source.pg]",
        '[source."pg/1"]',
        '[source.pg]\nname = "x"',
    ],
)
def test_a_password_in_the_config_stays_in_the_file(tmp_path: Path, section: str) -> None:
    """It is in no repr and no pickle; workers read it from the file, whatever the section."""
    dsn = f"postgresql://me:{PASSWORD}@localhost/db"
    settings = loading.load(config_file(tmp_path, f'{section}\ndsn = "{dsn}"'))
    (name,) = settings.source
    origin = settings.origin(name)
    for shown in (repr(settings), str(settings), repr(origin), str(pickle.dumps(origin))):
        assert PASSWORD not in shown
    assert origin.dsn is not None
    assert secrets.resolve(origin.dsn) == dsn


def test_a_password_in_a_mapping_is_refused() -> None:
    """Without a file, workers could not read it: the hint names the other ways."""
    dsn = f"postgresql://me:{PASSWORD}@localhost/db"
    with pytest.raises(ConfigError, match="contains a password") as caught:
        loading.parse({**VALID, "source": {"dsn": dsn}}).origin("source")
    assert PASSWORD not in caught.value.message + caught.value.hint
    assert "password = { secret = " in caught.value.hint


@pytest.mark.parametrize(
    ("lake", "message"),
    [
        (
            {"root": "s3://b/x", "options": {"aws_acces_key_id": "x"}},
            "there is no option aws_acces_key_id for aws's store (did you mean aws_access_key_id?)",
        ),
        ({"root": "s3n://b/x"}, "there is no store for s3n://; use s3://bucket/path"),
        ({"root": "wasbs://c@a.blob.core.windows.net/x"}, "use abfss://container@account.dfs."),
    ],
)
def test_a_lake_that_no_store_can_have_is_refused(lake: dict[str, Any], message: str) -> None:
    """Its scheme, or one of its options; the sentence says what to write instead."""
    with pytest.raises(ConfigError) as caught:
        loading.parse({**VALID, "lake": lake})
    assert message in caught.value.message


def test_keys_of_the_object_store_are_in_no_repr() -> None:
    """Neither a key in the config's options nor a reference to one is shown."""
    options = {"secret_access_key": PASSWORD, "token": {"secret": "LAKE_KEY"}}
    settings = loading.parse({**VALID, "lake": {"root": "s3://b/x", "options": options}})
    for shown in (repr(settings), repr(settings.lake), repr(settings.place("bronze", "bz_t"))):
        assert PASSWORD not in shown


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (Secret("env", "NO_SUCH_SECRET"), "environment variable NO_SUCH_SECRET is not set"),
        (Secret("file", "nothing", "/nowhere"), "secret file /nowhere/nothing does not exist"),
    ],
)
def test_a_missing_secret_is_named_with_its_provider(secret: Secret, message: str) -> None:
    """The error names the secret and where it was expected, and the hint says what to do."""
    with pytest.raises(ConfigError, match=message) as caught:
        secrets.resolve(secret)
    assert "[secrets]" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_master_key_can_be_kept_in_key_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config names the vault; its key wraps data keys like one from the environment."""
    key = base64.b64encode(bytes(range(32))).decode()
    document = VALID | {
        "secrets": {"provider": "azure-key-vault", "vault": "https://vault"},
        "protection": {"key": {"secret": "KMaster"}, "previous": [{"secret": "KOld"}]},
    }
    first, old = loading.parse(document).masters
    assert (first.provider, first.name, old.name) == ("azure-key-vault", "KMaster", "KOld")
    monkeypatch.setitem(secrets.REMOTE, "azure-key-vault", lambda _: key)
    assert keyring.master(first) == bytes(range(32))
    data_key = keyring.new(keyring.master(first), "t", "c", "encrypt")
    assert len(keyring.unwrap(data_key, (first,))) == 64
    secrets.forget()


def test_secrets_of_one_config_may_have_several_providers(tmp_path: Path) -> None:
    """Each has its place; a folder is relative to the file of the config."""
    path = tmp_path / "bronze.toml"
    path.write_text(
        '[source]\ndsn = { secret = "D" }\npassword = { secret = "P", provider = "file" }\n'
        '[lake]\nroot = "lake"\n[secrets]\nprovider = "azure-key-vault"\nvault = "https://v"\n'
        'folder = "keys"\nttl = "1m"\n'
    )
    origin = loading.load(path).origin("source")
    assert origin.dsn == Secret("azure-key-vault", "D", "https://v", 60)
    assert origin.password == Secret("file", "P", str(tmp_path / "keys"), 60)
    document = VALID | {"source": {"dsn": DSN, "password": {"secret": "P", "provider": "file"}}}
    with pytest.raises(ConfigError, match=r'provider "file" needs \[secrets\] folder'):
        loading.parse(document).origin("source")


def test_a_source_may_log_in_with_tokens() -> None:
    """Of a cloud, or of a command; not with a password, too."""
    for auth, method in (("entra", "entra"), ({"command": ["get-token", "-x"]}, "command")):
        origin = loading.parse(VALID | {"source": {"dsn": DSN, "auth": auth}}).origin("source")
        assert origin.auth is not None
        assert origin.auth.method == method
    both = {"dsn": DSN, "auth": "rds-iam", "password": {"secret": "P"}}
    assert "set one of them" in config_error(("source", both)).message
    wrong = {"dsn": DSN, "auth": {"comand": ["x"]}}
    assert "did you mean command" in config_error(("source", wrong)).message
