"""A first bronze.toml for a database, from a look at it.

What the config takes as it is, is live; what a person should decide stands in comments.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from psycopg import pq
from psycopg.conninfo import make_conninfo

from bronze.config.protection import MASTER_KEY
from bronze.config.settings import TableSettings
from bronze.dsn import parse_dsn
from bronze.errors import ConfigError
from bronze.model.columns import KEY_TEXT
from bronze.model.locations import Origin, Place
from bronze.model.results import Failure
from bronze.postgres.catalog import relations as catalog
from bronze.postgres.catalog import survey
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import Personal, Survey
from bronze.postgres.connection import connect
from bronze.postgres.copy import snapshot
from bronze.rows.metadata import COMMITTED, METADATA
from bronze.tables import selection
from bronze.tables.naming import faults, free, renames, table_name
from bronze.tables.selection import Target

PASSWORD = "BRONZE_SOURCE_PASSWORD"  # noqa: S105 - a name
DSN = "BRONZE_SOURCE_DSN"

MANY = 200
"""Up to this number of tables each has a section; beyond it only those that need one."""

_WIDTH = 96
_LOCKED = "55P03"
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = re.compile(r"[\w.-]+")
_PLAIN_HOST = re.compile(r"[\w.-]+", re.ASCII)
_ADDED = (*(name for name, _ in METADATA), KEY_TEXT, COMMITTED)


@dataclass(frozen=True)
class _Found:
    """What a look at the database brought.

    ``hidden`` schemas hold nothing that may be read; ``left_out`` are what extensions brought,
    ``refused`` by oid why tables cannot be read, ``excluded`` those of them that a pattern leaves
    out.
    """

    database: str
    version: str
    schemas: tuple[str, ...]
    hidden: tuple[str, ...]
    surveys: tuple[Survey, ...]
    left_out: tuple[Survey, ...]
    refused: Mapping[int, Failure]
    excluded: tuple[Survey, ...]


def propose(
    dsn: str,
    *,
    schemas: Sequence[str] = (),
    name: str = "",
    notify: Callable[[str], None] = lambda _: None,
) -> str:
    """The text of a bronze.toml for a database, which `bronze.config.loading.load` takes as it is.

    It holds names, sizes and counts of the source, but no value of a row and no password.

    Args:
        dsn: libpq's connection string, as a URL or as keywords; it may have a password in it.
        schemas: the schemas to take; none takes all that hold something readable.
        name: the source's name in the lake; by default the database's.
        notify: is told of each table that is left out as it cannot be read, and why.

    Raises:
        ConfigError: the connection string is not one, a schema is not there, or there is no
            table that can be read.
        SourceUnreachable, SourceBusy, SourceRefused, SourceError
    """
    # A table that is locked is proposed all the same.
    origin = Origin(name=name or "source", conninfo=dsn, lock_timeout=1)
    with connect.mapped(origin), connect.connect(origin) as connection:
        found = _look(origin, connection, schemas)
    for surveyed in found.excluded:
        notify(f"Left out: {found.refused[surveyed.relation.oid].message}")
    parts = [
        _heading(found),
        _source(dsn, name or found.database, found),
        _lake(found),
        _RUN,
        _tables(name or found.database, found),
    ]
    return "\n".join(parts)


def write(path: str | Path, text: str) -> None:
    """Writes a proposal to a new file.

    Raises:
        ConfigError: there is such a file already, or it cannot be written.
    """
    try:
        with Path(path).open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"The file {path} is there already, and stays as it is.",
            hint="Name another with --out, or move it away first.",
        ) from None
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be written: {error.strerror}.") from None


def _look(origin: Origin, connection: connect.Connection, wanted: Sequence[str]) -> _Found:
    present = catalog.schemas(connection)
    missing = [schema for schema in wanted if schema not in present]
    if missing:
        raise ConfigError(
            f"There is no schema {', '.join(missing)} in the database.",
            hint=f"There are: {', '.join(present)}; names are case-sensitive.",
        )
    surveys = survey.look(connection, survey.sized(connection, tuple(wanted) or present))
    own = [s.relation for s in surveys if not s.extension]
    taken = set(wanted) or {relation.schema for relation in own if relation.readable}
    row: Any = connection.execute(
        "SELECT current_database(), current_setting('server_version'), current_user"
    ).fetchone()
    if not any(relation.readable for relation in own):
        raise _nothing(own, row[0], row[2], wanted)
    inside = [s for s in surveys if s.relation.schema in taken]
    # The config leaves tables out by their name alone, and must not leave out another's.
    refused = _refused(origin, connection, [s.relation for s in inside], sorted(taken))
    names = {s.relation.name for s in inside if not s.extension and s.relation.oid not in refused}
    others = [s for s in inside if s.relation.name not in names]
    if refused and not names:
        first = next(iter(refused.values()))
        raise ConfigError(f"No table can be read: {first.message}", hint=first.hint)
    left_out = tuple(s for s in others if s.extension)
    excluded = tuple(s for s in others if not s.extension)
    return _Found(
        database=row[0],
        version=row[1],
        schemas=tuple(sorted(taken)),
        hidden=tuple(sorted({relation.schema for relation in own} - taken)),
        surveys=tuple(s for s in inside if s not in others),
        left_out=left_out,
        refused=refused,
        excluded=excluded,
    )


def _refused(
    origin: Origin,
    connection: connect.Connection,
    relations: Sequence[Relation],
    schemas: Sequence[str],
) -> dict[int, Failure]:
    """Why tables cannot be read, in the words of a run. That one is locked passes."""
    readable = [relation for relation in relations if relation.readable]
    with snapshot.hold(origin, connection, readable, schemas, "per-table") as held:
        why = dict(held.refused)
    found: dict[int, Failure] = {}
    for relation in relations:
        target = Target(origin.name, relation, TableSettings(), "", "", Place(""))
        error = why.get(relation.label)
        if not relation.readable:
            error = selection.unreadable(target)
        elif {a.name for a in relation.attributes if not a.readable} & {*relation.key}:
            error = selection.closed(target)
        if error and error.sqlstate != _LOCKED:
            found[relation.oid] = error.failure()
    return found


def _nothing(
    there: Sequence[Relation], database: str, role: str, wanted: Sequence[str]
) -> ConfigError:
    place = f"the database {database}" + (f", schema {', '.join(wanted)}" if wanted else "")
    if there:
        return ConfigError(
            f"The role {role} may read none of the {len(there)} tables in {place}.",
            hint="GRANT USAGE on the schema and SELECT on its tables to it.",
        )
    return ConfigError(
        f"There is no table in {place}.",
        hint="Check the database's name at the end of the connection string, and --schema.",
    )


def _heading(found: _Found) -> str:
    tables = _count(len(found.surveys), "table")
    size = _size(sum(s.size for s in found.surveys))
    return _comment(
        f"Proposed by `bronze init` for the database {_shown(found.database)}: PostgreSQL"
        f" {found.version}, {tables}, {size}.",
        "Rows and sizes are PostgreSQL's estimates. `bronze check` shows what each column becomes,"
        " `bronze run` copies the tables.",
    )


def _source(dsn: str, name: str, found: _Found) -> str:
    given = parse_dsn(dsn, name)
    secrets = _secret_keywords(given)
    lines = ["[source]", f"name = {_text(name)}"]
    if secrets - {"password"}:
        lines += [
            f"# The connection string has secrets in it: set the environment variable {DSN} to it.",
            f'dsn = {{ secret = "{DSN}" }}',
        ]
    else:
        lines.append(f"dsn = {_text(_without(dsn, given, secrets))}")
    if secrets == {"password"}:
        lines += [
            f"# Set it before a run: export {PASSWORD}='…'; other places under [secrets].",
            f'password = {{ secret = "{PASSWORD}" }}',
        ]
    elif not secrets:
        lines.append(
            "# A password comes from PGPASSWORD or ~/.pgpass, or from here:\n"
            f'# password = {{ secret = "{PASSWORD}" }}   # an environment variable'
        )
    shown = [_text(schema) for schema in found.schemas]
    lines.append(f"schema = {shown[0] if len(shown) == 1 else _list(shown)}")
    if found.hidden:
        hidden = ", ".join(map(_shown, found.hidden))
        lines += [_comment(f"Left out, as this role may read nothing in them: {hidden}").rstrip()]
    if found.left_out:
        extensions = ", ".join(dict.fromkeys(_shown(s.extension) for s in found.left_out))
        names = ", ".join(_shown(s.relation.label) for s in found.left_out)
        lines.append(_comment(f"Of the extension {extensions}: {names}").rstrip())
    for surveyed in found.excluded:
        why = found.refused[surveyed.relation.oid]
        lines.append(_comment(f"Left out: {why.message} {why.hint}").rstrip())
    if excluded := (*found.left_out, *found.excluded):
        patterns = dict.fromkeys(_text(_pattern(s.relation.name)) for s in excluded)
        lines.append(f"exclude = {_list(patterns)}")
    if secrets:
        lines += [
            "",
            "[secrets]",
            'provider = "env"   # or "file", "azure-key-vault", "databricks"',
        ]
    return "\n".join(lines) + "\n"


def _secret_keywords(given: Mapping[str, str]) -> set[str]:
    hidden = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if o.dispchar == b"*"}
    return {key for key in given if key in hidden or key.startswith("scram_")}


def _without(dsn: str, given: Mapping[str, str], secrets: Collection[str]) -> str:
    """The connection string without its secrets, in the form that it was given in."""
    kept = {key: value for key, value in given.items() if key not in secrets}
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
    return re.sub(r"([*?[])", r"[\1]", name)


def _lake(found: _Found) -> str:
    base = found.database
    if base == "postgres" and found.schemas != ("public",):
        base = found.schemas[0]
    word = "".join(c if c.isalpha() or c.isdecimal() or c == "-" else "_" for c in base.lower())
    return "\n".join(
        (
            "[lake]",
            'root = "./lake"   # or abfss://…, s3://…, gs://…; beside this file',
            f"schema = {_text(f'{word}_bronze')}",
            "",
        )
    )


_RUN = """\
# What holds when nothing is said; workers is by default the number of the machine's cores.
[run]
# workers = 4
# memory = "1GB"
# engine = "threads"   # or "processes", "dask://scheduler:8786"
# max_retries = 3
# retry_delay = "2s"
"""


def _tables(source: str, found: _Found) -> str:
    relations = [s.relation for s in found.surveys]
    keys, targets = _keys(source, relations), _targets(relations)
    many = len(relations) > MANY
    sections, briefs = [], []
    for surveyed in found.surveys:
        relation = surveyed.relation
        key = keys[relation.oid]
        live = _live(surveyed, targets.get(relation.oid))
        if key and (live or not many):
            said = [_comment(line).rstrip() for line in _said(surveyed, found)]
            lines = [f"[tables.{_key(key)}]", *said, *live, *_protection(surveyed), ""]
            sections.append("\n".join(lines))
        else:
            briefs.append(f"# {_shown(relation.label)}: {'; '.join(_said(surveyed, found))}")
    notes = [_comment(*_NOTES)] if any(s.cursor or s.personal for s in found.surveys) else []
    notes += [_comment(*_KEY_NOTES)] if any("# protect" in s for s in sections) else []
    brief = ["\n".join(("# Tables that go without a section:", *briefs, ""))] if briefs else []
    return "\n".join([*notes, *sections, *brief])


_KEY_NOTES = (
    "Protection is proposed in comments, as it needs a master key that you keep: what it encrypts"
    f" is lost without it. `bronze keys new` makes one; keep it safe, set {MASTER_KEY} to it (or"
    " name its place: [protection] key = { secret = … }), and take the # off the protect lines."
    " Until then these columns are taken in clear, as check and run go on saying. Methods: encrypt,"
    " encrypt_deterministic, tokenize, hash, mask, drop; or clear, for what may be read by all.",
)
_NOTES = (
    f"Protected columns need a master key, 32 random bytes as base64, in {MASTER_KEY}:"
    f' export {MASTER_KEY}="$(openssl rand -base64 32)", kept where it cannot be lost; or'
    " [protection] key = { secret = … }. Methods: encrypt, encrypt_deterministic, tokenize, hash,"
    " mask, drop.",
)
_NOTES = (
    "A proposed pattern is for you to decide; a cursor does not see deleted rows. What looks"
    " personal was found by the columns' names and by the shape of a few values: it is a guess,"
    " and can miss some.",
)


def _keys(source: str, relations: Sequence[Relation]) -> dict[int, str]:
    """The name of each table's section: one by which the config finds this table alone."""
    names = {r.oid: (r.name, r.label, f"{source}.{r.label}") for r in relations}
    counts = Counter(name for candidates in names.values() for name in set(candidates))
    alone = len({r.schema for r in relations}) == 1
    order = (0, 1, 2) if alone else (1, 0, 2)
    return {
        oid: next((three[i] for i in order if counts[three[i]] == 1), "")
        for oid, three in names.items()
    }


