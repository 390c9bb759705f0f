"""Who sent a request, and whether it may do what it is for."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from bronze.config.sections.serve import WebSettings
from bronze.operate.web.access import Access, Role, Session
from bronze.operate.web.site import Refused


@dataclass(frozen=True)
class Caller:
    """Who sent a request: by a ``bearer`` token, or with the ``cookie`` of a session."""

    role: Role
    cookie: str = ""
    session: Session | None = None
    bearer: bool = False

    @property
    def may_look(self) -> bool:
        """Whether the caller gets to see anything."""
        return self.role != "nobody"


@dataclass(frozen=True)
class Callers:
    """Tells callers apart by the tokens and sessions of one server."""

    access: Access

    @property
    def web(self) -> WebSettings:
        """The section of the config."""
        return self.access.web

    def caller(self, request: Request) -> Caller:
        """Who sent a request.

        Raises:
            Refused: the token is wrong, or too many were.
        """
        access = self.access
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return Caller(self.role(request, token.strip()), bearer=True)
        cookie = request.cookies.get(access.cookie, "")
        session = access.session(cookie) if cookie else None
        if session:
            return Caller(session.role, cookie, session)
        return Caller("viewer" if access.is_public else "nobody")

    def role(self, request: Request, token: str) -> Role:
        """The role of a token.

        Raises:
            Refused: it is wrong, or too many of this address were.
        """
        access, address = self.access, self.address(request)
        wait = access.attempts.wait(address)
        if wait > 0:
            raise Refused(
                429,
                "Too many wrong tokens were sent from this address.",
                f"Try again in {wait:.0f} seconds.",
                {"retry-after": f"{wait:.0f}"},
            )
        role = access.tokens.role(token)
        if role == "nobody":
            access.attempts.add(address)
            raise Refused(401, "The token is wrong.", "", {"www-authenticate": "Bearer"})
        return role

    def address(self, request: Request) -> str:
        """Where a request comes from; behind a proxy, what the proxy says."""
        client = request.client.host if request.client else ""
        if not self.web.behind_proxy:
            return client
        # The last one is the proxy's own word, those before are the client's.
        return request.headers.get("x-forwarded-for", client).rpartition(",")[2].strip()[:64]

    def check_look(self, request: Request) -> None:
        """Refuses who may not look."""
        if not self.caller(request).may_look:
            raise Refused(
                401,
                "A token is needed to look.",
                "Send it as Authorization: Bearer, or sign in at /login.",
                {"www-authenticate": "Bearer"},
            )

    def check_origin(self, request: Request) -> None:
        """Refuses what a page of another server sends."""
        origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") or not self.access.is_own_origin(origin, host):
            raise Refused(
                403,
                "The request does not come from a page of this server.",
                "Behind a proxy, have it pass on the Host header, or set [web] host.",
            )

    def check_act(self, caller: Caller) -> None:
        """Refuses who may not act."""
        if self.web.read_only:
            raise Refused(403, "This dashboard is read-only.", "See [web] read_only.")
        if caller.role != "operator":
            raise Refused(403, "Acting needs the operator's token.")
