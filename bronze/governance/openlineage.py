"""OpenLineage: the lineage records as events for a catalog.

The run of each table is a run of its own, whose parent is the whole run. Events are sent when a run
ends, with the times at which it began and ended; those of a stream when a table joins it, every
hour, and when it ends. A server that does not answer delays them by ``[lineage] timeout`` at most.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bronze import secrets
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.governance.lineage import STREAM, LineageEntry
from bronze.version import VERSION

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent
    from openlineage.client.generated.base import DatasetFacet, JobFacet, RunFacet
    from openlineage.client.generated.column_lineage_dataset import InputField
    from openlineage.client.generated.schema_dataset import SchemaDatasetFacet
    from openlineage.client.transport import Transport

_PRODUCER = f"urn:bronze:{VERSION}"
_TYPES = {"streaming": "RUNNING", "failed": "FAIL", "stopped": "ABORT"}


def check_package(settings: Settings) -> None:
    """Checks that events can be built, if the config asks for them.

    Raises:
        ConfigError: the package for them is not installed.
    """
    if _is_configured(settings) and importlib.util.find_spec("openlineage") is None:
        raise ConfigError(
            "The config has [lineage], and the package openlineage-python is not installed.",
            hint="pip install 'bronze[openlineage]'; or leave url and file out of [lineage].",
        )


def send(
    settings: Settings, entries: Sequence[LineageEntry], *, begins: bool = True
) -> tuple[str, ...]:
    """Sends the events of records, if the config asks for them.

    Args:
        settings: the config.
        entries: the records, with their tables.
        begins: whether START events are to be sent too.

    Returns:
        Messages for the user: why not all were sent, if so.
    """
    if not _is_configured(settings) or not entries:
        return ()
    sending = _Sending(settings, entries, begins)
    # As a daemon it does not keep the process from ending.
    thread = threading.Thread(target=sending, name="bronze openlineage", daemon=True)
    thread.start()
    thread.join(settings.lineage.timeout)
    if thread.is_alive():
        sending.given_up = True
        return (_note(settings, f"no answer in {settings.lineage.timeout} s"),)
    return (_note(settings, sending.error),) if sending.error else ()


def _is_configured(settings: Settings) -> bool:
    return bool(settings.lineage.url or settings.lineage.file)


def _note(settings: Settings, reason: str) -> str:
    where = settings.lineage.file or urlsplit(settings.lineage.url).hostname
    return f"Not all OpenLineage events were sent to {where}: {reason}."


@dataclass
class _Sending:
    settings: Settings
    entries: Sequence[LineageEntry]
    begins: bool
    error: str = ""
    given_up: bool = False

    def __call__(self) -> None:
        try:
            send = _transport(self.settings).emit
            for event in _events(self.settings, self.entries, self.begins):
                if self.given_up:
                    return
                send(event)
        except BronzeError as error:
            self.error = error.message
        except Exception as error:  # no error of the client or the server may fail the run
            self.error = type(error).__name__


def _transport(settings: Settings) -> Transport:
    from openlineage.client.transport.file import FileConfig, FileTransport
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport

    lineage = settings.lineage
    if lineage.file:
        # Relative to the config, as the lake is.
        path = Path(settings.path).parent / Path(lineage.file).expanduser()
        return FileTransport(FileConfig(log_file_path=str(path), append=True))
    config = HttpConfig(url=lineage.url, timeout=lineage.timeout, retry={"total": 0})
    if lineage.api_key:
        key = secrets.resolve(settings.secret(lineage.api_key))
        config.auth = ApiKeyTokenProvider({"apiKey": key})
    return HttpTransport(config)


def _events(
    settings: Settings, entries: Sequence[LineageEntry], begins: bool
) -> Iterator[RunEvent]:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

    now = datetime.now(UTC)
    namespace = settings.lineage.namespace
    batches = {e.record.batch_id: e.began for e in entries if e.record.mode != STREAM}

    def event(
        kind: str, at: datetime, run: Run, job: Job, entry: LineageEntry | None = None
    ) -> RunEvent:
        tables = [entry] if entry and entry.columns else []
        return RunEvent(
            eventType=RunState[kind],
            eventTime=at.isoformat(),
            run=run,
            job=job,
            inputs=[_input(table) for table in tables],
            outputs=[_output(table) for table in tables],
            producer=_PRODUCER,
        )

    whole = Job(namespace, "bronze.run")
    for batch, began in batches.items():
        yield event("START", began, Run(batch), whole)
    for entry in entries:
        record = entry.record
        job = Job(namespace, f"bronze.{record.target_table}", facets=_job_facets(entry))
        run = Run(record.lineage_id, facets=_run_facets(entry, namespace))
        if begins:
            yield event("START", entry.began, run, job, entry)
        yield event(_TYPES.get(record.status, "COMPLETE"), now, run, job, entry)
    for batch in batches:
        yield event("COMPLETE", now, Run(batch), whole)


def _job_facets(entry: LineageEntry) -> dict[str, JobFacet]:
    from openlineage.client.generated.job_type_job import JobTypeJobFacet

    kind = "STREAMING" if entry.record.mode == STREAM else "BATCH"
    return {"jobType": JobTypeJobFacet(kind, "BRONZE", "TABLE", producer=_PRODUCER)}


def _run_facets(entry: LineageEntry, namespace: str) -> dict[str, RunFacet]:
    from openlineage.client.generated import error_message_run, parent_run, processing_engine_run

    record = entry.record
    facets: dict[str, RunFacet] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            VERSION, "bronze", producer=_PRODUCER
        )
    }
    if record.mode != STREAM:
        facets["parent"] = parent_run.ParentRunFacet(
            parent_run.Run(record.batch_id),
            parent_run.Job(namespace, "bronze.run"),
            producer=_PRODUCER,
        )
    if record.error_kind:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            record.error_kind, "Python", producer=_PRODUCER
        )
    return facets


def _source(entry: LineageEntry) -> tuple[str, str]:
    """The namespace and name of the table in PostgreSQL, by OpenLineage's naming."""
    server, _, database = entry.database.rpartition("/")
    return f"postgres://{server}", f"{database}.{entry.record.source_table}"


