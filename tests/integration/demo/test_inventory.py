"""The demo source: the same data for the same seed, consistent except for documented errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceUnreachable

SCALE = 0.002
KEYS = {
    "products": "product_id",
    "suppliers": "supplier_id",
    "warehouses": "warehouse_id",
    "inventory": "inventory_id",
    "orders": "order_id",
    "order_details": "order_detail_id",
    "shipments": "shipment_id",
    "returns": "return_id",
    "stock_levels": "stock_level_id",
    "customers": "customer_id",
}
# Every rule counts the rows that violate it, without the documented errors.
RULES = {
    "a line's total follows from its price": """
        select count(*) from order_details
        where line_total <> round(quantity * unit_price * (1 - coalesce(discount, 0)), 2)
            and order_detail_id % 4999 <> 123""",
    "an order's total is the sum of its lines, and it has lines": """
        select count(*) from orders
        left join (
            select order_id, sum(line_total) as total from order_details group by 1
        ) using (order_id)
        where total is distinct from total_amount""",
    "shipments belong to orders that were sent, which all have one": """
        select count(*) from orders
        where (fulfilment = 'ship' and status in ('shipped', 'delivered'))
            <> exists (select from shipments where shipments.order_id = orders.order_id)""",
    "returns belong to delivered lines, and to their orders": """
        select count(*) from returns
        join order_details using (order_detail_id)
        join orders on orders.order_id = order_details.order_id
        where status <> 'delivered' or returns.order_id <> orders.order_id
            or returns.quantity > order_details.quantity
            or refund_amount <> round(line_total * returns.quantity / order_details.quantity, 2)""",
    "an order has a delivery time if it is delivered": """
        select count(*) from orders where (status = 'delivered') <> (delivered_at is not null)""",
    "orders are sent after they were made, and arrive after that": """
        select count(*) from shipments join orders using (order_id)
        where not (ordered_at <= shipped_at
            and (shipments.delivered_at is null or shipped_at <= shipments.delivered_at)
            and shipments.delivered_at is not distinct from orders.delivered_at)""",
    "goods come back after they arrived": """
        select count(*) from returns join orders using (order_id)
        where not (delivered_at <= returned_at
            and (processed_at is null or returned_at <= processed_at))""",
    "customers are there before they order": """
        select count(*) from orders join customers using (customer_id)
        where ordered_at < customers.created_at""",
    "the stock is what the inventory says, plus what is reserved": """
        select count(*) from inventory full join stock_levels using (product_id, warehouse_id)
        where quantity_available + quantity_reserved is distinct from quantity_on_hand
            and (inventory_id is null or inventory_id % 997 <> 100)""",
    **{
        f"rows of {table} are not updated before they are made": f"""
        select count(*) from {table} where updated_at < created_at"""
        for table in KEYS
        if table != "order_details"
    },
}
PLANTED = [
    "select product_id % 23 = 5, product_name <> trim(product_name) from products",
    "select product_id % 29 = 7, category = upper(category) from products",
    "select supplier_id % 41 = 3, contact_number = 'call the office' from suppliers",
    "select customer_id % 97 = 11, email not like '%@%' and email <> '' from customers",
    "select customer_id % 101 = 13, email = '' from customers",
    "select customer_id % 89 = 17, customer_name <> trim(customer_name) from customers",
    "select inventory_id % 997 = 100, quantity_available = 1000000 from inventory",
    "select order_detail_id % 3989 = 42, unit_price > 500 * list_price"
    " from order_details join products using (product_id)",
    "select order_detail_id % 4999 = 123, line_total <>"
    " round(quantity * unit_price * (1 - coalesce(discount, 0)), 2) from order_details",
]


@pytest.fixture(scope="session")
def demo(server: Server) -> str:
    """The DSN of a demo database that no test changes."""
    return keep(server, inventory.create(server.dsn(), scale=SCALE), "unchanged")


@pytest.fixture
def fresh(server: Server, demo: str) -> Iterator[str]:
    """The DSN of a copy that a test may change."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh TEMPLATE unchanged")
        yield server.dsn("fresh")
        connection.execute("DROP DATABASE fresh WITH (FORCE)")


def keep(running: Server, dsn: str, name: str) -> str:
    """Renames the database DE, so that another can be created; returns its new DSN."""
    assert dsn == running.dsn("DE")
    with psycopg.connect(running.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL('ALTER DATABASE "DE" RENAME TO {}').format(sql.Identifier(name)))
    return running.dsn(name)


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query, with the demo's schema on the path."""
    with psycopg.connect(dsn, options="-c search_path=tests") as connection:
        return connection.execute(sql.SQL(query)).fetchall()


def content(dsn: str, table: str) -> dict[int, str]:
    """PostgreSQL's text of every row of a table, by key."""
    return dict(rows(dsn, f"select {KEYS[table]}, t::text from {table} t order by 1"))


def test_tables_have_the_sizes_of_the_scale(demo: str) -> None:
    """Row counts are exact."""
    counted = {table: rows(demo, f"select count(*) from {table}")[0][0] for table in KEYS}
    assert counted == inventory.sizes(SCALE)


def test_scale_1_has_3_3_million_rows_and_no_scale_has_empty_tables() -> None:
    """The sizes follow the scale, down to a minimum for each table."""
    full = inventory.sizes(1.0)
    assert (full["order_details"], full["orders"], full["warehouses"]) == (2_000_000, 500_000, 50)
    assert sum(full.values()) == 3_261_050
    assert min(inventory.sizes(1e-9).values()) >= 5


def test_data_depends_on_seed_and_scale_only(server: Server, demo: str) -> None:
    """In every column of every table; another seed gives other data."""
    same = keep(server, inventory.create(server.dsn(), scale=SCALE), "same")
    other = keep(server, inventory.create(server.dsn(), scale=SCALE, seed=-1), "other")
    for table in KEYS:
        assert content(same, table) == content(demo, table)
        assert content(other, table) != content(demo, table)


