"""The version of bronze, and of what it writes into a lake."""

VERSION = "0.1.0"

FORMAT = 1
"""The format of tables: it is raised when a release writes what earlier ones would misread. Tables
without the property `bronze.delta.properties.FORMAT` have format 1.
"""
