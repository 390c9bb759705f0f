"""The SQL that Databricks runs: every name is quoted, every text escaped."""

from __future__ import annotations

from bronze.unity.api import statements

TABLE = ("main", "my`schema", "bz_o'r\\d")


def test_statements_are_these() -> None:
    """Word for word, with names and texts that would end their quotes."""
    assert [
        statements.create_schema("ma`in", "s"),
        statements.create_table(TABLE, "s3://b/it's\\"),
        statements.repair(TABLE),
        statements.comment_table(TABLE, "Kunde's\nliste \\ 'x'"),
        statements.comment_column(TABLE, "e`mail", "';DROP TABLE x;--"),
        statements.set_tags(TABLE, "", {"source": "crm", "sla": "5m"}),
        statements.set_tags(TABLE, "na me", {"pii": "person's name"}),
        statements.unset_tags(TABLE, "", ["sla"]),
        statements.unset_tags(TABLE, "x", ["protection", "b"]),
        statements.grant("TABLE", TABLE, "team `a`", ["SELECT", "APPLY TAG"]),
        statements.grant("SCHEMA", ("main", "s"), "a@b.c", ["USE SCHEMA"]),
        statements.set_owner("TABLE", TABLE, "data-team"),
    ] == [
        "CREATE SCHEMA IF NOT EXISTS `ma``in`.`s`",
        "CREATE TABLE IF NOT EXISTS `main`.`my``schema`.`bz_o'r\\d` USING DELTA"
        " LOCATION 's3://b/it\\'s\\\\'",
        "MSCK REPAIR TABLE `main`.`my``schema`.`bz_o'r\\d` SYNC METADATA",
        "COMMENT ON TABLE `main`.`my``schema`.`bz_o'r\\d` IS 'Kunde\\'s\nliste \\\\ \\'x\\''",
        "COMMENT ON COLUMN `main`.`my``schema`.`bz_o'r\\d`.`e``mail` IS '\\';DROP TABLE x;--'",
        "ALTER TABLE `main`.`my``schema`.`bz_o'r\\d` SET TAGS ('sla' = '5m', 'source' = 'crm')",
        "ALTER TABLE `main`.`my``schema`.`bz_o'r\\d` ALTER COLUMN `na me`"
        " SET TAGS ('pii' = 'person\\'s name')",
        "ALTER TABLE `main`.`my``schema`.`bz_o'r\\d` UNSET TAGS ('sla')",
        "ALTER TABLE `main`.`my``schema`.`bz_o'r\\d` ALTER COLUMN `x`"
        " UNSET TAGS ('b', 'protection')",
        "GRANT SELECT, APPLY TAG ON TABLE `main`.`my``schema`.`bz_o'r\\d` TO `team ``a```",
        "GRANT USE SCHEMA ON SCHEMA `main`.`s` TO `a@b.c`",
        "ALTER TABLE `main`.`my``schema`.`bz_o'r\\d` OWNER TO `data-team`",
    ]
