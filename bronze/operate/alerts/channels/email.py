"""E-mail by SMTP, over verified TLS. All mails about one alert are one thread."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.notices import Notice
from bronze.printable import visible

_PERMANENT = 500


@dataclass(frozen=True)
class Mailbox:
    """Where mails go through, and from whom to whom; ``tls`` as in `config.sections.alerts`."""

    host: str
    port: int
    tls: str
    sender: str
    to: tuple[str, ...]
    user: str = ""


def send(notice: Notice, mailbox: Mailbox, password: str | None, timeout: float) -> str:
    """Sends a mail; returns what the server answered.

    Raises:
        ChannelError: it was not accepted, or not for all of the recipients.
    """
    message = mail(notice, mailbox)
    with _session(mailbox, timeout) as session:
        server = session.server
        if mailbox.user:
            server.login(mailbox.user, password or "")
        session.ready = True
        refused = server.send_message(message)
        # The mail is accepted: whatever happens to the connection now must not send it again.
        with suppress(OSError, smtplib.SMTPException):
            server.quit()
    if refused:
        raise ChannelError(f"{mailbox.host} refused {', '.join(refused)}", retry=False)
    return "250 accepted"


def reach(mailbox: Mailbox, timeout: float) -> str:
    """Connects to the server, over verified TLS as the config says, and sends nothing.

    Returns:
        The host and port.

    Raises:
        ChannelError: it cannot be reached, or not over such TLS.
    """
    with _session(mailbox, timeout) as session:
        session.server.ehlo_or_helo_if_needed()
    return f"{mailbox.host}:{mailbox.port}"


@dataclass
class _Session:
    """A connection; ``ready`` says that a mail may be on its way."""

    server: smtplib.SMTP
    ready: bool = False


@contextmanager
def _session(mailbox: Mailbox, timeout: float) -> Iterator[_Session]:
    """A connection over TLS as the config says; its errors are those of a channel."""
    host, session = mailbox.host, None
    try:
        session = _Session(_connection(mailbox, timeout))
        if mailbox.tls == "starttls":
            session.server.starttls(context=ssl.create_default_context())
        yield session
    except smtplib.SMTPException as error:
        raise _refusal(mailbox, error, uncertain=_is_ready(session)) from None
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or "no TLS"
        raise ChannelError(f"{host} has no TLS that can be trusted: {why}", retry=True) from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise ChannelError(
            f"{host} cannot be reached: {why}", retry=True, uncertain=_is_ready(session)
        ) from None
    except ValueError:
        # The message of the error has the password.
        raise ChannelError(
            f"{host} cannot get the password or an address: they have other characters than ASCII",
            retry=False,
        ) from None
    finally:
        if session is not None:
            session.server.close()


def _is_ready(session: _Session | None) -> bool:
    return session is not None and session.ready


def _refusal(mailbox: Mailbox, error: smtplib.SMTPException, *, uncertain: bool) -> ChannelError:
    """What a server did not accept, in a sentence."""
    host = mailbox.host
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        return ChannelError(
            f"{host} refused {', '.join(error.recipients)} ({codes[0]})",
            retry=any(code < _PERMANENT for code in codes),
        )
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return ChannelError(
            f"{host} refused the login of {mailbox.user} ({error.smtp_code})",
            retry=error.smtp_code < _PERMANENT,
        )
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        # Codes below 100 are no answer of the server: the connection was cut.
        return ChannelError(
            f"{host} answered {error.smtp_code} {visible(text[:200])}",
            retry=error.smtp_code < _PERMANENT,
        )
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return ChannelError(f"{host} cannot do what the config asks: {error}", retry=True)
    return ChannelError(f"{host} cannot be reached: {error}", retry=True, uncertain=uncertain)


def _connection(mailbox: Mailbox, timeout: float) -> smtplib.SMTP:
    if mailbox.tls == "implicit":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=timeout, context=context)
    return smtplib.SMTP(mailbox.host, mailbox.port, timeout=timeout)


def mail(notice: Notice, mailbox: Mailbox) -> EmailMessage:
    """The mail of a notice. Its id is the same whenever it is sent, so that a mail that was sent
    twice is one; those after the first refer to it.
    """
    message = EmailMessage()
    domain = mailbox.sender.rpartition("@")[2]
    thread = f"<{notice.id}.open@{domain}>"
    message["From"] = mailbox.sender
    message["To"] = ", ".join(mailbox.to)
    # Mail programs keep a thread together by its subject, so it has nothing that may change.
    prefix = "" if notice.act == "open" else "Re: "
    message["Subject"] = f"{prefix}[bronze] {notice.kind}: {notice.subject}"
    message["Date"] = format_datetime(notice.at)
    message["Message-ID"] = f"<{notice.id}.{notice.act}@{domain}>"
    if notice.act != "open":
        message["In-Reply-To"] = message["References"] = thread
    if notice.level == "critical":
        message["Importance"] = "high"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notice.text)
    return message
