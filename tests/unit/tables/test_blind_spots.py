"""What is said of a table by its settings alone."""

from __future__ import annotations

from bronze.config.sections.tables import TableSettings
from bronze.tables import blind_spots


def test_readers_and_writers_of_special_tables_are_named() -> None:
    """Who cannot read or write a table with deletion vectors, or with liquid clustering."""
    assert blind_spots.reader_notes(TableSettings()) == ()
    own = TableSettings.model_validate(
        {"deletion_vectors": True, "cluster_by": ["a"], "liquid": True}
    )
    vectors, liquid = blind_spots.reader_notes(own)
    assert "to_pyarrow_table" in vectors
    assert "deltalake's count() and chDB's count deleted rows" in vectors
    assert "deltalake and polars read it but refuse to write it" in liquid
    assert "on Databricks itself it was not proven" in liquid
