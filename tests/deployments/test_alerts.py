"""Alerts: a webhook and a mail server are told by a real Prefect server, which no worker helps."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect.blocks.abstract import NotificationError
from pydantic import SecretStr, ValidationError

from cmseg_core.schema import first_problem
from deployments.blocks import Mail
from deployments.mail import PASSWORD, MailServer
from deployments.prefect_server import POOL, client_environment, prefect_service
from deployments.processes import free_ports
from deployments.stack import Stack, StackSettings

USER, SECRET = "cmseg@lab.example", "to-nobody-else"
ODD = 'a "quoted" name,\na \\ and <b> & ä {{ 7 * 7 }}'
OTHER_MACHINE = "127.0.0.2"
"""Not among the names of this machine that cmseg knows, so that it is used like any other one."""


class MailHost:
    """A mail server, and what it was sent."""

    def __init__(self, **options: Any) -> None:
        self.mails: list[EmailMessage] = []
        self.logins: list[bytes] = []
        (port,) = free_ports(1)
        usual = {"hostname": "127.0.0.1", "port": port, "authenticator": self.authenticate, "auth_require_tls": False}
        self._controller = Controller(self, **{**usual, **options})

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content, policy=default))
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
        self.logins.append(given.password)
        right = (given.login, given.password) == (USER.encode(), SECRET.encode())
        return AuthResult(success=right, handled=False)

    @property
    def host(self) -> str:
        return f"{self._controller.hostname}:{self._controller.port}"

    def __enter__(self) -> MailHost:
        self._controller.start()
        return self

    def __exit__(self, *given: object) -> None:
        self._controller.stop()


class Listener(BaseHTTPRequestHandler):
    """Takes what the webhook is told."""

    def __init__(self, told: list[Any], *given: Any) -> None:
        self.told = told
        super().__init__(*given)

    def do_POST(self) -> None:
        self.told.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *given: Any) -> None:
        pass


@dataclass(frozen=True)
class Site:
    """A Prefect server with the automations, and those whom it tells."""

    api: httpx.Client
    told: list[bytes]
    mail_host: MailHost
    pid: int
    folder: Path
    apply: Callable[..., None]

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        for pause in (0.2, 1, 5, 0):  # as Prefect's client: the server's database may be locked for a moment
            answer = self.api.request(method, path, json=content)
            if answer.status_code != 503:
                break
            time.sleep(pause)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def begin(self, due: datetime, flow: str) -> str:
        """Schedule a run of a deployment whose pool has no worker."""
        flow_id = self.ask("POST", "/flows/", {"name": flow})["id"]
        deployment = {"name": "night", "flow_id": flow_id, "work_pool_name": POOL, "entrypoint": "none.py:none"}
        made = self.ask("POST", "/deployments/", deployment)["id"]
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        return self.ask("POST", f"/deployments/{made}/create_flow_run", {"name": f"{flow}-run", "state": state})["id"]

    def quarantine(self, name: str, **payload: str) -> None:
        """Tell the server of a quarantine, as the night does."""
        self._tell("cmseg.acquisition.quarantined", f"cmseg.acquisition.{name}", name, payload=payload)

    def silent(self, flow: str, since: timedelta) -> str:
        """A run that goes on without deployment, as of a command, and whose last sign of life is a while ago."""
        flow_id = self.ask("POST", "/flows/", {"name": flow})["id"]
        run = self.ask("POST", "/flow_runs/", {"flow_id": flow_id, "name": flow, "state": {"type": "RUNNING"}})["id"]
        related = {"prefect.resource.id": f"prefect.flow.{flow_id}", "prefect.resource.role": "flow"}
        related["prefect.resource.name"] = flow
        occurred = datetime.now(UTC) - since
        self._tell("prefect.flow-run.heartbeat", f"prefect.flow-run.{run}", flow, occurred, related=[related])
        return run

    def state(self, run: str) -> str:
        return self.ask("GET", f"/flow_runs/{run}")["state"]["type"]

    def _tell(self, event: str, resource: str, name: str, occurred: datetime | None = None, **further: Any) -> None:
        known = {"id": str(uuid.uuid4()), "event": event, "occurred": (occurred or datetime.now(UTC)).isoformat()}
        known |= {"resource": {"prefect.resource.id": resource, "prefect.resource.name": name}, **further}
        self.ask("POST", "/events", [known])

    def text(self, part: str) -> str:
        """What the webhook is told of something, once it is."""
        soon(lambda: any(part in json.loads(told)["text"] for told in self.told))
        return next(text for told in self.told if part in (text := json.loads(told)["text"]))

    def mail(self, part: str) -> EmailMessage:
        """The mail with a text in its subject, once it is there."""
        mails = self.mail_host.mails
        soon(lambda: any(part in mail["Subject"] for mail in mails))
        return next(mail for mail in mails if part in mail["Subject"])


def soon(condition: Callable[[], bool], within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server as `cmseg up` starts it, on SQLite; it counts a run as late after a second."""
    folder, (port, hook) = tmp_path_factory.mktemp("prefect"), free_ports(2)
    told: list[bytes] = []
    listener = ThreadingHTTPServer(("127.0.0.1", hook), lambda *given: Listener(told, *given))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    service = prefect_service(
        folder, port, password="door", database=f"sqlite+aiosqlite:///{folder}/prefect.db",
        log=folder / "prefect.log", mail_password=SecretStr(SECRET),
    )  # fmt: skip
    known = {**os.environ, **client_environment(port, "door"), "PREFECT_HOME": str(folder)}
    command = (sys.executable, "-m", "deployments.automations")
    with (
        pytest.MonkeyPatch.context() as patch,
        MailHost() as mail,
        httpx.Client(base_url=known["PREFECT_API_URL"], auth=("cmseg", "door"), trust_env=False) as api,
    ):
        everybody = {
            "CMSEG_ALERT_WEBHOOK": f"http://127.0.0.1:{hook}/",
            "CMSEG_ALERT_EMAIL": "night@lab.example, head@lab.example",
            "CMSEG_ALERT_SMTP": f"smtp://{USER}@{mail.host}",
        }

        def apply(**variables: str) -> None:
            subprocess.run(command, env={**known, **variables}, check=True, timeout=120)

        for name in ("LOOP", "AFTER"):
            patch.setenv(f"PREFECT_SERVER_SERVICES_LATE_RUNS_{name}_SECONDS", "1")
        process = service.start()
        assert process is not None, (folder / "prefect.log").read_text()
        here = Site(api, told, mail, process.pid, folder, apply)
        try:
            apply(**everybody)
            here.ask("POST", "/work_pools/", {"name": POOL, "type": "process"})
            yield here
        finally:
            service.stop(process)
            listener.shutdown()
            listener.server_close()


