"""The JSON schema of bronze.toml: it says what every key means, and agrees with bronze."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from typer.testing import CliRunner

from bronze.cli.main import app
from bronze.config import loading
from bronze.config.fields import Section, to_bytes, to_seconds
from bronze.config.json_schema import DURATION, SIZE, json_schema, properties_of, texts
from bronze.errors import ConfigError
from tests.unit.deploy.configs import SHOP

ROOT = Path(__file__).parents[3]
SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def _classes(base: type[Section] = Section) -> Iterator[type[Section]]:
    for child in base.__subclasses__():
        yield child
        yield from _classes(child)


CLASSES = {one.__name__: one for one in _classes() if one.__module__.startswith("bronze.config")}
SECTIONS = {name: SCHEMA["$defs"].get(name, SCHEMA) for name in texts()}
KEYS = [(name, key) for name, section in texts().items() for key in section.keys]
# Keys that are only taken together with others; a rule has exactly one kind.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("AuditSettings", "escrow_options"): {"escrow": "s3://audit/log"},
    ("AuditSettings", "escrow_lock"): {"escrow": "s3://audit/log"},
    ("AlertSettings", "scenarios"): {
        "channels": [
            {"kind": "pagerduty", "name": name, "key": {"secret": "K"}}
            for name in ("on-call", "manager")
        ]
    },
    ("BackupSettings", "*"): {"root": "s3://copy/lake"},
    ("CatalogAuth", "client_id"): {"client_secret": {"secret": "S"}},
    ("CatalogAuth", "client_secret"): {"client_id": "1"},
    ("CatalogSettings", "*"): {"auth": "azure"},
    ("ColumnProtection", "keep"): {"method": "mask"},
    ("EmailChannel", "user"): {"password": {"secret": "S"}},
    ("EmailChannel", "password"): {"user": "bronze"},
    ("LakeSettings", "options"): {"root": "s3://my-bucket/lake"},
    ("RuleSettings", "*"): {"column": "total", "not_null": True},
    ("RuleSettings", "columns"): {"unique": True},
    ("RuleSettings", "unique"): {},
    ("RuleSettings", "expression"): {},
    ("SecretSettings", "provider"): {"vault": "https://my-vault.vault.azure.net"},
    ("SlackChannel", "webhook"): {},
    ("SlackChannel", "*"): {"token": {"secret": "S"}, "channel": "#data"},
    ("SourceSettings", "password"): {},
    ("TableSettings", "cursor"): {"pattern": "batch"},
    ("TableSettings", "deletes"): {"pattern": "batch"},
    ("TableSettings", "overlap"): {"pattern": "batch", "cursor": "updated_at"},
    ("WebSettings", "certificate"): {"key": "server.key"},
    ("WebSettings", "key"): {"certificate": "server.pem"},
}
KINDS = ("range", "length", "pattern", "accepted_values", "references", "freshness")


def test_it_is_a_schema_without_loose_ends() -> None:
    """It is valid in its draft, and all that it refers to is in it."""
    Draft202012Validator.check_schema(SCHEMA)
    names = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(SCHEMA)))
    assert names == {*SCHEMA["$defs"]}


def test_every_key_has_a_description() -> None:
    """Each section of the config and each of its keys is described, and nothing that is not there;
    the commands that read a section exist.
    """
    bases = {"Section", "Threshold"}
    assert {*texts()} == {*CLASSES} - bases
    commands = {*getattr(typer.main.get_command(app), "commands")}  # noqa: B009
    for name, text in texts().items():
        assert {*properties_of(SECTIONS[name])} == {*text.keys}
        assert {*text.used_by} <= commands
        for key in properties_of(SECTIONS[name]).values():
            assert len(key["description"]) > 10
            assert len(key["examples"]) == 1


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}.{key}" for name, key in KEYS])
def test_examples_are_accepted(name: str, key: str) -> None:
    """The example of each key is taken by bronze, and valid by the schema."""
    example = {key: texts()[name].keys[key].example}
    part = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]} if name != "Settings" else SCHEMA
    _check(part, {**_required(name), **example})
    if name != "Settings":
        others = TOGETHER.get((name, key), TOGETHER.get((name, "*"), {}))
        if name == "RuleSettings" and key in KINDS:
            others = {"column": "total"}
        CLASSES[name].model_validate({**_required(name), **others, **example})


def _required(name: str) -> dict[str, Any]:
    fields = {field.alias or one: field for one, field in CLASSES[name].model_fields.items()}
    keys = [key for key, field in fields.items() if field.is_required()]
    return {key: texts()[name].keys[key].example for key in keys}


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}.{key}" for name, key in KEYS])
def test_values_of_a_wrong_type_are_refused(name: str, key: str) -> None:
    """A list of lists of tables is no value of any key, except where any value may be."""
    wrong = [[{"no such": [1]}]]
    schema = {**properties_of(SECTIONS[name])[key], "$defs": SCHEMA["$defs"]}
    is_free = name == "Bounds" or key == "accepted_values"
    assert Draft202012Validator(schema).is_valid(wrong) == is_free
    if name != "Settings":
        with pytest.raises(ValidationError):
            CLASSES[name].model_validate({**_required(name), key: wrong})


def _check(schema: dict[str, Any], value: Any) -> None:
    faults = [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(value)
    ]
    assert not faults


def _blocks() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        blocks = re.findall(r"^```toml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
        for number, block in enumerate(blocks, 1):
            yield f"{path.relative_to(ROOT)} {number}", block


@pytest.mark.parametrize(("place", "block"), [pytest.param(*one, id=one[0]) for one in _blocks()])
def test_configs_of_the_docs_are_valid(place: str, block: str) -> None:
    """Whole configs and parts of one."""
    _check(SCHEMA, tomllib.loads(block))


def _configs_of_tests() -> Iterator[dict[str, Any]]:
    """The configs in the tests' own texts that bronze accepts."""
    folders = ("unit/config", "unit/deploy", "integration/config", "acceptance")
    paths = [path for name in folders for path in (ROOT / "tests" / name).glob("test_*.py")]
    for path in sorted(paths):
        text = path.read_text("utf-8")
        if "[source]" not in text and '"source"' not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if "[" not in node.value:
                    continue
                try:
                    document = tomllib.loads(node.value)
                except tomllib.TOMLDecodeError:
                    continue
            elif isinstance(node, ast.Dict):
                try:
                    document = ast.literal_eval(node)
                except (ValueError, TypeError):
                    continue
            else:
                continue
            base = {"source": {"dsn": "host=db"}, "lake": {"root": "lake"}}
            try:
                loading.parse({**base, **document})
            except (ConfigError, TypeError):
                continue
            if document:
                yield document


