"""A config with all that templates are filled from."""

from __future__ import annotations

from typing import Any

from bronze.config.settings import Settings

SHOP: dict[str, Any] = {
    "source": {
        "name": "PostgreSQL_DE",
        "dsn": "postgresql://bronze:hunter2@db.internal:5432/DE?sslmode=verify-full",
        "schema": "tests",
        "password": {"secret": "KPassword"},
    },
    "lake": {"root": "s3://lake/bronze", "options": {"secret_access_key": "hunter2"}},
    "run": {"memory": "1GB"},
    "alerts": {
        "channels": [
            {"kind": "slack", "name": "data", "token": {"secret": "KSlack"}, "channel": "#data"}
        ]
    },
    "tables": {
        "orders": {"pattern": "streaming", "sla": "5m"},
        "shipments": {"pattern": "micro_batch"},
        "stock_levels": {"pattern": "micro_batch", "schedule": "every 15m"},
        "products": {"pattern": "batch", "schedule": "weekly Sun 05:30"},
        "customers": {"pattern": "full_refresh", "protect": {"email": "encrypt"}},
    },
}


def settings(**sections: Any) -> Settings:
    """The config, with other sections in place of its own."""
    return Settings.from_dict({**SHOP, **sections})
