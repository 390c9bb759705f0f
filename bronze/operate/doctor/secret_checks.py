"""Whether each secret of the config can be read. Values are never shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bronze import secrets
from bronze.config.fields import SecretName, secrets_named
from bronze.config.settings import Settings
from bronze.model.locations import Secret
from bronze.operate.doctor.examination import Check, Verdict, ok
from bronze.protection import keyring

_STORES = {
    "env": "the environment",
    "file": "its file",
    "azure-key-vault": "Azure Key Vault",
    "databricks": "Databricks",
}


def checks(settings: Settings) -> list[Check]:
    """A check of each secret that the config names, and of the master key if tables need it."""
    named = list(secrets_named(settings))
    masters = set(_master_names(settings))
    found = [
        _check(name.secret, partial(settings.secret, name), name in masters)
        for name in dict.fromkeys(named)
    ]
    if needs_master(settings) and settings.protection.key is None:
        default = settings.masters[0]
        found.append(_check(default.name, lambda: default, is_master=True))
    return found


def _master_names(settings: Settings) -> Iterator[SecretName]:
    if settings.protection.key:
        yield settings.protection.key
    yield from settings.protection.previous


def needs_master(settings: Settings) -> bool:
    """Whether tables of the config have columns whose protection needs a master key."""
    rules = [how.rule for table in settings.tables.values() for how in table.protect.values()]
    return any(rule is not None and rule.method != "mask" for rule in rules)


def _check(name: str, reference: Callable[[], Secret], is_master: bool) -> Check:
    def examine() -> Iterator[Verdict]:
        secret = reference()
        where = _STORES.get(secret.provider, secret.provider)
        secrets.resolve(secret)
        if is_master:
            keyring.master(secret)
        yield ok(f"The secret {name} can be read from {where}.")

    hint = "Check [secrets] and the network."
    return Check("secrets", examine, f"The provider of the secret {name}", hint, name)