def _targets(relations: Sequence[Relation]) -> dict[int, str]:
    """Names in the lake for the tables that would take each other's."""
    usual = {relation.oid: table_name(relation.name) for relation in relations}
    counts = Counter(usual.values())
    schemas = len({relation.schema for relation in relations})
    taken = {name for name, count in counts.items() if count == 1}
    chosen = {}
    for relation in relations:
        if counts[usual[relation.oid]] > 1:
            wanted = table_name(relation.label) if schemas > 1 else usual[relation.oid]
            name = free(wanted, taken)
            taken.add(name)
            if name != usual[relation.oid]:
                chosen[relation.oid] = name
    return chosen


def _renames(relation: Relation) -> tuple[Mapping[str, str], list[str]]:
    """New names for the columns that Delta cannot hold, and why each needs one."""
    names = [attribute.name for attribute in relation.attributes]
    why = [f"{_shown(name)} is renamed: {reason}" for name, reason in faults(names, _ADDED).items()]
    return renames(names, _ADDED), why


def _live(surveyed: Survey, target: str | None) -> list[str]:
    lines = ["priority = 1   # its rows change much"] if surveyed.hot else []
    if target:
        lines.append(
            f"target = {_text(target)}   # another table would become"
            f" {table_name(surveyed.relation.name)} too"
        )
    if closed := [a.name for a in surveyed.relation.attributes if not a.readable]:
        lines.append(_comment(f"This role may not read {', '.join(map(_shown, closed))}.").rstrip())
        taken = [_text(a.name) for a in surveyed.relation.attributes if a.readable]
        lines.append(f"columns = {_list(taken)}")
    renamed, reasons = _renames(surveyed.relation)
    if renamed:
        lines += [_comment(reason).rstrip() for reason in reasons]
        pairs = [f"{_key(name)} = {_text(new)}" for name, new in renamed.items()]
        inline = f"rename = {{ {', '.join(pairs)} }}"
        lines += [inline] if len(inline) <= _WIDTH else [f"rename.{pair}" for pair in pairs]
    return lines


