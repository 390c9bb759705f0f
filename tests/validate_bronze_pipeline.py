"""`bronze validate` as a script, for pipelines that run a file: the same arguments, the same exit
code.

::

    python tests/validate_bronze_pipeline.py -c bronze.toml --junit validation.xml
"""

from __future__ import annotations

import sys

from bronze.cli.main import app

if __name__ == "__main__":
    app(["validate", *sys.argv[1:]])
