"""Pages of the documentation, followed word for word: their files, commands and SQL, in order.

A fenced block is one of

- ``sh``: commands, each of which has to succeed;
- ``console``: commands after ``$ ``, and below each what it prints, of which a page may leave lines
  out by ``…``; a command may fail if ``echo $?`` comes next;
- ``sql``: statements that the owner of the source's tables executes;
- ``python``: a script;
- any of these and other kinds with a ``title``: the file of this name, which is written, or, with
  ``added to NAME``, what is added to it.

A block whose title says ``not run`` needs what cannot be had here; if it is Python, TOML, YAML or
JSON, it is parsed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import yaml

from bronze.governance import actor

NOT_RUN = "not run"
ACTOR = "bronze@etl"
ADDRESS = re.compile(r"postgresql://bronze@db\.example\.com:5432/(\w+)(\?sslmode=verify-full)?")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_TITLE = re.compile(r'title="([^"]*)"')
_END = "\x1e"
_VARYING = (
    (re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]"), ""),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{16,64}\b"), "HASH"),
    (re.compile(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?=\d\d:\d\d)"), ""),
    (re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:\d\d)?| UTC)?)?"), "T"),
    (re.compile(r"\b\d\d:\d\d(:\d\d(\.\d+)?)?\b"), "T"),
    (re.compile(r"\b\d+[hm]\d\d[ms]\b"), "N"),
    (re.compile(r"\b[0-9A-F]+/[0-9A-F]{4,}\b"), "LSN"),
    (re.compile(r"127\.0\.0\.1:\d+"), "db.example.com:5432"),
    (re.compile(r"\b(pid|oid|bytes|port|position)([= ])\d+"), r"\1\2N"),
    (re.compile(r"\b[\d.,]+ (B|kB|MB|GB|bytes|ms|s|min)\b( [\d.]+ s\b)?"), "N"),
    (re.compile(r"\b\d+\.\d+\b"), "N"),
    (re.compile(r"[─━│┃╭╮╰╯┌┐└┘├┤┬┴┼╇╈╪═║]+"), " "),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, the words after it, its text, and the line where it begins."""

    kind: str
    info: str
    text: str
    line: int

    @property
    def title(self) -> str:
        """The name of the file, or what the page says of it; empty if it has none."""
        found = _TITLE.search(self.info)
        return found[1] if found else ""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page in Markdown, in order."""
    for found in _FENCE.finditer(page):
        line = page.count("\n", 0, found.start()) + 1
        yield Block(found["kind"], found["info"], textwrap.dedent(found["text"]), line)


@dataclass(frozen=True)
class Follower:
    """Somebody who follows a page in a folder of their own.

    Attributes:
        folder: where commands run and files are written.
        sources: the connection strings of the owner, by the name of the database in the page.
        environment: what is set when the first command runs.
    """

    folder: Path
    sources: Mapping[str, str]
    environment: Mapping[str, str]

    def follow(self, page: str) -> int:
        """Does what the page says, in order; returns how many blocks were run or written.

        Raises:
            AssertionError: a command has failed, or printed something else.
        """
        done = 0
        for block in blocks(page):
            if NOT_RUN in block.title:
                parse(block)
                continue
            done += self._do(block)
        return done

    def _do(self, block: Block) -> bool:
        text = self._placed(block.text)
        if block.title:
            self._write(block, text)
        elif block.kind == "sh":
            for code, printed in self._run([text]):
                assert code == 0, f"line {block.line}: exit code {code}\n{printed}"
        elif block.kind == "console":
            self._compare(block, text)
        elif block.kind == "sql":
            with psycopg.connect(self.sources["shop"], autocommit=True) as owner:
                for statement in filter(str.strip, text.split(";\n")):
                    owner.execute(statement.encode())
        elif block.kind == "python":
            (self.folder / ".script.py").write_text(text)
            ((code, printed),) = self._run([f"{sys.executable} -W ignore .script.py"])
            assert code == 0, f"line {block.line}: {printed}"
        else:
            parse(block)
            return False
        return True

    def _placed(self, text: str) -> str:
        """The text with the servers of this machine."""

        def here(found: re.Match[str]) -> str:
            dsn = self.sources[found[1]]
            return dsn.replace("postgres@", "bronze@")

        return ADDRESS.sub(here, text)

    def _write(self, block: Block, text: str) -> None:
        name = block.title.removeprefix("added to ")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() + "\n" if name != block.title else ""
        path.write_text(before + text)

    def _compare(self, block: Block, text: str) -> None:
        steps = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", text, re.M)
        commands = [command.replace("\n> ", "\n").strip() for command, _ in steps]
        results = self._run(commands)
        assert len(results) == len(commands), f"line {block.line}: the shell has ended: {results}"
        asked = [command.startswith("echo $?") for command in commands[1:]] + [False]
        for (_, shown), command, (code, printed), may_fail in zip(
            steps, commands, results, asked, strict=True
        ):
            assert code == 0 or may_fail, f"line {block.line}: {command}: {code}\n{printed}"
            lacking = missing_line(shown, self._named(printed))
            assert lacking is None, f"line {block.line}: {command}: no {lacking!r} in\n{printed}"

    def _named(self, printed: str) -> str:
        """What was printed, with the page's names of databases, user and machine, without the
        folder.
        """
        printed = printed.replace(f"{actor.user()}@{actor.host()}", ACTOR)
        for name, dsn in self.sources.items():
            printed = re.sub(rf"\b{dsn.rpartition('/')[2]}\b", name, printed)
        return printed.replace(f"{self.folder}/", "")

    def _run(self, commands: list[str]) -> list[tuple[int, str]]:
        """Runs commands in one shell that has what earlier ones have exported."""
        # The exit code of a command is that of its shell for the next one: `echo $?`.
        body = "".join(
            f"(exit $_code)\n{command}\n_code=$?; printf '{_END}%s{_END}' $_code\n"
            for command in commands
        )
        script = (
            f"_code=0; [ -f .environment ] && . ./.environment\n{body}export -p >.environment\n"
        )
        outcome = subprocess.run(
            ["bash", "-c", script],  # noqa: S607
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        parts = outcome.stdout.split(_END)
        return [
            (int(code), printed) for printed, code in zip(parts[::2], parts[1::2], strict=False)
        ]


def environment(home: Path) -> dict[str, str]:
    """What somebody has who follows a page: the commands of this environment, and a home."""
    kept = {n: v for n, v in os.environ.items() if n in ("LANG", "PYTHONPATH", "TMPDIR")}
    bin_folder = Path(sys.executable).parent
    return {
        **kept,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "COLUMNS": "100",
        "TOKIO_WORKER_THREADS": "1",
    }


def parse(block: Block) -> None:
    """Checks that a block that is not run is at least well formed.

    Raises:
        SyntaxError, ValueError, yaml.YAMLError
    """
    if block.kind == "python":
        ast.parse(block.text.replace("%pip", "#"))
    elif block.kind == "toml":
        tomllib.loads(block.text)
    elif block.kind == "yaml":
        list(yaml.safe_load_all(block.text))
    elif block.kind == "json":
        json.loads(block.text)


def alike(line: str) -> str:
    """A line without what differs from run to run: times, sizes, ids, figures with decimals."""
    for pattern, replacement in _VARYING:
        line = pattern.sub(replacement, line)
    return line.strip()


def missing_line(shown: str, printed: str) -> str | None:
    """The first line of ``shown`` that ``printed`` does not have; tables land in any order."""
    there = Counter(alike(line) for line in printed.splitlines())
    for line in shown.splitlines():
        wanted = alike(line)
        if wanted in ("", "…"):
            continue
        if not there[wanted]:
            return line
        there[wanted] -= 1
    return None
