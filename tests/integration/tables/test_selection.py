"""Which tables a run loads by the pattern of their sections."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import bronze
from bronze.cli.main import app
from bronze.tables.selection import of_pattern
from tests.conftest import Source


def test_a_run_of_a_pattern_loads_its_tables_alone(
    source: Source, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also those without a section, which have the default; a pattern of no table is an error."""
    for name in ("one", "two", "three"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    opened = bronze.Bronze(source.settings(tables={"two": {"pattern": "batch"}}))

    def loaded(*names: str) -> set[str]:
        return {table.table for table in opened.run(names).tables}

    assert loaded(of_pattern("batch")) == {"public.two"}
    assert loaded(of_pattern("full_refresh")) == {"public.one", "public.three"}
    assert loaded("one", of_pattern("batch")) == {"public.one", "public.two"}
    with pytest.raises(bronze.ConfigError, match='No table of the config has the pattern "micro'):
        opened.run([of_pattern("micro_batch")])
    config = tmp_path_factory.mktemp("config") / "bronze.toml"
    config.write_text(
        f'[source]\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
        '[tables.three]\npattern = "batch"\n'
    )
    done = CliRunner().invoke(app, ["run", "--pattern", "batch", "-c", str(config), "--json"])
    assert done.exit_code == 0, done.output
    assert '"public.three"' in done.stdout
    assert '"public.one"' not in done.stdout
