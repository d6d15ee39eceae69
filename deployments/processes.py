"""Child processes that never outlive their parent, and free ports for them."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

LOOPBACK = "127.0.0.1"
_PORTS = range(20_000, 32_768)
"""Registered for few services, and below those that Linux, macOS and Windows give to connections by themselves."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def free_ports(count: int) -> list[int]:
    """`count` different ports that are free on loopback now.

    None of those that the system gives to connections by itself: one of these would soon be taken again. Another
    process may still take one before it is used: whoever starts a service on them must be ready to try again.

    Raises
    ------
    OSError
        Where there are not so many.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in SystemRandom().sample(_PORTS, len(_PORTS)):
            probe = socket.socket()
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                probe.close()
                continue
            held.enter_context(probe)
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(errno.EADDRINUSE, f"{count} ports are not free from {_PORTS.start} to {_PORTS.stop - 1}")


def port_is_free(port: int) -> bool:
    """Whether a service could listen on a port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers of a former service is no service
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def start(
    command: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    account: str | None = None,
    farewell: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a service with its output in a file; the kernel ends it where this process dies, even by SIGKILL.

    Linux ties this to the thread that starts the service: start services from a thread that lives as long as they do.

    Parameters
    ----------
    command : sequence of str or path
    folder : path
        Working folder of the process.
    log : path
        Appended to; readable by the user only.
    environment : mapping, optional
        Variables added to those of this process.
    account : str, optional
        User of the machine under whom it runs; only root can choose.
    farewell : signal
        What the kernel sends it where this process dies.
    """
    parent = os.getpid()

    def tie_to_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, farewell)
        if os.getppid() != parent:  # it died before prctl was reached
            os._exit(1)

    entry = pwd.getpwnam(account) if account is not None else None
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            preexec_fn=tie_to_parent,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the service in order
            user=entry and entry.pw_uid,
            group=entry and entry.pw_gid,
            extra_groups=None if entry is None else [],
        )
    finally:
        os.close(descriptor)


def stop(process: subprocess.Popen[bytes], *, patience: float = 10.0, farewell: signal.Signals = signal.SIGTERM) -> int:
    """End a process of :func:`start` and all that it started; returns its exit status.

    Parameters
    ----------
    process : Popen
    patience : float
        Seconds after which it is killed.
    farewell : signal
        Asks it to end.
    """
    if process.poll() is None:
        process.send_signal(farewell)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    end_group(process.pid)
    return process.wait()


def end_group(pid: int) -> None:
    """Kill what is left of the processes that a service of :func:`start` began."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
