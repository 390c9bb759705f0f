"""The statements of Databricks SQL that register tables, against a metastore.

The grammar is that of the SQL language manual of Databricks: CREATE SCHEMA, CREATE TABLE … USING
DELTA LOCATION, REPAIR TABLE … SYNC METADATA, COMMENT ON, ALTER … SET TAGS, UNSET TAGS, OWNER TO,
GRANT, REVOKE, SELECT 1. Anything else is a syntax error. String literals have backslash escapes;
adjacent ones are one ("STRING type"), so that a doubled quote is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.unity import governance, objects
from tests.support.unity.columns import delta_columns
from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.refusals import Refusal, exists

_TOKEN = re.compile(
    r"\s+|--[^\n]*|(?P<quoted>`(?:[^`]|``)+`)|(?P<string>'(?:[^'\\]|\\.)*')"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>\d+)|(?P<mark>[.,()=;*])",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "Z": "\x1a"}
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
Mounts = Mapping[str, tuple[str, Mapping[str, str]]]


class SqlError(Exception):
    """A statement that failed, with Databricks' error class and SQLSTATE."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.message, self.state = message, state


def _syntax(near: str) -> SqlError:
    return SqlError(
        f"[PARSE_SYNTAX_ERROR] Syntax error at or near '{near}'. SQLSTATE: 42601", "42601"
    )


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        mark = match[1]
        if mark.startswith("u") and len(mark) == 5:
            return chr(int(mark[1:], 16))
        return _ESCAPES.get(mark, mark)

    return _ESCAPE.sub(one, text)


@dataclass
class _Tokens:
    """A statement as tokens: their kind and their value."""

    items: list[tuple[str, str]] = field(default_factory=list)
    at: int = 0

    @classmethod
    def of(cls, text: str) -> _Tokens:
        made, position = cls(), 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _syntax(text[position : position + 10])
            position = match.end()
            kind = match.lastgroup
            if kind == "quoted":
                made.items.append(("name", match[0][1:-1].replace("``", "`")))
            elif kind == "string":
                value = _unescape(match[0][1:-1])
                if made.items and made.items[-1][0] == "string":
                    value = made.items.pop()[1] + value
                made.items.append(("string", value))
            elif kind:
                made.items.append((kind, match[0]))
        if made.items and made.items[-1] == ("mark", ";"):
            made.items.pop()
        return made

    def peek(self) -> tuple[str, str]:
        return self.items[self.at] if self.at < len(self.items) else ("end", "end of input")

    def take(self) -> tuple[str, str]:
        item = self.peek()
        self.at += 1
        return item

    def has(self, words: str) -> bool:
        """Whether words or marks come next; if so they are read."""
        wanted = words.split()
        ahead = self.items[self.at : self.at + len(wanted)]
        if [v.upper() for k, v in ahead if k in ("word", "mark")] != wanted:
            return False
        self.at += len(wanted)
        return True

    def need(self, words: str) -> None:
        if not self.has(words):
            raise _syntax(self.peek()[1])

    def name(self) -> str:
        kind, value = self.take()
        if kind not in ("name", "word"):
            raise _syntax(value)
        return value

    def names(self) -> list[str]:
        parts = [self.name()]
        while self.has("."):
            parts.append(self.name())
        return parts

    def string(self) -> str:
        kind, value = self.take()
        if kind != "string":
            raise _syntax(value)
        return value

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise _syntax(self.peek()[1])


