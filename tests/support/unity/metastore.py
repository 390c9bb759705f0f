"""The state of a metastore: securables with owners and grants, and who may do what with them.

Rules from the documentation of Databricks, "Manage privileges in Unity Catalog": privileges are
inherited from catalog and schema; the owner has all of them but EXTERNAL USE SCHEMA and EXTERNAL
USE LOCATION; a metastore admin may change owners and grants, and has no access to data.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.support.unity.privileges import GRANTABLE, OWNERS_LACK, implies, parents
from tests.support.unity.refusals import Refusal, check_enum, denied, exists, missing

Key = tuple[str, str]


@dataclass
class Securable:
    """A securable: its document as the API returns it, its grants by principal, its tags."""

    kind: str
    name: str
    document: dict[str, Any]
    grants: dict[str, set[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    column_tags: dict[str, dict[str, str]] = field(default_factory=dict)
    bindings: dict[int, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Its owner."""
        return str(self.document["owner"])


@dataclass
class Metastore:
    """A metastore; ``groups`` are the groups of a principal, ``workspace`` is the id of the
    workspace that is asked. ``external_access`` is the metastore's setting "External data access".
    """

    securables: dict[Key, Securable] = field(default_factory=dict)
    admins: set[str] = field(default_factory=set)
    groups: dict[str, set[str]] = field(default_factory=dict)
    principals: set[str] = field(default_factory=set)
    external_access: bool = True
    workspace: int = 1111
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        document = {"name": "metastore", "owner": "account-admins", "metastore_id": self.id}
        self.securables["METASTORE", self.id] = Securable("METASTORE", self.id, document)

    def add(self, kind: str, name: str, owner: str, **fields: Any) -> Securable:
        """A new securable.

        Raises:
            Refusal: it exists.
        """
        if (kind, name) in self.securables:
            raise exists(kind, name)
        now = int(time.time() * 1000)
        document = {
            "name": name.rpartition(".")[2], "full_name": name, "owner": owner,
            "metastore_id": self.id, "created_at": now, "created_by": owner, "updated_at": now,
            "updated_by": owner,
            **{key: value for key, value in fields.items() if value is not None},
        }  # fmt: skip
        made = Securable(kind, name, document)
        self.securables[kind, name] = made
        return made

    def get(self, kind: str, name: str) -> Securable:
        """A securable.

        Raises:
            Refusal: there is none.
        """
        found = self.securables.get((kind, name))
        if found is None:
            raise missing(kind, name)
        return found

    def of(self, kind: str, inside: str = "") -> list[Securable]:
        """All securables of a type, or those in one schema or catalog."""
        prefix = f"{inside}." if inside else ""
        return [s for (k, n), s in self.securables.items() if k == kind and n.startswith(prefix)]

    def remove(self, securable: Securable) -> None:
        """Removes a securable."""
        del self.securables[securable.kind, securable.name]

    def identities(self, principal: str) -> set[str]:
        """A principal, its groups, and all users."""
        return {principal, "account users", *self.groups.get(principal, set())}

    def is_owner(self, principal: str, securable: Securable) -> bool:
        """Whether a principal owns a securable, or a securable that it lies in."""
        chain = [(securable.kind, securable.name), *parents(securable.kind, securable.name)]
        mine = self.identities(principal)
        return any(self.securables[key].owner in mine for key in chain if key in self.securables)

    def may(self, principal: str, privilege: str, securable: Securable) -> bool:
        """Whether a principal has a privilege on a securable, by a grant or as its owner."""
        mine = self.identities(principal)
        if privilege not in OWNERS_LACK and self.is_owner(principal, securable):
            return True
        for key in [(securable.kind, securable.name), *parents(securable.kind, securable.name)]:
            holder = self.securables.get(key)
            for grantee, privileges in (holder.grants if holder else {}).items():
                if grantee in mine and any(implies(p, privilege) for p in privileges):
                    return True
        return False

    def need(self, principal: str, privilege: str, kind: str, name: str) -> Securable:
        """A securable on which a principal has a privilege.

        Raises:
            Refusal: there is none, or the principal lacks the privilege.
        """
        securable = self.get(kind, name)
        if not self.may(principal, privilege, securable):
            raise denied(privilege, kind, name)
        return securable

    def enter(self, principal: str, kind: str, name: str, *, write: bool = False) -> None:
        """Checks that a principal can use the catalog and the schema that a securable lies in, from
        this workspace.

        Raises:
            Refusal: not.
        """
        for parent, parent_name in reversed(parents(kind, name)):
            self.need(principal, f"USE_{parent}", parent, parent_name)
            if parent == "CATALOG":
                self.check_binding(parent_name, write=write)

    def check_binding(self, catalog: str, *, write: bool) -> None:
        """Checks that this workspace can use a catalog ("Limit catalog access to specific
        workspaces").

        Raises:
            Refusal: not, or only for reading.
        """
        bound = self.get("CATALOG", catalog)
        if bound.document.get("isolation_mode") != "ISOLATED":
            return
        binding = bound.bindings.get(self.workspace)
        if binding is None:
            message = f"Catalog '{catalog}' is not accessible in current workspace"
            raise Refusal(403, "PERMISSION_DENIED", message)
        if write and binding == "BINDING_TYPE_READ_ONLY":
            message = f"Catalog '{catalog}' is bound to this workspace as read-only"
            raise Refusal(403, "PERMISSION_DENIED", message)

    def manages(self, principal: str, securable: Securable) -> bool:
        """Whether a principal may change the owner and the grants of a securable."""
        return (
            principal in self.admins
            or self.is_owner(principal, securable)
            or self.may(principal, "MANAGE", securable)
        )

    def need_management(self, principal: str, securable: Securable) -> None:
        """Checks `manages`.

        Raises:
            Refusal: not.
        """
        if not self.manages(principal, securable):
            raise denied("MANAGE", securable.kind, securable.name)

    def check_principal(self, name: str) -> str:
        """Checks that a user, group or service principal exists.

        Raises:
            Refusal: it does not.
        """
        if name not in self.principals | {"account users"}:
            raise Refusal(
                404, "PRINCIPAL_DOES_NOT_EXIST", f"Could not find principal with name {name}"
            )
        return name

    def change_grants(
        self, principal: str, securable: Securable, changes: list[dict[str, Any]]
    ) -> None:
        """Grants and revokes; all changes, or none.

        Raises:
            Refusal: a principal or a privilege does not exist, cannot be granted on this securable,
                or the caller may not grant it.
        """
        self.need_management(principal, securable)
        planned = []
        for change in changes:
            grantee = self.check_principal(str(change.get("principal")))
            for verb in ("add", "remove"):
                for privilege in change.get(verb) or ():
                    check_enum("privilege", privilege, set().union(*GRANTABLE.values()))
                    if privilege not in GRANTABLE[securable.kind]:
                        raise Refusal(
                            400, "INVALID_PARAMETER_VALUE",
                            f"Privilege {privilege} is not applicable to this entity"
                            f" [{securable.name}:{securable.kind}].",
                        )  # fmt: skip
                    self._check_granter(principal, privilege, securable)
                    planned.append((verb, grantee, privilege))
        for verb, grantee, privilege in planned:
            held = securable.grants.setdefault(grantee, set())
            held.add(privilege) if verb == "add" else held.discard(privilege)
            if not held:
                del securable.grants[grantee]

    def _check_granter(self, principal: str, privilege: str, securable: Securable) -> None:
        """EXTERNAL USE SCHEMA is granted by the catalog's owner alone, EXTERNAL USE LOCATION by the
        location's.
        """
        mine = self.identities(principal)
        if privilege == "EXTERNAL_USE_SCHEMA":
            catalog = self.get("CATALOG", securable.name.split(".", 1)[0])
            if catalog.owner not in mine:
                raise denied("OWNERSHIP", "CATALOG", catalog.name)
        if privilege == "EXTERNAL_USE_LOCATION" and securable.owner not in mine:
            raise denied("OWNERSHIP", "EXTERNAL_LOCATION", securable.name)
