"""The text of a commented bronze.toml for a database that was surveyed (see `bronze.api.init`).

Settings that work as they are, are active; what a person should decide is proposed in comments.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from psycopg import pq
from psycopg.conninfo import make_conninfo

from bronze.config.sections.protection import MASTER_KEY
from bronze.dsn import parse_dsn
from bronze.model.columns import KEY_TEXT
from bronze.model.results import Failure
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import Personal, Survey
from bronze.printable import count, size
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS
from bronze.tables import selection
from bronze.tables.naming import free, name_faults, proposed_names, table_name

PASSWORD_VARIABLE = "BRONZE_SOURCE_PASSWORD"  # noqa: S105 - a name
DSN_VARIABLE = "BRONZE_SOURCE_DSN"

MAX_SECTIONS = 200
"""Up to this number of tables each has a section; beyond it only those that need one."""

_WIDTH = 96
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_NAME = re.compile(r"[\w.-]+")
_PLAIN_HOST = re.compile(r"[\w.-]+", re.ASCII)
_BRONZE_COLUMNS = (*(name for name, _ in METADATA_COLUMNS), KEY_TEXT, COMMIT_TIMESTAMP)


@dataclass(frozen=True)
class DatabaseSurvey:
    """What was found in a database.

    ``schemas`` are loaded; ``hidden`` schemas have no table that the role may read. ``surveys`` are
    the tables to load, ``left_out`` tables of extensions. ``refused`` says, by oid, why tables
    cannot be read; ``excluded`` are those of them that the setting ``exclude`` leaves out.
    """

    database: str
    version: str
    schemas: tuple[str, ...]
    hidden: tuple[str, ...]
    surveys: tuple[Survey, ...]
    left_out: tuple[Survey, ...]
    refused: Mapping[int, Failure]
    excluded: tuple[Survey, ...]


def config_text(survey: DatabaseSurvey, dsn: str, name: str) -> str:
    """The text of the config.

    Args:
        survey: what was found in the database.
        dsn: libpq's connection string; its secrets are left out of the text.
        name: the name of the source.
    """
    parts = [
        _heading(survey),
        _source(dsn, name, survey),
        _lake(survey),
        _RUN,
        _SERVE,
        _tables(name, survey),
    ]
    return "\n".join(parts)


def _heading(survey: DatabaseSurvey) -> str:
    tables = count(len(survey.surveys), "table")
    stored = size(sum(s.size for s in survey.surveys))
    return _comment(
        f"Written by `bronze init` for the database {_name_in_comment(survey.database)}: PostgreSQL"
        f" {survey.version}, {tables}, {stored}.",
        "Row counts and sizes are PostgreSQL's estimates. `bronze check` shows what each column"
        " becomes, `bronze run` loads the tables.",
    )


def _source(dsn: str, name: str, survey: DatabaseSurvey) -> str:
    keywords = parse_dsn(dsn, name)
    secrets = _secret_keywords(keywords)
    shown = [toml_string(schema) for schema in survey.schemas]
    lines = [
        "[source]",
        f"name = {toml_string(name)}",
        *_connection(dsn, keywords, secrets),
        f"schema = {shown[0] if len(shown) == 1 else _list(shown)}",
        *_exclusion_lines(survey),
    ]
    if secrets:
        lines += [
            "",
            "[secrets]",
            'provider = "env"   # or "file", "azure-key-vault", "databricks"',
        ]
    return "\n".join(lines) + "\n"


def _connection(dsn: str, keywords: Mapping[str, str], secrets: Collection[str]) -> list[str]:
    """The lines of the connection string and the password, without any secret."""
    if set(secrets) - {"password"}:
        return [
            "# The connection string contains secrets: set the environment variable"
            f" {DSN_VARIABLE} to it.",
            f'dsn = {{ secret = "{DSN_VARIABLE}" }}',
        ]
    lines = [f"dsn = {toml_string(_without_secrets(dsn, keywords, secrets))}"]
    if secrets:
        return [
            *lines,
            "# Set this environment variable before a run; [secrets] has other providers:"
            f" export {PASSWORD_VARIABLE}='…'",
            f'password = {{ secret = "{PASSWORD_VARIABLE}" }}',
        ]
    return [
        *lines,
        "# The password is read from PGPASSWORD or ~/.pgpass, or from an environment variable:",
        f'# password = {{ secret = "{PASSWORD_VARIABLE}" }}',
    ]


def _exclusion_lines(survey: DatabaseSurvey) -> list[str]:
    """What is not loaded: comments with the reasons, and the setting ``exclude``."""
    lines = []
    if survey.hidden:
        hidden = ", ".join(map(_name_in_comment, survey.hidden))
        lines.append(f"Schemas left out, because this role may read no table in them: {hidden}")
    if survey.left_out:
        extensions = ", ".join(
            dict.fromkeys(_name_in_comment(s.extension) for s in survey.left_out)
        )
        names = ", ".join(_name_in_comment(s.relation.label) for s in survey.left_out)
        lines.append(f"Left out, because they belong to the extension {extensions}: {names}")
    for surveyed in survey.excluded:
        reason = survey.refused[surveyed.relation.oid]
        lines.append(f"Left out: {reason.message} {reason.hint}")
    lines = [_comment(line).rstrip() for line in lines]
    if excluded := (*survey.left_out, *survey.excluded):
        patterns = dict.fromkeys(toml_string(_pattern(s.relation.name)) for s in excluded)
        lines.append(f"exclude = {_list(patterns)}")
    return lines


def _secret_keywords(keywords: Mapping[str, str]) -> set[str]:
    hidden = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if o.dispchar == b"*"}
    return {key for key in keywords if key in hidden or key.startswith("scram_")}


def _without_secrets(dsn: str, keywords: Mapping[str, str], secrets: Collection[str]) -> str:
    """The connection string without its secrets, as a URL or keywords like the original."""
    kept = {key: value for key, value in keywords.items() if key not in secrets}
    if "://" in dsn and _PLAIN_HOST.fullmatch(kept.get("host", "")):
        rest = dict(kept)
        user, host, port, database = (rest.pop(k, "") for k in ("user", "host", "port", "dbname"))
        url = "postgresql://" + (f"{quote(user, safe='')}@" if user else "") + host
        url += (f":{port}" if port else "") + f"/{quote(database, safe='')}"
        url += f"?{urlencode(rest, quote_via=quote)}" if rest else ""
        if parse_dsn(url, "") == kept:
            return url
    return make_conninfo("", **kept)


def _pattern(name: str) -> str:
    """A pattern that matches only this name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _lake(survey: DatabaseSurvey) -> str:
    base = survey.database
    if base == "postgres" and survey.schemas != ("public",):
        base = survey.schemas[0]
    word = "".join(c if c.isalpha() or c.isdecimal() or c == "-" else "_" for c in base.lower())
    return "\n".join(
        (
            "[lake]",
            'root = "./lake"   # relative to this file; or abfss://…, s3://…, gs://…',
            f"schema = {toml_string(f'{word}_bronze')}",
            "",
        )
    )


