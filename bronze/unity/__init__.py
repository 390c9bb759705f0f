"""Registers tables of the lake in Unity Catalog, at Databricks or of the open-source server."""
