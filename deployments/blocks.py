"""What Prefect's server can do besides what it brings; it finds this module by an entry point of the package."""

from __future__ import annotations

import asyncio
import os

from prefect.blocks.abstract import NotificationBlock, NotificationError
from pydantic import Field

from deployments.mail import PASSWORD, MailServer


class Mail(NotificationBlock):
    """Tells people by e-mail. The password comes from the environment of the server, and is in no database."""

    _block_type_name = "cmseg mail"
    _block_type_slug = "cmseg-mail"

    server: str = Field(description="As in smtp://user@host:587.")
    recipients: list[str] = Field(description="Addresses that are told.")

    async def notify(self, body: str, subject: str | None = None) -> None:
        """Send a message.

        Raises
        ------
        NotificationError
            Where the mail server is not reached, or refuses.
        """
        password = os.environ.get(PASSWORD)
        try:
            server = MailServer.of(self.server)
            await asyncio.to_thread(server.send, self.recipients, subject or "cmseg", body, password=password)
        except (OSError, ValueError) as error:
            raise NotificationError(f"{self.server}: {error}") from error