def test_a_run_that_no_worker_takes_is_told(site: Site) -> None:
    due = datetime.now(UTC) - timedelta(seconds=30)
    site.begin(due, "waiting")
    mail, text = site.mail("waiting-run"), site.text("waiting-run")
    assert mail["Subject"] == "cmseg: waiting waiting-run is Late"
    assert mail["To"] == "night@lab.example, head@lab.example" and mail["From"] == USER
    assert text == f"cmseg: waiting waiting-run is Late. It was due at {due}, and no worker has taken it."
    assert mail.get_content() == text.replace("Late. ", "Late.\r\n\r\n") + "\r\n"


def test_a_run_that_fails_is_told(site: Site) -> None:
    run = site.begin(datetime.now(UTC) + timedelta(hours=1), "broken")
    state = {"type": "FAILED", "message": ODD}
    site.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
    assert site.text("broken-run") == f"cmseg: broken broken-run is Failed. {ODD}"
    mail = site.mail("broken-run")
    assert mail["Subject"] == "cmseg: broken broken-run is Failed"
    assert ODD in mail.get_content().replace("\r\n", "\n")


def test_a_run_that_gives_no_sign_of_life_is_crashed_and_no_other(site: Site) -> None:
    flows = {"nightly", "process-acquisition", "train", "cross-validate", "evaluate", "promote"}
    ours = {name: site.silent(name, timedelta(seconds=85)) for name in sorted(flows)}
    others, lively = site.silent("of-others", timedelta(seconds=89)), site.silent("nightly", timedelta(seconds=30))
    soon(lambda: all(site.state(run) == "CRASHED" for run in ours.values()))
    assert {site.state(run) for run in (others, lively)} == {"RUNNING"}


