"""The routes of the dashboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from bronze.operate.web import api, forms
from bronze.operate.web.callers import Caller, Callers
from bronze.operate.web.events import Pulses
from bronze.operate.web.exposition import Exposition
from bronze.operate.web.guard import Guard, read_body
from bronze.operate.web.lake.facts import Facts
from bronze.operate.web.markup import layout
from bronze.operate.web.markup.layout import Page
from bronze.operate.web.pages import (
    alerts,
    documents,
    overview,
    schedule,
    streams,
    system,
    table,
)
from bronze.operate.web.site import LONGEST_ACT, Refused, Site, Visit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_STATIC = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
_FIRST = "bronze_form"


class App:
    """The endpoints of one server. ``pulses`` begin in its event loop."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.callers = Callers(site.access)
        self.facts = Facts(site.settings)
        self.exposition = Exposition(site.view)
        self.pulses: Pulses | None = None

    def application(self) -> ASGIApp:
        """The application, guarded."""
        facts = self.facts
        routes = [
            self._page("/", overview.page),
            self._page("/table", lambda visit: table.page(visit, facts), lake=True),
            self._page("/schedule", schedule.page),
            self._page("/streams", streams.page),
            self._page("/alerts", lambda visit: alerts.page(visit, facts), lake=True),
            self._page("/system", system.page),
            self._page("/runbooks", documents.runbooks),
            self._page("/audit", lambda visit: documents.audit(visit, facts), lake=True),
            Route("/login", self.login_form, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/act", self.act, methods=["POST"]),
            Route("/static/{name}", static, methods=["GET"]),
            Route("/live", live, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            self._data("/api/v1/status", lambda view, query: api.status(view)),
            self._data("/api/v1/tables", api.tables),
            self._data("/api/v1/alerts", api.alerts),
            self._data("/api/v1/runs", lambda view, query: api.runs(self.site, view, query)),
            Route("/api/v1/act", self.act_by_token, methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers=_HANDLERS)
        app.router.redirect_slashes = False

        async def with_events(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/events":
                await self.events(scope, receive, send)
            else:
                await app(scope, receive, send)

        return Guard(with_events, self.site.access, _answer)

    def _page(self, path: str, make: Callable[[Visit], Page], *, lake: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            caller = self.callers.caller(request)
            if not caller.may_look:
                query = f"?{request.url.query}" if request.url.query else ""
                after = quote(f"{request.url.path}{query}", safe="")
                return RedirectResponse(f"/login?next={after}", 303)

            def render() -> str:
                return self._render(request, caller, make)

            return HTMLResponse(await self.site.work(render, lake=lake))

        return Route(path, endpoint, methods=["GET"])

    def _render(self, request: Request, caller: Caller, make: Callable[[Visit], Page]) -> str:
        session, notice = caller.session, None
        if session and session.notice and request.method == "GET":
            notice, session.notice = session.notice, None
        visit = Visit(
            site=self.site,
            view=self.site.view(),
            role=caller.role,
            path=request.url.path,
            query=dict(request.query_params),
            csrf=session.csrf if session else "",
            notice=notice,
            has_session=session is not None,
        )
        return layout.frame(visit, make(visit))

    def _data(self, path: str, make: Callable[[Any, Any], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            self.callers.check_look(request)
            query = dict(request.query_params)
            body = await self.site.work(lambda: api.document(make(self.site.view(), query)))
            return Response(body, media_type="application/json")

        return Route(path, endpoint, methods=["GET"])

    async def login_form(self, request: Request) -> Response:
        """The form to sign in."""
        return self._login_form(request, forms.own_path(request.query_params.get("next", "/")))

    def _login_form(
        self, request: Request, after: str, wrong: str = "", status: int = 200
    ) -> Response:
        import secrets

        access = self.site.access
        first = request.cookies.get(_FIRST, "") or secrets.token_urlsafe(16)
        content = documents.login(access.form_token(first), after, wrong)
        response = HTMLResponse(content, status)
        self._set_cookie(response, _FIRST, first)
        return response

    async def login(self, request: Request) -> Response:
        """Begins a session for a right token."""
        self.callers.check_origin(request)
        fields = forms.fields_of(request.headers.get("content-type", ""), await read_body(request))
        after = forms.own_path(fields.get("next", "/"))
        access = self.site.access
        if not access.is_form_of(request.cookies.get(_FIRST, ""), fields.get("csrf", "")):
            return self._login_form(request, after, "The form was out of date: try again.", 403)
        try:
            role = self.callers.role(request, fields.get("token", "").strip())
        except Refused as refused:
            message = f"{refused.message} {refused.hint}".strip()
            response = self._login_form(request, after, message, refused.status)
            if wait := refused.headers.get("retry-after"):
                response.headers["retry-after"] = wait
            return response
        # A session of before ends: a new one has a new secret.
        access.end(request.cookies.get(access.cookie, ""))
        response = RedirectResponse(after, 303)
        self._set_cookie(response, access.cookie, access.begin(role))
        self._set_cookie(response, _FIRST, "")
        return response

    def _set_cookie(self, response: Response, name: str, value: str) -> None:
        response.set_cookie(
            name,
            value,
            # An empty one is removed. It needs the same attributes as the one before.
            max_age=None if value else 0,
            path="/",
            httponly=True,
            samesite="strict",
            secure=self.site.access.is_secure,
        )

    async def logout(self, request: Request) -> Response:
        """Ends a session."""
        caller, _ = await self._form(request)
        self.site.access.end(caller.cookie)
        response = RedirectResponse("/", 303)
        self._set_cookie(response, self.site.access.cookie, "")
        return response

    async def act(self, request: Request) -> Response:
        """Does what a form asks for."""
        caller, fields = await self._form(request)
        self.callers.check_act(caller)
        after = forms.own_path(fields.get("next", "/"))
        try:
            notice = ("done", await self._do(request, fields))
        except Refused as refused:
            if caller.session is None:
                raise
            notice = ("failed", f"{refused.message} {refused.hint}".strip())
        if caller.session:
            caller.session.notice = notice
        return RedirectResponse(after, 303)

    async def act_by_token(self, request: Request) -> Response:
        """Does what a program asks for, which sends the operator's token."""
        caller = self.callers.caller(request)
        if request.headers.get("origin"):
            self.callers.check_origin(request)
        if not caller.bearer:
            raise Refused(401, "Send the operator's token as Authorization: Bearer.")
        self.callers.check_act(caller)
        body = await read_body(request)
        fields = forms.json_of(request.headers.get("content-type", ""), body)
        return JSONResponse({"done": await self._do(request, fields)})

    async def _do(self, request: Request, fields: dict[str, str]) -> str:
        by = f"operator at {self.callers.address(request)}"

        def do() -> str:
            wish = forms.wish_of(fields, self.site.view())
            self.site.act(wish.action, wish.subject, wish.until, wish.reason, by)
            return wish.done

        return await self.site.work(do, LONGEST_ACT, lake=True)

    async def _form(self, request: Request) -> tuple[Caller, dict[str, str]]:
        """The caller and the fields of a form of this server, sent by the browser that got it."""
        self.callers.check_origin(request)
        caller = self.callers.caller(request)
        fields = forms.fields_of(request.headers.get("content-type", ""), await read_body(request))
        if caller.session is None:
            raise Refused(401, "The session has ended.", "Sign in again at /login.")
        if not self.site.access.is_form_of(caller.cookie, fields.get("csrf", "")):
            raise Refused(403, "The form is not of this session.", "Load the page again.")
        return caller, fields

    async def ready(self, request: Request) -> Response:
        """Whether the service works: it was heard, reaches the lake, knows what ran before, and is
        not stopping.
        """
        view = await self.site.work(self.site.view)
        live = view.live
        if live is None or not view.is_alive:
            return PlainTextResponse("the service is not heard\n", 503)
        if live.is_stopping:
            return PlainTextResponse("stopping\n", 503)
        if live.lake_error:
            return PlainTextResponse("the lake is not reached\n", 503)
        if live.unread:
            return PlainTextResponse(f"{live.unread}\n", 503)
        return PlainTextResponse("ready\n")

    async def metrics(self, request: Request) -> Response:
        """The metrics for Prometheus."""
        self.callers.check_look(request)
        text, kind = await self.site.work(self.exposition.text)
        return Response(text, headers={"content-type": kind})

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream of pulses."""
        request = Request(scope, receive)
        if scope["method"] != "GET":
            raise Refused(405, "This method is not possible.", headers={"allow": "GET"})
        if not self.callers.caller(request).may_look:
            raise Refused(401, "A token is needed to look.")
        if self.pulses is None:
            self.pulses = Pulses(self.site)
        await self.pulses.listen(receive, send, lambda: self.callers.caller(request).may_look)


async def live(request: Request) -> Response:
    """Whether the process answers: it looks at nothing else."""
    return PlainTextResponse("alive\n")


async def static(request: Request) -> Response:
    """A file of the dashboard."""
    name = request.path_params["name"]
    if name not in _STATIC:
        raise Refused(404, "There is no such page.")
    content = (layout.STATIC / name).read_bytes()
    # The links have a version: a new one is another link.
    kept = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(content, media_type=_STATIC[name], headers=kept)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _answer(request.scope, error)
    if isinstance(error, HTTPException):
        found = error.status_code != 404
        text = "This method is not possible." if found else "There is no such page."
        return _answer(request.scope, Refused(error.status_code, text, headers=error.headers))
    # The guard logs it.
    hint = "The service's log says why."
    return _answer(request.scope, Refused(500, "The page could not be made.", hint))


_HANDLERS: Mapping[Any, Any] = {
    Refused: _refused,
    HTTPException: _refused,
    Exception: _refused,
}


def _answer(scope: Scope, refused: Refused) -> Response:
    """What is refused as JSON for programs, as text for probes, as a page for people."""
    path = scope["path"]
    if path.startswith("/api/"):
        content = {"error": refused.message, "hint": refused.hint}
        return JSONResponse(content, refused.status, refused.headers)
    if path in ("/ready", "/metrics", "/events"):
        return PlainTextResponse(f"{refused.message}\n", refused.status, refused.headers)
    page = documents.error(refused.status, refused.message, refused.hint)
    return HTMLResponse(page, refused.status, refused.headers)
