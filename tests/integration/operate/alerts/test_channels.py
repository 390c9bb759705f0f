"""Channels against servers of the tests: what they send, what they refuse, what errors say."""

from __future__ import annotations

import email as email_parser
import hmac
import json
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from email import policy
from pathlib import Path
from typing import Any

import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.operate.alerts.channels import email, slack, webhook
from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.channels.sender import sender
from bronze.operate.alerts.life import Alert, Condition, Message
from bronze.operate.alerts.notices import Notice, notice
from tests.support.receiver import Receiver, post_office, receiver, server_context

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
OPENED = Notice(
    id="a" * 32,
    act="open",
    level="critical",
    kind="failed",
    subject="tests.orders",
    title="orders failed three times",
    lines=("Since 2026-11-27 12:00:00 UTC.", "Grüße <@U1> & more"),
    at=NOON,
)
RESOLVED = replace(OPENED, act="resolve", title="Resolved: orders failed five times")
ACKNOWLEDGED = replace(OPENED, act="acknowledge", title="Acknowledged: orders failed", by="ada")
SECRETS = {"TOKEN": "xoxb-s3cret", "KEY": "routing-s3cret", "PASS": "pa55-w0rd", "SIGN": "s1gn"}


@pytest.fixture(autouse=True)
def known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets of the channels."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def settings_with(*channels: dict[str, Any]) -> Settings:
    """A config with channels."""
    return loading.parse(
        {
            "source": {"name": "DE", "dsn": "postgresql://me@localhost/x"},
            "lake": {"root": "lake"},
            "alerts": {"channels": list(channels)},
        }
    )


def send(channel: dict[str, Any], *notices: Notice, timeout: float = 5) -> list[str]:
    """Sends notices by a channel of the config."""
    settings = settings_with({"name": "c", **channel})
    deliver = sender(settings, settings.alerts.channels[0])
    return [deliver(notice, timeout) for notice in notices]


def refusal(channel: dict[str, Any], timeout: float = 5) -> ChannelError:
    """The error of a notice; it has no secret."""
    with pytest.raises(ChannelError) as raised:
        send(channel, OPENED, timeout=timeout)
    text = f"{raised.value}"
    assert not [secret for secret in SECRETS.values() if secret in text]
    assert raised.value.__cause__ is None
    return raised.value


def mailbox(port: int, **more: Any) -> dict[str, Any]:
    """A channel for e-mail in clear to a server of the test."""
    channel = {"kind": "email", "server": f"localhost:{port}", "tls": "none"}
    return {**channel, "sender": "bronze@example.com", "to": ["ada@example.com"], **more}


