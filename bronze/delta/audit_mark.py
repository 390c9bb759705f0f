"""Audit marks: the newest record of the audit log that a Bronze table names.

A commit to a Bronze table names the newest record of ``governance.audit_log`` that its process
knows: the record's number and the first digits of its hash are app transactions, which checkpoints
keep, and the ids of all logs under which the table was ever written are one of its properties. So
the tables contradict a log that was deleted, truncated or replaced.

The order matters. A record is in the log before any table names it, so that a process may be killed
in between, and every record that a table names once existed. Records after a table's commit are
named by its next one. A table never goes back to an earlier record of the same log, even if its
writer knows less, or the log was truncated and grows again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.model.stamp import AuditMark

# The digits of a hash that fit into the 64 bits of an app transaction.
_DIGITS = 15


@dataclass(frozen=True)
class Known:
    """The newest record of a log that a table names: its number, and first digits of its hash."""

    log: str
    sequence: int
    digits: str

    def agrees(self, record_hash: str) -> bool:
        """Whether the record with this number may have this hash."""
        return record_hash.startswith(self.digits)


def known_records(state: State) -> Iterator[Known]:
    """The newest record that a table names of each log under which it was written."""
    for log in TableProperties.read(state.properties).audit_logs:
        sequence, digits = (state.position(name) for name in _names(log))
        yield Known(log, sequence or 0, f"{digits or 0:0{_DIGITS}x}")


def knows_more(state: State, mark: AuditMark) -> bool:
    """Whether a table names a record that a log which ends at ``mark`` does not have."""
    known = (record for record in known_records(state) if record.log == mark.log)
    return any(
        record.sequence > mark.sequence
        or (record.sequence == mark.sequence and not record.agrees(mark.hash))
        for record in known
    )


def transactions(state: State | None, mark: AuditMark) -> tuple[tuple[str, int], ...]:
    """The app transactions by which a commit names a record, unless the table names a later one."""
    number, digits = _names(mark.log)
    named = state.position(number) if state else None
    if named is not None and named >= mark.sequence:
        return ()
    return (number, mark.sequence), (digits, int(mark.hash[:_DIGITS], 16))


def logs(state: State | None, mark: AuditMark) -> str:
    """The value of the table's property `AUDIT_LOGS` with the log of ``mark``."""
    known = TableProperties.read(state.properties).audit_logs if state else ()
    return ",".join(dict.fromkeys((*known, mark.log)))


def _names(log: str) -> tuple[str, str]:
    return f"bronze/audit/{log}", f"bronze/audit/{log}/hash"
