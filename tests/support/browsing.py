"""A small browser: requests over real connections, with cookies, as a browser sends them."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlencode

_VOID = {"br", "hr", "img", "input", "link", "meta"}


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    set_cookies: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Its body as text."""
        return self.body.decode()

    def field(self, name: str) -> str:
        """The value of a hidden field of its first form."""
        match = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        assert match, f"no field {name}"
        return unescape(match[1])


@dataclass
class Browser:
    """A browser at one address; ``headers`` are sent with each request."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; ``_`` in names of headers is ``-``."""
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**self.headers, **own}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            set_cookies = tuple(response.headers.get_all("set-cookie", []))
            for line in set_cookies:
                name, _, value = line.partition(";")[0].partition("=")
                self.cookies[name] = value.strip('"')
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read(), set_cookies)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """A page."""
        return self.request("GET", path, **headers)

    def send(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """A form, as a page of the server sends it."""
        defaults = {
            "content_type": "application/x-www-form-urlencoded",
            "origin": f"http://127.0.0.1:{self.port}",
        }
        return self.request("POST", path, urlencode(fields).encode(), **{**defaults, **headers})

    def sign_in(self, token: str, **headers: str) -> Answer:
        """Sends a token by the form to sign in."""
        form = self.get("/login")
        return self.send("/login", {"csrf": form.field("csrf"), "token": token}, **headers)

    def act(self, fields: Mapping[str, str], **headers: str) -> Answer:
        """Sends a form that acts, with the token of the last page."""
        csrf = self.get("/").field("csrf")
        return self.send("/act", {"csrf": csrf, **fields}, **headers)


class _Structure(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.problems: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        values = dict(attrs)
        if len(names) != len(set(names)):
            self.problems.append(f"{tag} has an attribute twice")
        if any(name.startswith("on") or name == "style" for name in names):
            self.problems.append(f"{tag} has a script or a style")
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "label":
            self.labelled.add(str(values.get("for")))
        if tag in ("input", "select") and values.get("type") != "hidden":
            if "hidden" not in values:
                self.inputs.append((tag, str(values.get("id"))))
        if tag == "img" or (tag == "svg" and not ({"aria-label", "aria-hidden"} & set(names))):
            self.problems.append(f"{tag} has no name")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


def problems_of(page: str) -> list[str]:
    """What is wrong with a page: tags that are not closed, ids that come twice, scripts in tags,
    fields without a label.
    """
    structure = _Structure()
    structure.feed(page)
    structure.close()
    doubled = {one for one in structure.ids if structure.ids.count(one) > 1}
    unlabelled = [one for one in structure.inputs if one[1] not in structure.labelled]
    return [
        *structure.problems,
        *(f"{name} is not closed" for name in structure.open),
        *(f"the id {one} comes twice" for one in doubled),
        *(f"{name} {one} has no label" for name, one in unlabelled),
    ]
