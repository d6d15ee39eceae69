"""E-mail by SMTP: the addresses that are told, and the server that takes it."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from urllib.parse import unquote, urlsplit

PASSWORD = "CMSEG_ALERT_SMTP_PASSWORD"
"""Variable of the password. Prefect's server alone gets it, and it is written nowhere."""
_ADDRESS = re.compile(r"[^\s@,:;<>()\[\]\\\"]+@[\w-]+(\.[\w-]+)*", re.ASCII)
_PORTS = {"smtp": 587, "smtps": 465}
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_SECONDS = 20.0


@dataclass(frozen=True)
class MailServer:
    """Server that takes e-mail.

    Attributes
    ----------
    host : str
    port : int
    encrypted : bool
        From the first word on; otherwise as soon as the server offers it, save on this machine.
    user : str
        Logs in where there is a password; the sender where it is an address.
    """

    host: str
    port: int
    encrypted: bool
    user: str = ""

    @classmethod
    def of(cls, url: str) -> MailServer:
        """Read an address such as ``smtp://user@host:587``.

        Raises
        ------
        ValueError
            Where it is none, or holds a password; the message repeats nothing of it.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port, parts = "", None, urlsplit("")
        if parts.password is not None:
            raise ValueError(f"must not hold the password, which belongs in {PASSWORD}")
        user, rest = unquote(parts.username or ""), parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in _PORTS or not host or port == 0 or rest or not user.isascii() or re.search(r"\s", url):
            raise ValueError("is no server such as smtp://user@host:587 or smtps://user@host:465")
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "smtps", user)

    def send(self, recipients: Sequence[str], subject: str, text: str, *, password: str | None = None) -> None:
        """Send a message.

        Parameters
        ----------
        recipients : sequence of str
        subject : str
        text : str
        password : str, optional
            Of the user. It goes to another machine over an encrypted connection only.

        Raises
        ------
        OSError
            Where the server is not reached, or refuses.
        """
        sender = self.user if is_address(self.user) else recipients[0]
        message = EmailMessage(policy=SMTP)
        message["From"], message["To"] = sender, ", ".join(recipients)
        message["Subject"] = " ".join(subject.split())
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=sender.rpartition("@")[2])
        message["Auto-Submitted"] = "auto-generated"  # nobody's absence is told to an alert
        message.set_content(text, cte="quoted-printable")
        with self._connect() as connection:
            private = self.encrypted or self.host in _THIS_MACHINE
            connection.ehlo_or_helo_if_needed()
            if not private and connection.has_extn("starttls"):
                connection.starttls(context=ssl.create_default_context())
                private = True
            if password and self.user:
                if not private:
                    raise smtplib.SMTPNotSupportedError("encrypts nothing, so that the password is not sent")
                connection.login(self.user, password)
            refused = connection.send_message(message, sender, recipients)
        if refused:  # some of them; the others are told
            raise smtplib.SMTPRecipientsRefused(refused)

    def _connect(self) -> smtplib.SMTP:
        if self.encrypted:
            return smtplib.SMTP_SSL(self.host, self.port, timeout=_SECONDS, context=ssl.create_default_context())
        return smtplib.SMTP(self.host, self.port, timeout=_SECONDS)


def is_address(text: str) -> bool:
    """Whether a text is one plain address such as ``name@host``."""
    return text.isascii() and _ADDRESS.fullmatch(text) is not None


def addresses(text: str) -> list[str]:
    """Addresses that a text names, separated by commas.

    Raises
    ------
    ValueError
        Where one of them is none.
    """
    found = [part.strip() for part in text.split(",")]
    for one in found:
        if not is_address(one):
            raise ValueError(f"{one!r} is no address such as name@example.org")
    return found