def _target(entry: LineageEntry) -> tuple[str, str]:
    """The namespace and name of the Bronze table: the store, and the path in it."""
    url = urlsplit(entry.place.url)
    if "://" not in entry.place.url:
        return "file", str(Path(entry.place.url).absolute())
    return f"{url.scheme}://{url.netloc}", url.path.lstrip("/")


def _input(entry: LineageEntry) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.generated.datasource_dataset import DatasourceDatasetFacet

    namespace, name = _source(entry)
    columns = [(c.name, c.source_type) for c in entry.columns if c.name]
    uri = f"{namespace}/{entry.database.rpartition('/')[2]}"
    return InputDataset(
        namespace,
        name,
        facets={
            "schema": _schema(columns),
            "dataSource": DatasourceDatasetFacet(
                entry.record.source_system, uri, producer=_PRODUCER
            ),
        },
    )


def _output(entry: LineageEntry) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.generated import (
        column_lineage_dataset,
        dataset_version_dataset,
        datasource_dataset,
        output_statistics_output_dataset,
    )

    record = entry.record
    namespace, name = _target(entry)
    facets: dict[str, DatasetFacet] = {
        "schema": _schema([(c.target, str(c.kind)) for c in entry.columns]),
        "dataSource": datasource_dataset.DatasourceDatasetFacet(
            "lake",
            f"{namespace}:{name}" if namespace == "file" else f"{namespace}/{name}",
            producer=_PRODUCER,
        ),
        "columnLineage": column_lineage_dataset.ColumnLineageDatasetFacet(
            {
                column.target: column_lineage_dataset.Fields([_identity(entry, column.name)])
                for column in entry.columns
                if column.name
            },
            producer=_PRODUCER,
        ),
    }
    if record.version_after is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            str(record.version_after), producer=_PRODUCER
        )
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        record.inserted + record.updated + record.deleted, producer=_PRODUCER
    )
    return OutputDataset(
        namespace, name, facets=facets, outputFacets={"outputStatistics": statistics}
    )


def _identity(entry: LineageEntry, column: str) -> InputField:
    from openlineage.client.generated.column_lineage_dataset import InputField, Transformation

    identity = Transformation("DIRECT", "IDENTITY")
    return InputField(*_source(entry), column, [identity])


def _schema(columns: Sequence[tuple[str, str]]) -> SchemaDatasetFacet:
    from openlineage.client.generated.schema_dataset import (
        SchemaDatasetFacet,
        SchemaDatasetFacetFields,
    )

    return SchemaDatasetFacet(
        [SchemaDatasetFacetFields(name, kind) for name, kind in columns], producer=_PRODUCER
    )
