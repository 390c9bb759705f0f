"""Who may look, and who may act: tokens, sessions, and what a browser is tricked into.

An operator may act and look, a viewer may look. A token is sent in ``Authorization: Bearer``, or by
the login form, which answers with a cookie for a session; sessions are kept in memory only.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets as random
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock
from typing import Literal
from urllib.parse import urlsplit

from bronze import secrets
from bronze.config.fields import SecretName
from bronze.config.sections.serve import WebSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError

Role = Literal["nobody", "viewer", "operator"]

SHORTEST = 16
"""The least number of characters of a token: it can be tried from the network."""
IDLE = 12 * 3600
"""After how many seconds without a request a session ends; after `LONGEST` it ends anyway."""
LONGEST = 7 * 86400
_SESSIONS = 1_000
_WRONG, _PERIOD = 5, 60.0
_ADDRESSES = 10_000
_PORT = re.compile(r":\d{1,5}$")
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Tokens:
    """The hashes of the tokens; None for a role that has none."""

    operator: bytes | None
    viewer: bytes | None

    def role(self, token: str) -> Role:
        """The role of a token. It takes the same time whatever is wrong with it."""
        hashed = _hash(token)
        is_operator = hmac.compare_digest(hashed, self.operator or b"")
        is_viewer = hmac.compare_digest(hashed, self.viewer or b"")
        return "operator" if is_operator else "viewer" if is_viewer else "nobody"


@dataclass
class Session:
    """A browser that has sent a token. ``notice`` is what its next page says once."""

    role: Role
    began: float
    used: float
    csrf: str
    notice: tuple[str, str] | None = None


def read_tokens(settings: Settings) -> Tokens:
    """The tokens of the config.

    Raises:
        ConfigError: one does not exist, is too short, or both are the same.
    """
    tokens = settings.web.tokens
    operator = _token(settings, "operator", tokens.operator)
    viewer = _token(settings, "viewer", tokens.viewer)
    if operator is not None and operator == viewer:
        raise ConfigError(
            "[web] tokens.operator and tokens.viewer are the same: every viewer could act.",
            hint="Take another secret for one of them.",
        )
    return Tokens(operator, viewer)


def _token(settings: Settings, role: str, name: SecretName | None) -> bytes | None:
    if name is None:
        return None
    token = secrets.resolve(settings.secret(name))
    if len(token) < SHORTEST or not token.isprintable() or not token.isascii():
        raise ConfigError(
            f"The secret {name.secret} of [web] tokens.{role} is not a token: it has to have at"
            f" least {SHORTEST} characters, all of them printable ASCII; it has {len(token)}.",
            hint="Make one with `openssl rand -hex 24`.",
        )
    return _hash(token)


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


@dataclass
class Attempts:
    """How often wrong tokens came from an address: a few a minute are compared."""

    clock: Callable[[], float] = time.monotonic
    _wrong: OrderedDict[str, list[float]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def wait(self, address: str) -> float:
        """After how many seconds a token of an address is compared again; 0 for at once."""
        with self._lock:
            times = self._recent(_network(address))
            return times[-_WRONG] + _PERIOD - self.clock() if len(times) >= _WRONG else 0.0

    def add(self, address: str) -> None:
        """Counts a wrong token."""
        with self._lock:
            network = _network(address)
            self._wrong[network] = [*self._recent(network), self.clock()]
            self._wrong.move_to_end(network)
            while len(self._wrong) > _ADDRESSES:
                self._wrong.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        return [at for at in self._wrong.get(network, []) if self.clock() - at < _PERIOD]


def _network(address: str) -> str:
    """What counts as one address: for IPv6, where anybody has many, the network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6 and not parsed.ipv4_mapped:
        return str(ipaddress.ip_network(f"{parsed}/64", strict=False))
    return str(parsed)


class Access:
    """The sessions of the present process, and who may do what."""

    def __init__(
        self, web: WebSettings, tokens: Tokens, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.web = web
        self.tokens = tokens
        self.attempts = Attempts(clock)
        self.is_secure = bool(web.certificate) or web.behind_proxy
        # Cookies are not apart by port: two services of one host would end each other's sessions.
        name = f"bronze_{web.address[1]}"
        self.cookie = f"__Host-{name}" if self.is_secure else name
        self._clock = clock
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._lock = Lock()
        self._key = random.token_bytes(32)
        self._names = _names(web)

    @property
    def is_public(self) -> bool:
        """Whether everybody who reaches the server may look: on the machine itself, if no viewer's
        token is set.
        """
        return self.web.is_local and not self.web.behind_proxy and self.tokens.viewer is None

    def begin(self, role: Role) -> str:
        """Begins a session; returns its secret, which is the value of the cookie."""
        now, secret = self._clock(), random.token_urlsafe(32)
        with self._lock:
            self._sessions[_hash(secret)] = Session(role, now, now, self.form_token(secret))
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        return secret

    def session(self, secret: str) -> Session | None:
        """The session of a cookie, None if it has ended."""
        now, key = self._clock(), _hash(secret)
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if now - session.used > IDLE or now - session.began > LONGEST:
                del self._sessions[key]
                return None
            session.used = now
            return session

    def end(self, secret: str) -> None:
        """Ends a session."""
        with self._lock:
            self._sessions.pop(_hash(secret), None)

    def form_token(self, secret: str) -> str:
        """What the forms of a browser have to contain (CSRF), by the secret of its cookie."""
        return hmac.new(self._key, secret.encode(), sha256).hexdigest()

    def is_form_of(self, secret: str, token: str) -> bool:
        """Whether a form was made for the browser with this cookie."""
        expected = self.form_token(secret).encode()
        return bool(secret) and hmac.compare_digest(expected, token.encode("utf-8", "replace"))

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server. A page elsewhere whose name was made to point
        here (DNS rebinding) has another one.
        """
        name = _name(host)
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        # A name can be made to point here, an address cannot.
        return not self.web.is_local

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this server has sent a form, by the headers Origin and Host."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        schemes = ("https",) if self.is_secure else ("http", "https")
        if parts.scheme not in schemes or not parts.netloc:
            return False
        # A proxy may pass on a Host of its own.
        configured = bool(self.web.host) and _name(parts.netloc) == _name(self.web.host)
        return configured or parts.netloc.lower() == host.lower()


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return _PORT.sub("", host).strip("[]").lower().rstrip(".")


def _names(web: WebSettings) -> frozenset[str]:
    """The names by which the server is reached."""
    configured = {_name(web.host)} if web.host else set()
    if web.is_local:
        return frozenset(_LOCAL | configured)
    own = {web.address[0], socket.gethostname(), socket.getfqdn()}
    return frozenset(_LOCAL | configured | {name.lower() for name in own if name})
