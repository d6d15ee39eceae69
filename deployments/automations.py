"""The automations of ``automations.yaml``, brought to the Prefect server of the environment.

Run as ``python -m deployments.automations``; ``cmseg up`` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore

from deployments.blocks import Mail
from deployments.mail import addresses

FILE = Path(__file__).with_name("automations.yaml")
BLOCK = "cmseg-alert"


def apply(webhook: str | None, email: str | None = None, smtp: str | None = None) -> None:
    """Make the automations anew, and remove those that are no longer wanted; safe to repeat.

    Parameters
    ----------
    webhook : str, optional
        Address that is told of what goes wrong.
    email : str, optional
        Addresses that are told by e-mail, separated by commas.
    smtp : str, optional
        Server that takes the e-mail, see :class:`deployments.mail.MailServer`.
    """
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    told: dict[str, str] = {}
    if webhook:
        told["call-webhook"] = str(Webhook(url=webhook).save(BLOCK, overwrite=True))  # type: ignore[call-arg]
    if email and smtp:
        told["send-notification"] = str(Mail(server=smtp, recipients=addresses(email)).save(BLOCK, overwrite=True))
    with get_client(sync_client=True) as client:
        for entry in entries:
            alert = entry.pop("alert", None)
            if alert is not None:
                contents = _contents(**alert)
                entry["actions"] = [
                    {"type": kind, "block_document_id": block, **contents[kind]} for kind, block in told.items()
                ]
            _replace(client, entry, wanted=bool(entry["actions"]))


def _contents(subject: str, text: str) -> dict[str, dict[str, str]]:
    """What each kind of action sends. Reasons hold quotes and line breaks, so that `tojson` writes the JSON."""
    told = f'{{% set told %}}{subject}. {text}{{% endset %}}{{"text": {{{{ told | tojson }}}}}}'
    return {
        "call-webhook": {"payload": told},
        "send-notification": {"subject": subject, "body": f"{subject}.\n\n{text}"},
    }


def _replace(client: SyncPrefectClient, entry: dict[str, Any], *, wanted: bool) -> None:
    present = client.read_automations_by_name(entry["name"])
    for former in present[1:] if wanted else present:
        client.delete_automation(former.id)
    if not wanted:
        return
    automation = AutomationCore.model_validate(entry)
    if present:
        client.update_automation(present[0].id, automation)
    else:
        client.create_automation(automation)


if __name__ == "__main__":
    apply(*(os.environ.get(f"CMSEG_ALERT_{name}") for name in ("WEBHOOK", "EMAIL", "SMTP")))
