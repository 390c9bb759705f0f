"""The clients of object stores: one for each bucket and its options, kept while they hold.

A request that the store refuses because a key was rotated is made once more with the new key.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url

from bronze import secrets
from bronze.delta.storage import lake_folder, log_copy, store_errors
from bronze.errors import BronzeError, LakeError
from bronze.model import object_store
from bronze.model.locations import Place, Secret, Vended
from bronze.secrets import vended

T = TypeVar("T")

# Seconds after which secrets are resolved again: a rotated key usually serves for longer.
_FRESH = 30.0
# Whether a store is there at all is asked with less patience than everything else.
_PROBE_CLIENT = {"connect_timeout": "4s", "timeout": "8s"}
_PROBE_RETRY = {"max_retries": 1, "retry_timeout": timedelta(seconds=4)}
_TRUE = ("true", "1", "yes", "on", "y", "t")
_GOOGLE_CREDENTIALS = {
    "service_account", "service_account_path", "service_account_key", "application_credentials",
    "bearer_token",
}  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


@dataclass
class _Client:
    """A client, the options that it was made with, and until when they are not resolved again."""

    options: Mapping[str, str] = field(default_factory=dict)
    store: Any = None
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


_Key = tuple[str, tuple[tuple[str, str | Secret], ...], Vended | None]
_clients: dict[_Key, _Client] = {}
_lock = threading.Lock()


def is_local(place: Place) -> bool:
    """Whether the table lies in a folder of this machine."""
    return not object_store.REMOTE.match(place.url)


def options(place: Place) -> dict[str, str]:
    """The options of the object store, with secrets resolved, by the names that deltalake has.

    Raises:
        LakeError: there is no such store, or no such option.
        ConfigError, SecretsUnreachable: a secret cannot be read.
    """
    try:
        cloud = object_store.cloud_of(place.url)
        resolved = {
            name if cloud is None else object_store.plain_name(cloud, name): (
                secrets.resolve(value) if isinstance(value, Secret) else value
            )
            for name, value in place.options
        }
        if place.vended:
            resolved |= vended.credentials(place.vended)[0]
        return _without_signature(resolved) if cloud == "google" else resolved
    except ValueError as error:
        raise LakeError(
            f"The lake at {place.url} could not be opened: {error}.",
            hint="Correct root and options under [lake].",
        ) from None


def _without_signature(resolved: dict[str, str]) -> dict[str, str]:
    """The options for Google. Its client looks for credentials at each write even if it is to skip
    the signature; a key without OAuth, which sends an empty one, is what emulators take.
    """
    signed = {name.removeprefix("google_") for name in resolved} & _GOOGLE_CREDENTIALS
    skips = [name for name in resolved if name.removeprefix("google_") == "skip_signature"]
    if signed or not any(resolved[name].lower() in _TRUE for name in skips):
        return resolved
    key = {"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}
    return {
        **{name: value for name, value in resolved.items() if name not in skips},
        "service_account_key": json.dumps(key),
    }


def path_in(place: Place, path: str = "") -> str:
    """The path of an object of a table in the store of `open_store`."""
    if is_local(place):
        return path
    prefix = unquote(urlsplit(place.url).path).strip("/")
    return f"{prefix}/{path}".strip("/") if prefix else path


def open_store(place: Place) -> Any:
    """The store of the bucket that a table is in; for a local table that of its folder.

    Raises:
        LakeError: there is no such store, or no such option.
        LakeUnreachable: it does not answer, or has no credentials.
        ConfigError, SecretsUnreachable: a secret cannot be read.
    """
    if is_local(place):
        lake_folder.check(place)
        return LocalStore(prefix=Path(place.url).absolute(), mkdir=True)
    return _client(place).store


def request(place: Place, attempt: Callable[[Any], T]) -> T:
    """What an operation on the store of a table returns.

    It is called once more, with a new client, if the store refuses the key and there is a new one.
    """
    if is_local(place):
        return attempt(open_store(place))
    client = _client(place)
    used, opened = client.options, client.store
    try:
        return attempt(opened)
    except (BaseError, OSError) as error:
        if not is_refusal(error) or not is_renewed(place, used):
            raise
    return attempt(_client(place).store)


def delta_table(place: Place, version: int | None = None) -> DeltaTable:
    """The table as deltalake opens it.

    Raises:
        deltalake.exceptions.TableNotFoundError: there is no table.
        deltalake.exceptions.DeltaError, OSError, ValueError: the log cannot be read.
        LakeError, LakeUnreachable, ConfigError, SecretsUnreachable: as `open_store` does.
    """
    return with_table(place, version, lambda table: table)


def with_table(place: Place, version: int | None, attempt: Callable[[DeltaTable], T]) -> T:
    """What an operation of deltalake on a table returns; see `request`. Raises as `delta_table`."""
    if is_local(place):
        given = options(place)
        return attempt(DeltaTable(place.url, version=version, storage_options=given or None))
    if is_copied(place):
        return _with_copy(place, version, attempt)
    used = _client(place).options
    try:
        return attempt(DeltaTable(place.url, version=version, storage_options=dict(used) or None))
    except (DeltaError, OSError) as error:
        if not is_refusal(error) or not is_renewed(place, used):
            raise
    renewed = dict(_client(place).options)
    return attempt(DeltaTable(place.url, version=version, storage_options=renewed))


def current_options(place: Place) -> Mapping[str, str]:
    """The options of the client that `request` would use. Raises as `open_store` does."""
    return _client(place).options


def is_copied(place: Place) -> bool:
    """Whether deltalake reads a table's log from a copy: it takes no OAuth tokens for Google."""
    return place.vended is not None and object_store.cloud_of(place.url) == "google"


