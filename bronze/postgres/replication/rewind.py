"""Detects a server that was put back to an earlier state, by the commits that it sends again.

A server that was restored from a copy of its files or a snapshot of its disk keeps its identity and
timeline, and writes other transactions at the same positions. PostgreSQL does not report this. But
a slot is confirmed only after its changes are in the lake: after a pause the server sends some
transactions again, and their positions and commit times must be the recorded ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bronze.errors import SourceRewound


@dataclass(frozen=True)
class KnownTransactions:
    """What was recorded of a stream when it last ended.

    All transactions before ``position`` were committed by ``recorded``, in microseconds since 1970
    by the server's clock. ``ends`` are the transactions that the server has to send again, in
    order: the position at which each ended, and the time of its commit.
    """

    position: int = 0
    recorded: int = 0
    ends: tuple[tuple[int, int], ...] = ()

    def check_commit(self, end: int, committed: int) -> KnownTransactions | None:
        """Checks a transaction; returns what is left to check after it, None if nothing is.

        Args:
            end: the position at which it ended.
            committed: the time of its commit.

        Raises:
            SourceRewound: it is not the recorded one.
        """
        due = [known for known in self.ends if known[0] <= end]
        late = end <= self.position and committed > self.recorded
        if late or any(known != (end, committed) for known in due):
            raise rewound_error()
        if end >= self.position and len(due) == len(self.ends):
            return None
        return replace(self, ends=self.ends[len(due) :]) if due else self

    def check_position(self, position: int) -> None:
        """Checks that a server that has sent everything before a position left nothing out.

        Raises:
            SourceRewound: a recorded transaction is missing.
        """
        if self.ends and self.ends[0][0] <= position:
            raise rewound_error()


def rewound_error() -> SourceRewound:
    """The error of a server that does not have the transactions of the lake."""
    return SourceRewound(
        "The source was put back to an earlier state, and continued from there.",
        hint="All tables are resynced from it.",
    )
