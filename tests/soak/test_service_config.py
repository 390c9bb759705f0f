"""Mistakes in the config of `bronze serve`: the command itself says each in one sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.browsing import free_port

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

HEAD = '[source]\nname = "s"\ndsn = "postgresql://localhost:1/none"\n[lake]\nroot = "lake"\n'
ALONE = '[web]\nlisten = ""\n'
TOKEN = 'tokens = { operator = { secret = "OPERATE" } }\n'
SLACK = '[[alerts.channels]]\nkind = "slack"\nname = "slack"\nwebhook = { secret = "HOOK" }\n'
WINDOW = "[serve.windows]\npeak = { "


def schedule(text: str) -> str:
    """A config whose batches have a schedule."""
    return f'{ALONE}[serve.schedule]\nbatch = "{text}"\n'


def path(channel: str) -> str:
    """A path to a channel."""
    return f'[alerts.scenarios]\noutage = {{ respond = "10m", path = ["{channel}"] }}\n'


MISTAKES = {
    ALONE + '[[alerts.channels]]\nkind = "telegram"\nname = "a"\n': "kind is one of email, slack",
    ALONE + SLACK + path("slck"): "names the channel 'slck', which [[alerts.channels]] does not",
    ALONE + path("nobody"): "does not have; there is none",
    schedule("99 * * * *"): "the minute, its first field, is 0 to 59",
    schedule("0 0 31 2 *"): "no date has the day of the month in its third field",
    schedule("0 0 3 * * *"): "cron with seconds is not supported",
    ALONE + WINDOW + 'when = "Mon-Fri 18:00-09:00", workers = [2, 4] }\n': "ends before it begins",
    ALONE + WINDOW + 'when = "Mon-Fri", workers = [8, 2] }\n': "workers = [8, 2]: the least comes",
    ALONE + '[serve]\ntimezone = "Europe/Berlim"\n': "timezone 'Europe/Berlim' is not known",
    ALONE + '[tables.t]\npattern = "streaming"\nsla = "1s"\n': "late most of the time",
    '[web]\nlisten = "127.0.0.1:{port}"\n': "another program has this port",
    '[web]\nlisten = "127.0.0.1:{free}"\n' + TOKEN: "it has to have at least 16 characters",
    '[web]\nlisten = "0.0.0.0:8080"\n' + TOKEN: "tokens would cross the network in clear",
    '[web]\nlisten = "0.0.0.0:8080"\nbehind_proxy = true\n': "set tokens.viewer",
}


@pytest.mark.slow
def test_each_mistake_is_one_sentence(tmp_path: Path) -> None:
    """With exit 2, nothing of a secret in it, and before a lake is made."""
    file = tmp_path / "bronze.toml"
    environment = {**os.environ, "OPERATE": "short", "HOOK": "https://example.com/s3cret"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for text, sentence in MISTAKES.items():
            file.write_text(
                HEAD + text.replace("{port}", str(port)).replace("{free}", str(free_port()))
            )
            done = subprocess.run(
                [sys.executable, "-m", "bronze", "serve", "-c", str(file)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (text, done.returncode) == (text, 2)
            first, *hint, explained = done.stderr.strip().splitlines()
            assert sentence in first, first
            assert first.startswith("Error: ")
            assert len(hint) <= 1
            assert explained.strip().startswith("bronze explain ")
            assert "short" not in done.stderr
            assert "s3cret" not in done.stderr
    assert not (tmp_path / "lake").exists()
