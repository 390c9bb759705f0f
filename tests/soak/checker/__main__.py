"""``python -m tests.soak.checker FIRST LAST COUNT``: seeds one by one, each with a database of its
own.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from bronze.config.sections.protection import MASTER_KEY
from bronze.demo.server import LOG, running
from tests.conftest import FAST, ROOM, database
from tests.soak.checker import checker, driver
from tests.soak.checker.world import World, outcomes


def main() -> None:
    """Goes on after seeds that fail, and tells which they were."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    first, last, count = (int(argument) for argument in sys.argv[1:4])
    kept = Path(os.environ.get("BRONZE_MODEL_FOLDER", tempfile.mkdtemp(prefix="bronze-model-")))
    os.environ.setdefault(MASTER_KEY, base64.b64encode(bytes(32)).decode())
    driver.hurry()
    done: list[World] = []
    failed: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="bronze-tests-", dir="/dev/shm") as folder,
        running(Path(folder) / "data", settings={**FAST, **ROOM, "log_lock_waits": "on"}) as server,
    ):
        for seed in range(first, last + 1):
            began = time.monotonic()
            where = kept / str(seed)
            lake = where / f"lake-{os.getpid()}"
            said = "well"
            with database(server, lake) as source:
                try:
                    done.append(checker.story(source, where, seed, count))
                except Exception as error:
                    failed.append(seed)
                    whole = "".join(traceback.format_exception(error))
                    shutil.copy(server.data / LOG, where)
                    (where / "error.txt").write_text(whole)
                    said = f"{type(error).__name__}: {error}"
            print(f"seed {seed}: {said[:1500]} ({time.monotonic() - began:.0f} s)", flush=True)
    for name, what in outcomes(done).items():
        print(f"{name}: {what}")
    print(f"failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