def test_configs_of_the_tests_are_valid() -> None:
    """What bronze accepts of the configs in the tests, the schema accepts."""
    documents = [*_configs_of_tests(), SHOP]
    assert len(documents) > 20
    for document in documents:
        _check(SCHEMA, document)


MISTAKES: dict[str, dict[str, Any]] = {
    "an unknown section": {"sourze": {"dsn": "host=db"}},
    "an unknown key": {"source": {"dns": "host=db"}},
    "an unknown key of one of several sources": {"source": {"a": {"dsn": "host=db", "tabels": []}}},
    "a number that is a text": {"run": {"max_retries": "three"}},
    "a number below its bound": {"tables": {"t": {"priority": 0}}},
    "a size in another unit": {"run": {"memory": "2 gigabytes"}},
    "a duration in another unit": {"stream": {"interval": "1 week"}},
    "a word that is none of the words": {"tables": {"t": {"pattern": "incremental"}}},
    "a password in clear": {"source": {"dsn": "host=db", "password": "hunter2"}},
    "a table where a text is": {"lake": {"root": {"path": "lake"}}},
    "an unknown method": {"tables": {"t": {"protect": {"email": "encrypted"}}}},
    "a key that a method does not have": {"tables": {"t": {"protect": {"e": {"methode": "mask"}}}}},
    "a rule with an unknown key": {"tables": {"t": {"rules": [{"colum": "a", "not_null": True}]}}},
    "a channel of no kind": {"alerts": {"channels": [{"name": "a", "key": {"secret": "K"}}]}},
    "a channel of an unknown kind": {"alerts": {"channels": [{"kind": "sms", "name": "a"}]}},
    "an unknown key of a catalog": {"catalog": {"host": "https://a", "name": "m", "hots": "b"}},
    "too many columns": {"tables": {"t": {"cluster_by": ["a", "b", "c", "d", "e"]}}},
    "an engine that there is not": {"run": {"engine": "spark"}},
    "a decimal that is a number": {"tables": {"t": {"decimals": {"a": 38}}}},
}


