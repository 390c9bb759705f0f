"""Errors of object stores and file systems as those of bronze."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bronze.errors import BronzeError, LakeError, LakeUnreachable
from bronze.library_errors import error_text
from bronze.model import object_store
from bronze.model.locations import Place

REFUSALS = re.compile(
    r"\b(?:401 Unauthorized|403 Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
    r"|InvalidToken|AccessDenied|AuthenticationFailed|AuthorizationFailure|InvalidAuthenticationInfo"
    r"|AuthenticationRequired)\b"
)
"""Signs of a refused key."""

_ADDRESS = re.compile(r"Error performing [A-Z]+ (https?://[^\s,]+)")
# Requests that do not name an object that could be missing.
_MISSING = re.compile(
    r"NoSuchBucket|ContainerNotFound|FilesystemNotFound"
    r"|(?:list request|performing PUT) .*\b404 Not Found"
)
_STATUS = re.compile(r"status code: \d{3}|\bstatus: \d{3}")
# Where clients look for credentials if there are none: the services of a machine in a cloud.
_METADATA = (
    "/latest/api/token",
    "/latest/meta-data",
    "/computemetadata/",
    "/metadata/identity",
)
_NEEDED = {
    "aws": "access_key_id and secret_access_key",
    "azure": "account_key, sas_token, or client_id, client_secret and tenant_id",
    "google": "service_account_key or application_credentials",
}
_REASONS = (
    ("connectionrefused", "the connection is refused"),
    ("connection refused", "the connection is refused"),
    ("dns error", "the name of the host cannot be resolved"),
    ("failed to lookup address", "the name of the host cannot be resolved"),
    ("notvalidyet", "its certificate is not valid yet, by the clock of this machine"),
    ("certificate: expired", "its certificate has expired, by the clock of this machine"),
    ("certificate", "its certificate cannot be trusted"),
    ("invalidcontenttype", "it does not speak TLS"),
    ("connectionreset", "the connection was reset"),
    ("networkunreachable", "there is no route to it"),
    ("hostunreachable", "there is no route to it"),
    ("timedout", "it does not answer in time"),
    ("timed out", "it does not answer in time"),
    ("timeout", "it does not answer in time"),
    ("incompletemessage", "it closed the connection"),
    ("http is not allowed", "http:// needs the option allow_http"),
    ("url scheme is not allowed", "http:// needs the option allow_http"),
    ("builder error", "http:// needs the option allow_http"),
)


def store_error(place: Place, what: str, error: BaseException) -> BronzeError:
    """The error of bronze for an error of the store; ``what`` was being done, such as "read"."""
    if problem := unreachable(place, what, error):
        return problem
    text = " ".join(str(error).split())
    if is_bucket_missing(error):
        return _missing_bucket(place, what, text)
    low = text.lower()
    name = place.url.rstrip("/")
    for sign, reason, hint in _SIGNS:
        if sign in low:
            return LakeUnreachable(f"The lake at {name} could not be {what}: {reason}.", hint=hint)
    return LakeError(f"The lake at {name} could not be {what}: {error_text(error)}.")


def _missing_bucket(place: Place, what: str, text: str) -> LakeUnreachable:
    lake = urlsplit(place.url)
    is_azure = object_store.cloud_of(place.url) == "azure"
    kind, name = (
        ("container", lake.netloc.partition("@")[0]) if is_azure else ("bucket", lake.netloc)
    )
    match = _ADDRESS.search(text)
    at = f" at {urlsplit(match[1]).netloc}" if match else ""
    lake_name = place.url.rstrip("/")
    return LakeUnreachable(
        f"The lake at {lake_name} could not be {what}: there is no {kind} {name}{at}.",
        hint=f"Create the {kind}, or correct root and the endpoint under [lake].",
    )


def is_bucket_missing(error: BaseException) -> bool:
    """Whether the store says that it has no such bucket, or no such container."""
    return bool(_MISSING.search(" ".join(str(error).split())))


def unreachable(place: Place, what: str, error: BaseException) -> BronzeError | None:
    """The error if the store could not be asked: by its address, or for lack of credentials."""
    text = str(error)
    match = _ADDRESS.search(text)
    if match is None:
        return None
    address, name = urlsplit(match[1]), place.url.rstrip("/")
    if any(part in address.path.lower() for part in _METADATA):
        return LakeUnreachable(
            f"The lake at {name} could not be {what}: no credentials are given, and this"
            " machine has no identity of the cloud.",
            hint=f"Set {_NEEDED[object_store.cloud_of(place.url) or 'aws']} in [lake.options], or"
            " the cloud's variables of the environment.",
        )
    if _STATUS.search(text):
        return None
    low = text.lower()
    # Timeouts and retries of the client stand in each message.
    low = re.sub(r"retry_timeout:? ?[\w.]*|\w+_timeout", "", low)
    reason = next((reason for sign, reason in _REASONS if sign in low), error_text(error))
    port = address.port or (443 if address.scheme == "https" else 80)
    return LakeUnreachable(
        f"The lake at {name} could not be {what}: {address.hostname}, port {port}, cannot be"
        f" reached: {reason}.",
        hint="Check root and the endpoint under [lake], and the network.",
    )


_CLOCK = "Set this machine's clock (NTP): requests are signed with its time."
_SIGNS = (
    ("requesttimetooskewed", "the clock of this machine is wrong", _CLOCK),
    ("requestexpired", "the clock of this machine is wrong", _CLOCK),
    ("date header too old", "the clock of this machine is wrong", _CLOCK),
    ("invalid_grant", "the credentials are refused, or the clock of this machine is wrong", _CLOCK),
    (
        "expiredtoken",
        "the credentials have expired",
        "Renew those of [lake.options] or the environment; credentials of a machine's identity, and"
        ' those of storage = "vended", are renewed by themselves.',
    ),
    ("no space left", "no space left on the device", "Free some space, and run again."),
    ("file too large", "no space left for the file", "Free some space, and run again."),
    ("quota", "the disk quota is used up", "Free some space, and run again."),
    ("permission denied", "permission denied", "Check who owns the folder of [lake] root."),
    ("read-only file system", "the file system is read-only", "Choose another [lake] root."),
    ("no such file", "there is no such folder", "Choose another [lake] root."),
    ("not a directory", "a part of its path is a file", "Choose another [lake] root."),
    ("unauthorized", "the credentials are refused", "Check [lake.options] and the environment."),
    ("invalidaccesskeyid", "the credentials are refused", "Check [lake.options]."),
    ("signaturedoesnotmatch", "the credentials are refused", "Check [lake.options]."),
    ("authenticationfailed", "the credentials are refused", "Check [lake.options]."),
    ("forbidden", "the credentials do not allow it", "Check the role's rights on the container."),
    ("403", "the credentials do not allow it", "Check the role's rights on the container."),
    ("401", "the credentials are refused", "Check [lake.options] and the environment."),
    ("connect", "it cannot be reached", "Check the URL of [lake] root and the network."),
    ("dns", "its name cannot be resolved", "Check the URL of [lake] root."),
)
