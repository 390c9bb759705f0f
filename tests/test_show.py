"""What people see of results."""

from __future__ import annotations

import pytest
from rich.console import Console

from bronze import show
from bronze.result import RunResult, TableResult


def test_no_digit_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are whole however narrow the terminal is; columns without any are left out."""
    monkeypatch.setattr(show, "_out", Console(highlight=False, width=40))
    done = [
        TableResult("public.a", "bronze.bz_a", "landed", 3_000_000, 2_999_999, version=1),
        TableResult("public.数据", "bronze.bz_数据", "landed", 12, version=12),
    ]
    show.run(RunResult("id", 1, 1.0, tuple(done)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Bronze table  status       read        new    s   v",
        "bz_a          landed  3,000,000  2,999,999  0.0   1",
        "bz_数据       landed         12          0  0.0  12",
    ]
