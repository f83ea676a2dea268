"""StatusServer: what an operator sees of a running relay, over HTTP on loopback."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from flare.auto_relay import AutoRelay
from flare.config import StatusLimits
from flare.errors import UsageError
from flare.host import Host
from flare.relay_server import RelayServer
from flare.watch.http import PLAIN, Answer, HttpServer, Refused, Request, parse_address
from flare.watch.page import render
from flare.watch.watcher import Watcher

if TYPE_CHECKING:
    from flare.watch.metrics import Exporter

log = logging.getLogger("flare.watch")

DEFAULT_ADDRESS: Final = "127.0.0.1:9100"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
NO_METRICS: Final = "/metrics needs the package prometheus-client: pip install prometheus-client"


class StatusServer:
    """`async with StatusServer(relay, "127.0.0.1:9100"):` answers while the block lasts.

    / is a page for people, /status.json the same for programs, /healthz 200 or 503 with reasons, /metrics for
    Prometheus. `watched` is a relay, or a host that serves none. There is no password: an address other than
    loopback shows the status to whoever reaches it. Requests by a name are answered only for localhost and
    for `names`. `auto_relay` is the host's, for its metrics. NetworkError when the address cannot be listened
    on.
    """

    def __init__(
        self,
        watched: RelayServer | Host,
        address: str = DEFAULT_ADDRESS,
        *,
        names: Iterable[str] = (),
        limits: StatusLimits | None = None,
        auto_relay: AutoRelay | None = None,
    ) -> None:
        self._where = parse_address(address)
        limits = limits or StatusLimits()
        self._watcher = Watcher(watched, limits, auto_relay)
        self._exporter = _exporter(self._watcher)
        host = self._watcher.host
        self._http = HttpServer(self._answer, names=names, limits=limits, timeouts=host.config.timeouts)
        self._routes: dict[str, Callable[[], Coroutine[Any, Any, Answer]]] = {
            "/": self._page,
            "/status.json": self._json,
            "/healthz": self._health,
            "/metrics": self._metrics,
        }
        self._open = False

    async def __aenter__(self) -> Self:
        if self._open:
            raise UsageError("this status server is running already")
        self._where = await self._http.listen(*self._where)
        self._watcher.start()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        self._watcher.stop()
        await self._http.close()

    @property
    def address(self) -> str:
        """Where it listens: "127.0.0.1:9100"."""
        host, port = self._where
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{self.address}/"

    @property
    def has_metrics(self) -> bool:
        """Whether /metrics has an answer: prometheus-client is installed."""
        return self._exporter is not None

    async def _answer(self, request: Request) -> Answer:
        route = self._routes.get(request.path)
        if route is None:
            raise Refused(HTTPStatus.NOT_FOUND, "here are " + ", ".join(self._routes))
        return await route()

    async def _page(self) -> Answer:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = render(await self._watcher.snapshot(), nonce)
        return Answer(HTTPStatus.OK, page, HTML, (("Content-Security-Policy", policy),))

    async def _json(self) -> Answer:
        snapshot = await self._watcher.snapshot()
        return Answer(HTTPStatus.OK, json.dumps(snapshot.as_json()) + "\n", JSON)

    async def _health(self) -> Answer:
        health = self._watcher.health()
        body = {"status": "ok" if health.ok else "unavailable", "reasons": health.reasons}
        status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, json.dumps(body) + "\n", JSON)

    async def _metrics(self) -> Answer:
        if self._exporter is None:
            return Answer(HTTPStatus.NOT_IMPLEMENTED, NO_METRICS + "\n", PLAIN)
        return Answer(HTTPStatus.OK, await self._exporter.scrape(), self._exporter.content_type)


def _exporter(watcher: Watcher) -> Exporter | None:
    """None without prometheus-client."""
    try:
        from flare.watch.metrics import Exporter
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "prometheus_client":
            raise
        log.info(NO_METRICS)
        return None
    return Exporter(watcher)
