"""The document bronze.toml: the environment's part in it, and the places that errors name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze import dsn, secrets
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.model.locations import Secret

CONFIG = """
# A comment, with run.workers = 7
[source]
dsn = "postgresql://bronze@${BRONZE_TEST_HOST}/shop"

[lake]
root = "./lake"
options = { account_name = "a" }

[run]
memory = "1GB"

[tables."public.Orders"]
sla = "5m"

[[tables.items.rules]]
name = "first"
not_null = true
column = "a"

[[tables.items.rules]]
name = "second"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config."""
    monkeypatch.setenv("BRONZE_TEST_HOST", "db.internal")
    file = tmp_path / "bronze.toml"
    file.write_text(CONFIG + "not_null = true\ncolumn = 'b'\n")
    return file


def load(path: Path) -> Settings:
    """The settings."""
    return loading.load(path)


def test_texts_name_environment_variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``${NAME}`` is the variable's value, ``$${NAME}`` the text; what is not set is named."""
    assert load(path).source["source"].dsn == "postgresql://bronze@db.internal/shop"
    path.write_text(path.read_text().replace("./lake", "./$${BUCKET}"))
    assert load(path).lake.root == str(path.parent / "${BUCKET}")
    monkeypatch.delenv("BRONZE_TEST_HOST")
    with pytest.raises(ConfigError, match=r"source\.dsn names .* BRONZE_TEST_HOST, which is not"):
        load(path)


def test_a_password_from_a_variable_stays_out_of_the_settings(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read where it is used: again from the file, with the variable of that process."""
    monkeypatch.setenv("BRONZE_TEST_HOST", "host")
    path.write_text(path.read_text().replace("bronze@", "bronze:${BRONZE_TEST_PW}@"))
    monkeypatch.setenv("BRONZE_TEST_PW", "hidden")
    origin = load(path).origin("source")
    assert "hidden" not in repr(origin)
    assert origin.dsn is not None
    assert secrets.resolve(origin.dsn) == "postgresql://bronze:hidden@host/shop"


def test_variables_replace_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable has the sections and the key in its name; numbers, lists and truth are TOML."""
    for name, value in {
        "BRONZE_RUN__MEMORY": "2GB",
        "BRONZE_RUN__WORKERS": "3",
        "BRONZE_MAINTAIN__AUTO": "false",
        "BRONZE_SOURCE__TABLES": '["a", "b"]',
        "BRONZE_SOURCE__POOL__MAX": "20",
        "BRONZE_TABLES__PUBLIC.ORDERS__SLA": "1h",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(path)
    assert (settings.run.memory, settings.run.workers) == (2 * 10**9, 3)
    assert settings.maintain.auto is False
    assert settings.source["source"].tables == ("a", "b")
    assert settings.source["source"].pool.max == 20
    assert settings.tables["public.Orders"].sla == 3600


def test_secrets_of_variables_are_read_where_they_are_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings have the variable's name, so that no unit of work carries the value."""
    monkeypatch.setenv("BRONZE_SOURCE__DSN", "postgresql://bronze:hidden@db/shop")
    monkeypatch.setenv("BRONZE_LAKE__OPTIONS__ACCOUNT_KEY", "hidden")
    settings = load(path)
    origin, place = settings.origin("source"), settings.place("bronze", "bz_t")
    assert origin.dsn == Secret("env", "BRONZE_SOURCE__DSN", "", 300)
    assert dict(place.options)["account_name"] == "a"
    assert dict(place.options)["account_key"] == Secret(
        "env", "BRONZE_LAKE__OPTIONS__ACCOUNT_KEY", "", 300
    )
    assert "hidden" not in repr((settings, origin, place))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('memory = "1GB"', "memroy = 1", "line 11: unknown key run.memroy (did you mean memory?)"),
        ('memory = "1GB"', 'memory = "1 quart"', "line 11: run.memory: a size looks like"),
        ('sla = "5m"', "sla = 0", "line 14: tables.public.Orders.sla"),
        ('name = "second"', "name = 3", "line 22: tables.items.rules.1.name"),
        ('options = { account_name = "a" }', "options = 3", "line 8: lake.options: "),
        ("[run]", "[rnu]", "line 10: unknown key rnu (did you mean run?)"),
    ],
)
def test_errors_name_lines(path: Path, old: str, new: str, message: str) -> None:
    """Each error begins with the line of its key, or of what the key is in."""
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in caught.value.message


def test_errors_name_variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a variable has wrong is said of the variable."""
    monkeypatch.setenv("BRONZE_RUN__MEMROY", "1GB")
    with pytest.raises(ConfigError, match=r"BRONZE_RUN__MEMROY: unknown key run\.memroy"):
        load(path)


def test_a_password_in_the_clear_is_explained(path: Path) -> None:
    """The sentence says where a secret is kept instead, and not the secret."""
    path.write_text(path.read_text().replace("[lake]", 'password = "hidden"\n[lake]'))
    with pytest.raises(ConfigError, match="password: a secret is not written here") as caught:
        load(path)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("conninfo", "message"),
    [
        ("jdbc:postgresql://db/shop?user=bronze", "is one of JDBC"),
        ("postgresql+psycopg2://bronze@db/shop", r"write postgresql:// instead of postgresql\+psy"),
    ],
)
def test_connection_strings_of_others_are_explained(conninfo: str, message: str) -> None:
    """What belongs to another library says whose it is, and what to write."""
    with pytest.raises(ConfigError, match=message):
        dsn.parse_dsn(conninfo, "shop")


@pytest.mark.parametrize(
    ("text", "size"), [("128MiB", 2**27), ("1.5GB", 1500 * 10**6), ("1k", 1000)]
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    """Binary units are of 1,024, the others of 1,000."""
    document = {"source": {"dsn": ""}, "lake": {"root": "x"}, "stream": {"wal_budget": text}}
    assert loading.parse(document).stream.wal_budget == size


def test_a_file_of_lineage_is_beside_the_config(path: Path) -> None:
    """Relative paths are relative to the file, wherever the command runs."""
    path.write_text(path.read_text() + '\n[lineage]\nfile = "events.jsonl"\n')
    assert load(path).lineage.file == str(path.parent / "events.jsonl")
