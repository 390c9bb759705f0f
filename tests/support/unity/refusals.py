"""What a workspace answers if it refuses a request.

The documents have the shape of Databricks' API: ``error_code``, ``message`` and ``details`` of
google.rpc.ErrorInfo, as unity-catalog.databricks.com sends them. The statuses are those that
``databricks.sdk.errors.platform`` maps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class Refusal(Exception):
    """An answer that is no success: its status, its code, its message, and more headers."""

    def __init__(
        self, status: int, code: str | int, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    @property
    def document(self) -> dict[str, Any]:
        """The body."""
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": str(self.code)}
        return {"error_code": self.code, "message": self.message, "details": [reason]}


def invalid(message: str, code: str = "INVALID_PARAMETER_VALUE") -> Refusal:
    """A request that is wrong."""
    return Refusal(400, code, message)


def denied(privilege: str, kind: str, name: str) -> Refusal:
    """The caller lacks a privilege: "User does not have EXTERNAL USE SCHEMA on Schema 'a.b'."."""
    words = privilege.replace("_", " ")
    label = kind.replace("_", " ").title()
    return Refusal(403, "PERMISSION_DENIED", f"User does not have {words} on {label} '{name}'.")


def missing(kind: str, name: str) -> Refusal:
    """There is no such securable."""
    label = kind.replace("_", " ").capitalize()
    return Refusal(404, f"{kind}_DOES_NOT_EXIST", f"{label} '{name}' does not exist.")


def exists(kind: str, name: str) -> Refusal:
    """There is such a securable already."""
    label = kind.replace("_", " ").capitalize()
    return Refusal(400, f"{kind}_ALREADY_EXISTS", f"{label} '{name}' already exists")


def check_fields(
    body: Mapping[str, Any], required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Refuses a body with fields that the API does not document, or without a required one.

    The workspace itself may ignore an unknown field; a client that sends one has a mistake.
    """
    for name in required:
        if body.get(name) in (None, ""):
            raise invalid(f"Missing required field: {name}")
    unknown = sorted(set(body) - {*required, *optional})
    if unknown:
        raise invalid(f"Could not parse request object: unknown fields {', '.join(unknown)}.")


def check_enum(name: str, value: object, allowed: Collection[str]) -> str:
    """Refuses a value that is none of an enumeration."""
    if value not in allowed:
        raise invalid(
            f"Could not parse request object: {name}: {value!r} is not one of"
            f" {', '.join(sorted(allowed))}."
        )
    return str(value)
