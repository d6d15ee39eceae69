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

FILE = Path(__file__).with_name("automations.yaml")
BLOCK = "cmseg-alert"


def apply(webhook: str | None) -> None:
    """Make the automations anew, and remove those that are no longer wanted; safe to repeat.

    Parameters
    ----------
    webhook : str, optional
        Address that is told of what goes wrong; None for no alerts.
    """
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    told = str(Webhook(url=webhook).save(BLOCK, overwrite=True)) if webhook else None  # type: ignore[call-arg]
    with get_client(sync_client=True) as client:
        for entry in entries:
            alert = entry.pop("alert", None)
            if alert is not None:
                action = {"type": "call-webhook", "block_document_id": told, "payload": alert}
                entry["actions"] = [action]
            _replace(client, entry, wanted=alert is None or told is not None)


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
    apply(os.environ.get("CMSEG_ALERT_WEBHOOK"))
