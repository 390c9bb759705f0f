"""What the dashboard is made from: the config, and the callables by which it asks the service.

A page is made in a thread of a small pool, so that a long page does not keep the event loop from
answering ``/live``. What reads or writes the lake has a pool of its own: where the lake hangs, the
first page does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar
from zoneinfo import ZoneInfo

from bronze import operate
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.governance.tables.controls import Action
from bronze.governance.tables.runs import RunRecord
from bronze.operate.view import Day, TableView, View
from bronze.operate.web.access import Access, Role

LONGEST_WORK = 15.0
"""After how many seconds a page is given up."""
LONGEST_ACT = 60.0
_THREADS = 4

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Act(Protocol):
    """Does what an operator asks, with a record of it in the audit log.

    Raises:
        BronzeError: it cannot be done.
    """

    def __call__(
        self, action: Action, subject: str, until: datetime | None, reason: str, by: str
    ) -> object:
        """``subject`` is a table's key, for alerts ``kind:subject``; ``by`` says who asks."""


class Refused(Exception):
    """A request that is answered with an error: its status, a sentence, and what to do."""

    def __init__(
        self, status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.headers = dict(headers or {})


def no_days(_: str) -> Sequence[Day] | None:
    """The days of a table are read from the lake."""
    return None


def read_runbook(name: str) -> str:
    """A runbook as Markdown; "" if there is none of this name."""
    folder = Path(operate.__file__).parent / "runbooks"
    path = folder / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@dataclass(frozen=True)
class Site:
    """``view`` and ``runs`` (up to 100 of a table, by its key, the newest first) are cheap and
    thread-safe; ``days`` are the last 90 of a table, None where they are read from the lake.
    """

    settings: Settings
    access: Access
    view: Callable[[], View]
    runs: Callable[[str], Sequence[RunRecord]]
    act: Act
    days: Callable[[str], Sequence[Day] | None] = no_days
    runbook: Callable[[str], str] = read_runbook
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, "bronze-web")
    )
    lake_pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, "bronze-web-lake")
    )

    def stop(self) -> None:
        """Gives up what is in hand."""
        for pool in (self.pool, self.lake_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the config."""
        return ZoneInfo(self.settings.serve.timezone)

    async def work(
        self, make: Callable[[], T], longest: float = LONGEST_WORK, *, lake: bool = False
    ) -> T:
        """What a function returns that takes its time; ``lake`` says that it uses the lake.

        Raises:
            Refused: it took too long, or bronze reported an error.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(longest):
                return await loop.run_in_executor(self.lake_pool if lake else self.pool, make)
        except TimeoutError:
            raise Refused(
                503,
                f"The service did not answer within {longest:.0f} seconds.",
                "It may be busy: try again; /live says whether the process is there.",
            ) from None
        except BronzeError as error:
            status = 409 if type(error).__name__ == "ConfigError" else 502
            raise Refused(status, error.message, error.hint) from None


def table_of(view: View, name: str) -> TableView:
    """The table of a key, or of a label that only one source has.

    Raises:
        Refused: there is none, or several.
    """
    tables = [table for table in view.tables if table.key == name]
    tables = tables or [table for table in view.tables if table.table == name]
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise Refused(404, f"There is no table {name!r}.", "The first page has all tables.")
    keys = ", ".join(table.key for table in tables)
    raise Refused(409, f"Several sources have a table {name!r}.", f"They are: {keys}.")


@dataclass(frozen=True)
class Visit:
    """One request of a page: who asks, and what is so now.

    ``csrf`` is what its forms contain, ``notice`` a kind ("done", "failed") and a sentence about
    what the visitor did before.
    """

    site: Site
    view: View
    role: Role
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    csrf: str = ""
    notice: tuple[str, str] | None = None
    has_session: bool = False

    @property
    def now(self) -> datetime:
        """The time of the view."""
        return self.view.now

    @property
    def zone(self) -> ZoneInfo:
        """The time zone that times are shown in."""
        return self.site.zone

    @property
    def may_act(self) -> bool:
        """Whether the visitor gets buttons."""
        return self.role == "operator" and not self.site.settings.web.read_only
