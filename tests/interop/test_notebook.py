"""The example notebook, run by a real kernel against a real source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Source

nbclient: Any = pytest.importorskip("nbclient")
nbformat: Any = pytest.importorskip("nbformat")
_NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_load.ipynb"


@pytest.mark.interop
def test_the_notebook_runs(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell runs; a run shows its progress and a table of its results, and its outputs are not
    in the repository.
    """
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, status text, amount numeric(9, 2))")
    source.execute("INSERT INTO orders SELECT n, 'open', 9.5 FROM generate_series(1, 100) n")
    source.execute("UPDATE orders SET status = 'paid' WHERE id > 60")
    monkeypatch.setenv("DSN", source.dsn)
    monkeypatch.setenv("LAKE", str(tmp_path / "lake"))
    notebook = nbformat.read(_NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=60).execute(cwd=str(tmp_path))
    shown = {cell["source"]: _html(cell) for cell in notebook.cells if cell.cell_type == "code"}
    run = shown["result = lake.run()\nresult"]
    assert "public.orders: landed, 100 rows read" in run
    assert ">landed</" in run
    assert "equal" in shown["lake.verify()"]
    assert "unchanged" in shown["lake.run()"]
    duckdb = next(text for cell, text in shown.items() if "import duckdb" in cell)
    assert "<td>60</td>" in duckdb
    assert "<td>40</td>" in duckdb


def _html(cell: Any) -> str:
    data = [output.get("data", {}) for output in cell.outputs]
    return "\n".join(str(part.get("text/html", "")) for part in data)
