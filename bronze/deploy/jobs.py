"""What a scheduler outside of bronze has to run, and when: for those without `bronze serve`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count

from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.model.schedule import Schedule
from bronze.model.stamp import IngestionMethod

PATTERNS: tuple[IngestionMethod, ...] = ("micro_batch", "batch", "full_refresh")
_HOUR, _DAY = 3600, 86400
# The name of a CronJob has 52 characters at most, of which "bronze-table-" and a number are some.
_LONGEST = 36
_WILD = re.compile(r"[*?\[]")
_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


@dataclass(frozen=True)
class Job:
    """One command: ``name`` is made of at most 45 letters, digits and hyphens, and of no other job;
    ``cron`` has five fields in the zone of [serve] timezone.
    """

    name: str
    arguments: tuple[str, ...]
    cron: str

    @property
    def quartz(self) -> str:
        """The schedule as Quartz has it, with seconds and a year that is left out."""
        minute, hour, day, month, weekday = self.cron.split()
        if weekday == "*":
            return f"0 {minute} {hour} {day} {month} ?"
        return f"0 {minute} {hour} ? {month} {_named_days(weekday)}"


def is_streaming(settings: Settings) -> bool:
    """Whether the config has streamed tables."""
    return any(table.pattern == "streaming" for table in settings.tables.values())


def jobs_of(settings: Settings) -> tuple[Job, ...]:
    """The jobs of a config but for its stream: one for each pattern, one for each table with a
    schedule of its own, maintenance, verification, validation.

    Raises:
        ConfigError: a schedule cannot be written as five fields of cron.
    """
    jobs: dict[str, Job] = {}
    for job in _jobs(settings):
        numbered = (f"{job.name}-{number}" for number in count(2))
        name = next(name for name in chain([job.name], numbered) if name not in jobs)
        jobs[name] = replace(job, name=name)
    return tuple(jobs.values())


def _jobs(settings: Settings) -> Iterator[Job]:
    schedule = settings.serve.schedule
    for pattern in PATTERNS:
        if _has(settings, pattern):
            cron = _cron(settings.serve.schedule_of(schedule.of(pattern)))
            yield Job(pattern.replace("_", "-"), ("run", "--pattern", pattern), cron)
    for name, table in settings.tables.items():
        if table.schedule and table.pattern != "streaming":
            cron = _cron(settings.schedule_of(table))
            yield Job(f"table-{slug(name)}", ("run", name), cron)
    if schedule.maintain:
        cron = _cron(settings.serve.schedule_of(schedule.maintain))
        yield Job("maintain", ("maintain",), cron)
    if schedule.verify:
        yield Job("verify", ("verify",), _cron(settings.serve.schedule_of(schedule.verify)))
    yield Job("validate", ("validate",), "0 6 * * *")


def slug(name: str) -> str:
    """A name as labels of Kubernetes and names of jobs may have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST].strip("-") or "bronze"


def _has(settings: Settings, pattern: IngestionMethod) -> bool:
    """Whether tables may have a pattern: those without a section are of the default one."""
    if any(table.pattern == pattern for table in settings.tables.values()):
        return True
    if pattern != "full_refresh":
        return False
    known = {name.rpartition(".")[2] for name in settings.tables}
    taken = {name for source in settings.source.values() for name in source.tables}
    return any(_WILD.search(name) or name not in known for name in taken)


def _cron(schedule: Schedule) -> str:
    """Five fields of cron.

    Raises:
        ConfigError: cron has no such interval.
    """
    seconds = schedule.seconds
    if not seconds:
        return schedule.cron
    if seconds % 60 == 0 and _HOUR % seconds == 0:
        return f"*/{seconds // 60} * * * *" if seconds < _HOUR else "0 * * * *"
    if seconds % _HOUR == 0 and _DAY % seconds == 0:
        return f"0 */{seconds // _HOUR} * * *" if seconds < _DAY else "0 0 * * *"
    raise ConfigError(
        f"The schedule {schedule.text!r} cannot be written as five fields of cron.",
        hint='Use one that divides an hour or a day, such as "every 15m", or fields of cron.',
    )


def _named_days(field: str) -> str:
    """The day of the week by its names, as Quartz counts from another day."""
    return re.sub(r"(?<![/#\d])\d", lambda day: _NAMES[int(day[0]) % 7], field.upper())
