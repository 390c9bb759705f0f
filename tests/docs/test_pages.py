"""The pages of the documentation, followed word for word by somebody in an empty folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from bronze.demo.server import Server
from tests.conftest import without_slots
from tests.support.pages import Follower, blocks, environment

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHOP = (DOCS / "shop.sql").read_text(encoding="utf-8")
DATABASES = ("shop", "billing")
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for page in (DOCS / "quickstart.md", *DOCS.glob("how-to/*.md"))
    if any(block.kind in ("sh", "console") for block in blocks(page.read_text(encoding="utf-8")))
)
pytestmark = [pytest.mark.docs, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A database with the shop of the pages, and a role that may read it."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        with suppress(psycopg.errors.DuplicateObject):
            admin.execute("CREATE ROLE bronze LOGIN")
        admin.execute("ALTER ROLE bronze NOREPLICATION")
        admin.execute("CREATE DATABASE shop_template")
    with psycopg.connect(server.dsn("shop_template"), autocommit=True) as owner:
        for statement in filter(str.strip, SHOP.split(";\n")):
            owner.execute(statement.encode())
        owner.execute("GRANT USAGE ON SCHEMA public TO bronze")
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO bronze")
        owner.execute("GRANT pg_read_all_stats TO bronze")
    return "shop_template"


@pytest.fixture
def follower(server: Server, template: str, tmp_path: Path) -> Iterator[Follower]:
    """Somebody with databases and an empty folder of their own."""
    home, folder = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    folder.mkdir()
    # What a scheduler starts does not have the PATH of this shell.
    (folder / ".venv").symlink_to(sys.prefix)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for name in DATABASES:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        sources = {name: server.dsn(name) for name in DATABASES}
        yield Follower(folder, sources, environment(home))
        for name in DATABASES:
            without_slots(admin, name)
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            admin.execute(drop.format(sql.Identifier(name)))
        admin.execute("ALTER ROLE bronze NOREPLICATION")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed_word_for_word(page: str, follower: Follower) -> None:
    """Each of its commands succeeds in an empty folder, and prints what the page shows."""
    assert follower.follow((DOCS / page).read_text(encoding="utf-8")) > 0
