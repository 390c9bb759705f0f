"""The version of bronze."""

VERSION = "0.1.0"
