"""`bronze serve` as a process of its own, with a config file and receivers of three channels."""

from __future__ import annotations

import email
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from pathlib import Path

from bronze.config.settings import Settings
from bronze.operate.alerts.kinds import KINDS
from tests.support.receiver import PostOffice, Receiver, post_office, receiver
from tests.support.serving import until

# The first line of each notice.
_KIND = re.compile(r"UTC\. (\w+), (?:warning|critical)\.")
CHANNELS = ("pager", "slack", "mail")


@dataclass(frozen=True)
class Sent:
    """A message as a channel's server got it: ``act`` is open or resolve, ``text`` has the kind and
    what is said.
    """

    act: str
    text: str

    @property
    def kind(self) -> str:
        """The kind of its alert."""
        found = _KIND.search(self.text)
        assert found, self.text
        return found[1]

    def is_about(self, about: str) -> bool:
        """Whether it is about a kind of alerts, or has another text in it."""
        return about == self.kind if about in KINDS else about in self.text


@dataclass(frozen=True)
class Inboxes:
    """The servers of PagerDuty, Slack and e-mail."""

    pager: Receiver
    slack: Receiver
    mail: PostOffice

    @property
    def environment(self) -> dict[str, str]:
        """The secrets of the channels."""
        return {"PAGER_KEY": "k" * 32, "SLACK_HOOK": f"{self.slack.url}/hook"}

    @property
    def config(self) -> str:
        """The channels as a config has them."""
        return f"""
[[alerts.channels]]
kind = "pagerduty"
name = "pager"
key = {{ secret = "PAGER_KEY" }}
url = "{self.pager.url}"
[[alerts.channels]]
kind = "slack"
name = "slack"
webhook = {{ secret = "SLACK_HOOK" }}
[[alerts.channels]]
kind = "email"
name = "mail"
server = "localhost:{self.mail.port}"
sender = "bronze@example.com"
to = ["ada@example.com"]
tls = "none"
"""

    def sent(self, channel: str, about: str = "") -> list[Sent]:
        """The messages that a channel got, in their order, those about a kind, or with a text."""
        found = {"pager": self._paged, "slack": self._slacked, "mail": self._mailed}[channel]()
        return [sent for sent in found if sent.is_about(about)]

    def acts(self, about: str = "") -> dict[str, list[str]]:
        """What each channel was told: the acts, in their order."""
        return {name: [sent.act for sent in self.sent(name, about)] for name in CHANNELS}

    def _paged(self) -> list[Sent]:
        found, titles = [], dict[str, str]()
        for request in list(self.pager.requests):
            event = json.loads(request.body)
            if event["event_action"] == "trigger":
                titles[event["dedup_key"]] = json.dumps(event["payload"])
            act = {"trigger": "open"}.get(event["event_action"], event["event_action"])
            found.append(Sent(act, titles.get(event["dedup_key"], "")))
        return found

    def _slacked(self) -> list[Sent]:
        texts = [request.body.decode() for request in list(self.slack.requests)]
        return [Sent("resolve" if "check_mark" in text else "open", text) for text in texts]

    def _mailed(self) -> list[Sent]:
        mails = [
            email.message_from_bytes(mail, policy=policy.default) for mail in list(self.mail.mails)
        ]
        return [
            Sent("resolve" if "In-Reply-To" in mail else "open", _text_of(mail)) for mail in mails
        ]


def _text_of(mail: EmailMessage) -> str:
    body = mail.get_body()
    assert body is not None
    return f"{mail['Subject']}\n{body.get_content()}"


@contextmanager
def inboxes() -> Iterator[Inboxes]:
    """Servers of the three channels."""
    with receiver() as pager, receiver() as slack, post_office() as mail:
        slack.answer(200, "ok")
        yield Inboxes(pager, slack, mail)


@dataclass
class Service:
    """A config file, and the process that serves it."""

    file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _logged: int = 0

    @property
    def log(self) -> Path:
        """What it has written to standard error, over all starts."""
        return self.file.with_suffix(".log")

    @property
    def settings(self) -> Settings:
        """The config as it is now."""
        return Settings.from_file(self.file)

    def start(self, script: str = "") -> None:
        """Starts it; with a script, which gets the config file, in place of `bronze serve`."""
        command = ["-c", script, str(self.file)] if script else ["-m", "bronze", "serve", "-c"]
        command = command if script else [*command, str(self.file)]
        with self.log.open("ab") as log:
            self._logged = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **self.environment},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        self._signal(signal.SIGKILL)

    def stop(self, seconds: float = 60) -> int:
        """Ends it with SIGTERM; its exit code."""
        self._signal(signal.SIGTERM, seconds)
        assert self.process is not None
        return self.process.returncode

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def has_begun(self) -> bool:
        """Whether it has begun to work since it was started."""
        return b"service begins" in self.log.read_bytes()[self._logged :]

    def until_logged(self, word: str, seconds: float = 60) -> None:
        """Waits for a text in its log."""
        until(lambda: word in self.log.read_text(errors="replace"), seconds)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs another command of bronze with its config."""
        return subprocess.run(
            [sys.executable, "-m", "bronze", *arguments],
            env={**os.environ, **self.environment, "BRONZE_CONFIG": str(self.file)},
            capture_output=True,
            text=True,
            check=False,
        )

    def _signal(self, number: int, seconds: float = 60) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(seconds)


@contextmanager
def service(
    folder: Path,
    dsn: str,
    lake: Path | str,
    more: str = "",
    boxes: Inboxes | None = None,
    web: str = 'listen = ""',
    **schedule: str,
) -> Iterator[Service]:
    """A service that is not started yet; it is killed at the end.

    ``more`` are further lines of the config, ``web`` those of [web], ``schedule`` is
    [serve.schedule], without chores unless it has them.
    """
    schedules = {"full_refresh": "every 10s", "maintain": "", "verify": "", **schedule}
    lines = "\n".join(f'{name} = "{text}"' for name, text in schedules.items())
    head = "" if dsn.startswith("[") else f'[source]\nname = "test"\ndsn = "{dsn}"'
    file = folder / "bronze.toml"
    file.write_text(
        f"""
{head or dsn}
[lake]
root = "{lake}"
schema = "bronze"
[web]
{web}
[serve.schedule]
{lines}
{boxes.config if boxes else ""}
{more}
"""
    )
    made = Service(file, boxes.environment if boxes else {})
    try:
        yield made
    finally:
        if made.is_alive():
            made.kill()
