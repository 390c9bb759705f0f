"""The parts of `tests.support.unity_server`: a Databricks workspace with Unity Catalog."""
