"""Processes of bronze: begun at once, as one is always ready, and ended in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = [sys.executable, "-m", "tests.soak.checker.driver"]
PATIENCE = 120
"""Seconds after which a process that was to end is thought to hang."""


@dataclass
class Process:
    """One of them. ``ended`` says how the checker has ended it, "" where it did not."""

    popen: subprocess.Popen[bytes]
    out: Path
    what: str = ""
    ended: str = ""

    def order(self, arguments: Sequence[str], failpoint: str = "") -> None:
        """Says what it is to do."""
        self.what = " ".join(arguments[:2])
        self.ended = f"failpoint {failpoint}" if failpoint else ""
        line = json.dumps({"arguments": list(arguments), "failpoint": failpoint})
        assert self.popen.stdin
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Sends it a signal, if it is there."""
        with suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.ended = "killed"
        self.signal(signal.SIGKILL)
        self.popen.wait(PATIENCE)

    def terminate(self) -> int:
        """Asks it to end, and waits; its exit code."""
        self.ended = "terminated"
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self.popen.wait(PATIENCE)

    def said(self) -> str:
        """All that it has said so far."""
        return self.out.read_text(errors="replace")


@dataclass
class Processes:
    """All of a checker's. One waits, ready to begin."""

    folder: Path
    made: list[Process] = field(default_factory=list)
    spare: Process | None = None

    def begin(self, arguments: Sequence[str], failpoint: str = "") -> Process:
        """A process of bronze that does what the arguments of a command line say."""
        chosen = self.spare or self._new()
        chosen.order(arguments, failpoint)
        self.spare = self._new()
        return chosen

    def _new(self) -> Process:
        out = self.folder / f"process-{len(self.made)}.log"
        with out.open("wb") as file:
            popen = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
            )
        made = Process(popen, out)
        self.made.append(made)
        return made

    def end(self) -> None:
        """Ends all of them."""
        for process in self.made:
            if process.running:
                process.kill()
            if process.popen.stdin:
                with suppress(OSError):
                    process.popen.stdin.close()
