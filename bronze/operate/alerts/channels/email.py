"""E-mail by SMTP, over verified TLS. All mails about one alert are one thread."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.notices import Notice
from bronze.printable import visible

_PERMANENT = 500


@dataclass(frozen=True)
class Mailbox:
    """Where mails go through, and from whom to whom. ``tls`` is as in `bronze.config.alerts`."""

    host: str
    port: int
    tls: str
    sender: str
    to: tuple[str, ...]
    user: str = ""


def send(notice: Notice, mailbox: Mailbox, password: str | None, timeout: float) -> str:
    """Sends a mail; returns what the server answered.

    Raises:
        ChannelError: it was not accepted, by any of the recipients.
    """
    message = mail(notice, mailbox)
    try:
        with _connection(mailbox, timeout) as server:
            if mailbox.tls == "starttls":
                server.starttls(context=ssl.create_default_context())
            if mailbox.user:
                server.login(mailbox.user, password or "")
            refused = server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise ChannelError(
            f"{mailbox.host} refused {', '.join(error.recipients)} ({codes[0]})",
            retry=any(code < _PERMANENT for code in codes),
        ) from None
    except smtplib.SMTPAuthenticationError as error:
        raise ChannelError(
            f"{mailbox.host} refused the login of {mailbox.user} ({error.smtp_code})", retry=False
        ) from None
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ChannelError(
            f"{mailbox.host} answered {error.smtp_code} {visible(text[:200])}",
            retry=error.smtp_code < _PERMANENT,
        ) from None
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or "no TLS"
        raise ChannelError(
            f"{mailbox.host} has no TLS that can be trusted: {why}", retry=True
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ChannelError(f"{mailbox.host} cannot be reached: {why}", retry=True) from None
    if refused:
        raise ChannelError(f"{mailbox.host} refused {', '.join(refused)}", retry=False)
    return "250 accepted"


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
    # The subject stays the same, as mail programs keep a thread together by it.
    prefix = "" if notice.act == "open" else "Re: "
    opening = notice.title.removeprefix("Resolved: ").removeprefix("Acknowledged: ")
    message["Subject"] = f"{prefix}[bronze] {notice.level}: {opening}"
    message["Date"] = format_datetime(notice.at)
    message["Message-ID"] = f"<{notice.id}.{notice.act}@{domain}>"
    if notice.act != "open":
        message["In-Reply-To"] = message["References"] = thread
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notice.text)
    return message