_RUN = """\
# These are the defaults, except for workers: its default is the number of processor cores.
[run]
# workers = 4
# memory = "1GB"
# engine = "threads"   # or "processes", "dask://scheduler:8786"
# max_retries = 3
# retry_delay = "2s"
"""

_SERVE = """\
# `bronze serve` keeps every table within its sla: add sla = "2h" to a table, and channels of alerts
# ([[alerts.channels]]). Tables are due by their pattern, or by a `schedule` of their own.
[serve.schedule]
# micro_batch = "hourly"
# batch = "daily 02:00"
# full_refresh = "daily 03:00"
# maintain = "daily 04:30"
# verify = "weekly Sun 05:00"

# How many tasks run at once, at least and at most, by the hours of [serve] timezone; [run] workers
# without it. Memory and pool.max limit them too.
[serve.windows]
# peak = { when = "Mon-Fri 09:00-18:00", workers = [4, 20] }
# weekend = { when = "Sat-Sun", workers = [1, 4] }
# off_peak = { workers = [2, 8] }
"""

_NOTES = (
    "Proposed patterns are suggestions; a cursor alone does not find deleted rows. What looks"
    " personal was guessed from the names of columns and the format of a few values, and may be"
    " incomplete.",
)
_PROTECTION_NOTES = (
    "Protection is proposed in comments, because it needs a master key that only you have: without"
    " the key, encrypted values are lost. `bronze keys new` creates one. Keep it safe, set"
    f" {MASTER_KEY} to it (or name its secret: [protection] key = {{ secret = … }}), and remove the"
    " # before the protect lines. Until then these columns are loaded unprotected, and check and"
    " run say so. Methods: encrypt, encrypt_deterministic, tokenize, hash, mask, drop; or clear for"
    " what everyone may read.",
)


