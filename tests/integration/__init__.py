"""Tests of modules with PostgreSQL, mirrored by package."""
