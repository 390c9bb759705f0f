"""Registers one table: writes what differs between its entry and what the catalog has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from bronze import stopping
from bronze.errors import BronzeError, CatalogError
from bronze.rows.metadata import METADATA_COLUMNS
from bronze.unity import lineage, registered
from bronze.unity.api.refusals import error_of, explained
from bronze.unity.api.rest import Api, Refusal
from bronze.unity.entries import OWN_TAGS, PII, Entry, TableTags, is_same_location
from bronze.unity.registered import Registered
from bronze.unity.results import RegisteredTable, RegisterStatus
from bronze.unity.writers import RestWriter, Writer

_BRONZE_COLUMNS = frozenset(name for name, _ in METADATA_COLUMNS)
_NO_LINEAGE = ("FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


@dataclass(frozen=True)
class Catalog:
    """A catalog to register tables in: its API, and what writes to it.

    ``open_source`` says that there are no tags, owners and lineage.
    """

    api: Api
    writer: Writer
    open_source: bool = False
    lineage: bool = True
    recreate: bool = False


@dataclass(eq=False)
class _Registration:
    """The registration of one table; ``changes`` and ``notes`` grow as it goes on."""

    catalog: Catalog
    entry: Entry
    status: RegisterStatus = "unchanged"
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[CatalogError] = field(default_factory=list)

    def perform(self) -> None:
        present = self._find()
        if present is None:
            present = self._create()
        else:
            self._refuse_other_table(present)
            present = self._update_columns(present)
        for step in (self._comment, self._tag, self._grant, self._trace, self._give):
            try:
                step(present)
            except CatalogError as error:
                # The rest does not depend on it.
                self.errors.append(error)

    def _find(self) -> Registered | None:
        with self._explained("cannot be read", "SELECT on the table, or MANAGE on the schema"):
            return registered.find_table(self.catalog.api, self.entry.full_name)

    def _create(self) -> Registered:
        catalog, schema, _ = self.entry.name
        needs = (
            f"USE CATALOG on the catalog {catalog}, USE SCHEMA and CREATE TABLE on the schema"
            f" {schema}, and CREATE EXTERNAL TABLE on the external location of"
            f" {self.entry.location}"
        )
        if not self.catalog.writer.repairs and not self.catalog.open_source:
            needs += ", with EXTERNAL USE SCHEMA and EXTERNAL USE LOCATION as well, by name,"
        with self._explained("cannot be created", needs):
            try:
                self.catalog.writer.create_table(self.entry)
            except Refusal as refusal:
                # Another run may have been faster.
                if "ALREADY_EXISTS" not in refusal.code or self._find() is None:
                    raise
        self.status = "created"
        self.changes.append(f"created at {self.entry.location}")
        return self._find_again()

    def _find_again(self) -> Registered:
        present = self._find()
        if present is None:
            raise CatalogError(
                f"Table {self.entry.full_name} was created, and cannot be read.",
                hint="Grant SELECT on the schema to the principal that bronze logs in as.",
            )
        return present

    def _refuse_other_table(self, present: Registered) -> None:
        name, location = self.entry.full_name, self.entry.location
        if not is_same_location(present.location, location):
            raise CatalogError(
                f"Table {name} is registered at {present.location or 'no location'}, and the lake"
                f" has it at {location}. Nothing was changed.",
                hint="If the lake has moved, drop the entry (the files of an external table stay)"
                " and register again; or set another schema or name under [catalog].",
            )
        if (present.kind, present.data_format) != ("EXTERNAL", "DELTA"):
            raise CatalogError(
                f"Table {name} is registered as {present.kind} {present.data_format}, not as an"
                " external Delta table. Nothing was changed.",
                hint="Set another schema or name under [catalog].",
            )

    def _update_columns(self, present: Registered) -> Registered:
        entry, writer = self.entry, self.catalog.writer
        has_columns = present.has_columns_of(entry)
        if not writer.repairs:
            outdated = not has_columns or bool(self._comments_by_creation(present))
            if outdated and self.catalog.recreate:
                return self._recreate(present)
            if not has_columns:
                self.errors.append(
                    CatalogError(
                        f"Table {entry.full_name} has other columns in the lake than in the"
                        f" catalog: {_differences(present, entry)}.",
                        hint="By REST only a new entry gets them: use --recreate, which puts grants"
                        " and tags back; or set a warehouse under [catalog].",
                    )
                )
            return present
        if has_columns:
            return present
        difference = _differences(present, entry)
        with self._explained("cannot be repaired", "MODIFY on the table"):
            writer.repair(entry)
        self._changed(f"columns: {difference}")
        repaired = self._find_again()
        if not repaired.has_columns_of(entry):
            rest = _differences(repaired, entry)
            self.notes.append(f"after its repair it still has other columns: {rest}")
        return repaired

    def _recreate(self, present: Registered) -> Registered:
        """Makes the entry anew, with what it had. The files of an external table stay."""
        api, writer, name = self.catalog.api, self.catalog.writer, self.entry.full_name
        if not isinstance(writer, RestWriter):
            raise TypeError("a warehouse repairs tables")
        if present.losses:
            raise CatalogError(
                f"The entry of table {name} is not made anew: it has"
                f" {' and '.join(present.losses)}, which cannot be put back.",
                hint="Set a warehouse under [catalog]: it repairs the columns of an entry.",
            )
        with self._explained("cannot be read", "MANAGE on the table"):
            grants = registered.grants_of(api, "table", name, open_source=self.catalog.open_source)
            names = [column.name for column in present.columns]
            tags = {} if self.catalog.open_source else registered.tags_of(api, self.entry, names)
        self.entry = _with_state_of(self.entry, replace(present, grants=grants, tags=tags))
        # A stop in between would leave nothing.
        with stopping.unstoppable():
            with self._explained("cannot be deleted", "MANAGE on the table"):
                writer.delete_table(self.entry)
            try:
                writer.create_table(self.entry)
            except (BronzeError, Refusal) as error:
                raise CatalogError(
                    f"The entry of table {name} was deleted, and could not be made anew: {error}."
                    " The data are untouched.",
                    hint=f"Register again; then put back by hand: {_inventory(self.entry)}.",
                ) from None
        if (comment := present.comments.get("")) and not self.catalog.open_source:
            self.notes.append(f"its comment could not be put back by REST: {comment}")
        self.status = "recreated"
        self.changes.append("made anew")
        return self._find_again()

    def _comments_by_creation(self, present: Registered) -> dict[str, str]:
        """The comments that differ, and that a new entry would have."""
        return {
            column: text
            for column, text in _comments(present, self.entry).items()
            if column or self.catalog.open_source
        }

    def _comment(self, present: Registered) -> None:
        writer, differing = self.catalog.writer, _comments(present, self.entry)
        if differing and not writer.repairs:
            names = ", ".join(name or "the table" for name in differing)
            fixable = bool(self._comments_by_creation(present))
            how = "use --recreate, or set a warehouse" if fixable else "set a warehouse"
            self.notes.append(f"PostgreSQL's comments of {names} are not in the catalog: {how}")
            return
        for column, text in differing.items():
            with self._explained(f"cannot get the comment of {column or 'itself'}", _MODIFY):
                writer.comment(self.entry, column, text)
            self._changed(f"comment of {column or 'the table'}")

    def _tag(self, present: Registered) -> None:
        wanted, api = self.entry.tags, self.catalog.api
        if not wanted or self.catalog.open_source:
            return
        names = [c.name for c in self.entry.columns if c.name not in _BRONZE_COLUMNS]
        with self._explained("has tags that cannot be read", _TAG):
            tags = registered.tags_of(api, self.entry, names)
        for column in ("", *names):
            there, own = tags.get(column, {}), wanted.get(column, {})
            new = {k: v for k, v in own.items() if there.get(k) != v and (k, k in there) != _KEPT}
            old = [key for key in there if key in OWN_TAGS and key not in own]
            with self._explained(f"cannot get the tags of {column or 'itself'}", _TAG):
                if new:
                    self.catalog.writer.set_tags(self.entry, column, new, there)
                if old:
                    self.catalog.writer.unset_tags(self.entry, column, old)
            if new or old:
                keys = ", ".join(sorted({*new, *old}))
                self._changed(f"tags of {column or 'the table'}: {keys}")

    def _grant(self, present: Registered) -> None:
        entry, catalog = self.entry, self.catalog
        if not entry.grants:
            return
        with self._explained("has grants that cannot be read", "MANAGE on the table"):
            granted = registered.grants_of(
                catalog.api, "table", entry.full_name, open_source=catalog.open_source
            )
        for principal, privileges in entry.grants.items():
            missing = _missing(privileges, granted.get(principal, frozenset()))
            if not missing:
                continue
            with self._explained(f"cannot be granted to {principal}", "MANAGE on the table"):
                catalog.writer.grant("table", entry.name, principal, missing)
            self._changed(f"{', '.join(missing)} to {principal}")

    def _trace(self, present: Registered) -> None:
        if not self.catalog.lineage or self.catalog.open_source:
            return
        try:
            written = lineage.write(self.catalog.api, self.entry)
        except Refusal as refusal:
            needs = "CREATE EXTERNAL METADATA on the metastore, and MODIFY on the table"
            error = error_of(
                refusal, f"The lineage of table {self.entry.full_name} cannot be written", needs
            )
            if refusal.code in _NO_LINEAGE:
                self.notes.append(f"{error.message} Set lineage = false under [catalog].")
                return
            raise error from None
        for change in written:
            self._changed(change)

    def _give(self, present: Registered) -> None:
        # The last: its owner may be one who does not let bronze change it.
        owner = self.entry.owner
        if not owner or present.owner == owner or self.catalog.open_source:
            return
        with self._explained(f"cannot be given to {owner}", "MANAGE on the table"):
            self.catalog.writer.set_owner(self.entry, owner)
        self._changed(f"owner {owner}")

    def _changed(self, change: str) -> None:
        self.changes.append(change)
        if self.status == "unchanged":
            self.status = "updated"

    def _explained(self, what: str, needs: str) -> AbstractContextManager[None]:
        return explained(f"Table {self.entry.full_name} {what}", needs)


# People may have said which kind of personal data it is.
_KEPT = (PII, True)
_MODIFY = "MODIFY on the table"
_TAG = "APPLY TAG on the table, with ASSIGN on governed tags,"


def register_table(catalog: Catalog, entry: Entry) -> RegisteredTable:
    """Registers a table; an error is part of the result.

    Raises:
        CatalogUnreachable: the catalog does not answer.
        ConfigError, SecretsUnreachable: there is no token.
    """
    work = _Registration(catalog, entry)
    try:
        work.perform()
    except CatalogError as error:
        if error.retry:
            raise
        work.errors.append(error)
    first = work.errors[0] if work.errors else None
    more = [f"{error.message} {error.hint}".rstrip() for error in work.errors[1:]]
    return RegisteredTable(
        entry.target,
        entry.full_name,
        catalog.api.host,
        "failed" if first else work.status,
        tuple(work.changes),
        (*work.notes, *more),
        first.failure() if first else None,
    )


def _comments(present: Registered, entry: Entry) -> dict[str, str]:
    """The comments of an entry that the catalog does not have."""
    there = {name.lower(): text for name, text in present.comments.items()}
    return {
        name: text for name, text in entry.comments.items() if there.get(name.lower(), "") != text
    }


def _missing(wanted: tuple[str, ...], granted: frozenset[str]) -> list[str]:
    has_all = "ALL PRIVILEGES" in granted
    # ALL PRIVILEGES does not include MANAGE.
    return [p for p in wanted if p not in granted and (p == "MANAGE" or not has_all)]


def _differences(present: Registered, entry: Entry) -> str:
    """What the catalog's columns lack, in words."""
    there = {column.name.lower(): column.type_text for column in present.columns}
    columns = {column.name.lower(): column for column in entry.columns}
    parts = [
        *(f"{c.name} is new" for name, c in columns.items() if name not in there),
        *(f"{name} is gone" for name in there if name not in columns),
        *(
            f"{c.name} is {c.type_text}, not {there[name]}"
            for name, c in columns.items()
            if name in there and there[name].lower() != c.type_text
        ),
    ]
    return "; ".join(parts) or "their order"


