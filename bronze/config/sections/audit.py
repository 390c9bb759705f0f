"""[audit] and [lineage]: how records are sealed, and where events are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from bronze.config.fields import LakeRoot, Seconds, SecretName, Section, to_seconds
from bronze.model import object_store


class AuditSettings(Section):
    """[audit]: how the records of ``governance.audit_log`` are sealed.

    With a key, or by their hashes alone. ``former_keys`` are the keys of older records. ``escrow``
    is where the log's heads are kept outside of the lake; with ``escrow_lock``, in seconds, no head
    can be deleted there until so much time has passed.
    """

    key: SecretName | None = None
    former_keys: tuple[SecretName, ...] = ()
    escrow: LakeRoot = ""
    escrow_options: Mapping[str, str | SecretName] = Field(default={}, repr=False)
    escrow_lock: Seconds = 0

    @model_validator(mode="after")
    def _check_escrow(self) -> AuditSettings:
        if not self.escrow:
            if self.escrow_options or self.escrow_lock:
                raise ValueError("escrow_options and escrow_lock need an escrow")
            return self
        object_store.check(self.escrow, self.escrow_options)
        if self.escrow_lock and object_store.cloud_of(self.escrow) is None:
            raise ValueError("a folder cannot be locked: escrow_lock needs an object store")
        return self


class LineageSettings(Section):
    """[lineage]: where OpenLineage events are sent, beside ``governance.data_lineage``.

    ``timeout`` is in seconds.
    """

    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    file: str = ""
    api_key: SecretName | None = None
    namespace: str = "bronze"
    timeout: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)] = 5

    @model_validator(mode="after")
    def _check_destination(self) -> LineageSettings:
        if self.url and self.file:
            raise ValueError("events go to a url or to a file, not both")
        return self
