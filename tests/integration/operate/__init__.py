"""Tests of bronze.operate with real sockets and lakes."""
