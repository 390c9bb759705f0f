"""[backup] of bronze.toml: where copies of the lake go, how often, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from bronze.config.fields import Bytes, LakeRoot, SecretName, Section, to_seconds
from bronze.model import object_store

# Parts of large objects are read at once; a smaller rate could not be kept.
_LEAST_RATE = 100_000


class BackupSettings(Section):
    """[backup]: the copy of the lake.

    ``root`` is where it is, "" if there is none; ``options`` are those of its object store. A
    service copies ``every`` so many seconds. ``rate`` are bytes per second, 0 is no limit. ``keep``
    are the seconds after which a generation expires; ``lock`` those for which no object of the copy
    can be deleted, 0 without a lock. A drill fails that takes more than ``rto`` seconds, or finds
    changes of more than ``rpo`` seconds missing; it restores into ``scratch``, by default beside
    the copy.
    """

    root: LakeRoot = ""
    options: Mapping[str, str | SecretName] = Field(default={}, repr=False)
    every: Annotated[int, Field(ge=10), BeforeValidator(to_seconds)] = 300
    rate: Annotated[Bytes, Field(ge=0)] = 0
    keep: Annotated[int, Field(ge=3600), BeforeValidator(to_seconds)] = 30 * 86400
    lock: Annotated[int, Field(ge=0), BeforeValidator(to_seconds)] = 0
    rto: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)] = 2 * 3600
    rpo: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)] = 15 * 60
    scratch: LakeRoot = ""

    @model_validator(mode="after")
    def _check_store(self) -> BackupSettings:
        if not self.root:
            if self.model_fields_set - {"root"}:
                raise ValueError("root is missing: the address or folder of the copy")
            return self
        object_store.check(self.root, self.options)
        if 0 < self.rate < _LEAST_RATE:
            raise ValueError("rate is at least 100KB, or 0 for no limit")
        if self.lock and object_store.cloud_of(self.root) != "aws":
            raise ValueError(
                "lock needs a store with object lock, which bronze knows of S3 alone; elsewhere set"
                " a policy of the container, and leave lock out"
            )
        return self
