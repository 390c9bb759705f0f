"""Connections of one run reach one server."""

from __future__ import annotations

from contextlib import closing

from bronze.demo.server import Server
from bronze.model.locations import Origin
from bronze.postgres.connection import connect
from tests.support.proxy import Proxy


def test_later_connections_reach_the_server_of_the_first(server: Server) -> None:
    """Of several hosts that libpq would choose from; until the server is forgotten."""
    address = (server.host, server.port)
    with closing(Proxy(address)) as one, closing(Proxy(address)) as other:
        origin = Origin(
            "test",
            f"host=127.0.0.1,127.0.0.1 port={one.port},{other.port} user=postgres"
            " dbname=postgres load_balance_hosts=random",
        )
        for port in (one.port, other.port):
            direct = Origin("test", f"host=127.0.0.1 port={port} user=postgres dbname=postgres")
            with connect.connect(direct) as first:
                connect.remember_server(origin, first)
            for _ in range(6):
                with connect.connect_again(origin) as again:
                    assert again.info.port == port
            connect.forget_server(origin)
        # What it was reached through is known until the run ends.
        connect._indirect.add(origin)
        connect.forget_server(origin)
        assert connect.is_indirect(origin)
        connect.forget_origin(origin)
        assert not connect.is_indirect(origin)
        with connect.connect_again(origin) as any_server:
            assert any_server.info.port in (one.port, other.port)
