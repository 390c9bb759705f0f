"""The figures of tables, and their limits."""

from __future__ import annotations

from bronze.config.sections.quality import QualitySettings
from bronze.governance.tables.quality import Figure
from bronze.model.quality import QualityRules, QualityTotals
from bronze.quality import checks


def _figures(demanded: QualitySettings) -> dict[str, Figure]:
    """The checks of ten rows with two columns; one column has two NULLs, and one row is refused."""
    quality = QualityRules(names=(("a", "a"), ("b", "b")))
    found = QualityTotals(rows=10, nulls=(2, 0), refused=1)
    made = checks.figures(quality, found, demanded, 1.0)
    return {figure.rule: figure for figure in made if not figure.column}


def test_a_figure_shows_the_limit_that_applies() -> None:
    """If a number of rows may fail whatever their share is, the limit is that number as a share;
    otherwise it is the share of the config.
    """
    strict = QualitySettings(null_share=0.05, schema_compliance=0.95, duplicates=0.01, allow_rows=0)
    found = _figures(strict)
    assert (found["null_share"].allowed, found["null_share"].passed) == (0.05, False)
    assert (found["schema_compliance"].allowed, found["schema_compliance"].passed) == (0.95, False)
    found = _figures(strict.model_copy(update={"allow_rows": 2}))
    assert (found["null_share"].allowed, found["null_share"].passed) == (0.2, True)
    assert (found["schema_compliance"].allowed, found["schema_compliance"].passed) == (0.8, True)
    assert (found["duplicates"].allowed, found["duplicates"].passed) == (0.2, True)
