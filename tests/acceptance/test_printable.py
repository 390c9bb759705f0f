"""Output for terminals has no control characters of the source, whatever the command."""

from __future__ import annotations

import json
from pathlib import Path

from psycopg import sql
from typer.testing import CliRunner

from bronze.cli.main import app
from tests.conftest import Source

RAW = set("\x1b\x9b\u202e\x07\r\u2028\x00\u200f")


def test_no_command_prints_control_characters_of_the_source(source: Source, tmp_path: Path) -> None:
    """Control characters in names, comments and values are escaped in the output."""
    name = "t\x1b]0;x\x07\u202e"
    table = sql.Identifier(name).as_string()
    source.execute(f'CREATE TABLE {table} (id int PRIMARY KEY, "v\x1b[31m" text, n numeric(5,2))')
    source.execute(f"COMMENT ON TABLE {table} IS 'a\x1b[2Jcomment\u202e'")
    source.execute(f"INSERT INTO {table} VALUES (1, 'x\x1b[2J', 1), (2, NULL, 'NaN')")
    source.execute("CREATE TABLE good (id int PRIMARY KEY)")
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
        '[tables."t\\u001b]0;x\\u0007\\u202e"]\ntarget = "bz_t"\n'
        'protect = { "v\\u001b[31m" = "encrypt" }\n'
    )
    runs = [
        ["check"],
        ["run"],
        ["verify"],
        ["maintain"],
        ["quality"],
        ["audit", "--verify"],
        ["keys"],
        ["reveal", "bz_t"],
        ["run", "no\x1b[2J"],
        ["init", "--dsn", source.dsn, "--out", str(tmp_path / "new.toml")],
    ]
    for arguments in runs:
        config = [] if arguments[0] == "init" else ["-c", str(file)]
        formats: list[list[str]] = [[], ["--json"]] if config else [[]]
        for option in formats:
            done = CliRunner().invoke(app, [*arguments, *config, *option])
            assert done.exit_code < 3, (arguments, done.output)
            assert not RAW & set(done.stdout + done.stderr), (arguments, option)
            if option:
                json.loads(done.stdout)
    assert not RAW & set((tmp_path / "new.toml").read_text())
