"""Metrics for Prometheus: the service on loopback, and the server behind it, which asks for a password.

What is exported is read by :mod:`flows.metrics`, which knows the landing zone.
"""

from __future__ import annotations

import base64
import hmac
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cmseg_core.errors import InputError
from deployments.processes import LOOPBACK
from deployments.service import Service, answer

USER = "cmseg"
PATH = "/metrics"
WAIT_SECONDS = 4.0
"""What a scrape waits for the sources; Prometheus gives up after ten by default."""

log = logging.getLogger("cmseg.metrics")


def metrics_service(
    folder: Path, port: int, *, password: str, workspace: Path, environment: Mapping[str, str], log: Path
) -> Service:
    """The service.

    Parameters
    ----------
    folder : path
    port : int
    password : str
        Of the user ``cmseg``.
    workspace : path
        Whose stack it tells of.
    environment : mapping
        Variables under which it reaches the object store and Prefect.
    log : path
    """
    return Service(
        name="metrics",
        command=(sys.executable, "-m", "flows.metrics", str(workspace)),
        folder=folder,
        log=log,
        # An anonymous request is refused at once, however long the sources take.
        healthy=lambda: answer(f"http://{LOOPBACK}:{port}{PATH}") == 401,
        environment={
            **environment,
            "CMSEG_METRICS_HOST": LOOPBACK,
            "CMSEG_METRICS_PORT": str(port),
            "CMSEG_METRICS_PASSWORD": password,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )


@dataclass(frozen=True)
class Source:
    """Something that is asked for metrics.

    Attributes
    ----------
    name : str
    read : callable
        May take long, and may fail.
    every : float
        Seconds for which an answer is good.
    """

    name: str
    read: Callable[[], list[Metric]]
    every: float = 0.0


class Sources(Collector):
    """Asks all sources at once at each scrape. One that fails or hangs takes its own metrics away, and no others.

    Parameters
    ----------
    sources : sequence of Source
    within : float
        Seconds that a scrape waits. An answer that takes longer counts at the next one.
    """

    def __init__(self, sources: Sequence[Source], within: float = WAIT_SECONDS) -> None:
        self._asked = [_Asked(source) for source in sources]
        self._within = within
        self._pool = ThreadPoolExecutor(len(sources), thread_name_prefix="source")
        self._one_at_a_time = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: what is exported is known once the sources have answered."""
        return []

    def collect(self) -> list[Metric]:
        """The metrics of the sources that answered, and which these are."""
        begun = time.monotonic()
        with self._one_at_a_time:
            under_way = [asked.begin(self._pool) for asked in self._asked]
        wait(under_way, timeout=self._within)  # scrapes at the same time wait for the same answers
        answers = [(asked.source.name, asked.answer(begun)) for asked in self._asked]
        up = GaugeMetricFamily(
            "cmseg_metrics_source_up", "Whether a source of these metrics answers.", labels=["source"]
        )
        for name, metrics in answers:
            up.add_metric([name], metrics is not None)
        return [up, *(metric for _, metrics in answers for metric in metrics or ())]


class _Asked:
    """A source with its last answer."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._future: Future[None] | None = None
        self._last: tuple[float, list[Metric] | None] = (float("-inf"), None)

    def begin(self, pool: ThreadPoolExecutor) -> Future[None]:
        """Ask, unless it is being asked or its answer is still good."""
        at, metrics = self._last
        good = metrics is not None and time.monotonic() - at < self.source.every
        if self._future is None or (self._future.done() and not good):
            self._future = pool.submit(self._ask)
        return self._future

    def answer(self, begun: float) -> list[Metric] | None:
        """The last answer, unless it is too old for a scrape that has begun then."""
        at, metrics = self._last
        good = at >= begun or time.monotonic() - at < 2 * self.source.every
        return metrics if good else None

    def _ask(self) -> None:
        metrics = None
        try:
            metrics = self.source.read()
        except Exception as error:  # whatever it is, the others go on
            log.warning("%s: %s", self.source.name, error)
        self._last = time.monotonic(), metrics


def server(collector: Collector, port: int, password: str, host: str = LOOPBACK) -> WSGIServer:
    """A server that is ready to ``serve_forever``.

    Parameters
    ----------
    collector : Collector
    port : int
    password : str
        Of the user ``cmseg``.
    host : str
        Address on which it listens.

    Raises
    ------
    InputError
        Where the password is empty: anybody could give that one.
    """
    if not password:
        raise InputError("the metrics", "have no password", "set CMSEG_METRICS_PASSWORD")
    registry = CollectorRegistry()
    registry.register(collector)
    guarded = _guarded(make_wsgi_app(registry), password)
    return make_server(host, port, guarded, server_class=_Server, handler_class=_Handler)


def _guarded(app: Callable[..., Iterable[bytes]], password: str) -> Callable[..., Iterable[bytes]]:
    token = base64.b64encode(f"{USER}:{password}".encode()).decode()

    def respond(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Basic {token}".encode()):
            start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="cmseg"')])
            return []
        if environ["PATH_INFO"] != PATH:
            start_response("404 Not Found", [])
            return []
        return app(environ, start_response)

    return respond


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A line for each scrape would fill the log."""
