"""Unit tests of `bronze.unity`."""
