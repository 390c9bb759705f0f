"""The settings ``protect`` of a table: how each column with personal data is protected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bronze.config.fields import SecretName, Section
from bronze.model.columns import DETERMINISTIC_METHODS, ProtectionRule, ProtectMethod

MASTER_KEY = "BRONZE_MASTER_KEY"
"""The environment variable that holds the master key if the config names none."""

Choice = Literal["encrypt", "encrypt_deterministic", "tokenize", "hash", "mask", "drop", "clear"]


class ColumnProtection(Section):
    """How a column is protected: ``protect = { email = "encrypt" }``, or with options
    ``{ phone = { method = "tokenize", format = true } }``.

    ``drop`` leaves the column out of the Bronze table; ``clear`` loads it unprotected, on purpose.
    """

    method: Choice
    join: str = Field(default="", pattern=r"^[\w-]*$")
    format: bool = False
    keep: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_method_name(cls, value: object) -> object:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_options(self) -> ColumnProtection:
        if self.join and self.method not in DETERMINISTIC_METHODS:
            raise ValueError(
                f"join is only for {', '.join(DETERMINISTIC_METHODS)}, which protect equal"
                " values alike"
            )
        if self.format and self.method != "tokenize":
            raise ValueError("format is only for tokenize")
        if self.keep and self.method != "mask":
            raise ValueError("keep is only for mask")
        return self

    @property
    def is_dropped(self) -> bool:
        """Whether the column is left out of the Bronze table."""
        return self.method == "drop"

    @property
    def rule(self) -> ProtectionRule | None:
        """How the values of the column are protected, None if they are not."""
        if self.method in ("drop", "clear"):
            return None
        method: ProtectMethod = self.method  # type: ignore[assignment]
        return ProtectionRule(method, self.join, self.format, self.keep)


class ProtectionSettings(Section):
    """[protection]: the master keys. ``key`` wraps new data keys, ``previous`` unwrap old ones."""

    key: SecretName | None = None
    previous: tuple[SecretName, ...] = ()
