"""A proxy in front of the services of a night, which counts their calls and harms the ones it is told to."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit

import h11

_CHUNK = 2**16


class Harm(StrEnum):
    """What can happen to a call."""

    REFUSED = "refused"
    """Answered with 400, which no client tries again: what called sees the failure."""
    BUSY = "busy"
    """Answered with 503."""
    BROKEN = "broken"
    """Answered with 500."""
    RESET = "reset"
    """The connection is reset before the service hears of the call."""
    LOST = "lost"
    """The service does what it was asked to, and the connection is reset before the answer."""
    TRUNCATED = "truncated"
    """The connection ends in the middle of the answer."""
    SLOW = "slow"
    """The answer takes two seconds."""
    KILLED_BEFORE = "killed before"
    """The victim is killed before the service hears of the call."""
    KILLED_AFTER = "killed after"
    """The victim is killed once the service has done what it was asked to."""


_STATUS = {Harm.REFUSED: 400, Harm.BUSY: 503, Harm.BROKEN: 500}
_LATER = {Harm.LOST, Harm.TRUNCATED, Harm.SLOW, Harm.KILLED_AFTER}
"""Harm to calls that the service hears of."""
_SECONDS = 2.0
_LISTED = re.compile(rb"(<LastModified>)([0-9T:-]{19})([^<]*</LastModified>)")


@dataclass(frozen=True)
class Call:
    """One call: its number among all since `Proxy.begin`, the service, method and path."""

    number: int
    service: str
    method: str
    target: str


Plan = Callable[[Call], Harm | None]


def unharmed(_call: Call) -> None:
    """The plan of an undisturbed night."""


def at(number: int, harm: Harm) -> Plan:
    """Harm one call."""
    return lambda call: harm if call.number == number else None


def first(pattern: str, harm: Harm | None = None, act: Callable[[], None] = lambda: None) -> Plan:
    """Act before the first call whose ``METHOD path`` the pattern matches, and harm it."""
    seen: list[Call] = []

    def plan(call: Call) -> Harm | None:
        if seen or not re.search(pattern, f"{call.method} {call.target}"):
            return None
        seen.append(call)
        act()
        return harm

    return plan


def some(share: float, harms: Sequence[Harm], seed: int, service: str = "store") -> Plan:
    """Harm a share of the calls to a service."""
    rng = random.Random(seed)
    return lambda call: rng.choice(harms) if call.service == service and rng.random() < share else None


class Proxy:
    """A server on loopback for each of some services on loopback; use as a context.

    Parameters
    ----------
    services : mapping of str to str
        Name to address, as in ``http://127.0.0.1:8333``.

    Attributes
    ----------
    calls : list of Call
        Since the last `begin`. Web sockets pass and are not counted.
    harmed : list of Call
    ahead : float
        Seconds by which the clocks of the services seem to be ahead.
    """

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = {name: urlsplit(address) for name, address in services.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: dict[str, asyncio.Server] = {}
        self._ports: dict[str, int] = {}
        self._victim: int | None = None
        self.ahead = 0.0
        self.begin(unharmed)

    def __enter__(self) -> Self:
        self._thread.start()
        for name in self._services:
            asyncio.run_coroutine_threadsafe(self._listen(name), self._loop).result()
        return self

    def __exit__(self, *_error: object) -> None:
        for server in self._servers.values():
            self._loop.call_soon_threadsafe(server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def address(self, service: str) -> str:
        """Where a service is reached by way of the proxy."""
        return f"http://127.0.0.1:{self._ports[service]}{self._services[service].path}"

    def begin(self, plan: Plan) -> None:
        """Count from one again, and follow another plan."""
        self.plan = plan
        self.calls: list[Call] = []
        self.harmed: list[Call] = []
        self._victim = None

    def aim(self, victim: int) -> None:
        """Name the process that is killed where the plan says so."""
        self._victim = victim

    # ------------------------------------------------------------------------------------------------- connections

    async def _listen(self, name: str) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._serve(name, reader, writer)
            except (OSError, h11.RemoteProtocolError, h11.LocalProtocolError, asyncio.IncompleteReadError):
                pass  # either side went away
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", self._ports.get(name, 0))
        self._servers[name] = server
        self._ports[name] = server.sockets[0].getsockname()[1]

    async def _miss(self, name: str) -> None:
        """Refuse connections, as the port of a service that is away does, until it is there again."""
        server = self._servers.pop(name, None)
        if server is None:
            return  # another connection has found out before
        server.close()
        while name not in self._servers:
            await asyncio.sleep(0.1)
            with suppress(OSError):
                _, writer = await asyncio.open_connection(self._services[name].hostname, self._services[name].port)
                writer.close()
                await self._listen(name)

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = self._services[name]
        try:
            far_reader, far_writer = await asyncio.open_connection(place.hostname, place.port)
        except ConnectionRefusedError:
            _reset(writer)
            await self._miss(name)
            return
        try:
            near, far = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
            while True:
                request = await _next(near, reader, writer)
                if not isinstance(request, h11.Request):
                    return
                if any(field == b"upgrade" for field, _ in request.headers):
                    far_writer.write(_head(request) + near.trailing_data[0])
                    await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
                    return
                body = await _body(near, reader, writer)
                call = Call(len(self.calls) + 1, name, request.method.decode(), request.target.decode())
                self.calls.append(call)
                harm = self.plan(call)
                if harm is not None:
                    self.harmed.append(call)
                if harm is not None and harm not in _LATER:
                    await self._fail(harm, near, writer)
                    if harm not in _STATUS:
                        return
                else:
                    far_writer.write(b"".join(_sent(far, request, body)))
                    answer, content = self._dated(*await _answered(far, far_reader, far_writer))
                    if harm is not None and not await self._pass(harm, near, answer, content, writer):
                        return
                    writer.write(b"".join(_sent(near, answer, content)))
                    await writer.drain()
                    if far.our_state is not h11.DONE or far.their_state is not h11.DONE:
                        return
                    far.start_next_cycle()
                if near.our_state is not h11.DONE:
                    return
                near.start_next_cycle()
        finally:
            far_writer.close()

    async def _fail(self, harm: Harm, near: h11.Connection, writer: asyncio.StreamWriter) -> None:
        """Answer in the place of the service."""
        if harm in _STATUS:
            text = f"<Error><Code>{harm.name}</Code><Message>{harm}</Message></Error>".encode()
            headers = [("content-type", "application/xml"), ("content-length", str(len(text)))]
            writer.write(b"".join(_sent(near, h11.Response(status_code=_STATUS[harm], headers=headers), text)))
            await writer.drain()
        else:
            self._kill(harm)
            _reset(writer)

    async def _pass(
        self, harm: Harm, near: h11.Connection, answer: h11.Response, content: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Do harm to an answer; whether it still goes out."""
        if harm is Harm.SLOW:
            await asyncio.sleep(_SECONDS)
            return True
        if harm is Harm.TRUNCATED:
            head = near.send(answer)
            writer.write((head or b"") + content[: len(content) // 2])
            await writer.drain()
        self._kill(harm)
        _reset(writer)
        return False

    def _dated(self, answer: h11.Response, content: bytes) -> tuple[h11.Response, bytes]:
        """An answer as from a service whose clock is ahead."""
        if not self.ahead:
            return answer, content
        headers = [
            (name, self._later(value) if name in (b"date", b"last-modified") else value)
            for name, value in answer.headers
        ]
        answer = h11.Response(status_code=answer.status_code, headers=headers, reason=answer.reason)
        if b"<ListBucketResult" not in content:
            return answer, content
        # Of the same length, so that the header of it stays true.
        return answer, _LISTED.sub(lambda found: found[1] + self._listed(found[2]) + found[3], content)

    def _later(self, value: bytes) -> bytes:
        then = parsedate_to_datetime(value.decode()) + timedelta(seconds=self.ahead)
        return format_datetime(then, usegmt=True).encode()

    def _listed(self, value: bytes) -> bytes:
        then = datetime.fromisoformat(value.decode()) + timedelta(seconds=self.ahead)
        return then.strftime("%Y-%m-%dT%H:%M:%S").encode()

    def _kill(self, harm: Harm) -> None:
        if harm in (Harm.KILLED_BEFORE, Harm.KILLED_AFTER) and self._victim is not None:
            os.kill(self._victim, signal.SIGKILL)


async def _next(connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        if connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        connection.receive_data(await reader.read(_CHUNK))
    return event


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    parts = []
    while not isinstance(event := await _next(connection, reader, writer), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise ConnectionError("it went away in the middle of a message")
        parts.append(bytes(event.data))
    return b"".join(parts)


async def _answered(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[h11.Response, bytes]:
    while not isinstance(answer := await _next(connection, reader, writer), h11.Response):
        if not isinstance(answer, h11.InformationalResponse):
            raise ConnectionError("the service went away")
    return answer, await _body(connection, reader, writer)


def _sent(connection: h11.Connection, message: h11.Request | h11.Response, body: bytes) -> list[bytes]:
    events = [message, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
    return [data for event in events if (data := connection.send(event))]


def _head(request: h11.Request) -> bytes:
    lines = [b" ".join((request.method, request.target, b"HTTP/1.1"))]
    lines += [name + b": " + value for name, value in request.headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a machine does that knows nothing of it."""
    held = writer.get_extra_info("socket")
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
