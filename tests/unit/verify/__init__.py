"""Tests of the proof, without a source."""
