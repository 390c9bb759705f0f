"""PostgreSQL tables become Delta Lake Bronze tables: exact, consistent, fast, without Spark."""

from __future__ import annotations

from bronze.errors import BronzeError

__version__ = "0.1.0"
__all__ = ["BronzeError", "__version__"]