def test_a_mail_is_whole_and_its_thread_stays_together() -> None:
    """The resolution refers to the opening and has its subject; a mail sent twice has one id."""
    with post_office() as office:
        to = ["ada@example.com", "bob@example.com"]
        send(mailbox(office.port, to=to), OPENED, OPENED, ACKNOWLEDGED, RESOLVED)
    first, again, answer, end = (
        email_parser.message_from_bytes(mail, policy=policy.default) for mail in office.mails
    )
    assert first["Message-ID"] == again["Message-ID"]
    assert end["In-Reply-To"] == end["References"] == answer["References"] == first["Message-ID"]
    assert len({first["Message-ID"], answer["Message-ID"], end["Message-ID"]}) == 3
    assert end["Subject"] == answer["Subject"] == f"Re: {first['Subject']}"
    assert first["To"] == ", ".join(to)
    body = first.get_body()
    assert body is not None
    assert body.get_content().split("\r\n") == [*OPENED.text.split("\n"), ""]
    assert len(office.recipients) == 8


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_mails_and_passwords_go_over_verified_tls(
    tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the server's CA nothing is sent, not even the login."""
    login = {"tls": tls, "user": "ada", "password": {"secret": "PASS"}}
    with post_office(server_context(tmp_path), implicit=tls == "implicit") as office:
        error = refusal(mailbox(office.port, **login))
        assert "TLS that can be trusted" in str(error)
        assert (office.logins, office.mails) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        send(mailbox(office.port, **login), OPENED)
    assert office.logins == ["\0ada\0pa55-w0rd"]
    assert office.encrypted == [True]


def test_a_server_without_starttls_gets_no_mail() -> None:
    """Whoever strips STARTTLS from the answers reads nothing."""
    with post_office() as office:
        login = {"tls": "starttls", "user": "ada", "password": {"secret": "PASS"}}
        assert "STARTTLS" in str(refusal(mailbox(office.port, **login)))
    assert (office.logins, office.mails) == ([], [])


@pytest.mark.parametrize(
    ("verb", "answer", "retry"),
    [
        ("MAIL", "451 try later", True),
        ("MAIL", "550 no", False),
        ("RCPT", "450 greylisted", True),
        ("RCPT", "550 unknown", False),
        ("DATA", "452 full", True),
        ("MESSAGE", "554 spam pa55-w0rd", False),
        ("AUTH", "535 pa55-w0rd is wrong", False),
        ("AUTH", "454 later", True),
    ],
)
def test_answers_of_mail_servers(verb: str, answer: str, retry: bool) -> None:
    """4xx is tried again, 5xx is not; the answer is in the error, without the password."""
    with post_office() as office:
        office.answers[verb] = answer
        error = refusal(mailbox(office.port, user="ada", password={"secret": "PASS"}))
    assert (error.retry, error.uncertain) == (retry, False)
    assert answer[:3] in str(error)


def test_a_mail_whose_answer_is_missing_may_have_arrived() -> None:
    """A connection that is cut before the server has the mail, or a silent server, is certain."""
    with post_office() as office:
        office.answers["MESSAGE"] = ""
        assert refusal(mailbox(office.port)).uncertain
        office.answers.clear()
        # The end of the conversation says nothing about the mail.
        office.answers["QUIT"] = "421 what?"
        assert send(mailbox(office.port), OPENED) == ["250 accepted"]
        office.speak = lambda connection: time.sleep(1)
        assert not refusal(mailbox(office.port), timeout=0.2).uncertain


def test_a_password_with_other_characters_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a line break in a token, nor an umlaut in a password."""
    monkeypatch.setenv("PASS", "pässwort")
    monkeypatch.setenv("TOKEN", "xoxb-s3cret\n")
    with post_office() as office, receiver() as server:
        login = {"user": "ada", "password": {"secret": "PASS"}}
        assert "ässwort" not in str(refusal(mailbox(office.port, **login)))
        assert "s3cret" not in str(refusal(bot(server)))


def bot(server: Receiver) -> dict[str, Any]:
    """A Slack channel with a token."""
    return {"kind": "slack", "token": {"secret": "TOKEN"}, "channel": "#data", "url": server.url}


def test_slack_messages_by_token_and_by_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names become no mentions; nothing is longer than Slack allows."""
    with receiver() as server:
        server.answer(200, '{"ok": true}')
        long = replace(OPENED, lines=("&" * 5000,), title="&" * 250)
        send(bot(server), OPENED, long)
        monkeypatch.setenv("HOOK", f"{server.url}/services/T1/B2/s3cret")
        send({"kind": "slack", "webhook": {"secret": "HOOK"}}, RESOLVED)
    opened, cut, resolved = (json.loads(request.body) for request in server.requests)
    assert server.requests[0].headers["Authorization"] == "Bearer xoxb-s3cret"
    assert server.requests[0].path == "/api/chat.postMessage"
    assert server.requests[2].path == "/services/T1/B2/s3cret"
    assert opened["channel"] == "#data"
    assert "&lt;@U1&gt; &amp; more" in opened["blocks"][0]["text"]["text"]
    assert 2800 < len(cut["blocks"][0]["text"]["text"]) <= 3000
    assert cut["blocks"][0]["text"]["text"].endswith("&amp;")
    assert resolved["text"].startswith(":white_check_mark: Resolved: orders")


def test_refusals_of_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit says when to try again; ``ok: false`` is no success; no path is repeated."""
    with receiver() as server:
        server.answer(429, "slow down", Retry_After="7")
        error = refusal(bot(server))
        assert (error.retry, error.after) == (True, 7)
        server.answer(429, "", Retry_After="²")
        assert refusal(bot(server)).after is None
        for why, retry in (("channel_not_found", False), ("ratelimited", True)):
            server.answer(200, json.dumps({"ok": False, "error": why}))
            error = refusal(bot(server))
            assert (why in str(error), error.retry) == (True, retry)
        server.answer(200, "<html>")
        assert "no JSON" in str(refusal(bot(server)))
        monkeypatch.setenv("HOOK", f"{server.url}/services/T1/B2/h00k")
        server.answer(404, "there is no /services/T1/B2/h00k here")
        error = refusal({"kind": "slack", "webhook": {"secret": "HOOK"}})
        assert "404: there is no [secret] here" in str(error)
        monkeypatch.setenv("HOOK", "https://h00k:port/")
        assert "h00k" not in str(refusal({"kind": "slack", "webhook": {"secret": "HOOK"}}))


def pager(server: Receiver) -> dict[str, Any]:
    """A PagerDuty channel."""
    return {"kind": "pagerduty", "key": {"secret": "KEY"}, "url": server.url}


def test_pagerduty_gets_one_incident() -> None:
    """Trigger, acknowledge and resolve have one key."""
    with receiver() as server:
        answers = send(pager(server), OPENED, ACKNOWLEDGED, RESOLVED)
    assert answers == ["202 Event processed"] * 3
    events = [json.loads(request.body) for request in server.requests]
    assert [event["event_action"] for event in events] == ["trigger", "acknowledge", "resolve"]
    assert {event["dedup_key"] for event in events} == {OPENED.id}
    assert {event["routing_key"] for event in events} == {"routing-s3cret"}
    assert events[0]["payload"]["severity"] == "critical"
    assert events[0]["payload"]["summary"] == OPENED.title


@pytest.mark.parametrize(
    ("status", "retry"), [(400, False), (429, True), (500, True), (503, True), (302, False)]
)
def test_refusals_of_pagerduty(status: int, retry: bool) -> None:
    """What cannot get better is not tried again soon; a redirect is not followed."""
    with receiver() as server, receiver() as elsewhere:
        body = '{"status": "invalid", "errors": ["routing-s3cret is not a key"]}'
        server.answer(status, body, Location=elsewhere.url)
        error = refusal(pager(server))
        assert (error.retry, error.uncertain) == (retry, False)
        assert f"localhost answered {status}" in str(error)
        assert elsewhere.requests == []


def test_an_answer_that_never_comes_is_uncertain() -> None:
    """Where nobody listens, nothing has arrived."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://localhost:{silent.getsockname()[1]}"
        channel = {"kind": "webhook", "url": url}
        error = refusal(channel, timeout=0.2)
        assert (error.retry, error.uncertain) == (True, True)
    error = refusal(channel)
    assert (error.retry, error.uncertain) == (True, False)
    assert "localhost cannot be reached: Connection refused" in str(error)


def test_a_webhook_is_signed() -> None:
    """The receiver computes the signature itself; another body, time or secret gives another."""
    with receiver() as server:
        send(
            {"kind": "webhook", "url": f"{server.url}/in?a=b", "secret": {"secret": "SIGN"}}, OPENED
        )
        send({"kind": "webhook", "url": server.url}, OPENED)
    signed, plain = server.requests
    assert signed.path == "/in?a=b"
    fields = dict(part.split("=", 1) for part in signed.headers[webhook.SIGNATURE].split(","))
    mac = hmac.new(b"s1gn", fields["t"].encode() + b"." + signed.body, "sha256").hexdigest()
    assert fields["v1"] == mac
    assert abs(int(fields["t"]) - signed.at) < 5
    assert webhook.SIGNATURE not in plain.headers
    document = json.loads(signed.body)
    assert (document["id"], document["act"], document["subject"]) == (
        OPENED.id,
        "open",
        "tests.orders",
    )


def test_certificates_of_http_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose CA is not known, or that has another name, gets nothing."""
    with receiver(server_context(tmp_path)) as server:
        channel = {"kind": "webhook", "url": server.url}
        error = refusal(channel)
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        assert not error.uncertain
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        other_name = {"kind": "webhook", "url": server.url.replace("localhost", "127.0.0.1")}
        refusal(other_name)
        assert server.requests == []
        send(channel, OPENED)
    assert len(server.requests) == 1


def test_a_secret_that_was_changed_is_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is missing is named, and tried again."""
    with receiver() as server:
        settings = settings_with({"name": "c", **pager(server)})
        deliver = sender(settings, settings.alerts.channels[0])
        deliver(OPENED, 5)
        monkeypatch.setenv("KEY", "rotated")
        deliver(OPENED, 5)
        monkeypatch.delenv("KEY")
        with pytest.raises(ChannelError, match="KEY is not set") as raised:
            deliver(OPENED, 5)
        assert raised.value.retry
    keys = [json.loads(request.body)["routing_key"] for request in server.requests]
    assert keys == ["routing-s3cret", "rotated"]


def test_a_table_of_any_name_can_be_told_of() -> None:
    """Line breaks in it become neither headers of a mail nor lines; long texts of Slack are cut
    between characters.
    """
    name = "x\nBcc: eve@example.com\x1b[2J"
    condition = Condition("failed", name, "critical", NOON, f"{name} failed")
    alert = Alert(condition, state="open", opened=NOON)
    told = notice("lake", alert, Message("open", "c", NOON, NOON), why=[name])
    mail = email.mail(told, email.Mailbox("h", 25, "none", "b@example.com", ("ada@example.com",)))
    assert mail["Bcc"] is None
    assert r"x\nBcc: eve@example.com\x1b[2J" in str(mail["Subject"])
    assert "\x1b" not in mail.as_string() + told.text
    assert slack._escape("<<<", 8) == "&lt;&lt;"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library's imports
def test_other_services_are_told_by_apprise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice arrives; what apprise logs of a failure is the error, without the address."""
    channel = {"kind": "apprise", "url": {"secret": "URL"}}
    with receiver() as service:
        address = service.url.removeprefix("http://")
        monkeypatch.setenv("URL", f"json://{address}/s3cret?method=post")
        assert send(channel, OPENED, RESOLVED) == ["sent", "sent"]
        bodies = [json.loads(request.body) for request in service.requests]
        service.answer(500, "no")
        error = refusal(channel)
    assert [body["title"] for body in bodies] == [OPENED.title, RESOLVED.title]
    assert [body["type"] for body in bodies] == ["failure", "success"]
    assert error.retry
    assert "500" in str(error)
    assert "s3cret" not in str(error)
    monkeypatch.setenv("URL", "nothing://s3cret")
    unknown = refusal(channel)
    assert not unknown.retry
    assert "s3cret" not in str(unknown)
