"""What is known of a stream's past, which the server has to tell again as it was.

A server that was put back to an earlier state (a copy of its files, a snapshot of its disk) has the
same name and the same timeline, and its log goes on with other transactions at the same positions.
It says nothing of it. But a slot is never confirmed before the lake has what it brought, so after a
pause it brings some of it again; and that must be what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bronze.errors import SourceRewound


@dataclass(frozen=True)
class Past:
    """What was known of a stream when it last ended.

    Everything before ``position`` was committed by ``recorded``, in microseconds since 1970 by the
    server's clock. ``ends`` are positions at which transactions ended that are to come again, each
    with the time of the commit, in their order.
    """

    position: int = 0
    recorded: int = 0
    ends: tuple[tuple[int, int], ...] = ()

    def told(self, end: int, committed: int) -> Past | None:
        """What is left to be told after a transaction, None where nothing is.

        Raises:
            SourceRewound: it is not what it was.
        """
        due = [one for one in self.ends if one[0] <= end]
        late = end <= self.position and committed > self.recorded
        if late or any(one != (end, committed) for one in due):
            raise rewound()
        if end >= self.position and len(due) == len(self.ends):
            return None
        return replace(self, ends=self.ends[len(due) :]) if due else self

    def passed(self, position: int) -> None:
        """Takes note that the server has told all that is before a position.

        Raises:
            SourceRewound: it has left out a transaction.
        """
        if self.ends and self.ends[0][0] <= position:
            raise rewound()


def rewound() -> SourceRewound:
    """The error of a stream whose server has another past than the lake."""
    return SourceRewound(
        "The source was put back to an earlier state, and has gone on from there.",
        hint="All tables are compared with it.",
    )
