"""Heads of the audit log outside of the lake: the proof that its newest records are all there."""