@pytest.mark.parametrize("document", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(document: dict[str, Any]) -> None:
    """What bronze refuses for its keys and types, the schema refuses."""
    base = {"source": {"dsn": "host=db"}, "lake": {"root": "lake"}}
    with pytest.raises(ConfigError):
        loading.parse({**base, **document})
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize(
    ("name", "convert", "texts"),
    [
        (
            DURATION,
            to_seconds,
            ("30s", "5m", " 2 h ", "1D", "90", "5x", "1.5h", "2 weeks", "", "s"),
        ),
        (SIZE, to_bytes, ("500MB", "2GiB", "1.5 gb", "10k", "7", "GB", "2 gigabytes", "1EB", "")),
    ],
)
def test_texts_of_durations_and_sizes(name: str, convert: Any, texts: tuple[str, ...]) -> None:
    """The schema takes the texts that bronze takes, and no other."""
    validator = Draft202012Validator(SCHEMA["$defs"][name])
    for text in texts:
        try:
            is_taken = isinstance(convert(text), int)
        except ValueError:
            is_taken = False
        assert (text, validator.is_valid(text)) == (text, is_taken)


def test_what_variables_say_is_left_to_them() -> None:
    """A value that names a variable is valid for every type, and the source may be all theirs."""
    named = "${NAME}"
    _check(SCHEMA, {"source": {"pool": {"max": named}, "reader": named}, "lake": {"schema": named}})
    _check(SCHEMA, {"run": {"memory": named, "engine": named}, "stream": {"interval": named}})
    _check(SCHEMA, {"tables": {"t": {"history": named, "protect": {"email": named}}}})
    _check(SCHEMA, {})


def test_one_name_is_enough_for_a_list() -> None:
    """A list of names may be one text, however long."""
    _check(SCHEMA, {"tables": {"t": {"cluster_by": "customer_id", "key": "order_id"}}})
    _check(SCHEMA, {"tables": {"t": {"cluster_by": ["a", "b", "c", "d"]}}})


def test_defaults_are_as_one_writes_them() -> None:
    """Durations and sizes have units; each is valid, and what bronze takes without the key."""
    keys = properties_of(SCHEMA["$defs"]["MaintainSettings"])
    assert keys["retention"]["default"] == "30d"
    assert keys["file_size"]["default"] == "128MiB"
    for name, section in SECTIONS.items():
        model = CLASSES[name]
        fields = {field.alias or one: (one, field) for one, field in model.model_fields.items()}
        for key, schema in properties_of(section).items():
            if "default" in schema:
                _check({**schema, "$defs": SCHEMA["$defs"]}, schema["default"])
                attribute, field = fields[key]
                others = TOGETHER.get((name, key), TOGETHER.get((name, "*"), {}))
                document = {**_required(name), **others, key: schema["default"]}
                made = getattr(model.model_validate(document), attribute)
                assert made == field.get_default(call_default_factory=True), key


def test_the_command_prints_and_writes_it(tmp_path: Path) -> None:
    """On stdout alone, or into a file, with the line that an editor needs."""
    printed = CliRunner().invoke(app, ["schema"])
    assert json.loads(printed.stdout) == json.loads(json.dumps(SCHEMA))
    out = tmp_path / "s.json"
    written = CliRunner().invoke(app, ["schema", "--out", str(out)])
    assert json.loads(out.read_text("utf-8")) == json.loads(printed.stdout)
    assert "  #:schema ./s.json" in written.stdout
    refused = CliRunner().invoke(app, ["schema", "--out", str(tmp_path / "no" / "s.json")])
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr
