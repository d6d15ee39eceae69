"""The local stack: its settings, its secrets, and the services that it consists of, in the order of their start."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.storage.buckets import ensure_bucket
from deployments import metrics_server, mlflow_server, object_store, prefect_server
from deployments.mail import PASSWORD, MailServer, addresses
from deployments.postgres import database_uri, postgres_service
from deployments.private import write_private
from deployments.service import Service

BUCKET = "s3://cmseg"
_BUCKET = BUCKET.removeprefix("s3://")
_READS = (f"Read:{_BUCKET}", f"List:{_BUCKET}")
_RESULTS = tuple(f"Write:{_BUCKET}/{folder}/*" for folder in ("acquisitions", "quarantine", "work"))
MAY_DO = {
    # Raw data is neither changed nor deleted by what runs at night.
    "worker": (*_READS, *_RESULTS),
    "people": (*_READS, *_RESULTS, f"Write:{_BUCKET}/incoming/*", f"Write:{_BUCKET}/datasets/*"),
    "mlflow": (f"Read:{_BUCKET}/mlflow/*", f"List:{_BUCKET}/mlflow/*", f"Write:{_BUCKET}/mlflow/*"),
    "metrics": _READS,
}
"""Identities of the object store, beside the one that makes the bucket."""
Port = Annotated[int, Field(ge=1, le=65535)]


class StackSettings(BaseSettings):
    """The services of ``cmseg up``; every field is a ``CMSEG_*`` variable."""

    model_config = SettingsConfigDict(env_prefix="CMSEG_", extra="ignore", frozen=True, hide_input_in_errors=True)

    s3_port: Port = 8333
    """Of the object store; all ports are on 127.0.0.1."""
    postgres_port: Port = 5433
    """Of the database behind Prefect and MLflow."""
    mlflow_port: Port = 5001
    """Of trainings and models; a page to look at."""
    prefect_port: Port = 4200
    """Of the runs; a page to look at."""
    metrics_port: Port = 9108
    """Of the metrics for Prometheus, at ``/metrics``."""
    night: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "22:00"
    """When the night begins, every day."""
    time_zone: str = "UTC"
    """Where it is that late, as in ``Europe/Berlin``."""
    alert_webhook: str | None = None
    """Address that is told, in JSON, of runs that fail, crash or are late, and of what was quarantined."""
    alert_email: str | None = None
    """Addresses, separated by commas, that are told the same by e-mail."""
    alert_smtp: str | None = None
    """Server that takes the e-mail, ``smtp://USER@HOST:587``; ``smtps`` is encrypted from the first word on."""
    alert_smtp_password: Annotated[SecretStr | None, Field(exclude=True)] = None
    """Of that user. Prefect's server alone gets it, and it is written nowhere; without it nobody logs in."""
    runs_at_once: Annotated[int, Field(ge=1)] = 2
    """Flows that the worker runs at a time: a night and something that a person started."""

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("is no time zone such as Europe/Berlin")
        return value

    @field_validator("alert_webhook")
    @classmethod
    def _web(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("is no address such as https://example.org/hook")
        return value

    @field_validator("alert_email")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        return value and ",".join(addresses(value))

    @field_validator("alert_smtp")
    @classmethod
    def _server(cls, value: str | None) -> str | None:
        if value:
            MailServer.of(value)
        return value

    @field_validator("alert_smtp_password")
    @classmethod
    def _ascii(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().isascii():
            raise ValueError("has letters that a login by SMTP does not take")
        return value

    @model_validator(mode="after")
    def _both(self) -> StackSettings:
        if bool(self.alert_email) != bool(self.alert_smtp):
            raise ValueError("alert_email and alert_smtp are set together, or neither")
        return self

    @property
    def ports(self) -> dict[str, int]:
        """Variable to port."""
        names = ("s3_port", "postgres_port", "mlflow_port", "prefect_port", "metrics_port")
        return {f"CMSEG_{name.upper()}": getattr(self, name) for name in names}


class Secrets(Frozen):
    """What the services know each other by; made once, in a file that only its owner reads."""

    postgres: str
    prefect: str
    mlflow: str
    mlflow_forms: str
    metrics: str


class Stack:
    """The stack of a workspace.

    Parameters
    ----------
    workspace : path
        Everything lies in its folder ``stack``.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.folder = workspace, workspace / "stack"
        self.logs, self.state = self.folder / "logs", self.folder / "state.json"
        self.log = self.logs / "supervisor.log"

    def exists(self) -> bool:
        """Whether the stack was ever started."""
        return (self.folder / "environment.json").is_file()

    def is_up(self) -> bool:
        """Whether a supervisor holds the stack now."""
        if not self.folder.is_dir():
            return False
        try:
            with self.held():
                return False
        except InputError:
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the stack: two supervisors would start everything twice.

        Raises
        ------
        InputError
            Where another process holds it, or the folder cannot be written.
        """
        try:
            self.workspace.mkdir(parents=True, exist_ok=True)
            # For its owner alone; PostgreSQL's account may be let through it later, and must not be shut out again.
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise InputError(self.folder, reason, "set CMSEG_WORKSPACE to a folder that can be written") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(self.folder, "the services are up already", "see `cmseg status`") from error
        else:
            yield
        finally:
            os.close(lock)

    def environment(self) -> list[dict[str, str]]:
        """Variables under which commands of this machine use the services, as :meth:`write_environment` wrote them."""
        return json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))

    def write_environment(self, settings: StackSettings) -> list[dict[str, str]]:
        """Make the secrets where they are absent, and write down how the services are reached.

        The file is like the secrets: only its owner reads it. The variables come in groups, of which the first says
        which service is used, and the rest how.
        """
        known = self.secrets()
        environment = [
            {"CMSEG_STORE": BUCKET, **self.store_environment(settings, "people")},
            mlflow_server.client_environment(settings.mlflow_port, known.mlflow),
            prefect_server.client_environment(settings.prefect_port, known.prefect),
        ]
        write_private(self.folder / "environment.json", json.dumps(environment, indent=2))
        write_private(self.folder / "settings.json", settings.model_dump_json())
        return environment

    def settings(self) -> StackSettings:
        """The settings that the stack was started with last."""
        return StackSettings(**json.loads((self.folder / "settings.json").read_text(encoding="utf-8")))

    def store_environment(self, settings: StackSettings, identity: str) -> dict[str, str]:
        """Variables under which an identity reaches the object store; it may do no more than it needs to."""
        folder = self._made("s3")
        actions = MAY_DO.get(identity)
        keys = object_store.credentials(folder, identity, actions) if actions else object_store.credentials(folder)
        return object_store.client_environment(object_store.endpoint_of(settings.s3_port), *keys)

    def secrets(self) -> Secrets:
        """The secrets. What is absent is made: all at the first call, later what a new version of cmseg needs."""
        path = self.folder / "secrets.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        absent = {name: secrets.token_urlsafe(24) for name in Secrets.model_fields if name not in known}
        if absent:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, json.dumps({**known, **absent}))
        return Secrets.model_validate({**known, **absent})

    def services(self, settings: StackSettings) -> list[Service]:
        """What is started, in this order, and ended in the reverse one."""
        os.environ.pop(PASSWORD, None)  # or every service and every flow would inherit it
        known, (_, mlflow, prefect) = self.secrets(), self.write_environment(settings)
        owner, files, worker = (self.store_environment(settings, name) for name in ("cmseg", "mlflow", "worker"))
        postgres = settings.postgres_port, known.postgres
        hour, minute = settings.night.split(":")
        named = {"CMSEG_NIGHT_CRON": f"{int(minute)} {int(hour)} * * *", "CMSEG_TIME_ZONE": settings.time_zone}
        return [
            object_store.object_store_service(
                self.folder / "s3", settings.s3_port, self.logs / "s3.log", ready=lambda: _make_bucket(owner)
            ),
            postgres_service(self.folder / "postgres", *postgres, self.logs / "postgres.log"),
            mlflow_server.mlflow_service(
                self._made("mlflow"),
                settings.mlflow_port,
                password=known.mlflow,
                signing_key=known.mlflow_forms,
                database=database_uri("postgresql+psycopg", *postgres, "mlflow"),
                artifacts=f"{BUCKET}/mlflow",
                store=files,
                log=self.logs / "mlflow.log",
            ),
            prefect_server.prefect_service(
                self._made("prefect"),
                settings.prefect_port,
                password=known.prefect,
                database=database_uri("postgresql+asyncpg", *postgres, "prefect"),
                mail_password=settings.alert_smtp_password,
                log=self.logs / "prefect.log",
            ),
            prefect_server.worker_service(
                self._made("worker"),
                settings.prefect_port,
                password=known.prefect,
                environment={"CMSEG_STORE": BUCKET, **worker, **mlflow, "CMSEG_WORKSPACE": str(self.workspace)},
                named=named,
                at_once=settings.runs_at_once,
                log=self.logs / "worker.log",
            ),
            metrics_server.metrics_service(
                self._made("metrics"),
                settings.metrics_port,
                password=known.metrics,
                workspace=self.workspace,
                environment={"CMSEG_STORE": BUCKET, **self.store_environment(settings, "metrics"), **prefect},
                log=self.logs / "metrics.log",
            ),
        ]

    def _made(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def _make_bucket(store: Mapping[str, str]) -> None:
    os.environ.update(store)
    ensure_bucket(BUCKET)