def test_the_smallest_scale_is_consistent(server: Server) -> None:
    """Also after a day of changes."""
    dsn = keep(server, inventory.create(server.dsn(), scale=1e-9), "smallest")
    inventory.change_day(dsn)
    for rule, query in RULES.items():
        assert rows(dsn, query) == [(0,)], rule


@pytest.mark.parametrize("rule", RULES)
def test_the_data_is_consistent(demo: str, rule: str) -> None:
    """No row violates the rule, except the documented errors."""
    assert rows(demo, RULES[rule]) == [(0,)]


@pytest.mark.parametrize("query", PLANTED)
def test_errors_are_in_the_documented_rows(demo: str, query: str) -> None:
    """And in no others."""
    flags = rows(demo, query)
    if any(table in query for table in ("customers", "inventory", "order_details")):
        assert any(expected for expected, _ in flags)
    assert all(expected == bool(found) for expected, found in flags)


def test_keys_are_declared_and_enforced(demo: str) -> None:
    """Every table has its primary key, and the foreign keys are validated."""
    keys = rows(
        demo,
        "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint"
        " where contype = 'p' and connamespace = 'tests'::regnamespace",
    )
    assert dict(keys) == {table: f"PRIMARY KEY ({key})" for table, key in KEYS.items()}
    foreign = rows(
        demo, "select count(*), bool_and(convalidated) from pg_constraint where contype = 'f'"
    )
    assert foreign == [(12, True)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        rows(demo, "delete from products where product_id = 1")


def test_demand_is_skewed_and_seasonal(demo: str) -> None:
    """A tenth of the products has over a third of the lines; winter has more orders than summer."""
    share = rows(
        demo,
        "select sum(n) filter (where place <= 2) / sum(n) from (select count(*) as n,"
        " row_number() over (order by count(*) desc) as place from order_details group by"
        " product_id)",
    )[0][0]
    assert share > 0.33
    months = dict(
        rows(demo, "select extract(month from ordered_at)::int, count(*) from orders group by 1")
    )
    assert months[12] > 1.5 * months[7]


def test_sequences_continue_after_the_rows(fresh: str) -> None:
    """So that a user's own INSERT gets a free key."""
    added = rows(
        fresh,
        "insert into order_details (order_id, product_id, quantity, unit_price, line_total,"
        " updated_at) values (1, 1, 1, 1, 1, now()) returning order_detail_id",
    )
    assert added == [(inventory.sizes(SCALE)["order_details"] + 1,)]


@pytest.mark.soak
def test_a_day_reports_its_changes_and_keeps_the_data_consistent(fresh: str) -> None:
    """The counts are the differences between before and after; no row violates a rule."""
    kinds = set()
    for _ in range(3):
        before = {table: content(fresh, table) for table in KEYS}
        changed = inventory.change_day(fresh)
        assert list(changed) == sorted(KEYS)
        for table, was in before.items():
            now = content(fresh, table)
            difference = inventory.ChangeCounts(
                inserted=len(now.keys() - was.keys()),
                updated=sum(was[key] != now[key] for key in now.keys() & was.keys()),
                deleted=len(was.keys() - now.keys()),
            )
            assert changed[table] == difference, table
            kinds |= {(table, kind) for kind in vars(difference) if vars(difference)[kind]}
        for rule, query in RULES.items():
            assert rows(fresh, query) == [(0,)], rule
    assert {(table, "updated") for table in KEYS} <= kinds
    assert {(table, "inserted") for table in KEYS if table != "warehouses"} <= kinds
    quiet = {"products", "suppliers", "warehouses"}
    assert {(table, "deleted") for table in KEYS.keys() - quiet} <= kinds


def test_changes_depend_on_data_and_seed_only(server: Server, demo: str) -> None:
    """Another seed changes other rows."""
    results = []
    for seed in (8, 8, 9):
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE day TEMPLATE unchanged")
            inventory.change_day(server.dsn("day"), seed=seed)
            results.append([content(server.dsn("day"), table) for table in KEYS])
            connection.execute("DROP DATABASE day")
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_an_existing_database_is_not_changed(server: Server) -> None:
    """A second create is refused, and keeps the data of the first."""
    dsn = inventory.create(server.dsn(), scale=1e-9)
    try:
        with pytest.raises(ConfigError, match="exists already") as caught:
            inventory.create(server.dsn(), scale=SCALE)
        assert caught.value.hint
        assert rows(dsn, "select count(*) from orders") == [(50,)]
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute('DROP DATABASE "DE"')


def test_a_failed_create_leaves_no_database(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an interrupted one."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inventory, "_create_draws", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inventory.create(server.dsn())
    assert rows(server.dsn(), "select from pg_database where datname = 'DE'") == []


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_an_invalid_scale_is_refused(scale: float) -> None:
    """It must be a positive number; checked before connecting."""
    with pytest.raises(ConfigError, match="positive"):
        inventory.create("postgresql://nobody@127.0.0.1:1/x", scale=scale)


def test_an_unreachable_server_is_an_error_of_the_source() -> None:
    """It is raised as SourceUnreachable."""
    with pytest.raises(SourceUnreachable):
        inventory.create("postgresql://nobody@127.0.0.1:1/x")


def test_a_dsn_in_keyword_form_stays_in_that_form(server: Server) -> None:
    """Only the name of the database changes in the DSN that is returned."""
    keywords = f"host={server.host} port={server.port} user=postgres dbname=postgres"
    dsn = inventory.create(keywords, scale=1e-9)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute('DROP DATABASE "DE"')
    assert psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] == "DE"
    assert "://" not in dsn
