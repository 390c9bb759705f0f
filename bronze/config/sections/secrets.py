"""[secrets]: where secrets are kept."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import model_validator

from bronze.config.fields import Provider, Seconds, Section


class SecretSettings(Section):
    """[secrets]: the provider that resolves ``{ secret = … }``, and where each has its secrets.

    A secret may name another ``provider``. Those in the network are asked again after ``ttl``
    seconds.
    """

    provider: Provider = "env"
    folder: str = ""
    vault: str = ""
    scope: str = ""
    region: str = ""
    project: str = ""
    ttl: Seconds = 300

    @model_validator(mode="after")
    def _check_provider(self) -> SecretSettings:
        self.place(self.provider)
        return self

    def place(self, provider: Provider) -> str:
        """The place of a provider: a vault's URL, a folder, a scope; "" if it needs none.

        Raises:
            ValueError: it needs one, and has none.
        """
        key = _PLACES.get(provider, "")
        place: str = getattr(self, key) if key else ""
        if key and not place and key not in _OPTIONAL:
            raise ValueError(f'provider "{provider}" needs [secrets] {key}')
        return place


_PLACES: Mapping[str, str] = {
    "file": "folder",
    "azure-key-vault": "vault",
    "databricks": "scope",
    "aws-secrets-manager": "region",
    "google-secret-manager": "project",
}
_OPTIONAL = ("region",)
