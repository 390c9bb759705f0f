"""PostgreSQL tables become Delta Lake Bronze tables: exact, consistent, fast, without Spark.

::

    import bronze

    result = bronze.open("bronze.toml").run(tables=["orders"])
"""

from bronze.api.client import Bronze, Rule, open  # noqa: A004 - as in gzip.open
from bronze.errors import BronzeError
from bronze.version import VERSION

__version__ = VERSION
__all__ = ["Bronze", "BronzeError", "Rule", "__version__", "open"]
