"""Tests of alerts with real servers and lakes."""
