"""The addresses and options of object stores that a lake can have.

The names of options are those of deltalake (object_store's ``from_str`` of the configuration keys
of each cloud), in any case, with the cloud's prefix or without it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


REMOTE = re.compile(r"^([a-z][a-z0-9+]*)://", re.IGNORECASE)

CLOUDS = {
    "s3": "aws", "s3a": "aws",
    "az": "azure", "azure": "azure", "adl": "azure", "abfs": "azure", "abfss": "azure",
    "gs": "google",
}  # fmt: skip
"""The cloud of each scheme, which is also the prefix of its options."""

CLIENT = _names(
    """allow_http allow_invalid_certificates connect_timeout default_content_type
    http1_only http2_only http2_keep_alive_interval http2_keep_alive_timeout
    http2_keep_alive_while_idle http2_max_frame_size pool_idle_timeout pool_max_idle_per_host
    proxy_url proxy_ca_certificate proxy_excludes randomize_addresses read_timeout timeout
    user_agent"""
)
"""Options of the connection, for all clouds."""

RETRY = _names(
    """max_retries retry_timeout backoff_config.init_backoff backoff_config.max_backoff
    backoff_config.base"""
)
"""Options of retries."""

DELTALAKE = _names(
    """allow_unsafe_rename mount_allow_unsafe_rename aws_s3_allow_unsafe_rename
    aws_force_credential_load aws_ec2_metadata_disabled aws_s3_pool_idle_timeout_seconds
    aws_sts_pool_idle_timeout_seconds s3_get_internal_server_error_retries
    object_store_concurrency_limit"""
)
"""Options that only deltalake has."""

STORE = {
    "aws": _names(
        """access_key_id secret_access_key default_region region bucket bucket_name endpoint_url
        endpoint session_token token virtual_hosted_style_request s3_express imdsv1_fallback
        metadata_endpoint unsigned_payload checksum_algorithm container_credentials_relative_uri
        container_credentials_full_uri container_authorization_token_file web_identity_token_file
        role_arn role_session_name endpoint_url_sts skip_signature copy_if_not_exists
        conditional_put disable_tagging request_payer server_side_encryption sse_kms_key_id
        sse_bucket_key_enabled sse_customer_key_base64"""
    ),
    "azure": _names(
        """storage_account_key storage_access_key storage_master_key master_key account_key
        access_key storage_account_name account_name storage_client_id client_id
        storage_client_secret client_secret storage_tenant_id storage_authority_id tenant_id
        authority_id storage_authority_host authority_host storage_sas_key storage_sas_token sas_key
        sas_token storage_token bearer_token token storage_use_emulator use_emulator
        storage_endpoint endpoint msi_endpoint identity_endpoint object_id msi_resource_id
        federated_token_file use_fabric_endpoint use_azure_cli skip_signature container_name
        disable_tagging fabric_token_service_url fabric_workload_host fabric_session_token
        fabric_cluster_identifier"""
    ),
    "google": _names(
        """service_account service_account_path service_account_key bucket bucket_name
        application_credentials skip_signature base_url bearer_token"""
    ),
}
"""Options of the store itself, by cloud, without its prefix."""

# object_store has these names only without a prefix, or only with one.
_UNPREFIXED = {
    "azure_master_key": "master_key", "azure_account_key": "account_key",
    "azure_access_key": "access_key", "azure_account_name": "account_name",
    "azure_sas_key": "sas_key", "azure_sas_token": "sas_token",
    "azure_bearer_token": "bearer_token", "azure_token": "token",
    "azure_use_emulator": "use_emulator", "google_service_account_path": "service_account_path",
}  # fmt: skip
_PREFIXED = re.compile(r"^storage_")

_OTHER_SCHEMES = {
    "s3n": "s3://bucket/path",
    "wasb": "abfss://container@account.dfs.core.windows.net/path",
    "wasbs": "abfss://container@account.dfs.core.windows.net/path",
    "gcs": "gs://bucket/path",
    "http": "s3://, abfss:// or gs://, and the address as the option endpoint",
    "https": "s3://, abfss:// or gs://, and the address as the option endpoint",
    "dbfs": "the address of the storage itself: s3://, abfss:// or gs://",
}

_ROLE = "bronze does not assume roles: give the role to the machine, or pass session credentials"
_LOCK = "bronze commits by conditional writes; a writer with locks could overwrite its commits"
_REFUSED = {
    **dict.fromkeys(
        ("aws_iam_role_arn", "aws_iam_role_session_name", "aws_s3_assume_role_arn",
         "aws_s3_role_session_name"), _ROLE,
    ),
    **dict.fromkeys(
        ("aws_s3_locking_provider", "delta_dynamo_table_name", "aws_endpoint_url_dynamodb",
         "dynamo_lock_table_name", "dynamo_lock_owner_name"), _LOCK,
    ),
    "aws_profile": "bronze reads no profiles: pass the credentials, or their secrets",
}  # fmt: skip


def cloud_of(url: str) -> str | None:
    """The cloud of an address, None for a folder.

    Raises:
        ValueError: the address has a scheme of which there is no store, or no bucket.
    """
    match = REMOTE.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme == "file":
        return None
    if scheme not in CLOUDS:
        advice = _OTHER_SCHEMES.get(scheme, "s3://, abfss:// or gs://, or a folder")
        raise ValueError(f"there is no store for {scheme}://; use {advice}")
    if not urlsplit(url).netloc:
        raise ValueError(f"the name of the bucket is missing after {scheme}://")
    return CLOUDS[scheme]


def plain_name(cloud: str, name: str) -> str:
    """The name of an option as the libraries have it: without a prefix if it is one of the
    connection or of retries.

    Raises:
        ValueError: there is no such option for this cloud, or bronze cannot take it.
    """
    low = name.lower()
    bare = low.removeprefix(f"{cloud}_")
    if low in _REFUSED:
        raise ValueError(f"the option {name} cannot be taken: {_REFUSED[low]}")
    if bare in CLIENT or bare in RETRY:
        return bare
    if low in DELTALAKE:
        return low
    if bare in STORE[cloud]:
        if _PREFIXED.match(bare):
            return f"{cloud}_{bare}"
        return _UNPREFIXED.get(low, low)
    known = [*CLIENT, *RETRY, *STORE[cloud], *(f"{cloud}_{one}" for one in STORE[cloud])]
    close = difflib.get_close_matches(low, sorted(known), 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"there is no option {name} for {cloud}'s store{hint}")


_CREDENTIALS = re.compile(
    r"key|secret|token|sas|skip_signature|service_account|credential|client_id|role"
)


def check_vended(url: str, names: Iterable[str]) -> None:
    """Checks an address and the names of its options, to which vended credentials are added.

    Raises:
        ValueError: it is a folder, or an option is a credential itself.
    """
    cloud = cloud_of(url)
    if cloud is None:
        raise ValueError('storage = "vended" is for lakes on s3://, abfss:// or gs://')
    for name in names:
        bare = name.lower().removeprefix(f"{cloud}_")
        if bare in STORE[cloud] and _CREDENTIALS.search(bare):
            raise ValueError(
                f'with storage = "vended", Unity Catalog gives the credentials: remove {name}'
            )


def check(url: str, names: Iterable[str]) -> None:
    """Checks an address and the names of its options.

    Raises:
        ValueError: as `cloud_of` and `plain_name` do.
    """
    cloud = cloud_of(url)
    if cloud is not None:
        for name in names:
            plain_name(cloud, name)
