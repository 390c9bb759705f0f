"""What to do about refusals of Unity Catalog, which are told in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bronze.errors import CatalogError
from bronze.unity.api.rest import Refusal

PRINCIPAL = "the principal that bronze logs in as"
_DENIED = ("PERMISSION_DENIED", "INSUFFICIENT_PERMISSIONS", "INSUFFICIENT_PRIVILEGES")
_UNBOUND = "not accessible in current workspace"
# By a part of the code or message of a refusal.
_HINTS = (
    (
        ("LOCATION_OVERLAP", "LocationOverlap", "overlaps with"),
        "Another table or volume of the metastore has this location: drop its entry, or leave the"
        " table out.",
    ),
    (
        ("EXTERNAL_LOCATION_DOES_NOT_EXIST", "external location", "External Location"),
        "CREATE EXTERNAL LOCATION … URL '…' WITH (STORAGE CREDENTIAL …) for the lake, and GRANT"
        f" CREATE EXTERNAL TABLE on it to {PRINCIPAL}.",
    ),
    (
        ("PRINCIPAL_DOES_NOT_EXIST", "Could not find principal", "PRINCIPAL_NOT_FOUND"),
        "Correct owner or grants under [catalog]: the names are those of account users, groups, or"
        " of service principals their application ids.",
    ),
    (
        ("CATALOG_DOES_NOT_EXIST", "NO_SUCH_CATALOG_EXCEPTION"),
        "Correct name under [catalog], or create the catalog.",
    ),
    (
        ("ALREADY_EXISTS",),
        f"There is one that {PRINCIPAL} cannot see: GRANT it SELECT, or drop the other one.",
    ),
)


@contextmanager
def explained(what: str, needs: str = "") -> Iterator[None]:
    """Raises refusals as errors.

    Args:
        what: what was not done, a sentence without its end.
        needs: the privileges that it needs, as ``PRIVILEGE on …``.

    Raises:
        CatalogError: the refusal.
    """
    try:
        yield
    except Refusal as refusal:
        raise error_of(refusal, what, needs) from None


def error_of(refusal: Refusal, what: str, needs: str = "") -> CatalogError:
    """The error of a refusal; arguments as of `explained`."""
    return CatalogError(f"{what}: {refusal}.", hint=_hint(refusal, needs))


def _hint(refusal: Refusal, needs: str) -> str:
    text = str(refusal)
    if refusal.is_of_token:
        return "The token has expired, or is one of another workspace: check auth under [catalog]."
    if not refusal.code:
        return "Check host under [catalog]: it is the address of a workspace, without a path."
    if _UNBOUND in text:
        return "Its owner binds the catalog to the workspace of host, in Catalog Explorer."
    # A denial may name an external location; it is there.
    if refusal.status == 403 or any(word in text for word in _DENIED):
        grants = f"GRANT {needs} to {PRINCIPAL}" if needs else f"Grant it to {PRINCIPAL}"
        return f"{grants}; its owner, or somebody with MANAGE, can."
    return next((hint for words, hint in _HINTS if any(word in text for word in words)), "")
