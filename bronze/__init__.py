"""PostgreSQL tables become Delta Lake Bronze tables: exact, consistent, fast, without Spark.

::

    import bronze

    lake = bronze.open("bronze.toml")
    result = lake.run(["orders"])
    lake.table("orders").collect()

What is in ``__all__`` is the public interface; everything else may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bronze.api.client import Bronze, open  # noqa: A004 - as in gzip.open
from bronze.errors import (
    BronzeError,
    CatalogError,
    CatalogUnreachable,
    CommitConflict,
    ConfigError,
    EngineLost,
    FileDamaged,
    LakeError,
    LakeUnreachable,
    Mismatch,
    Overtaken,
    QualityRefused,
    SecretsUnreachable,
    SnapshotLost,
    SnapshotRefused,
    SourceBusy,
    SourceError,
    SourceRefused,
    SourceRewound,
    SourceUnreachable,
    Stopped,
    TableContested,
    TableRefused,
    TableVanished,
)
from bronze.model.results import (
    Failure,
    MaintainedTable,
    MaintainResult,
    RunResult,
    StreamResult,
    TableResult,
)
from bronze.version import VERSION

if TYPE_CHECKING:
    from bronze.api.check import CheckReport
    from bronze.api.drift import DriftReport
    from bronze.api.rule import Rule
    from bronze.backup.recovery.drill import DrillResult
    from bronze.backup.recovery.metadata import MetadataReport
    from bronze.backup.recovery.restore import RestoreResult
    from bronze.backup.results import BackupResult, VerifiedCopy
    from bronze.config.settings import Settings as Config
    from bronze.governance.audit_proof import AuditReport
    from bronze.protection.erasure_result import ErasureResult
    from bronze.protection.keys import KeyReport
    from bronze.quality.report import QualityReport
    from bronze.unity.results import RegisteredTable, RegisterResult
    from bronze.verify.results import VerifiedTable, VerifyResult

# These need libraries that take a second to load.
_LATER = {
    "AuditReport": ("bronze.governance.audit_proof", "AuditReport"),
    "BackupResult": ("bronze.backup.results", "BackupResult"),
    "CheckReport": ("bronze.api.check", "CheckReport"),
    "Config": ("bronze.config.settings", "Settings"),
    "DriftReport": ("bronze.api.drift", "DriftReport"),
    "DrillResult": ("bronze.backup.recovery.drill", "DrillResult"),
    "ErasureResult": ("bronze.protection.erasure_result", "ErasureResult"),
    "KeyReport": ("bronze.protection.keys", "KeyReport"),
    "MetadataReport": ("bronze.backup.recovery.metadata", "MetadataReport"),
    "QualityReport": ("bronze.quality.report", "QualityReport"),
    "RegisterResult": ("bronze.unity.results", "RegisterResult"),
    "RegisteredTable": ("bronze.unity.results", "RegisteredTable"),
    "RestoreResult": ("bronze.backup.recovery.restore", "RestoreResult"),
    "Rule": ("bronze.api.rule", "Rule"),
    "VerifiedCopy": ("bronze.backup.results", "VerifiedCopy"),
    "VerifiedTable": ("bronze.verify.results", "VerifiedTable"),
    "VerifyResult": ("bronze.verify.results", "VerifyResult"),
}

__version__ = VERSION
__all__ = [
    "AuditReport",
    "BackupResult",
    "Bronze",
    "BronzeError",
    "CatalogError",
    "CatalogUnreachable",
    "CheckReport",
    "CommitConflict",
    "Config",
    "ConfigError",
    "DriftReport",
    "DrillResult",
    "EngineLost",
    "ErasureResult",
    "Failure",
    "FileDamaged",
    "KeyReport",
    "LakeError",
    "LakeUnreachable",
    "MaintainResult",
    "MaintainedTable",
    "MetadataReport",
    "Mismatch",
    "Overtaken",
    "QualityRefused",
    "QualityReport",
    "RegisterResult",
    "RegisteredTable",
    "RestoreResult",
    "Rule",
    "RunResult",
    "SecretsUnreachable",
    "SnapshotLost",
    "SnapshotRefused",
    "SourceBusy",
    "SourceError",
    "SourceRefused",
    "SourceRewound",
    "SourceUnreachable",
    "Stopped",
    "StreamResult",
    "TableContested",
    "TableRefused",
    "TableResult",
    "TableVanished",
    "VerifiedCopy",
    "VerifiedTable",
    "VerifyResult",
    "__version__",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'bronze' has no attribute {name!r}")
    module, attribute = _LATER[name]
    return getattr(importlib.import_module(module), attribute)
