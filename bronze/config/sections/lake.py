"""[lake]: where the Delta tables are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from bronze.config.fields import LakeRoot, SecretName, Section
from bronze.model import object_store


class LakeSettings(Section):
    """[lake]: where the Delta tables are.

    With ``storage = "vended"``, Unity Catalog ([catalog]) gives the credentials of the store.
    """

    root: LakeRoot
    schema_: str = Field(default="bronze", alias="schema", pattern=r"^[\w-]+$")
    storage: Literal["direct", "vended"] = "direct"
    options: Mapping[str, str | SecretName] = Field(default={}, repr=False)

    @model_validator(mode="after")
    def _check_store(self) -> LakeSettings:
        object_store.check(self.root, self.options)
        if self.storage == "vended":
            object_store.check_vended(self.root, self.options)
        return self
