"""What makes the lake untrustworthy: an audit log that is not as it was written, keys that cannot
be read, personal data without protection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from bronze.config.settings import Settings
from bronze.errors import ConfigError, LakeError, LakeUnreachable, SecretsUnreachable
from bronze.operate.alerts.life import Key
from bronze.operate.conditions import SERVICE
from bronze.operate.doctor import lake_checks, secret_checks
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import personal_by_name
from bronze.postgres.connection import connect, translation
from bronze.protection import keyring, keys
from bronze.tables import selection


def lake_faults(settings: Settings) -> dict[Key, str]:
    """What is wrong with the end of the audit log, and with the keys: sentences by the keys of
    their alerts.

    Raises:
        BronzeError: the lake cannot be read.
    """
    faults: dict[Key, str] = {}
    try:
        for verdict in lake_checks.audit(settings).examine():
            if verdict.state == "problem":
                faults["audit_broken", SERVICE] = verdict.message
    except LakeUnreachable:
        raise
    except LakeError as error:
        faults["audit_broken", SERVICE] = error.message
    fault = _key_fault(settings)
    if fault:
        faults["keys_missing", SERVICE] = fault
    return faults


def _key_fault(settings: Settings) -> str:
    _, records = keys.stored_keys(settings)
    if not records and not secret_checks.needs_master(settings):
        return ""
    try:
        masters = {keyring.fingerprint(keyring.master(secret)) for secret in settings.masters}
    except (ConfigError, SecretsUnreachable) as error:
        return error.message
    for versions in keys.current_keys(records).values():
        for key in versions:
            if key.master not in masters:
                return (
                    f"The key {key.id} was wrapped with the master key {key.master}, which the"
                    " config does not name"
                )
    return ""


def source_faults(settings: Settings, source: str) -> dict[Key, str]:
    """The tables of a source with columns that look personal, by their names, and that the config
    does not mention.

    Raises:
        BronzeError: the source cannot be read.
    """
    origin = replace(settings.origin(source), application_name="bronze serve")
    with translation.source_errors(origin), connect.connect(origin) as connection:
        schemas = settings.source[source].schema_
        relations = selection.relations_of(connection, source, schemas)
    return dict(_unprotected(settings, source, relations))


def _unprotected(
    settings: Settings, source: str, relations: Iterable[Relation]
) -> Iterator[tuple[Key, str]]:
    for target in selection.all_targets(settings, [(source, r) for r in relations]):
        relation = target.relation
        for note in selection.unprotected_notes(target, personal_by_name(relation)):
            label = f"{relation.schema}.{relation.name}"
            yield ("personal_data", f"{source}.{label}"), f"{label} {note}"
