"""Writes the templates of a target into an empty folder, filled from the config.

A template is a file of the folder ``templates/<target>``. ``@NAME@`` in it is replaced by a value;
a file with ``@JOB@`` in its name is written for each job, one with ``@STREAM@`` only for a config
with streamed tables. The suffix ``.template`` is left out. Values of secrets are never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from bronze.config.fields import secrets_named
from bronze.config.sections.protection import MASTER_KEY
from bronze.config.settings import Settings
from bronze.deploy import jobs
from bronze.deploy.jobs import Job
from bronze.errors import ConfigError
from bronze.version import VERSION

TARGETS = (
    "container",
    "kubernetes",
    "systemd",
    "databricks",
    "azure-devops",
    "github",
    "gitlab",
    "airflow",
    "dagster",
    "prefect",
    "grafana",
)
MAPPED = 240 * 10**6
"""Bytes of mapped files of libraries, which [run] memory does not count and a limit of a container
may.
"""
_PORT = 8080
_SUFFIX = ".template"
_NEXT = "NEXT"
_VALUE = re.compile(r"@([A-Z_]+)@")
_EXTRAS = {"aws-secrets-manager": "aws", "google-secret-manager": "google"}


@dataclass(frozen=True)
class Written:
    """What was written: the files in their order, and what to do next."""

    target: str
    folder: str
    files: tuple[str, ...]
    next: tuple[str, ...]


def write(settings: Settings, target: str, folder: Path) -> Written:
    """Writes a target's files.

    Raises:
        ConfigError: there is no such target, the folder is not empty or cannot be written, or the
            config has a schedule that the target cannot have.
    """
    if target not in TARGETS:
        raise ConfigError(f"There is no target {target}.", hint=f"There are {', '.join(TARGETS)}.")
    files = render(settings, target)
    text = files.pop(_NEXT)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} is not an empty folder: nothing is overwritten.",
                hint="Name another one with --out.",
            )
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}.", hint="Name another one with --out."
        ) from None
    steps = text.replace("@FOLDER@", str(folder)).splitlines()
    return Written(target, str(folder), tuple(files), tuple(steps))


def render(settings: Settings, target: str) -> dict[str, str]:
    """The files of a target by their paths, and under ``NEXT`` what to do next.

    Raises:
        ConfigError: the config has a schedule that the target cannot have.
    """
    scheduled = jobs.jobs_of(settings)
    values = _values(settings, scheduled)
    files: dict[str, str] = {}
    root = resources.files("bronze.deploy") / "templates" / target
    for path, template in _templates(root):
        name = path.removesuffix(_SUFFIX)
        for own in _repeats(settings, scheduled, name):
            filled = {**values, **own}
            files[_fill(name, filled)] = _fill(template.read_text(encoding="utf-8"), filled)
    return files


def _templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            if item.name != "__pycache__":
                yield from _templates(item, f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", item


def _repeats(
    settings: Settings, scheduled: tuple[Job, ...], name: str
) -> Iterator[Mapping[str, str]]:
    """The values of each file that a template is written to."""
    if "@JOB@" in name:
        yield from map(_job_values, scheduled)
    elif "@STREAM@" in name:
        yield from [{"STREAM": "stream"}] if jobs.is_streaming(settings) else []
    else:
        yield {}


def _job_values(job: Job) -> dict[str, str]:
    return {
        "JOB": job.name,
        "JOB_KEY": job.name.replace("-", "_"),
        "CRON": job.cron,
        "QUARTZ": job.quartz,
        "ARGUMENTS": _flow(job.arguments),
        "ARGUMENT_LIST": _flow(job.arguments)[1:-1],
    }


def _flow(values: tuple[str, ...]) -> str:
    """A list as YAML and JSON have it."""
    return json.dumps(values, ensure_ascii=False)


def _python_list(rows: Sequence[object]) -> str:
    """A list in Python, a row a line; JSON's texts are Python's, too."""
    lines = "".join(f"    {json.dumps(row, ensure_ascii=False)},\n" for row in rows)
    return f"[\n{lines}]"


def _fill(text: str, values: Mapping[str, str]) -> str:
    # What is no value of ours, such as the folder, stays for later.
    return _VALUE.sub(lambda match: values.get(match[1], match[0]), text)


def _values(settings: Settings, scheduled: tuple[Job, ...]) -> dict[str, str]:
    memory = settings.run.memory
    names = secret_names(settings)
    streamed = ["stream"] if jobs.is_streaming(settings) else []
    job_files = [f"  - {name}.yaml" for name in [job.name for job in scheduled] + streamed]
    return {
        "NAME": f"bronze-{jobs.slug(next(iter(settings.source)))}",
        "VERSION": VERSION,
        "EXTRAS": ",".join(sorted(_extras(settings))),
        "MEMORY_MB": str(-(-memory // 2**20)),
        "LIMIT_MB": str(-(-(memory + MAPPED) // 2**20)),
        "PORT": str(settings.web.address[1] if settings.web.listen else _PORT),
        "TIMEZONE": settings.serve.timezone,
        "GRACE": str(settings.serve.grace + 15),
        "SCOPE": settings.secrets.scope or "bronze",
        "SECRET_LINES": "\n".join(f"{name}=" for name in names) or "# The config names no secret.",
        "SECRET_NAMES": ", ".join(names)
        or "PGPASSWORD, unless ~/.pgpass has the password (the config names no secret)",
        "JOB_FILES": "\n".join(job_files),
        "JOBS": _python_list([[job.name, job.cron, list(job.arguments)] for job in scheduled]),
        "AZURE_ENV": _environment(names, 14, "$({})"),
        "GITHUB_ENV": _environment(names, 10, "${{{{ secrets.{} }}}}"),
    }


def _environment(names: tuple[str, ...], indent: int, reference: str) -> str:
    """The environment of a step in YAML, which takes each secret by its name."""
    lines = [f"{' ' * indent}{name}: {reference.format(name)}" for name in names]
    # A mapping without keys would be null.
    return "\n".join(lines or [f'{" " * indent}PYTHONUNBUFFERED: "1"'])


def _extras(settings: Settings) -> set[str]:
    """The extras of the package that the config needs."""
    extras = {"serve"}
    extras |= {_EXTRAS[name] for name in _providers(settings) if name in _EXTRAS}
    extras |= {"aws"} if any(s.auth == "rds-iam" for s in settings.source.values()) else set()
    extras |= {"dask"} if settings.run.engine.startswith("dask:") else set()
    extras |= {"openlineage"} if settings.lineage.url or settings.lineage.file else set()
    is_apprise = any(channel.kind == "apprise" for channel in settings.alerts.channels)
    return extras | ({"apprise"} if is_apprise else set())


def _providers(settings: Settings) -> set[str]:
    named = {name.provider or settings.secrets.provider for name in secrets_named(settings)}
    return {settings.secrets.provider, *named}


def secret_names(settings: Settings) -> tuple[str, ...]:
    """The environment variables that the config needs, sorted; their values are not read."""
    names = {
        name.secret
        for name in secrets_named(settings)
        if (name.provider or settings.secrets.provider) == "env"
    }
    if settings.protection.key is None and any(t.protect for t in settings.tables.values()):
        names.add(MASTER_KEY)
    return tuple(sorted(names))
