"""What the config may say about the protection of personal data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bronze.config.fields import Section
from bronze.model.columns import Protect, ProtectMethod

MASTER_KEY = "BRONZE_MASTER_KEY"
"""The environment variable with the master key where the config names none."""

Choice = Literal["encrypt", "encrypt_deterministic", "tokenize", "hash", "mask", "drop", "clear"]


class ColumnProtection(Section):
    """``protect = { email = "encrypt" }``, or with more than a method
    ``{ phone = { method = "tokenize", format = true } }``.

    ``drop`` does not take the column at all; ``clear`` takes it as it is, on purpose.
    """

    method: Choice
    join: str = Field(default="", pattern=r"^[\w-]*$")
    format: bool = False
    keep: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: object) -> object:
        return {"method": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _sensible(self) -> ColumnProtection:
        stable = ("encrypt_deterministic", "tokenize", "hash")
        if self.join and self.method not in stable:
            raise ValueError(f"join is for {', '.join(stable)}, which keep equal values equal")
        if self.format and self.method != "tokenize":
            raise ValueError("format is for tokenize only")
        if self.keep and self.method != "mask":
            raise ValueError("keep is for mask only")
        return self

    @property
    def dropped(self) -> bool:
        """Whether the column is not taken at all."""
        return self.method == "drop"

    @property
    def rule(self) -> Protect | None:
        """How its values are protected, None where they are not."""
        if self.method in ("drop", "clear"):
            return None
        method: ProtectMethod = self.method  # type: ignore[assignment]
        return Protect(method, self.join, self.format, self.keep)
