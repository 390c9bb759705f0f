"""Whether each secret of the config can be read. Values are never shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from bronze import secrets
from bronze.config.fields import SecretName
from bronze.config.settings import Settings
from bronze.model.locations import Secret
from bronze.operate.doctor.examination import Check, Verdict, ok, problem
from bronze.protection import keyring

_STORES = {
    "env": "the environment",
    "file": "its file",
    "azure-key-vault": "Azure Key Vault",
    "databricks": "Databricks",
}


def checks(settings: Settings) -> list[Check]:
    """A check of each secret that the config names, and of the master key if tables need it."""
    masters = {secret.name: secret for secret in _masters(settings)}
    named = {name.secret: settings.secret(name) for name in _names(settings)}
    return [
        _check(secret, is_master=secret.name in masters) for secret in {**named, **masters}.values()
    ]


def _names(value: object) -> Iterator[SecretName]:
    """All names of secrets in a part of the config."""
    if isinstance(value, SecretName):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _names(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _names(part)


def _masters(settings: Settings) -> tuple[Secret, ...]:
    """The master keys: those that the config names, and the default one if a table needs it."""
    rules = [how.rule for table in settings.tables.values() for how in table.protect.values()]
    needed = any(rule is not None and rule.method != "mask" for rule in rules)
    first, *previous = settings.masters
    return (first, *previous) if needed or settings.protection.key else tuple(previous)


def _check(secret: Secret, is_master: bool) -> Check:
    where = _STORES.get(secret.provider, secret.provider)

    def examine() -> Iterator[Verdict]:
        value = secrets.resolve(secret)
        if is_master:
            keyring.master(secret)
        if not value:
            yield problem(f"The secret {secret.name} is empty.", f"Set it in {where}.")
        else:
            yield ok(f"The secret {secret.name} can be read from {where}.")

    what = f"The secret {secret.name} in {where}"
    return Check("secrets", examine, what, "Check [secrets] and the network.", secret.name)
