"""[run], [stream] and [maintain]: how tables are loaded, streamed and laid out."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from bronze.config.fields import Bytes, Seconds, Section, to_seconds

MINIMUM_MEMORY = 512 * 10**6


class RunSettings(Section):
    """[run]: workers, memory and retries of a run."""

    workers: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 2)
    memory: Bytes = 10**9
    engine: str = Field(default="threads", pattern=r"^(threads|processes|dask://.+)$")
    max_retries: int = Field(default=3, ge=0)
    retry_delay: Seconds = 2

    @model_validator(mode="after")
    def _check_memory(self) -> RunSettings:
        if self.memory < MINIMUM_MEMORY:
            raise ValueError("memory is at least 512MB: the libraries alone need most of that")
        return self


class StreamSettings(Section):
    """[stream]: how changes are streamed.

    By default, slot and publication are named after the source. Times are in seconds.
    """

    slot: str = Field(default="", pattern=r"^[a-z0-9_]{0,63}$")
    publication: str = ""
    interval: Seconds = 1
    heartbeat: Seconds = 60
    wal_budget: Bytes = 10**9

    def names(self, source: str) -> tuple[str, str]:
        """The names of the replication slot and the publication of a source."""
        plain = re.sub(r"[^a-z0-9]+", "_", source.lower()).strip("_")
        default = f"bronze_{plain}"[:63]
        return self.slot or default, self.publication or default


class MaintainSettings(Section):
    """[maintain]: how tables are optimized and vacuumed, after runs and by ``bronze maintain``.

    ``file_size`` is in bytes, ``retention`` in seconds; ``history`` are the seconds for which the
    records of runs, alerts, requests and checkpoints are kept; ``queries`` is a file with SQL, the
    filters of which ``cluster_by = "auto"`` counts.
    """

    auto: bool = True
    queries: str | None = None
    file_size: Bytes = 128 * 2**20
    retention: Annotated[int, Field(ge=86400), BeforeValidator(to_seconds)] = 30 * 86400
    history: Annotated[int, Field(ge=86400), BeforeValidator(to_seconds)] = 90 * 86400

    @model_validator(mode="after")
    def _check_file_size(self) -> MaintainSettings:
        if self.file_size < 10**6:
            raise ValueError("file_size is at least 1MB")
        return self

    def properties(self) -> tuple[tuple[str, str], ...]:
        """The table properties that tell other engines the same retention."""
        # Delta counts whole days; rounded up, so that no engine deletes files earlier than bronze.
        days = f"interval {-(-self.retention // 86400)} days"
        return (
            ("delta.deletedFileRetentionDuration", days),
            ("delta.logRetentionDuration", days),
        )