def _with_state_of(entry: Entry, present: Registered) -> Entry:
    """The entry with the comments, tags, grants and owner that the catalog has beside its own."""
    names = {"", *(column.name for column in entry.columns)}
    tags: TableTags = {
        name: {**_tags_of_others(present.tags.get(name, {})), **entry.tags.get(name, {})}
        for name in names
        if name in present.tags or name in entry.tags
    }
    grants = {name: tuple(sorted(granted)) for name, granted in present.grants.items()}
    for principal, privileges in entry.grants.items():
        grants[principal] = tuple(dict.fromkeys((*grants.get(principal, ()), *privileges)))
    old = {name: text for name, text in present.comments.items() if text and name in names}
    return replace(
        entry,
        comments={**old, **entry.comments},
        tags=tags,
        grants=grants,
        owner=entry.owner or present.owner,
    )


def _tags_of_others(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key not in OWN_TAGS}


def _inventory(entry: Entry) -> str:
    """The grants and tags of an entry, to be put back by hand."""
    parts = [*_grant_texts(entry.grants), *_tag_texts(entry.tags)]
    return "; ".join(parts) or "nothing"


def _grant_texts(grants: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for principal, privileges in grants.items():
        yield f"{', '.join(privileges)} to {principal}"


def _tag_texts(tags: TableTags) -> Iterator[str]:
    for column, pairs in tags.items():
        text = ", ".join(f"{key} = {value}" for key, value in pairs.items())
        yield f"tags of {column or 'the table'}: {text}"
