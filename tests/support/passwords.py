"""Roles that have to give their password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from bronze.demo.server import Server
from tests.support.proxy import until


@contextmanager
def password_needed(server: Server, role: str) -> Iterator[None]:
    """The server asks this role for its password meanwhile."""
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:

        def reload(text: str, asked: int) -> None:
            rules.write_text(text)
            admin.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_hba_file_rules WHERE user_name = ARRAY[%s]"
            assert admin.execute(query, [role]).fetchone() == (asked,)
            until(lambda: asks() == bool(asked))

        def asks() -> bool:
            try:
                psycopg.connect(server.dsn(user=role), password="wrong").close()
            except psycopg.OperationalError:
                return True
            return False

        reload(f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}", 1)
        try:
            yield
        finally:
            reload(before, 0)