def _protection(surveyed: Survey) -> list[str]:
    """The lines that protect what looks personal, as comments."""
    methods = selection.protections(_personal(surveyed), surveyed.relation.key)
    pairs = [f"{_key(name)} = {_text(how)}" for name, how in methods.items()]
    inline = f"# protect = {{ {', '.join(pairs)} }}"
    return [inline] if pairs and len(inline) <= _WIDTH else [f"# protect.{pair}" for pair in pairs]


def _personal(surveyed: Survey) -> list[Personal]:
    """What looks personal, of the columns that are taken."""
    readable = {a.name for a in surveyed.relation.attributes if a.readable}
    return [one for one in surveyed.personal if one.column in readable]


def _said(surveyed: Survey, found: _Found) -> Iterator[str]:
    relation = surveyed.relation
    kind = "" if relation.kind == "table" else f"{relation.kind}, "
    rows = "rows unknown" if surveyed.rows < 0 else _count(surveyed.rows, "row")
    key = ", ".join(map(_shown, relation.key)) or "none"
    yield f"{kind}{rows}, {_size(surveyed.size)}, key: {key}"
    cursor = f", cursor {_shown(surveyed.cursor)}" if surveyed.cursor else ""
    yield f"proposed pattern: {surveyed.pattern}{cursor} ({surveyed.reason})"
    others = [c.column for c in surveyed.cursors if c.whole and c.column != surveyed.cursor]
    if others and relation.key:
        yield f"could be a cursor: {', '.join(map(_shown, others))}"
    if personal := _personal(surveyed):
        columns = ", ".join(
            f"{_shown(p.column)} ({p.kind}: {', '.join(p.signs)})" for p in personal
        )
        yield f"looks personal: {columns}: protect it before it leaves the source"
    if why := found.refused.get(relation.oid):
        yield f"it cannot be taken: {why.message} {why.hint}"
    elif not surveyed.sampled:
        yield "its rows could not be looked at, only its columns' names"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _size(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def _comment(*paragraphs: str) -> str:
    lines = []
    for text in paragraphs:
        lines += textwrap.wrap(
            text, _WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        )
    return "".join(f"# {line}\n" for line in lines)


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def _shown(name: str) -> str:
    return name if _SHOWN.fullmatch(name) else _text(name)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    """A TOML string. JSON's escapes are TOML's too, but TOML wants some more."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escaped(c) for c in quoted)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
