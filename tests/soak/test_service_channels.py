"""Channels that fail while there is something to tell: the others tell of it, and nobody hears a
thing twice.
"""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from tests.conftest import Source
from tests.support.service_process import CHANNELS, inboxes, service
from tests.support.serving import until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(500)]


def test_channels_that_fail_are_told_by_the_others(source: Source, tmp_path: Path) -> None:
    """PagerDuty refuses the key, the mail server says nothing, Slack wants to wait; when they work
    again, each has heard once of what is still open.
    """
    source.execute("CREATE TABLE good (id int PRIMARY KEY)")
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = ["good", "bad"]'
    more = '[breaker]\nthreshold = 1\npause = "30m"\n'
    speaks = threading.Event()

    def silence(connection: socket.socket) -> None:
        speaks.wait(60)

    with inboxes() as boxes, service(tmp_path, head, source.lake, more, boxes) as own:
        refused = '{"status": "invalid event", "message": "Event object is invalid"}'
        boxes.pager.answer(400, refused)
        boxes.slack.answers = [(429, "", {"Retry_After": "3"})] * 2 + [(200, "ok", {})]
        boxes.mail.speak = silence
        own.start()

        def failing() -> set[str]:
            told = [sent.text for sent in boxes.sent("slack", "channel") if sent.act == "open"]
            return {name for name in CHANNELS if any(f"Channel {name} fails" in t for t in told)}

        until(lambda: failing() == {"pager", "mail"}, 150)
        waited = boxes.slack.requests[1].at - boxes.slack.requests[0].at
        assert waited >= 3
        boxes.pager.answer(202, '{"status": "success", "message": "Event processed"}')
        boxes.mail.speak = None
        speaks.set()
        until(lambda: boxes.acts("table_quarantined")["mail"] == ["open"], 200)
        until(
            lambda: [s.act for s in boxes.sent("slack", "channel")].count("resolve") >= 1, 200
        )  # fmt: skip
        assert own.stop() == 0
        accepted = [json.loads(r.body)["text"] for r in boxes.slack.requests]
        opened = [text for text in accepted if "quarantined" in text]
        # Two were answered with 429, and one of these may be of another alert.
        assert 1 <= len(opened) <= 3
        assert boxes.acts("table_quarantined")["mail"] == ["open"]
