"""Which record of the audit log a table knows of.

A commit to a Bronze table names the newest record of ``governance.audit_log`` that its process
knew: the record's number and the first digits of its hash are app transactions, which checkpoints
keep, and the ids of all the logs under which the table was ever written are one of its properties.
So a log that was deleted, cut off or replaced is contradicted by the tables.

The order matters. A record is in the log before any table names it, so that a process may die
between the two, and whatever a table names was once there. What is recorded after a table's commit
is named by the next one. A table never goes back to an earlier record of the same log: a writer
that knows less, or a log that was cut off and grows again, does not make it forget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.model.stamp import AuditMark

# As many digits of a hash as a transaction's 64 bits hold.
_DIGITS = 15


@dataclass(frozen=True)
class Known:
    """What a table knows of one log: a record's number, and the first digits of its hash."""

    log: str
    sequence: int
    digits: str

    def agrees(self, record_hash: str) -> bool:
        """Whether the record with its number may have this hash."""
        return record_hash.startswith(self.digits)


def known_records(state: State) -> Iterator[Known]:
    """What a table knows of each log that it was written under."""
    for log in TableProperties.read(state.properties).audit_logs:
        sequence, digits = (state.position(name) for name in _names(log))
        yield Known(log, sequence or 0, f"{digits or 0:0{_DIGITS}x}")


def knows_more(state: State, mark: AuditMark) -> bool:
    """Whether a table knows of a record that a log has not which ends at ``mark``."""
    mine = (one for one in known_records(state) if one.log == mark.log)
    return any(
        one.sequence > mark.sequence
        or (one.sequence == mark.sequence and not one.agrees(mark.hash))
        for one in mine
    )


def transactions(state: State | None, mark: AuditMark) -> tuple[tuple[str, int], ...]:
    """The app transactions by which a commit names a record, unless the table knows a later one."""
    number, digits = _names(mark.log)
    held = state.position(number) if state else None
    if held is not None and held >= mark.sequence:
        return ()
    return (number, mark.sequence), (digits, int(mark.hash[:_DIGITS], 16))


def logs(state: State | None, mark: AuditMark) -> str:
    """The value of the table's property `AUDIT_LOGS` with the log of ``mark``."""
    known = TableProperties.read(state.properties).audit_logs if state else ()
    return ",".join(dict.fromkeys((*known, mark.log)))


def _names(log: str) -> tuple[str, str]:
    return f"bronze/audit/{log}", f"bronze/audit/{log}/hash"
