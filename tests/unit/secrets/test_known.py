"""Secrets of the network are kept for a time, and asked for again where they were refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bronze import secrets
from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Secret


class Provider:
    """A provider in the network, whose answers and clock a test sets."""

    def __init__(self) -> None:
        self.value = "one"
        self.error: Exception | None = None
        self.calls = 0
        self.now = 1000.0

    def __call__(self, secret: Secret) -> str:
        """The value now."""
        self.calls += 1
        if self.error:
            raise self.error
        return self.value


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """The provider of all secrets of the tests."""
    made = Provider()
    monkeypatch.setitem(secrets.REMOTE, "azure-key-vault", made)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    secrets.forget()
    yield made
    secrets.forget()


SECRET = Secret("azure-key-vault", "K", "https://vault", ttl=300)


def test_a_secret_is_asked_for_once_in_its_time(provider: Provider) -> None:
    """And again when its time is over."""
    assert [secrets.resolve(SECRET) for _ in range(25)] == ["one"] * 25
    assert provider.calls == 1
    provider.value = "two"
    provider.now += 299
    assert secrets.resolve(SECRET) == "one"
    provider.now += 2
    assert (secrets.resolve(SECRET), provider.calls) == ("two", 2)


def test_workers_that_need_a_secret_at_once_ask_once(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for the one who asks."""
    gate = threading.Event()

    def slow(secret: Secret) -> str:
        gate.wait(10)
        return provider(secret)

    monkeypatch.setitem(secrets.REMOTE, "azure-key-vault", slow)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(secrets.resolve, SECRET) for _ in range(8)]
        gate.set()
        assert {future.result(10) for future in found} == {"one"}
    assert provider.calls == 1


def test_a_refused_secret_is_asked_for_at_once(provider: Provider) -> None:
    """One that does not exist any more is not used any more."""
    secrets.resolve(SECRET)
    provider.value = "two"
    assert secrets.resolve(SECRET) == "one"
    secrets.ask_again([SECRET, Secret("env", "HOME")])
    assert [secrets.resolve(SECRET) for _ in range(3)] == ["two"] * 3
    assert provider.calls == 2
    provider.error = ConfigError("no such secret")
    secrets.ask_again([SECRET])
    with pytest.raises(ConfigError):
        secrets.resolve(SECRET)


def test_while_the_provider_is_silent_the_last_value_serves_for_an_hour(
    provider: Provider,
) -> None:
    """A secret that does not exist is another matter."""
    secrets.resolve(SECRET)
    provider.error = SecretsUnreachable("silent")
    provider.now += 3599
    assert secrets.resolve(SECRET) == "one"
    provider.now += 2
    with pytest.raises(SecretsUnreachable):
        secrets.resolve(SECRET)
    provider.error = None
    secrets.resolve(SECRET)
    provider.error, provider.now = ConfigError("denied"), provider.now + 301
    with pytest.raises(ConfigError, match="denied"):
        secrets.resolve(SECRET)


@pytest.mark.parametrize("provider", ["env", "file"])
def test_an_empty_secret_of_this_machine_is_refused(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty password, key or connection string is a mistake: libpq would take its defaults."""
    monkeypatch.setenv("K", "")
    (tmp_path / "K").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        secrets.resolve(Secret(provider, "K", str(tmp_path)))
