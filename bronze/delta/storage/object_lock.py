"""Objects that nobody can delete or replace until a time.

S3 locks each object by itself (Object Lock in COMPLIANCE mode), by boto3, as obstore has no such
option. Azure and Google lock a whole container or bucket by a policy that is set outside of bronze:
whether it is in force is tried by replacing the object with itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from bronze.delta import store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import ConfigError, LakeError, LakeUnreachable
from bronze.model import object_store
from bronze.model.locations import Place

_IMMUTABLE = re.compile(r"immutab|retention|legal.?hold|object lock", re.IGNORECASE)
_EXISTS = ("PreconditionFailed", "ConditionalRequestConflict")
_REFUSED = ("AccessDenied", "403", "Forbidden")
_NAMES = {
    "aws_access_key_id": ("access_key_id",),
    "aws_secret_access_key": ("secret_access_key",),
    "aws_session_token": ("session_token", "token"),
    "endpoint_url": ("endpoint_url", "endpoint"),
    "region_name": ("region", "default_region"),
}


@dataclass(frozen=True)
class ObjectVersion:
    """An object at a ``path`` in a place, which was first ``put`` at a time; ``is_hidden`` says
    that it was deleted, but that its lock keeps it.
    """

    path: str
    put: datetime
    is_hidden: bool


def create_locked(place: Place, path: str, data: bytes, until: datetime) -> None:
    """Writes a new object that cannot be deleted or replaced until a time.

    Raises:
        AlreadyExistsError: it exists.
        ConfigError: boto3 is not installed.
        LakeError: the store has no lock, or the identity has no right to lock.
        LakeUnreachable: the store cannot be reached.
    """
    if object_store.cloud_of(place.url) == "aws":
        _put_to_s3(place, path, data, until)
        return
    store.create(place, path, data)
    if not is_immutable(place, path, data):
        raise LakeError(
            f"The store at {place.url} lets an object be replaced: it has no immutability policy.",
            hint="Set a time-based retention policy on the container (Azure) or bucket (Google), or"
            " leave the lock out of the config.",
        )


def is_immutable(place: Place, path: str, data: bytes) -> bool:
    """Whether a policy of the store keeps an object from being replaced, by replacing it with its
    own content.

    Raises:
        obstore.exceptions.BaseError, OSError: that is not known.
    """
    try:
        name = client.path_in(place, path)
        client.request(place, lambda opened: _replace(opened, name, data))
    except AlreadyExistsError:
        return True
    except (BaseError, OSError) as error:
        if _IMMUTABLE.search(str(error)):
            return True
        raise
    return False


def _replace(opened: Any, name: str, data: bytes) -> None:
    obstore.put(opened, name, data, mode="overwrite")


def versions(place: Place, under: str, after: str = "") -> Iterator[ObjectVersion]:
    """The objects of an S3 place in one of its folders, behind ``after``, also those that a delete
    marker hides.

    Raises:
        ConfigError, LakeError, LakeUnreachable: as `create_locked` does.
    """
    bucket, prefix = _bucket(place), client.path_in(place, under)
    cut = len(client.path_in(place, "x")) - 1
    start = {"KeyMarker": client.path_in(place, after)} if after else {}

    def pages(s3: Any) -> list[Any]:
        paginator = s3.get_paginator("list_object_versions")
        return list(paginator.paginate(Bucket=bucket, Prefix=f"{prefix}/".lstrip("/"), **start))

    hidden, paths = set[str](), dict[str, datetime]()
    for page in _request(place, "listed", pages):
        hidden |= {m["Key"] for m in page.get("DeleteMarkers", ()) if m.get("IsLatest")}
        for version in page.get("Versions", ()):
            put = version["LastModified"]
            paths[version["Key"]] = min(put, paths.get(version["Key"], put))
    for path, put in paths.items():
        yield ObjectVersion(path[cut:], put, path in hidden)


def _put_to_s3(place: Place, path: str, data: bytes, until: datetime) -> None:
    def put(s3: Any) -> None:
        s3.put_object(
            Bucket=_bucket(place),
            Key=client.path_in(place, path),
            Body=data,
            IfNoneMatch="*",
            ObjectLockMode="COMPLIANCE",
            ObjectLockRetainUntilDate=until.astimezone(UTC),
        )

    _request(place, "written", put)


def _bucket(place: Place) -> str:
    return urlsplit(place.url).netloc


def _request(place: Place, what: str, work: Any) -> Any:
    """What a request by boto3 returns.

    Raises:
        AlreadyExistsError, ConfigError, LakeError, LakeUnreachable: see `create_locked`.
    """
    s3 = s3_client(place)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return work(s3)
    except ClientError as error:
        raise _s3_error(place, what, error) from None
    except BotoCoreError as error:
        raise LakeUnreachable(
            f"The store at {place.url} could not be {what}: {type(error).__name__}.",
            hint="Check the address, the region, the credentials and the network.",
        ) from None


def s3_client(place: Place) -> Any:
    """A client of boto3 for the store of a place, with its options.

    Raises:
        ConfigError: boto3 is not installed.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigError(
            "A lock on S3 needs the package boto3, which is not installed.",
            hint="pip install 'bronze[aws]'",
        ) from None
    options = {
        name.lower().removeprefix("aws_"): value for name, value in client.options(place).items()
    }
    arguments = {
        name: next((options[key] for key in keys if key in options), None)
        for name, keys in _NAMES.items()
    }
    config = Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 5})
    return boto3.client("s3", config=config, **arguments)


def _s3_error(place: Place, what: str, error: Any) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    text = str(error.response.get("Error", {}).get("Message", ""))
    if code in _EXISTS:
        return AlreadyExistsError(code)
    if code in _REFUSED:
        return LakeError(
            f"The store at {place.url} could not be {what}: the identity has no right to.",
            hint="Writing a locked object needs s3:PutObject and s3:PutObjectRetention on it,"
            " reading its versions s3:ListBucketVersions on the bucket.",
        )
    if code == "InvalidRequest" and "lock" in text.lower():
        return LakeError(
            f"The bucket of {place.url} has no Object Lock, so nothing in it can be locked.",
            hint="Object Lock is switched on when a bucket is made, or later for a bucket with"
            " versions; or leave the lock out of the config.",
        )
    return store_error(place, what, error)