def test_a_quarantine_is_told_with_reason_and_mend(site: Site) -> None:
    site.quarantine("monday", reason=ODD, mend="cut it anew")
    assert site.text("monday") == f"cmseg: monday was quarantined. {ODD}; cut it anew"
    mail = site.mail("monday")
    assert mail["Subject"] == "cmseg: monday was quarantined"
    assert f"{ODD}; cut it anew" in mail.get_content().replace("\r\n", "\n")


def test_the_server_shows_its_mail_password_to_nobody(site: Site) -> None:
    shown = (site.folder / "prefect.log").read_bytes() + Path(f"/proc/{site.pid}/cmdline").read_bytes()
    for path, content in (
        ("/automations/filter", {}),
        ("/block_documents/filter", {"include_secrets": True}),
        ("/events/filter", {}),
    ):
        shown += json.dumps(site.ask("POST", path, content)).encode()
    assert set(site.mail_host.logins) == {SECRET.encode()}
    assert b"cmseg-alert" in shown
    assert SECRET.encode() not in shown
    for path in site.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_only_those_are_told_who_are_named_and_a_mail_that_fails_stands_in_the_events(site: Site) -> None:
    def kinds() -> set[str]:
        made = site.ask("POST", "/automations/filter", {})
        return {action["type"] for one in made if "alert" in one["name"] for action in one["actions"]}

    assert kinds() == {"call-webhook", "send-notification"}
    (port,) = free_ports(1)
    site.apply(CMSEG_ALERT_EMAIL="night@lab.example", CMSEG_ALERT_SMTP=f"smtp://127.0.0.1:{port}")
    assert kinds() == {"send-notification"}
    site.quarantine("tuesday")
    soon(lambda: f"127.0.0.1:{port}: [Errno 111]" in json.dumps(site.ask("POST", "/events/filter", {})))
    site.apply()
    assert kinds() == set()
    assert len(site.ask("POST", "/automations/filter", {})) == 1


def test_a_refused_mail_is_a_notification_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "not the right one")
    with MailHost() as mail:
        block = Mail(server=f"smtp://{USER}@{mail.host}", recipients=["night@lab.example"])
        with pytest.raises(NotificationError) as refused:
            asyncio.run(block.notify("text", "subject"))
    assert "535" in refused.value.log and "not the right one" not in refused.value.log
    with pytest.raises(NotificationError):  # nobody listens any more
        asyncio.run(block.notify("text", "subject"))
    assert mail.mails == []


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of the other machine, trusted by this one."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, address = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address(OTHER_MACHINE))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("smtp", {"tls_context": True, "require_starttls": True}), ("smtps", {"ssl_context": True})],
)
def test_the_password_goes_to_another_machine_encrypted(
    scheme: str, options: dict[str, bool], certificate: ssl.SSLContext
) -> None:
    contexts = {name: certificate if name.endswith("context") else on for name, on in options.items()}
    with MailHost(hostname=OTHER_MACHINE, **contexts) as mail:
        server = MailServer.of(f"{scheme}://{USER}@{mail.host}")
        server.send(["night@lab.example"], "two\nlines", "text", password=SECRET)
        assert mail.logins == [SECRET.encode()]
        assert [one["Subject"] for one in mail.mails] == ["two lines"]