@dataclass
class Interpreter:
    """Executes statements for a caller. ``mounts`` are the addresses, with their options, at which
    the locations that begin with a URL are read.
    """

    metastore: Metastore
    mounts: Mounts = field(default_factory=dict)

    def execute(self, caller: str, text: str) -> list[list[str]]:
        """The rows of a statement.

        Raises:
            SqlError: it fails.
        """
        tokens = _Tokens.of(text)
        try:
            for words, method in self._verbs().items():
                if tokens.has(words):
                    rows = method(caller, tokens)
                    tokens.end()
                    return rows or []
        except Refusal as error:
            raise _sql_error(error) from None
        raise _syntax(tokens.peek()[1])

    def _verbs(self) -> dict[str, Callable[[str, _Tokens], list[list[str]] | None]]:
        return {
            "SELECT 1": lambda *_: [["1"]],
            "SELECT": self._select,
            "CREATE SCHEMA": self._create_schema,
            "CREATE TABLE": self._create_table,
            "MSCK REPAIR TABLE": self._repair,
            "REPAIR TABLE": self._repair,
            "COMMENT ON": self._comment,
            "ALTER": self._alter,
            "GRANT": lambda caller, tokens: self._grant(caller, tokens, "add", "TO"),
            "REVOKE": lambda caller, tokens: self._grant(caller, tokens, "remove", "FROM"),
        }

    def columns(self, url: str) -> list[dict[str, Any]] | None:
        """The columns of the Delta table at a location, None if there is none."""
        for prefix, (address, options) in self.mounts.items():
            if url.startswith(prefix):
                return delta_columns(address + url.removeprefix(prefix), options)
        return delta_columns(url, {}) if url.startswith("file:") else None

    def _select(self, caller: str, tokens: _Tokens) -> list[list[str]]:
        if tokens.take() != ("number", "1"):
            raise _syntax(tokens.peek()[1])
        return [["1"]]

    def _securable(self, tokens: _Tokens, *, column: bool = False) -> tuple[str, list[str]]:
        kind = tokens.name().upper()
        parts = tokens.names()
        lengths = {"CATALOG": 1, "SCHEMA": 2, "DATABASE": 2, "TABLE": 3, "COLUMN": 4}
        if kind not in lengths or (kind == "COLUMN" and not column):
            raise _syntax(kind)
        if len(parts) != lengths[kind]:
            raise SqlError(
                f"[TABLE_OR_VIEW_NOT_FOUND] {'.'.join(parts)} is not a full name.", "42P01"
            )
        return {"DATABASE": "SCHEMA"}.get(kind, kind), parts

    def _create_schema(self, caller: str, tokens: _Tokens) -> None:
        optional = tokens.has("IF NOT EXISTS")
        catalog, schema = (*tokens.names(), "")[:2]
        body = {"catalog_name": catalog, "name": schema}
        if tokens.has("COMMENT"):
            body["comment"] = tokens.string()
        tokens.end()
        if optional and ("SCHEMA", objects.full_name(catalog, schema)) in self.metastore.securables:
            self.metastore.enter(caller, "SCHEMA", objects.full_name(catalog, schema))
            return
        objects.create_schema(self.metastore, caller, body)

    def _create_table(self, caller: str, tokens: _Tokens) -> None:
        optional = tokens.has("IF NOT EXISTS")
        parts = tokens.names()
        if len(parts) != 3:
            raise SqlError("[SCHEMA_NOT_FOUND] The name has three parts.", "42704")
        name = objects.full_name(*parts[:2], objects.valid_name(parts[2]))
        tokens.need("USING DELTA")
        tokens.need("LOCATION")
        url, comment = tokens.string(), None
        if tokens.has("COMMENT"):
            comment = tokens.string()
        tokens.end()
        url = objects.check_create(self.metastore, caller, name, url, by_rest=False)
        if ("TABLE", name) in self.metastore.securables:
            # A table that exists is left as it is, wherever it is ("IF NOT EXISTS").
            if not optional:
                raise exists("TABLE", name)
            return
        columns = self.columns(url)
        if columns is None:
            raise SqlError(
                f"[DELTA_CREATE_EXTERNAL_TABLE_WITHOUT_TXN_LOG] You are trying to create an"
                f" external table {name} from {url} using Delta, but there is no transaction log"
                " present. SQLSTATE: 42K03", "42K03",
            )  # fmt: skip
        objects.put_table(self.metastore, caller, name, url, columns, comment=comment)

    def _repair(self, caller: str, tokens: _Tokens) -> None:
        name = objects.full_name(*tokens.names())
        tokens.need("SYNC METADATA")
        table = self._change(caller, "TABLE", name, "MODIFY")
        columns = self.columns(table.document["storage_location"])
        if columns is None:
            raise SqlError(f"[DELTA_TABLE_NOT_FOUND] Delta table {name} doesn't exist.", "42P01")
        comments = {c["name"]: c["comment"] for c in table.document["columns"] if "comment" in c}
        for column in columns:
            if column["name"] in comments:
                column["comment"] = comments[column["name"]]
        objects.touch(table, caller, columns=columns)

    def _change(self, caller: str, kind: str, name: str, privilege: str) -> Securable:
        """A securable that a caller may change."""
        if kind == "TABLE":
            self.metastore.get("SCHEMA", name.rpartition(".")[0])
        self.metastore.get(kind, name)
        self.metastore.enter(caller, kind, name, write=True)
        return self.metastore.need(caller, privilege, kind, name)

    def _comment(self, caller: str, tokens: _Tokens) -> None:
        kind, parts = self._securable(tokens, column=True)
        tokens.need("IS")
        comment = "" if tokens.has("NULL") else tokens.string()
        tokens.end()
        table = kind in ("TABLE", "COLUMN")
        # A comment of a table is one of its Delta metadata: MODIFY. Otherwise ownership or MANAGE.
        securable = self._change(
            caller, "TABLE" if table else kind, objects.full_name(*parts[:3]),
            "MODIFY" if table else "MANAGE",
        )  # fmt: skip
        if kind != "COLUMN":
            objects.touch(securable, caller, comment=comment)
            return
        self._column(securable, parts[3])["comment"] = comment
        objects.touch(securable, caller)

    @staticmethod
    def _column(table: Securable, name: str) -> dict[str, Any]:
        columns: list[dict[str, Any]] = table.document["columns"]
        for column in columns:
            if column["name"].lower() == name.lower():
                return column
        raise SqlError(
            f"[UNRESOLVED_COLUMN.WITH_SUGGESTION] A column with name `{name}` cannot be resolved."
            " SQLSTATE: 42703", "42703",
        )  # fmt: skip

    def _alter(self, caller: str, tokens: _Tokens) -> None:
        kind, parts = self._securable(tokens)
        name = objects.full_name(*parts)
        if tokens.has("OWNER TO") or tokens.has("SET OWNER TO"):
            owner = tokens.name()
            tokens.end()
            self.metastore.enter(caller, kind, name, write=True)
            securable = self.metastore.get(kind, name)
            self.metastore.need_management(caller, securable)
            objects.touch(securable, caller, owner=self.metastore.check_principal(owner))
            return
        column = None
        if kind == "TABLE" and (tokens.has("ALTER COLUMN") or tokens.has("CHANGE COLUMN")):
            column = tokens.name()
            if tokens.has("COMMENT"):
                table = self._change(caller, kind, name, "MODIFY")
                self._column(table, column)["comment"] = tokens.string()
                return
        removes = tokens.has("UNSET TAGS")
        if not removes:
            tokens.need("SET TAGS")
        changes = self._tags(tokens, values=not removes)
        tokens.end()
        securable = self.metastore.get(kind, name)
        governance.need_tagging(self.metastore, caller, securable)
        tags = securable.tags if column is None else governance.tags_of_column(securable, column)
        for key, value in changes.items():
            if removes:
                tags.pop(key, None)
            else:
                governance.put_tag(tags, key, value)

    @staticmethod
    def _tags(tokens: _Tokens, *, values: bool) -> dict[str, str]:
        tokens.need("(")
        tags = {}
        while True:
            key = tokens.string()
            tags[key] = tokens.string() if values and tokens.has("=") else ""
            if not tokens.has(","):
                break
        tokens.need(")")
        return tags

    def _grant(self, caller: str, tokens: _Tokens, verb: str, preposition: str) -> None:
        privileges: list[str] = []
        words: list[str] = []
        while not tokens.has("ON"):
            if tokens.has(","):
                privileges.append("_".join(words))
                words = []
            else:
                words.append(tokens.name().upper())
        privileges.append("_".join(words))
        kind, parts = self._securable(tokens)
        tokens.need(preposition)
        principal = tokens.name()
        tokens.end()
        securable = self.metastore.get(kind, objects.full_name(*parts))
        change = {"principal": principal, verb: privileges}
        self.metastore.enter(caller, kind, securable.name)
        self.metastore.change_grants(caller, securable, [change])


_STATES = {
    "PERMISSION_DENIED": ("INSUFFICIENT_PERMISSIONS", "42501"),
    "CATALOG_DOES_NOT_EXIST": ("NO_SUCH_CATALOG_EXCEPTION", "42704"),
    "SCHEMA_DOES_NOT_EXIST": ("SCHEMA_NOT_FOUND", "42704"),
    "TABLE_DOES_NOT_EXIST": ("TABLE_OR_VIEW_NOT_FOUND", "42P01"),
    "TABLE_ALREADY_EXISTS": ("TABLE_OR_VIEW_ALREADY_EXISTS", "42P07"),
    "SCHEMA_ALREADY_EXISTS": ("SCHEMA_ALREADY_EXISTS", "42P06"),
    "LOCATION_OVERLAP": ("INVALID_PARAMETER_VALUE.LOCATION_OVERLAP", "22023"),
}


def _sql_error(error: Refusal) -> SqlError:
    """A refusal as an error of SQL: an error class in brackets, the message, and the SQLSTATE."""
    name, state = _STATES.get(str(error.code), (str(error.code), "22023"))
    return SqlError(f"[{name}] {error.message} SQLSTATE: {state}", state)
