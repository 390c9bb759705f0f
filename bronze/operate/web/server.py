"""Starts and stops the dashboard, in a thread of the service's process."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from bronze.config.sections.serve import WebSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.governance.tables.runs import RunRecord
from bronze.operate.view import Day, View
from bronze.operate.web import guard
from bronze.operate.web.access import Access, read_tokens
from bronze.operate.web.app import App
from bronze.operate.web.site import Act, Site, no_days, read_runbook

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_BACKLOG = 128


@dataclass(frozen=True)
class Server:
    """A dashboard that runs."""

    url: str
    _app: App
    _uvicorn: uvicorn.Server
    _thread: threading.Thread

    @property
    def is_alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stops it, within seconds: streams of events end, what is being answered is finished."""
        self._uvicorn.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._app.site.stop()


def start(
    settings: Settings,
    *,
    view: Callable[[], View],
    runs: Callable[[str], Sequence[RunRecord]],
    act: Act,
    days: Callable[[str], Sequence[Day] | None] = no_days,
    runbook: Callable[[str], str] = read_runbook,
) -> Server:
    """Starts the dashboard at [web] listen, which is not "".

    All callables are called in threads of the server.

    Args:
        settings: the config.
        view: everything, now; cheap.
        runs: up to 100 runs of a table, by its key, the newest first.
        act: does what an operator asks; see `bronze.operate.web.acting.act`.
        days: the last 90 days of a table; without it, or where it gives None, they are read from
            ``governance.runs``.
        runbook: the text of a runbook by its name, in Markdown; "" if there is none.

    Raises:
        ConfigError: a token is too short, the certificate cannot be read, or the port is in use.
    """
    web = settings.web
    access = Access(web, read_tokens(settings))
    _check_certificate(settings)
    listener = _listen(web)
    app = App(Site(settings, access, view, runs, act, days, runbook))
    server = _PulsingServer(_config(settings, app), app)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="bronze-web", daemon=True
    )
    thread.start()
    if not server.is_up.wait(_START_SECONDS) or not thread.is_alive():
        server.should_exit = True
        listener.close()
        raise ConfigError(f"The dashboard at [web] listen = {web.listen!r} did not start.")
    host, port = web.address
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if web.certificate else "http"
    return Server(f"{scheme}://{shown}:{port}", app, server, thread)


class _PulsingServer(uvicorn.Server):
    """Says when it is up, and ends the streams of events when it stops: they would go on."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.app = app
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.app.pulses:
            self.app.pulses.stop()
        await super().shutdown(sockets)


def _config(settings: Settings, app: App) -> uvicorn.Config:
    certificate, key = _files(settings)
    return uvicorn.Config(
        app.application(),
        http=guard.BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        # Errors are logged by the guard; the loggers of uvicorn would be configured for all.
        log_config=None,
        log_level="critical",
        access_log=False,
        # Headers of a proxy are read where they count: for the limit of wrong tokens.
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=guard.CONNECTIONS,
        h11_max_incomplete_event_size=guard.LONGEST_HEAD,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


def _files(settings: Settings) -> tuple[str | None, str | None]:
    """The files of certificate and key, relative to the config's file."""
    web = settings.web
    if not web.certificate:
        return None, None
    folder = Path(settings.path).parent if settings.path else Path()
    return str(folder / Path(web.certificate)), str(folder / Path(web.key))


def _check_certificate(settings: Settings) -> None:
    certificate, key = _files(settings)
    if certificate is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(
            f"The certificate {certificate} of [web] and its key {key} cannot be used: {reason}.",
            hint="They are PEM files: the certificate and its chain, the key without a passphrase.",
        ) from None


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _listen(web: WebSettings) -> socket.socket:
    """The socket of [web] listen.

    Raises:
        ConfigError: it cannot be had; the sentence says why.
    """
    host, port = web.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program has this port",
            errno.EACCES: "this user may not have this port",
            errno.EADDRNOTAVAIL: "this machine does not have this address",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(
            f"[web] listen = {web.listen!r}: {reason}.",
            hint='Take another port, or listen = "" for no dashboard.',
        ) from None