def test_a_server_that_encrypts_nothing_is_not_told_the_password() -> None:
    with MailHost(hostname=OTHER_MACHINE) as mail:
        server = MailServer.of(f"smtp://{USER}@{mail.host}")
        with pytest.raises(OSError, match="password is not sent"):
            server.send(["night@lab.example"], "subject", "text", password=SECRET)
        assert mail.logins == [] and mail.mails == []
        server.send(["night@lab.example"], "subject", "text")
        assert len(mail.mails) == 1


def test_an_untrusted_certificate_is_refused(certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with MailHost(hostname=OTHER_MACHINE, tls_context=certificate) as mail:
        with pytest.raises(OSError, match="certificate"):
            MailServer.of(f"smtp://{mail.host}").send(["night@lab.example"], "subject", "text")
        assert mail.mails == []


def test_mail_servers_are_read() -> None:
    assert MailServer.of("smtp://a@lab.example@mail.lab.example") == MailServer(
        "mail.lab.example", 587, False, "a@lab.example"
    )
    assert MailServer.of("smtps://a%40lab.example@mail.lab.example:466") == MailServer(
        "mail.lab.example", 466, True, "a@lab.example"
    )
    assert MailServer.of("smtp://localhost:25") == MailServer("localhost", 25, False)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("alert_email", "nobody", "'nobody' is no address"),
        ("alert_email", "night@lab.example; head@lab.example", "is no address"),
        ("alert_email", "night@lab.example,", "'' is no address"),
        ("alert_smtp", "mail.lab.example", "is no server such as smtp://"),
        ("alert_smtp", "https://mail.lab.example", "is no server such as smtp://"),
        ("alert_smtp", "smtp://mail.lab.example:99999", "is no server such as smtp://"),
        ("alert_smtp", "smtp://mail.lab.example/folder", "is no server such as smtp://"),
        ("alert_smtp", f"smtp://{USER}:{SECRET}@mail.lab.example", PASSWORD),
        ("alert_smtp_password", "geheimnisträger", "letters"),
        ("alert_webhook", "hooks.example/night", "is no address such as https://"),
    ],
)
def test_bad_settings_are_told_in_one_line(field: str, value: str, told: str) -> None:
    usual = {"alert_email": "night@lab.example", "alert_smtp": "smtp://mail.lab.example"}
    with pytest.raises(ValidationError) as refused:
        StackSettings(**{**usual, field: value})
    problem = first_problem(refused.value)
    assert problem.startswith(f"{field}: ") and told in problem
    assert SECRET not in problem and "\n" not in problem
    assert SECRET not in str(refused.value), "`--debug` prints all of it"


def test_addresses_and_mail_server_are_set_together() -> None:
    for alone in ({"alert_email": "night@lab.example"}, {"alert_smtp": "smtp://mail.lab.example"}):
        with pytest.raises(ValidationError, match="set together"):
            StackSettings(**alone)


def test_prefect_alone_gets_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMSEG_ALERT_EMAIL", "night@lab.example")
    monkeypatch.setenv("CMSEG_ALERT_SMTP", f"smtp://{USER}@mail.lab.example")
    monkeypatch.setenv(PASSWORD, SECRET)
    stack, settings = Stack(tmp_path), StackSettings()
    services = stack.services(settings)
    assert PASSWORD not in os.environ  # what the services inherit
    assert [service.name for service in services if SECRET in service.environment.values()] == ["Prefect"]
    assert not [service for service in services if SECRET in " ".join(map(str, service.command))]
    assert SECRET not in repr(settings) + repr(services)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(encoding="utf-8")
    # As `cmseg up` asks once more, where all is up.
    assert stack.settings() == StackSettings()
    monkeypatch.setenv(PASSWORD, SECRET)
    assert stack.settings() == settings