def _with_copy(place: Place, version: int | None, attempt: Callable[[DeltaTable], T]) -> T:
    prefix = path_in(place)
    try:
        return request(place, lambda opened: log_copy.with_copy(opened, prefix, version, attempt))
    except BaseError as error:
        raise store_errors.store_error(place, "read", error) from None


def forget() -> None:
    """Forgets all clients."""
    with _lock:
        _clients.clear()


def is_refusal(error: BaseException) -> bool:
    """Whether the store refused the credentials, or what they may do."""
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return True
    return not isinstance(error, (NotFoundError, AlreadyExistsError)) and bool(
        store_errors.REFUSALS.search(str(error))
    )


def _client(place: Place) -> _Client:
    parts = urlsplit(place.url)
    root = f"{parts.scheme.lower()}://{parts.netloc}"
    with _lock:
        client = _clients.setdefault((root, place.options, place.vended), _Client())
    # Threads that need it at the same time make it once.
    with client.lock:
        if client.store is None or time.monotonic() > client.until:
            _refresh(place, root, client, options(place))
    return client


def _refresh(place: Place, root: str, client: _Client, current: dict[str, str]) -> None:
    if client.store is None or current != client.options:
        store = _open(place, root, current)
        client.options, client.store = current, store
    client.until = time.monotonic() + _FRESH
    if place.vended:
        client.until = min(client.until, vended.credentials(place.vended)[1])


def is_renewed(place: Place, used: Mapping[str, str]) -> bool:
    """Whether the options differ from those that were refused, after asking for secrets again."""
    named = [value for _, value in place.options if isinstance(value, Secret)]
    if not named and place.vended is None:
        return False
    client = _client(place)
    with client.lock:
        if client.options == used:
            secrets.ask_again(named)
            if place.vended:
                vended.ask_again(place.vended)
            parts = urlsplit(place.url)
            root = f"{parts.scheme.lower()}://{parts.netloc}"
            _refresh(place, root, client, options(place))
        return client.options != used


def _open(place: Place, root: str, current: Mapping[str, str]) -> Any:
    """A new client, of a store that was seen to answer."""
    names = object_store.CLIENT
    config = {
        name: value
        for name, value in current.items()
        if name not in names | object_store.RETRY | object_store.DELTALAKE
    }
    connection = {name: value for name, value in current.items() if name in names}
    try:
        if object_store.cloud_of(place.url) is None:
            return from_url("file:///")
        probe = from_url(
            root,
            config=config,  # type: ignore[call-overload]
            client_options={**_PROBE_CLIENT, **connection},
            retry_config=_PROBE_RETRY,
        )
        store = from_url(
            root,
            config=config,  # type: ignore[call-overload]
            client_options=connection,
            retry_config=_retries(current),
        )
    except (KeyboardInterrupt, SystemExit, BronzeError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        failure = store_errors.store_error(place, "opened", error)
        failure.hint = failure.hint or "Correct root and options under [lake]."
        raise failure from None
    _probe(place, probe)
    return store


def _probe(place: Place, store: Any) -> None:
    """Checks that a store answers, whatever it answers."""
    try:
        with suppress(NotFoundError, FileNotFoundError, PermissionError):
            obstore.head(store, path_in(place, "_delta_log") or "_delta_log")
    except (BaseError, OSError) as error:
        if problem := store_errors.unreachable(place, "opened", error):
            raise problem from None


def _number(name: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} is a number, not {value}") from None


def _retries(current: Mapping[str, str]) -> dict[str, Any]:
    """The options of retries as obstore has them.

    Raises:
        ValueError: one is not a number, or not a duration.
    """
    retries: dict[str, Any] = {}
    backoff: dict[str, Any] = {}
    for name in object_store.RETRY & set(current):
        value = current[name]
        where = backoff if "." in name else retries
        short = name.rpartition(".")[2]
        if short in ("max_retries", "base"):
            where[short] = _number(name, value, int if short == "max_retries" else float)
        elif match := _DURATION.fullmatch(value.strip()):
            where[short] = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
        else:
            raise ValueError(f"{name} is a duration such as 10s, not {value}")
    return {**retries, "backoff": backoff} if backoff else retries
