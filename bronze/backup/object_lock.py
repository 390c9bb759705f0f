"""Object lock of S3: objects of the copy that nobody can delete before a time (``bronze[aws]``).

Locks need a bucket with versions: a deleted object stays as an earlier version. So with a lock
objects are deleted by their versions.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from bronze.delta.storage import client
from bronze.delta.storage.object_lock import s3_client
from bronze.errors import ConfigError, LakeError, LakeUnreachable
from bronze.model.locations import Place

# S3 deletes as many objects by one request.
_AT_ONCE = 1000


class ObjectLock:
    """Locks and deletes objects of a copy; from any thread."""

    def __init__(self, copy: Place, seconds: int) -> None:
        """Locks objects for so many seconds after they were put.

        Raises:
            ConfigError: boto3 is not installed.
        """
        self._copy, self._seconds = copy, seconds
        self._bucket = urlsplit(copy.url).netloc
        self._client = s3_client(copy)

    def check(self) -> None:
        """Checks that the bucket can lock objects.

        Raises:
            ConfigError: it cannot.
            LakeUnreachable: the store does not answer.
        """
        text = f"The bucket {self._bucket} of [backup] root cannot lock objects"
        hint = "Make a bucket with object lock enabled, or leave [backup] lock out."
        try:
            found = self._call("get_object_lock_configuration")
        except LakeUnreachable:
            raise
        except LakeError as error:
            raise ConfigError(f"{text}: {error.message}", hint=hint) from None
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise ConfigError(f"{text}: object lock is not enabled.", hint=hint)

    def lock(self, path: str) -> None:
        """Locks an object that was just put, in compliance mode.

        Raises:
            LakeError: the credentials do not allow it.
            LakeUnreachable: the store does not answer.
        """
        until = datetime.now(UTC) + timedelta(seconds=self._seconds)
        retention = {"Mode": "COMPLIANCE", "RetainUntilDate": until}
        key = client.path_in(self._copy, path)
        self._call("put_object_retention", Key=key, Retention=retention)

    def delete(self, paths: list[str]) -> None:
        """Deletes all versions of objects.

        Raises:
            LakeError: one is locked, or the credentials do not allow it.
            LakeUnreachable: the store does not answer.
        """
        dead = [version for path in paths for version in self._versions(path)]
        for start in range(0, len(dead), _AT_ONCE):
            some = {"Objects": dead[start : start + _AT_ONCE], "Quiet": True}
            for error in self._call("delete_objects", Delete=some).get("Errors", ()):
                raise LakeError(
                    f"The object {error['Key']} of the copy at {self._copy.url} could not be"
                    f" deleted: {error.get('Code') or 'it is locked'}."
                )

    def _versions(self, path: str) -> list[dict[str, str]]:
        key = client.path_in(self._copy, path)
        found = self._call("list_object_versions", Prefix=key)
        return [
            {"Key": key, "VersionId": version["VersionId"]}
            for version in (*found.get("Versions", ()), *found.get("DeleteMarkers", ()))
            if version["Key"] == key
        ]

    def _call(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise LakeError(
                f"The store of the copy at {self._copy.url} refuses {operation}: {code}.",
                hint="For locks the identity needs s3:PutObjectRetention, s3:ListBucketVersions,"
                " s3:GetBucketObjectLockConfiguration and s3:DeleteObjectVersion.",
            ) from None
        except BotoCoreError as error:
            raise LakeUnreachable(
                f"The copy at {self._copy.url} cannot be reached: {type(error).__name__}.",
                hint="Check root and the endpoint under [backup], and the network.",
            ) from None