def _tables(source: str, survey: DatabaseSurvey) -> str:
    relations = [s.relation for s in survey.surveys]
    keys, targets = _section_keys(source, relations), _targets(relations)
    many = len(relations) > MAX_SECTIONS
    sections, lines = [], []
    for surveyed in survey.surveys:
        relation = surveyed.relation
        key = keys[relation.oid]
        settings = _settings(surveyed, targets.get(relation.oid))
        remarks = list(_remarks(surveyed, survey))
        if key and (settings or not many):
            comments = [_comment(remark).rstrip() for remark in remarks]
            protection = _protection(surveyed)
            section = [f"[tables.{toml_key(key)}]", *comments, *settings, *protection, ""]
            sections.append("\n".join(section))
        else:
            lines.append(f"# {_name_in_comment(relation.label)}: {'; '.join(remarks)}")
    notes = [_comment(*_NOTES)] if any(s.cursor or s.personal for s in survey.surveys) else []
    notes += [_comment(*_PROTECTION_NOTES)] if any("# protect" in s for s in sections) else []
    others = ["\n".join(("# Tables without a section:", *lines, ""))] if lines else []
    return "\n".join([*notes, *sections, *others])


def _section_keys(source: str, relations: Sequence[Relation]) -> dict[int, str]:
    """The name of each table's section, which no other table has; "" if there is none."""
    names = {r.oid: (r.name, r.label, f"{source}.{r.label}") for r in relations}
    counts = Counter(name for candidates in names.values() for name in set(candidates))
    one_schema = len({r.schema for r in relations}) == 1
    order = (0, 1, 2) if one_schema else (1, 0, 2)
    return {
        oid: next((candidates[i] for i in order if counts[candidates[i]] == 1), "")
        for oid, candidates in names.items()
    }


def _targets(relations: Sequence[Relation]) -> dict[int, str]:
    """Names in the lake for tables that would otherwise share one, by oid."""
    defaults = {relation.oid: table_name(relation.name) for relation in relations}
    counts = Counter(defaults.values())
    schemas = len({relation.schema for relation in relations})
    names = {name for name, count in counts.items() if count == 1}
    targets = {}
    for relation in relations:
        default = defaults[relation.oid]
        if counts[default] > 1:
            name = free(table_name(relation.label) if schemas > 1 else default, names)
            names.add(name)
            if name != default:
                targets[relation.oid] = name
    return targets


def _settings(surveyed: Survey, target: str | None) -> list[str]:
    """The active settings of a table, with their reasons."""
    relation = surveyed.relation
    lines = ["priority = 1   # its rows change often"] if surveyed.hot else []
    if target:
        lines.append(
            f"target = {toml_string(target)}   # another table would also become"
            f" {table_name(relation.name)}"
        )
    if unreadable := [a.name for a in relation.attributes if not a.readable]:
        names = ", ".join(map(_name_in_comment, unreadable))
        lines.append(_comment(f"Left out, because this role may not read it: {names}").rstrip())
        columns = [toml_string(a.name) for a in relation.attributes if a.readable]
        lines.append(f"columns = {_list(columns)}")
    return [*lines, *_renames(relation)]


