"""A mail server that fails while there is something to tell: the others tell of it, and the mail
comes once when it works again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Source
from tests.support.service_process import Inboxes, inboxes, service
from tests.support.serving import until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(500)]

Fault = Callable[[Inboxes, threading.Event], None]


def silent(boxes: Inboxes, over: threading.Event) -> None:
    """It accepts connections, and says nothing."""

    def speak(_: socket.socket) -> None:
        over.wait(300)

    boxes.mail.speak = speak


def tarpit(boxes: Inboxes, over: threading.Event) -> None:
    """It says a byte now and then, so that no read ever times out."""

    def speak(connection: socket.socket) -> None:
        with suppress(OSError):
            while not over.wait(1):
                connection.sendall(b"2")

    boxes.mail.speak = speak


def busy(boxes: Inboxes, _: threading.Event) -> None:
    """It wants to be asked later."""
    boxes.mail.answers["RCPT"] = "451 try again later"


def refusing(boxes: Inboxes, _: threading.Event) -> None:
    """It never takes this mail."""
    boxes.mail.answers["DATA"] = "554 this is spam"


@pytest.mark.parametrize(
    ("fault", "words", "is_tried_again"),
    [
        (silent, "no answer within 10 s", True),
        (tarpit, "no answer within 10 s", True),
        (busy, "451", True),
        (refusing, "554", False),
    ],
    ids=["silent", "tarpit", "4xx", "5xx"],
)
def test_a_mail_server_that_fails(
    source: Source, tmp_path: Path, fault: Fault, words: str, is_tried_again: bool
) -> None:
    """The others are told once of it, and of what it should have told; what is refused for good is
    not tried again soon.
    """
    source.execute("CREATE TABLE good (id int PRIMARY KEY)")
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = ["good", "bad"]'
    more = '[breaker]\nthreshold = 1\npause = "30m"\n'
    over = threading.Event()
    with inboxes() as boxes, service(tmp_path, head, source.lake, more, boxes) as own:
        fault(boxes, over)
        own.start()
        for name in ("slack", "pager"):
            until(partial(boxes.sent, name, "Channel mail fails"), 120)
            (told,) = boxes.sent(name, "Channel mail fails")
            assert words in told.text
            assert boxes.acts("table_quarantined")[name] == ["open"]
        boxes.mail.speak = None
        boxes.mail.answers.clear()
        over.set()
        if is_tried_again:
            until(lambda: boxes.acts("table_quarantined")["mail"], 200)
            until(lambda: len(boxes.sent("slack", "Channel mail fails")) == 2, 150)
        assert own.stop(30) == 0
        expected = ["open"] if is_tried_again else []
        assert boxes.acts("table_quarantined")["mail"] == expected