def _renames(relation: Relation) -> list[str]:
    """The lines that rename columns whose names Delta cannot hold, with the reasons."""
    names = [attribute.name for attribute in relation.attributes]
    renamed = proposed_names(names, _BRONZE_COLUMNS)
    if not renamed:
        return []
    reasons = [
        _comment(f"{_name_in_comment(name)} is renamed: {reason}").rstrip()
        for name, reason in name_faults(names, _BRONZE_COLUMNS).items()
    ]
    pairs = [f"{toml_key(name)} = {toml_string(new)}" for name, new in renamed.items()]
    inline = f"rename = {{ {', '.join(pairs)} }}"
    return [*reasons, *([inline] if len(inline) <= _WIDTH else [f"rename.{p}" for p in pairs])]


def _protection(surveyed: Survey) -> list[str]:
    """The lines that would protect personal data, as comments."""
    methods = selection.protections(_personal(surveyed), surveyed.relation.key)
    pairs = [f"{toml_key(name)} = {toml_string(method)}" for name, method in methods.items()]
    inline = f"# protect = {{ {', '.join(pairs)} }}"
    return [inline] if pairs and len(inline) <= _WIDTH else [f"# protect.{pair}" for pair in pairs]


def _personal(surveyed: Survey) -> list[Personal]:
    """The columns that look personal and are loaded."""
    readable = {a.name for a in surveyed.relation.attributes if a.readable}
    return [personal for personal in surveyed.personal if personal.column in readable]


def _remarks(surveyed: Survey, survey: DatabaseSurvey) -> Iterator[str]:
    """The comments on a table: size, key, proposed pattern, personal data, and problems."""
    relation = surveyed.relation
    kind = "" if relation.kind == "table" else f"{relation.kind}, "
    rows = "number of rows unknown" if surveyed.rows < 0 else count(surveyed.rows, "row")
    key = ", ".join(map(_name_in_comment, relation.key)) or "none"
    yield f"{kind}{rows}, {size(surveyed.size)}, key: {key}"
    cursor = f", cursor {_name_in_comment(surveyed.cursor)}" if surveyed.cursor else ""
    yield f"proposed pattern: {surveyed.pattern}{cursor} ({surveyed.reason})"
    others = [c.column for c in surveyed.cursors if c.whole and c.column != surveyed.cursor]
    if others and relation.key:
        yield f"possible cursors: {', '.join(map(_name_in_comment, others))}"
    if personal := _personal(surveyed):
        columns = ", ".join(
            f"{_name_in_comment(p.column)} ({p.kind}: {', '.join(p.signs)})" for p in personal
        )
        yield f"looks personal: {columns}: protect it before it leaves the source"
    if reason := survey.refused.get(relation.oid):
        yield f"it cannot be loaded: {reason.message} {reason.hint}"
    elif not surveyed.sampled:
        yield "its rows could not be sampled, only the names of its columns were examined"


def _comment(*paragraphs: str) -> str:
    lines = []
    for text in paragraphs:
        lines += textwrap.wrap(
            text, _WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        )
    return "".join(f"# {line}\n" for line in lines)


def _name_in_comment(name: str) -> str:
    """A name as comments show it: quoted if it has special characters."""
    return name if _PLAIN_NAME.fullmatch(name) else toml_string(name)


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def toml_key(name: str) -> str:
    """A TOML key."""
    return name if _BARE_KEY.fullmatch(name) else toml_string(name)


def toml_string(value: str) -> str:
    """A TOML string. JSON's escapes are valid TOML, but TOML has to escape more characters."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escape(c) for c in quoted)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
